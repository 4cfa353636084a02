import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effnet.arch import Baseline, Scaling, scale
from effnet.budget import nearest_width
from effnet.cost import macs
from effnet.families import BASELINES, PAPER
from effnet.shares import along, direction, distance, nominal_shares, shares, waste


def base(name: str, resolution: int, width: float = 1.0, divisor: int = 8) -> Baseline:
    return dataclasses.replace(BASELINES[name], resolution=resolution, width=width, divisor=divisor, rounding="spread")


def test_resolution_is_a_staircase() -> None:
    """B0 at 225 px costs 1.155 times its share of pixels, at 256 or 288 px exactly its share."""
    per_pixel = waste(BASELINES["b0"], [224, 225, 256, 288], 1000)
    assert per_pixel[225] - per_pixel[224] == pytest.approx(0.155, abs=0.002)
    assert per_pixel[256] == pytest.approx(per_pixel[224], abs=0.002)
    assert per_pixel[288] == pytest.approx(per_pixel[224], abs=0.002)


def test_shares_of_facts() -> None:
    """facts.md section 4: two networks near the paper's point and their real shares."""
    b = base("b0", 224)
    for blocks, width, px, ratio, expected in (
        (19, 1.098, 258, 2.004, (0.25, 0.165, 0.58)),
        (21, 1.106, 256, None, (0.39, 0.23, 0.38)),
    ):
        got = shares(b, blocks / 16, width, px, 1000)
        assert got == pytest.approx(expected, abs=0.006)
        if ratio:
            assert macs(scale(b, blocks / 16, width, px, num_classes=1000)) / 385_814_752 == pytest.approx(
                ratio, abs=6e-4
            )
    assert nominal_shares(PAPER) == pytest.approx((0.28, 0.29, 0.43), abs=0.005)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([("b0-s4", 16, 0.25, 4), ("b0", 64, 1.0, 8), ("resnet50", 32, 0.5, 8), ("v2-s", 64, 1.0, 8)]),
    st.sampled_from(["spread", "official"]),
    st.integers(17, 60),
    st.floats(1, 3),
    st.floats(1, 3),
)
def test_shares_of_larger_networks(
    of: tuple[str, int, float, int], rounding: str, blocks: int, width: float, gamma: float
) -> None:
    """They sum to 1 within 1e-12, none is negative, and pure scalings sit on the corners."""
    name, side, thin, divisor = of
    b = dataclasses.replace(base(name, side, thin, divisor), rounding=rounding)
    depth, px = max(1.0, blocks / b.blocks), int(gamma * side)
    got = shares(b, depth, width, px, 10)
    if got is not None:
        assert abs(sum(got) - 1) <= 1e-12 and min(got) >= 0
    for corner, pure in (
        ((1, 0, 0), (depth, 1.0, side)),
        ((0, 1, 0), (1.0, width, side)),
        ((0, 0, 1), (1.0, 1.0, px)),
    ):
        alone = shares(b, *pure, 10)
        assert alone is None or alone == pytest.approx(corner, abs=1e-12)
    assert shares(b, 1.0, 1.0, side, 10) is None


@settings(max_examples=30, deadline=None)
@given(st.integers(7, 32), st.floats(0.5, 2), st.integers(10, 40))
def test_shares_sum_to_one_below_the_baseline_too(blocks: int, width: float, px: int) -> None:
    got = shares(base("b0-s4", 16, 0.25, 4), blocks / 16, width, px, 10)
    assert got is None or sum(got) == pytest.approx(1, abs=1e-9)


def test_direction_spends_the_ratio() -> None:
    s = direction(nominal_shares(PAPER), 4.0)
    assert s.alpha * s.beta**2 * s.gamma**2 == pytest.approx(4.0)
    assert nominal_shares(s) == pytest.approx(nominal_shares(PAPER))
    with pytest.raises(ValueError, match="no direction"):
        nominal_shares(Scaling(1, 1, 1))


@pytest.mark.parametrize("rounding", ["spread", "official"])
@pytest.mark.parametrize("ratio", [0.5, 2.0, 4.0, 16.0])
@pytest.mark.parametrize("toward", [nominal_shares(PAPER), (0.6, 0.2, 0.2), (0.1, 0.8, 0.1)])
def test_the_family_rule(rounding: str, ratio: float, toward: tuple[float, float, float]) -> None:
    """design.md, family: at ratio times the baseline, within 2%, near the direction, of low waste."""
    b = dataclasses.replace(BASELINES["b0"], rounding=rounding)
    s = along(b, toward, ratio, 1000)
    px = round(s.gamma * b.resolution)
    net = scale(b, s.alpha, s.beta, px)
    assert macs(net) / 385_814_752 == pytest.approx(ratio, rel=0.02)
    real = shares(b, s.alpha, s.beta, px, 1000)
    assert real is not None and distance(real, toward) < (0.25 if rounding == "spread" else 0.5)
    ideal = direction(toward, ratio)
    assert 0.8 * 224 * ideal.resolution <= px <= 1.25 * 224 * ideal.resolution + 1


def test_the_family_rule_tries_nine_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three block counts by three resolutions; the answer is the nearest in shares of those within 2%."""
    import effnet.shares

    tried = []

    def spy(b: Baseline, target: float, depth: float, px: int, classes: int) -> float:
        tried.append((round(depth * b.blocks), px))
        return nearest_width(b, target, depth, px, classes)

    monkeypatch.setattr(effnet.shares, "nearest_width", spy)
    b, toward = base("b0", 224), nominal_shares(PAPER)
    s = along(b, toward, 2.0, 1000)
    assert len(tried) == 9 and len({n for n, _ in tried}) == 3 and len({px for _, px in tried}) == 3
    ranked = []
    for n, px in tried:
        width = nearest_width(b, 2 * 385_814_752, n / 16, px, 1000)
        if abs(macs(scale(b, n / 16, width, px)) / 385_814_752 / 2 - 1) <= 0.02:
            real = shares(b, n / 16, width, px, 1000)
            assert real is not None
            ranked.append(distance(real, toward))
    real = shares(b, s.alpha, s.beta, round(224 * s.gamma), 1000)
    assert real is not None and distance(real, toward) == min(ranked)


def test_along_refuses() -> None:
    for toward, ratio, message in (
        ((0.5, 0.5, 0.5), 2.0, "must sum to 1"),
        ((0.2, 0.4, 0.4), -1.0, "ratio = -1.0"),
        ((0.2, 0.4, 0.4), math.inf, "ratio = inf"),
    ):
        with pytest.raises(ValueError, match=message):
            along(BASELINES["b0"], toward, ratio, 1000)
