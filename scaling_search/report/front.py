"""Fronts and hypervolumes in two objectives: lower cost is better, higher value is better. Numbers
in, numbers out.

Costs and values are 1-D arrays of equal length, a row per point, in any units. A NaN in either says
that the row has no result: it dominates nothing, is on no front and adds no hypervolume. Infinities
are numbers like any other."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

# Rows looked at before a pass; the share of them that must go for the pass to cost less than
# sorting; most passes.
SAMPLE, WORTH, PASSES = 512, 0.1, 6


def front_of_table(costs: pd.DataFrame, cost: str = "macs", value: str = "mean") -> pd.DataFrame:
    """The non-dominated rows: no other costs at most as much and is at least as good (one of them
    strictly).

    Sorted by cost; of rows equal in both the first alone; rows without a value never count."""
    known = costs.dropna(subset=[cost, value])
    return known.iloc[front(known[cost].to_numpy(), known[value].to_numpy())].drop_duplicates(
        subset=[cost]
    )


def front(cost: ArrayLike, value: ArrayLike) -> NDArray[np.intp]:
    """Row indices of the non-dominated points, sorted by cost: no other point costs at most as much
    and is at least as good, one of them strictly.

    Points equal in both do not dominate each other: all of them are on the front, in the order of
    their rows. Integers are compared as integers, however large. Raises ValueError unless both are
    1-D and of equal length."""
    rows, c, v = _undominated_by_a_few(*_arrays(cost, value))
    if (missing := np.isnan(c) | np.isnan(v)).any():
        rows, c, v = rows[~missing], c[~missing], v[~missing]
    order = np.argsort(c)
    rows, c, v = rows[order], c[order], v[order]
    if not (np.all(c[1:] > c[:-1]) and np.all(v[1:] > v[:-1])):  # where both rise, it is the front
        best = np.flatnonzero(
            v == np.maximum.accumulate(v)
        )  # as good as all before: now neither c nor v falls
        rows, c, v = rows[best], c[best], v[best]
        # Among equal costs the last is the best; among equal values the first is the cheapest.
        on = (v == _per_run(c, v, last=True)) & (c == _per_run(v, c, last=False))
        rows, c = rows[on], c[on]
        # What is still equal in cost is equal in both, and argsort left it in no order: sorted by
        # row within its run.
        base = (rows.max(initial=0) + 1) * np.cumsum(np.append(False, c[1:] != c[:-1])[: len(c)])
        rows = np.sort(base + rows) - base
    return rows


def hypervolume(cost: ArrayLike, value: ArrayLike, reference: tuple[float, float]) -> float:
    """The area [cost x value] that the points dominate, up to the `reference` (cost, value), which
    is worse than them.

    A point that costs at least as much as the reference or is at most as good adds nothing; a cost
    of -inf or a value of inf within it makes the area infinite. Raises ValueError for a reference
    that is not finite."""
    limit, floor = _finite(reference)
    costs, values = (a.astype(np.float64) for a in _arrays(cost, value))
    within = (costs < limit) & (values > floor)
    costs, values = costs[within], values[within]
    rows = front(costs, values)
    c, v = (
        np.unique(costs[rows]),
        np.unique(values[rows]),
    )  # both rise along a front; duplicates count once
    return float(np.sum((limit - c) * np.diff(v, prepend=floor)))


def hypervolume_so_far(
    cost: ArrayLike, value: ArrayLike, reference: tuple[float, float]
) -> NDArray[np.float64]:
    """`hypervolume` of the rows up to and including each, in their order: an array as long as they
    are, never falling.

    Each row adds what it alone dominates, so n rows take n log n. Equal to computing it anew but
    for rounding."""
    limit, floor = _finite(reference)
    costs, values = _arrays(cost, value)
    # The staircase so far, both rising; its ends are the reference's value before any cost, and a
    # wall at its cost.
    at, best = [-math.inf, limit], [floor, math.inf]
    area, areas = 0.0, np.zeros(len(costs))
    for row, (c, v) in enumerate(
        zip(costs.astype(float).tolist(), values.astype(float).tolist(), strict=True)
    ):
        if c < limit and v > (below := best[(i := bisect_right(at, c)) - 1]):  # never so for a NaN
            left, j = c, i
            while True:  # the steps of the old staircase that lie under the new one
                area += (at[j] - left) * (v - below)
                if best[j] >= v:
                    break
                left, below, j = at[j], best[j], j + 1
            first = i - (at[i - 1] == c)
            at[first:j], best[first:j] = [c], [v]
        areas[row] = area
    return areas


def _undominated_by_a_few(
    costs: NDArray[Any], values: NDArray[Any]
) -> tuple[NDArray[np.intp], NDArray[Any], NDArray[Any]]:
    """The rows left, with their costs and values, once those are gone that one good point
    dominates, a few times over: mostly far fewer to sort.

    The point is the row of a sample that dominates most of it; where that is next to none, as when
    all points are on the front, nothing is tried. The sample decides the speed and never the
    result."""
    rows = np.arange(len(costs))
    for _ in range(PASSES):
        if len(rows) < 4 * SAMPLE:
            break
        some = slice(None, None, len(rows) // SAMPLE)
        c, v = costs[some], values[some]
        beaten = np.count_nonzero((c > c[:, None]) & (v < v[:, None]), axis=1)
        most = int(beaten.argmax())
        if beaten[most] < WORTH * len(c):
            break
        left = np.flatnonzero(~((costs > c[most]) & (values < v[most])))
        rows, costs, values = rows[left], costs[left], values[left]
    return rows, costs, values


def _per_run(keys: NDArray[Any], of: NDArray[Any], *, last: bool) -> NDArray[Any]:
    """For each row, `of` at the first or last row of its run of equal keys."""
    starts = np.flatnonzero(
        np.concatenate([np.ones(min(1, len(keys)), bool), keys[1:] != keys[:-1]])
    )
    ends = np.append(starts[1:], len(keys))[: len(starts)]
    return np.repeat(of[ends - 1 if last else starts], ends - starts)


def _arrays(cost: ArrayLike, value: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    costs, values = (
        a.astype(float) if a.dtype == object else a for a in map(np.asarray, (cost, value))
    )
    if costs.ndim != 1 or costs.shape != values.shape:
        raise ValueError(
            f"a cost and a value per point are needed, not shapes {costs.shape} and {values.shape}"
        )
    return costs, values


def _finite(reference: tuple[float, float]) -> tuple[float, float]:
    limit, floor = map(float, reference)
    if not (math.isfinite(limit) and math.isfinite(floor)):
        raise ValueError(f"the reference must be finite, not {limit}, {floor}")
    return limit, floor
