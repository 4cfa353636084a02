import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effnet.arch import Baseline, Scaling, scale
from effnet.budget import Budget
from effnet.cost import macs
from effnet.families import BASELINES, PAPER
from effnet.shares import EXPONENTS, direction, nominal_shares, shares, toward, translated, waste
from effnet.solve import Solution, fit


def base(name: str, resolution: int, width: float = 1.0, divisor: int = 8) -> Baseline:
    return dataclasses.replace(
        BASELINES[name], resolution=resolution, width=width, divisor=divisor, rounding="spread"
    )


def test_resolution_is_a_staircase() -> None:
    """B0 at 225 px costs 1.155 times its share of pixels, at 256 or 288 px exactly its share."""
    per_pixel = waste(BASELINES["b0"], [224, 225, 256, 288], 1000)
    assert per_pixel[225] - per_pixel[224] == pytest.approx(0.155, abs=0.002)
    assert per_pixel[256] == pytest.approx(per_pixel[224], abs=0.002)
    assert per_pixel[288] == pytest.approx(per_pixel[224], abs=0.002)


def test_shares_of_facts() -> None:
    """Two networks near the paper's point (section 5.2) and their real shares."""
    b = base("b0", 224)
    for blocks, width, px, ratio, expected in (
        (19, 1.098, 258, 2.004, (0.25, 0.165, 0.58)),
        (21, 1.106, 256, None, (0.39, 0.23, 0.38)),
    ):
        real = shares(b, blocks / 16, width, px, 1000)
        assert real == pytest.approx(expected, abs=0.006)
        if ratio:
            assert macs(
                scale(b, blocks / 16, width, px, num_classes=1000)
            ) / 385_814_752 == pytest.approx(ratio, abs=6e-4)
    assert nominal_shares(PAPER) == pytest.approx((0.28, 0.29, 0.43), abs=0.005)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(
        [("b0-s4", 16, 0.25, 4), ("b0", 64, 1.0, 8), ("resnet50", 32, 0.5, 8), ("v2-s", 64, 1.0, 8)]
    ),
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
    real = shares(b, depth, width, px, 10)
    if real is not None:
        assert abs(sum(real) - 1) <= 1e-12
        assert min(real) >= 0
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
    real = shares(base("b0-s4", 16, 0.25, 4), blocks / 16, width, px, 10)
    assert real is None or sum(real) == pytest.approx(1, abs=1e-9)


def test_direction_spends_the_ratio() -> None:
    s = direction(nominal_shares(PAPER), 4.0)
    assert s.alpha * s.beta**2 * s.gamma**2 == pytest.approx(4.0)
    assert nominal_shares(s) == pytest.approx(nominal_shares(PAPER))
    with pytest.raises(ValueError, match="no direction"):
        nominal_shares(Scaling(1, 1, 1))


@pytest.mark.parametrize("rounding", ["spread", "official"])
@pytest.mark.parametrize("ratio", [0.5, 2.0, 4.0, 16.0])
@pytest.mark.parametrize("aim", [nominal_shares(PAPER), (0.6, 0.2, 0.2), (0.1, 0.8, 0.1)])
def test_the_family_rule(rounding: str, ratio: float, aim: tuple[float, float, float]) -> None:
    """At ratio times the baseline, within 2%, near the direction, of low waste."""
    b = dataclasses.replace(BASELINES["b0"], rounding=rounding)
    solution, wasted = toward(b, aim, Budget(ratio, True))
    px = solution.arch.resolution
    assert solution.met
    assert scale(b, solution.depth, solution.width, px) == solution.arch
    assert wasted <= 0.08
    assert macs(solution.arch) / 385_814_752 == pytest.approx(ratio, rel=0.02)
    real = shares(b, solution.depth, solution.width, px, 1000)
    assert real is not None
    assert math.dist(real, aim) < (0.25 if rounding == "spread" else 0.5)
    ideal = direction(aim, ratio)
    assert 0.8 * 224 * ideal.resolution <= px <= 1.25 * 224 * ideal.resolution + 1


@pytest.mark.parametrize("rounding", ["spread", "official"])
def test_the_family_rule_tries_nine_networks(
    rounding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three block counts by three resolutions; the answer is the nearest in shares of those within
    2%."""
    import effnet.shares

    tried = []

    def spy(b: Baseline, budget: Budget, **dials: Any) -> Solution:
        tried.append(fit(b, budget, **dials))
        return tried[-1]

    monkeypatch.setattr(effnet.shares, "fit", spy)
    b, aim = dataclasses.replace(BASELINES["b0"], rounding=rounding), nominal_shares(PAPER)
    solution, _ = toward(b, aim, Budget.parse("2x"))
    assert len(tried) == 9
    assert len({t.arch.resolution for t in tried}) == 3
    assert len({tuple(s.repeats for s in t.arch.stages) for t in tried}) == 3
    distance = {
        t.arch: math.dist(shares(b, t.depth, t.width, t.arch.resolution, 1000) or (9, 9, 9), aim)
        for t in tried
        if abs(macs(t.arch) / 385_814_752 / 2 - 1) <= 0.02
    }
    assert distance[solution.arch] == min(distance.values())


def test_far_directions_are_quick_and_near() -> None:
    """Depth alone at 1000x: no list of every thousandth, and still the nearest block counts."""
    solution, _ = toward(BASELINES["b0"], (1.0, 0.0, 0.0), Budget(1000.0, True))
    assert solution.met
    assert solution.arch.blocks > 10_000
    assert solution.arch.resolution < 300


@pytest.mark.parametrize("text", ["2x params", "2x acts", "2x memory@64"])
def test_toward_by_another_measure(text: str) -> None:
    budget = Budget.parse(text)
    base = dataclasses.replace(BASELINES["b0"], rounding="spread", divisor=1)
    for aim in ((0.5, 0.5, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)):
        solution, _ = toward(base, aim, budget)
        arch = solution.arch
        assert abs(budget.off(budget.measure(arch), budget.measure(scale(base)))) <= 0.02
        real = shares(base, solution.depth, solution.width, arch.resolution, 1000, budget.measure)
        assert real is not None
        assert math.dist(real, aim) < 0.25
        if budget.of == "params":
            assert arch.resolution == base.resolution


def test_directions_of_other_measures_have_the_same_coefficients() -> None:
    paper = nominal_shares(PAPER)
    exact = direction(paper, 2.0)
    for of in ("params", "acts", "memory"):
        aim = translated(paper, EXPONENTS[of])
        assert aim is not None
        other = direction(aim, 2.0, EXPONENTS[of])
        assert sum(aim) == pytest.approx(1)
        ratio = math.log(exact.alpha) / math.log(exact.beta)
        assert math.log(other.alpha) / math.log(other.beta) == pytest.approx(ratio)
    assert translated((0.0, 0.0, 1.0), EXPONENTS["params"]) is None
    assert translated(paper, EXPONENTS["macs"]) == pytest.approx(paper)


def test_toward_refuses() -> None:
    for aim, budget, message in (
        ((0.5, 0.5, 0.5), "2x", "must sum to 1"),
        ((0.2, 0.4, 0.4), "2x params", "resolution costs no parameters"),
        ((math.nan, 0.4, 0.4), "2x", "must sum to 1"),
        ((-1.0, 1.0, 1.0), "2x", "each at least 0"),
        ((1e300, -1e300, 1.0), "2x", "each at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            toward(BASELINES["b0"], aim, Budget.parse(budget))
