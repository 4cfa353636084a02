"""Each rule against its origin: timm, torchvision, the formulas of pycls, or brute force."""

import dataclasses
import math
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import effnet
from effnet.arch import repeats_at, scale, widths_at
from effnet.cost import cost
from effnet.families import BASELINES
from effnet.rounding import ROUNDINGS, rule, snap, spread_repeats

widths = st.floats(0.05, 8)
counts = st.integers(1, 2000)
stages = st.lists(st.integers(1, 9), min_size=2, max_size=8)


@settings(deadline=None)  # the first example imports timm
@given(widths, counts)
def test_official_and_v2_channels_are_timms(width: float, c: int) -> None:
    layers = pytest.importorskip("timm.layers")
    assert ROUNDINGS["official"].channels(c * width, 8) == layers.make_divisible(c * width, 8)
    assert ROUNDINGS["v2"].channels(c * width, 8) == layers.make_divisible(
        c * width, 8, round_limit=0.0
    )


@settings(deadline=None)
@given(widths, counts)
def test_torchvision_channels(width: float, c: int) -> None:
    utils = pytest.importorskip("torchvision.models._utils")
    assert ROUNDINGS["torchvision"].channels(c * width, 8) == utils._make_divisible(c * width, 8)


@pytest.mark.parametrize(("width", "depth"), [(1.07, 1.0), (1.3, 1.7), (0.6, 0.8), (2.05, 1.1)])
def test_torchvision_head_is_four_times_the_last_stage(width: float, depth: float) -> None:
    theirs = pytest.importorskip("torchvision.models.efficientnet")
    row = partial(theirs.MBConvConfig, width_mult=width, depth_mult=depth)
    inputs = [32, *(s.width for s in BASELINES["b0"].stages)]
    rows = [
        row(s.expand, s.kernel, s.stride, c, s.width, s.repeats)
        for s, c in zip(BASELINES["b0"].stages, inputs[:-1], strict=True)
    ]
    model = theirs.EfficientNet(rows, 0.2, num_classes=10)
    net = effnet.arch("b0", width=width, depth=depth, rounding="torchvision", num_classes=10)
    assert cost(net).params == sum(p.numel() for p in model.parameters())
    if width == 1.07:  # 4 times the last stage is here another width than 1280 times 1.07, rounded
        assert (net.head_width, effnet.arch("b0", width=width).head_width) == (1376, 1368)


@pytest.mark.parametrize("letter", "abcde")
def test_tinynets_are_timms(letter: str) -> None:
    theirs = pytest.importorskip("timm").create_model(f"tinynet_{letter}")
    assert cost(effnet.arch(f"tinynet-{letter}")).params == sum(
        p.numel() for p in theirs.parameters()
    )


@pytest.mark.parametrize(("width", "depth"), [(1.0, 1.2), (1.37, 0.9), (0.41, 1.9)])
def test_tinynet_and_lite_rules_anywhere(width: float, depth: float) -> None:
    models = pytest.importorskip("timm.models.efficientnet")
    for rule_name, make in (
        ("tinynet", models._gen_tinynet),
        ("lite", models._gen_efficientnet_lite),
    ):
        variant = {"tinynet": "tinynet_a", "lite": "efficientnet_lite0"}[rule_name]
        theirs = make(variant, width, depth)
        ours = effnet.arch(rule_name, width=width, depth=depth)
        assert cost(ours).params == sum(p.numel() for p in theirs.parameters()), rule_name


@pytest.mark.parametrize(("width", "depth"), [(1.1, 1.2), (0.55, 1.0), (1.4, 1.0)])
def test_mobilenetv2_rule_is_torchvisions(width: float, depth: float) -> None:
    theirs = pytest.importorskip("torchvision").models
    rows = [
        [s.expand, s.width, math.ceil(s.repeats * depth), s.stride]
        for s in BASELINES["mobilenetv2"].stages
    ]
    model = theirs.MobileNetV2(width_mult=width, inverted_residual_setting=rows)
    ours = effnet.arch("mobilenetv2", width=width, depth=depth)
    assert cost(ours).params == sum(p.numel() for p in model.parameters())


@given(widths, counts)
def test_nearest_is_the_formula_of_pycls(width: float, c: int) -> None:
    """As in pycls' models/scaler.py: max(1, round(c·w/8))·8, max(1, round), Python's round."""
    assert ROUNDINGS["nearest"].channels(c * width, 8) == max(1, round(c * width / 8)) * 8
    assert ROUNDINGS["nearest"].repeats(width, (c,)) == (max(1, round(c * width)),)


def test_the_rules_differ_where_they_should() -> None:
    rounded = {name: r.channels(18.0, 8) for name, r in ROUNDINGS.items()}
    assert rounded["official"] == 24
    assert rounded["v2"] == 16  # 16 is below nine tenths of 18
    assert rounded["notebook"] == 20
    assert (ROUNDINGS["nearest"].channels(20.0, 8), ROUNDINGS["spread"].channels(20.0, 8)) == (
        16,
        24,
    )  # halves
    assert ROUNDINGS["lite"].repeats(1.5, (1, 2, 1)) == (1, 3, 1)
    assert ROUNDINGS["tinynet"].repeats(1.2, (1, 2, 4)) == (1, 2, 5)


@given(st.floats(1, 5000), st.sampled_from([1, 2, 4, 8, 16]))
def test_spread_channels_are_the_nearest_multiple(width: float, divisor: int) -> None:
    rounded = ROUNDINGS["spread"].channels(width, divisor)
    assert rounded % divisor == 0
    assert rounded >= divisor
    if width >= divisor:
        assert abs(rounded - width) <= divisor / 2 + 1e-6


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 60))
def test_spread_repeats_follow_the_base(base: list[int], extra: int) -> None:
    total = len(base) + extra
    repeats = spread_repeats(total, tuple(base))
    assert sum(repeats) == total
    assert min(repeats) >= 1
    assert spread_repeats(3 * sum(base), tuple(base)) == tuple(3 * n for n in base)
    # no stage is more than one block from its exact share, but for the floor of one
    for n, b in zip(repeats, base, strict=True):
        share = total * b / sum(base)
        assert n <= math.floor(share) + 1 or n == 1


@given(
    stages,
    st.floats(0.05, 6),
    st.floats(0, 2),
    st.sampled_from(sorted(set(ROUNDINGS) - {"spread"})),
)
def test_more_depth_never_gives_fewer_blocks(
    base: list[int], depth: float, more: float, name: str
) -> None:
    """What solving by bisection rests on. (`spread` may move a block: budget.py walks around
    it.)"""
    few, many = (rule(name).repeats(d, tuple(base)) for d in (depth, depth + more))
    assert all(a <= b for a, b in zip(few, many, strict=True))
    assert min(few) >= 1


@given(st.sampled_from(sorted(ROUNDINGS)), st.floats(0.05, 6), st.floats(0, 2))
def test_more_width_never_gives_fewer_channels(name: str, width: float, more: float) -> None:
    b = dataclasses.replace(BASELINES["b0"], rounding=name)
    few, many = widths_at(b, width), widths_at(b, width + more)
    assert all(a <= b for a, b in zip(few, many, strict=True))
    assert min(few) >= 1


def test_depth_snaps_before_ceil() -> None:
    # (2**.5)**2 is 2.0000000000000004: without a snap its ceil is 3
    assert math.ceil((2**0.5) ** 2) == 3
    assert math.ceil(snap((2**0.5) ** 2)) == 2
    b0 = BASELINES["b0"]
    assert repeats_at(b0, (2**0.5) ** 2) == (2, 4, 4, 6, 6, 8, 2)
    assert sum(repeats_at(b0, 1.0001)) == 23  # ceil alone adds seven blocks


def test_unknown_rule() -> None:
    with pytest.raises(ValueError, match="rounding = 'up': known are official, torchvision"):
        effnet.arch("b0", rounding="up")
    with pytest.raises(ValueError, match="6 blocks: at least one for each of the 7 stages"):
        scale(dataclasses.replace(BASELINES["b0"], rounding="spread"), depth=6 / 16)
