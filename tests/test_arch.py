import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effnet.arch import Arch, Scaling, blocks, channels, scale, snap, spread_repeats
from effnet.families import BASELINES, MEMBERS, arch, baseline


@settings(deadline=None)  # the first example imports timm
@given(st.floats(0.05, 8), st.integers(1, 2000))
def test_official_channels_are_timms(width: float, c: int) -> None:
    layers = pytest.importorskip("timm.layers")
    assert channels(c * width, 8, "official") == layers.make_divisible(c * width, 8)


@given(st.floats(1, 5000), st.sampled_from([1, 2, 4, 8, 16]))
def test_spread_channels_are_the_nearest_multiple(width: float, divisor: int) -> None:
    rounded = channels(width, divisor, "spread")
    assert rounded % divisor == 0 and rounded >= divisor
    if width >= divisor:
        assert abs(rounded - width) <= divisor / 2 + 1e-6


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 60))
def test_spread_repeats_follow_the_base(base: list[int], extra: int) -> None:
    total = len(base) + extra
    counts = spread_repeats(total, tuple(base))
    assert sum(counts) == total and min(counts) >= 1
    assert spread_repeats(3 * sum(base), tuple(base)) == tuple(3 * n for n in base)
    # no stage is more than one block from its exact share, but for the floor of one
    for n, b in zip(counts, base, strict=True):
        share = total * b / sum(base)
        assert n <= math.floor(share) + 1 or n == 1


def test_spread_refuses_fewer_blocks_than_stages() -> None:
    with pytest.raises(ValueError, match="at least one for each of the 7 stages"):
        BASELINES["b0"].with_blocks(6)


def test_depth_snaps_before_ceil() -> None:
    # (2**.5)**2 is 2.0000000000000004: without a snap its ceil is 3
    s = Scaling(2**0.5, 1, 1, 2)
    assert math.ceil((2**0.5) ** 2) == 3 and math.ceil(snap((2**0.5) ** 2)) == 2
    assert s.depth == 2.0
    assert [stage.repeats for stage in arch("b0", alpha=2**0.5, phi=2).stages] == [2, 4, 4, 6, 6, 8, 2]
    assert arch("b0", depth=1.0001).blocks == 23  # facts.md section 4: ceil alone adds seven blocks


def test_key_is_the_shape_and_survives_json() -> None:
    net = arch("b3", num_classes=10)
    assert Arch.from_dict(net.as_dict()) == net
    assert Arch.from_dict(net.as_dict()).key == net.key
    assert arch("b0").key == arch("b0", depth=1.0, width=1.0).key
    keys = {arch(name).key for name in MEMBERS}
    assert len(keys) == len(MEMBERS)
    assert hash(net) == hash(Arch.from_dict(net.as_dict()))


def test_total_strides() -> None:
    assert [BASELINES[n].total_stride for n in ("b0", "b0-s16", "b0-s8", "b0-s4")] == [32, 16, 8, 4]
    strides = [s.stride for s in BASELINES["b0-s8"].stages]
    assert BASELINES["b0-s8"].stem_stride == 1 and strides == [1, 1, 2, 2, 1, 2, 1]


def test_blocks_chain() -> None:
    parts = list(blocks(arch("b4", resolution=None)))
    for before, after in itertools.pairwise(parts):
        assert before.c_out == after.c_in and before.side_out == after.side_in
    assert sum(b.repeats for b in parts) == arch("b4").blocks + 2


def test_compound_takes_any_phi() -> None:
    small = arch("b0", alpha=1.2, beta=1.1, gamma=1.15, phi=-1)
    assert small.resolution == round(224 / 1.15) and small.head_width < 1280
    net = arch("b0", alpha=1.2, beta=1.1, gamma=1.15, phi=1)
    assert net.resolution == 258 and net.blocks == 23


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("b99", {}, "unknown network 'b99'"),
        ("b3", {"depth": 2.0}, "already scaled"),
        ("b0", {"depth": 0.0}, "depth = 0.0: must be a finite number above 0"),
        ("b0", {"width": float("nan")}, "must be a finite number"),
        ("b0", {"alpha": -1.0}, "alpha = -1.0"),
        ("b0", {"resolution": 0}, "resolution = 0"),
        ("b0", {"num_classes": 0}, "num_classes = 0"),
        ("b0", {"alpha": 1.2, "depth": 1.2}, "not both"),
        ("b0", {"phi": 3.0}, "phi scales alpha, beta and gamma"),
        ("b3", {"phi": 2.0}, "phi scales alpha, beta and gamma"),
        ("b0", {"alpha": 2.0, "phi": 5000.0}, "beyond a factor of a million"),
    ],
)
def test_wrong_input(name: str, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arch(name, **given)


def test_unknown_baseline() -> None:
    with pytest.raises(ValueError, match="known are b0"):
        baseline("c3")
    assert scale(baseline("b0")).key == arch("b0").key
