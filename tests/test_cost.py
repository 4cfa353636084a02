import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import effnet
from effnet.arch import Arch, scale
from effnet.cost import Cost, cost, cost_by_kind, macs
from effnet.families import BASELINES, MEMBERS
from effnet.measure import compare

# facts.md section 2; torchvision and timm agree to the unit
PUBLISHED = {
    "b0": Cost(385_814_752, 5_288_548, 6_748_036),
    "b1": Cost(686_802_832, 7_794_184, 10_884_328),
    "b2": Cost(993_561_872, 9_109_994, 13_832_834),
    "b3": Cost(1_827_141_392, 12_233_232, 23_831_296),
    "b4": Cost(4_393_771_024, 19_341_616, 49_489_032),
    "b5": Cost(10_266_384_752, 30_389_784, 98_857_400),
    "b6": Cost(19_067_593_536, 43_040_704, 167_393_400),
    "b7": Cost(37_745_884_192, 66_347_960, 289_939_464),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_members(name: str) -> None:
    assert cost(effnet.arch(name)) == PUBLISHED[name]


def test_published_parameters() -> None:
    assert cost(effnet.arch("b8")).params == 87_413_142
    assert cost(effnet.arch("l2")).params == 480_309_308


def test_b0_of_stride_16_at_112_px_costs_what_b0_does() -> None:
    for name in ("b0", "b0-s16"):
        assert macs(effnet.arch(name, num_classes=10)) == 384_547_552


def test_kinds_and_blocks_add_up() -> None:
    for name in MEMBERS:
        net = effnet.arch(name)
        total = Cost(0, 0, 0)
        for part in cost_by_kind(net).values():
            total += part
        assert total == cost(net) and macs(net) == total.macs


@st.composite
def networks(draw: st.DrawFn) -> Arch:
    base = BASELINES[draw(st.sampled_from(sorted(BASELINES)))]
    rounding = draw(st.sampled_from(["official", "spread"]))
    base = dataclasses.replace(
        base,
        rounding=rounding,
        divisor=8 if rounding == "official" else draw(st.sampled_from([1, 2, 4, 8])),
        stages=tuple(dataclasses.replace(s, kernel=draw(st.sampled_from([3, 5, 7]))) for s in base.stages),
    )
    return scale(
        base,
        draw(st.floats(0.5, 2.5)),
        draw(st.floats(0.1, 1.2)),
        draw(st.integers(16, 70)),
        num_classes=draw(st.integers(1, 300)),
    )


@settings(max_examples=8, deadline=None)
@given(networks())
def test_random_networks_equal_every_counter(net: Arch) -> None:
    model = effnet.build(net).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, net.resolution, net.resolution))
    ours = cost(net)
    assert counter.get_total_flops() == 2 * ours.macs
    assert sum(p.numel() for p in model.parameters()) == ours.params
    assert all(row.equal for row in compare(net))  # fvcore: macs and acts, per operator kind


def test_compare_sees_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The referee can fail: a module that is not the described one is told apart."""
    net, other = effnet.arch("b0", width=0.25, resolution=32), effnet.arch("b0", width=0.5, resolution=32)
    monkeypatch.setattr("effnet.measure.effnet.build", lambda arch: effnet.model.EfficientNet(other))
    assert not any(row.equal for row in compare(net))
