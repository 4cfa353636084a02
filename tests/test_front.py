"""Fronts and hypervolumes beside their definitions: every pair of points, every unit square."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scaling_search.report.front import front, front_of_table, hypervolume, hypervolume_so_far

ODD = [math.nan, math.inf, -math.inf, -0.0]
# small integers tie often
number = st.one_of(st.integers(-3, 6).map(float), st.floats(-1e6, 1e6), st.sampled_from(ODD))
points = st.lists(st.tuples(number, number), max_size=40)
REFERENCE = (5.0, -2.0)


def brute(cost: np.ndarray, value: np.ndarray) -> list[int]:
    """By the definition, every pair of rows; sorted by cost, then row."""
    # [i, j]: row i is at least as good as row j
    as_good = (cost[:, None] <= cost) & (value[:, None] >= value)
    better = (cost[:, None] < cost) | (value[:, None] > value)
    on = ~(as_good & better).any(axis=0) & ~np.isnan(cost) & ~np.isnan(value)
    return sorted(np.flatnonzero(on).tolist(), key=lambda i: (cost[i], i))


def columns(rows: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    cost, value = np.array(rows, dtype=float).reshape(-1, 2).T
    return cost, value


@given(points)
@settings(max_examples=300)
def test_front_is_every_pair_compared(rows: list[tuple[float, float]]) -> None:
    cost, value = columns(rows)
    assert front(cost, value).tolist() == brute(cost, value)


def _noise_about_a_line(g: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    cost = g.random(n)
    return cost, cost + 0.02 * g.standard_normal(n)


def _good_value_at_each_cost(g: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    cost = np.round(g.random(n), 2)
    return cost, cost - (g.random(n) < 0.5)


def _always_worse(g: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    cost = np.sort(g.random(n))
    return cost, -cost


# Costs and values of `n` points, drawn by the generator `g`.
SHAPES: dict[str, Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]] = {
    "a cloud": lambda g, n: (g.random(n), g.random(n)),
    "ties": lambda g, n: (g.integers(0, 40, n), g.integers(0, 40, n)),
    "ties all along the front": lambda g, n: (g.integers(0, n // 5, n),) * 2,
    "noise about a line": _noise_about_a_line,
    "all on the front": lambda g, n: (g.random(n),) * 2,
    "a good value at each cost": _good_value_at_each_cost,
    "one point": lambda g, n: (np.ones(n), np.ones(n)),
    "nothing known": lambda g, n: (np.full(n, np.nan), g.random(n)),
    "always worse": _always_worse,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("odd", [0.0, 0.01, 0.9])
def test_front_of_thousands(shape: str, odd: float) -> None:
    """Clouds of every shape that a study may have, with NaN and infinities among them."""
    for seed in range(3):
        g = np.random.default_rng(seed)
        cost, value = SHAPES[shape](g, 2048 + 500 * seed)
        if odd:
            cost, value = (
                np.where(g.random(len(a)) < odd, g.choice(ODD, len(a)), a) for a in (cost, value)
            )
        assert front(cost, value).tolist() == brute(cost, value)


def test_front_of_integers_beyond_floats() -> None:
    least, most = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    assert front([1, 1], [least, most]).tolist() == [1], "the least integer has no negative"
    assert front([1, 1], np.array([0, 2**64 - 1], np.uint64)).tolist() == [1]
    big = 2**60
    assert front([big + 1, big], [1, 1]).tolist() == [1]
    assert front(np.array([big, big + 1]), np.array([big, big + 1])).tolist() == [0, 1]


def test_front_of_few() -> None:
    assert front([], []).tolist() == []
    assert front([7], [math.nan]).tolist() == []
    assert front([2, 1, 1, 2], [5, 3, 3, 5]).tolist() == [1, 2, 0, 3], (
        "equal points, all of them, by row"
    )
    assert front([math.inf, 1], [2, -math.inf]).tolist() == [1, 0]
    assert front([None, 1.0], [0.5, None]).tolist() == [], "what pandas holds as objects"


def test_misshapen_input_is_refused() -> None:
    for cost, value in (([1, 2], [1]), ([[1, 2]], [[1, 2]]), (1, 2)):
        for of in (
            front,
            lambda c, v: hypervolume(c, v, (1, 1)),
            lambda c, v: hypervolume_so_far(c, v, (1, 1)),
        ):
            with pytest.raises(ValueError, match="a cost and a value per point"):
                of(cost, value)
    for reference in ((math.inf, 0), (0, -math.inf), (math.nan, 0)):
        for measure in (hypervolume, hypervolume_so_far):
            with pytest.raises(ValueError, match="must be finite"):
                measure([1], [1], reference)


@given(st.lists(st.tuples(st.integers(-2, 9), st.integers(-2, 9)), max_size=15))
def test_hypervolume_counts_cells(rows: list[tuple[int, int]]) -> None:
    """On whole numbers, it is the number of unit squares that some point dominates; the same after
    every row."""
    # The unit squares within the reference (8, 1), each by its lower left corner.
    squares = list(itertools.product(range(-2, 8), range(1, 10)))
    dominated: set[tuple[int, int]] = set()
    anew = []
    for c, v in rows:
        dominated |= {(x, y) for x, y in squares if c <= x and v >= y + 1}
        anew.append(len(dominated))
    cost, value = [c for c, _ in rows], [v for _, v in rows]
    assert [hypervolume(cost[:n], value[:n], (8, 1)) for n in range(1, len(rows) + 1)] == anew
    assert hypervolume_so_far(cost, value, (8, 1)).tolist() == anew
    assert hypervolume([], [], (8, 1)) == 0


@given(points)
@settings(max_examples=200)
@example(
    [(-math.inf, 1.0), (-math.inf, 2.0), (1.0, math.inf), (1.0, math.inf), (-math.inf, math.inf)]
)
# no step without width, whose area would be 0 x inf
@example([(1.0, 0.0), (1.0, 1.0), (0.0, math.inf)])
def test_hypervolume_so_far_is_each_computed_anew(rows: list[tuple[float, float]]) -> None:
    cost, value = columns(rows)
    anew = [hypervolume(cost[:n], value[:n], REFERENCE) for n in range(1, len(rows) + 1)]
    areas = hypervolume_so_far(cost, value, REFERENCE)
    np.testing.assert_allclose(areas, anew, rtol=1e-12, atol=1e-290)
    assert all(a <= b for a, b in itertools.pairwise(areas.tolist()))
    assert not np.isnan(areas).any()


def test_hypervolume_of_ten_thousand_on_the_front() -> None:
    """As many steps as there are points, in any order."""
    cost = np.random.default_rng(0).permutation(10_000)
    areas = hypervolume_so_far(cost, cost + 1, (10_000, 0))
    assert areas[-1] == hypervolume(cost, cost + 1, (10_000, 0)) == 10_000 * 10_001 / 2
    assert areas[4999] == hypervolume(cost[:5000], cost[:5000] + 1, (10_000, 0))


@given(points)
def test_hypervolume_is_optunas(rows: list[tuple[float, float]]) -> None:
    peer = pytest.importorskip("optuna._hypervolume")
    cost, value = columns(rows)
    within = (cost < REFERENCE[0]) & (value > REFERENCE[1]) & np.isfinite(cost) & np.isfinite(value)
    cost, value = cost[within], value[within]
    if not len(cost):
        return
    theirs = peer.compute_hypervolume(
        np.column_stack([cost, -value]), np.array([REFERENCE[0], -REFERENCE[1]])
    )
    assert hypervolume(cost, value, REFERENCE) == pytest.approx(theirs, rel=1e-12)


@given(st.lists(st.tuples(number, number), min_size=1, max_size=30), st.randoms())
def test_the_table_of_the_front_keeps_the_first_of_equals(
    rows: list[tuple[float, float]], random: object
) -> None:
    """pandas in, pandas out: the rows whole, with their own index, by cost, one of each pair of
    numbers."""
    labels = list(range(100, 100 + len(rows)))
    random.shuffle(labels)  # type: ignore[attr-defined]
    cost, value = columns(rows)
    kept = front_of_table(
        pd.DataFrame({"macs": cost, "mean": value, "label": labels}, index=labels)
    )
    firsts = {(cost[i], value[i]): labels[i] for i in reversed(brute(cost, value))}
    assert kept["label"].tolist() == list(kept.index) == [firsts[k] for k in sorted(firsts)]
