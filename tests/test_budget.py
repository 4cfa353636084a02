import dataclasses
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import effnet
from effnet.arch import Baseline, Scaling, scale
from effnet.budget import (
    Budget,
    InfeasibleError,
    direction,
    nominal_shares,
    shares,
    shortest_width,
    solve,
    waste,
)
from effnet.cost import macs
from effnet.families import BASELINES, PAPER


def base(name: str, resolution: int, width: float = 1.0, divisor: int = 8) -> Baseline:
    return dataclasses.replace(BASELINES[name], resolution=resolution, width=width, divisor=divisor, rounding="spread")


@pytest.mark.parametrize(
    ("text", "value", "relative"),
    [("2x", 2, True), ("0.5x", 0.5, True), (".5X", 0.5, True), ("400M", 4e8, False), ("1.2G", 1.2e9, False)],
)
def test_parse(text: str, value: float, relative: bool) -> None:
    budget = Budget.parse(text)
    assert (budget.value, budget.relative) == (pytest.approx(value), relative)


@pytest.mark.parametrize("text", ["abc", "-2x", "0x", "nan", "1e99x", "", "x", "2", "2xx", "infx", "0M", "9999999999G"])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"such as 2x or 0\.5x, or multiply-adds such as 400M or 1\.2G"):
        Budget.parse(text)


@pytest.mark.parametrize("text", ["2x", "0.5x", "400M", "1.2G"])
def test_parse_prints_back(text: str) -> None:
    assert Budget.parse(str(Budget.parse(text))) == Budget.parse(text)


@settings(max_examples=25, deadline=None)
@given(st.integers(7, 30), st.integers(12, 40), st.floats(0.3, 4))
def test_solved_width_is_the_nearest(blocks: int, resolution: int, ratio: float) -> None:
    """Against every width in steps of .001 around the answer."""
    b = base("b0-s4", 16, 0.25, 4)
    target = ratio * macs(scale(b, num_classes=10))
    depth = blocks / b.blocks
    try:
        net = solve(b, Budget(ratio, True, tolerance=0.5), depth=depth, resolution=resolution, num_classes=10)
    except InfeasibleError as error:
        net = error.nearest
    best = min(abs(macs(scale(b, depth, w / 1000, resolution, num_classes=10)) - target) for w in range(50, 6000, 7))
    assert abs(macs(net) - target) <= best


@pytest.mark.parametrize("ratio", [0.4, 1.0, 2.0, 5.3])
def test_solved_resolution_is_the_nearest(ratio: float) -> None:
    b = BASELINES["b0"]
    target = ratio * macs(scale(b))
    try:
        net = solve("b0", Budget(ratio, True, tolerance=0.3), depth=1.2, width=1.1)
    except InfeasibleError as error:
        net = error.nearest
    assert abs(macs(net) - target) == min(abs(macs(scale(b, 1.2, 1.1, px)) - target) for px in range(8, 700))


def test_solve_as_typed_by_people() -> None:
    net = effnet.solve("b0", budget="2x", depth=1.2, resolution=257)
    assert Budget.parse("2x").met(effnet.cost(net).macs, 385_814_752)
    absolute = effnet.solve("b0", budget="400M", resolution=224)
    assert abs(effnet.cost(absolute).macs / 4e8 - 1) <= 0.02


def test_infeasible_names_the_nearest() -> None:
    with pytest.raises(InfeasibleError, match="the nearest is width") as caught:
        solve("b0", Budget.parse("2x", tolerance=1e-6), depth=1.2, resolution=257)
    assert caught.value.macs == macs(caught.value.nearest)
    with pytest.raises(ValueError, match="not both"):
        solve("b0", "2x", width=1.0, resolution=224)


# facts.md section 4, counted exhaustively: baseline, base px, MACs, cells of 2.00x ± 2%, of waste <= 8%
CELLS = [
    ("b0", 96, 1.0, 8, 71_153_632, 201, 33),
    ("b0-s16", 96, 0.5, 8, 87_779_712, 228, 145),
    ("b0-s8", 32, 1.0, 8, 116_167_168, 76, 25),
    ("b0-s4", 24, 0.25, 4, 19_381_744, 62, 48),
    ("b0-s4", 20, 0.25, 4, 13_472_632, 54, 42),
    ("b0-s4", 16, 0.25, 4, 8_637_904, 41, 27),
]


@pytest.mark.parametrize(("name", "px", "width", "divisor", "base_macs", "cells", "low"), CELLS)
def test_cells_of_2x(name: str, px: int, width: float, divisor: int, base_macs: int, cells: int, low: int) -> None:
    from effnet.budget import nearest_width

    b = base(name, px, width, divisor)
    assert macs(scale(b, num_classes=10)) == base_macs
    sides = range(px, math.floor(1.45 * px) + 1)
    wasted = waste(b, sides, 10)
    budget = Budget.parse("2x")
    met = []
    for blocks, side in itertools.product(range(16, 33), sides):
        w = nearest_width(b, 2 * base_macs, blocks / 16, side, 10, (1.0, 1.5))
        if budget.met(macs(scale(b, blocks / 16, w, side, num_classes=10)), base_macs):
            met.append(side)
    assert len(met) == cells
    assert sum(wasted[side] <= 0.08 for side in met) == low


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


@settings(max_examples=30, deadline=None)
@given(st.integers(7, 32), st.floats(0.5, 2), st.integers(10, 40))
def test_shares_sum_to_one_and_pure_scalings_are_corners(blocks: int, width: float, px: int) -> None:
    b = base("b0-s4", 16, 0.25, 4)
    got = shares(b, blocks / 16, width, px, 10)
    if got is not None:
        assert sum(got) == pytest.approx(1)
    if blocks != 16:
        assert shares(b, blocks / 16, 1.0, 16, 10) == pytest.approx((1, 0, 0))
    if px != 16:
        assert shares(b, 1.0, 1.0, px, 10) == pytest.approx((0, 0, 1))
    assert shares(b, 1.0, 1.0, 16, 10) is None


def test_direction_spends_the_ratio() -> None:
    s = direction(nominal_shares(PAPER), 4.0)
    assert s.alpha * s.beta**2 * s.gamma**2 == pytest.approx(4.0)
    assert nominal_shares(s) == pytest.approx(nominal_shares(PAPER))
    with pytest.raises(ValueError, match="no direction"):
        nominal_shares(Scaling(1, 1, 1))


@settings(max_examples=40, deadline=None)
@given(st.integers(300, 3000), st.integers(7, 30))
def test_shortest_width_rebuilds_the_network(thousandths: int, blocks: int) -> None:
    b = base("b0-s4", 16, 0.25, 4)
    net = scale(b, blocks / 16, thousandths / 1000, 20, num_classes=10)
    short = shortest_width(b, net, blocks / 16, thousandths / 1000)
    assert scale(b, blocks / 16, short, 20, num_classes=10) == net
    assert len(f"{short:g}") <= len(f"{thousandths / 1000:g}")
