"""Fronts and hypervolumes in two objectives, where lower cost is better and higher value is better.

Costs and values are 1-D arrays of equal length, a row per point, in any units. A NaN in either says
that the row has no result: it dominates nothing, is on no front and adds no hypervolume. Infinities
are numbers like any other. A point dominates another when it costs at most as much and is at least
as good, one of them strictly."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray


def front_of_table(costs: pd.DataFrame, cost: str = "macs", value: str = "mean") -> pd.DataFrame:
    """Return the non-dominated rows of a table, sorted by cost.

    Of rows equal in cost and value the first alone is kept; rows without a value never count."""
    known = costs.dropna(subset=[cost, value])
    on_front = front(known[cost].to_numpy(), known[value].to_numpy())
    return known.iloc[on_front].drop_duplicates(subset=[cost])


def front(cost: ArrayLike, value: ArrayLike) -> NDArray[np.intp]:
    """Return the row indices of the non-dominated points, sorted by cost.

    Points equal in both do not dominate each other: all of them are on the front, in the order of
    their rows. Integers are compared as integers, however large. Raises ValueError unless both are
    1-D and of equal length."""
    costs, values = _as_arrays(cost, value)
    known = np.flatnonzero(~(np.isnan(costs) | np.isnan(values)))
    costs, values = costs[known], values[known]
    # By cost, and the best first among equal costs. Ranks are negated where values cannot be: the
    # smallest int64 has no negative, and an unsigned integer none at all.
    _, ranks = np.unique(values, return_inverse=True)
    order = np.lexsort((-ranks, costs))  # stable: equal points stay in the order of their rows

    # In this order whatever dominates a point stands before it, and costs no more. So a point is on
    # the front when it is better than all before it, or equal to the last that was.
    on_front: list[int] = []
    last: tuple[float, float] | None = None
    rows = known[order].tolist()
    for row, c, v in zip(rows, costs[order].tolist(), values[order].tolist(), strict=True):
        if last is None or v > last[1] or (c, v) == last:
            on_front.append(row)
            last = (c, v)
    return np.array(on_front, dtype=np.intp)


def hypervolume(cost: ArrayLike, value: ArrayLike, reference: tuple[float, float]) -> float:
    """Return the area [cost x value] that the points dominate, up to the `reference` (cost, value),
    which is worse than them.

    A point that costs at least as much as the reference or is at most as good adds nothing; a cost
    of -inf or a value of inf within it makes the area infinite. Raises ValueError for a reference
    that is not finite."""
    highest_cost, lowest_value = _finite(reference)
    costs, values = _as_arrays(cost, value)
    costs, values = costs.astype(np.float64), values.astype(np.float64)
    counted = (costs < highest_cost) & (values > lowest_value)
    costs, values = costs[counted], values[counted]

    area, reached = 0.0, lowest_value
    for row in front(costs, values):
        # Not for an equal point: an infinite width times no height would be NaN.
        if values[row] > reached:
            area += float((highest_cost - costs[row]) * (values[row] - reached))
            reached = values[row]
    return area


def hypervolume_so_far(
    cost: ArrayLike, value: ArrayLike, reference: tuple[float, float]
) -> NDArray[np.float64]:
    """Return the `hypervolume` of the rows up to and including each, in their order: an array as
    long as they are, never falling.

    Each row adds what it alone dominates, so n rows take n log n steps. Equal to computing each
    anew but for rounding."""
    highest_cost, lowest_value = _finite(reference)
    costs, values = _as_arrays(cost, value)
    # The front so far as a staircase, both of its lists rising: step_values[i] is reached from
    # step_costs[i] on. At the reference's cost stands a wall that no point can climb.
    step_costs = [-math.inf, highest_cost]
    step_values = [lowest_value, math.inf]
    area = 0.0
    areas = np.zeros(len(costs))
    points = zip(costs.astype(float).tolist(), values.astype(float).tolist(), strict=True)
    for row, (c, v) in enumerate(points):
        first = bisect_right(step_costs, c)  # the first step that costs more than the point
        reached = step_values[first - 1]
        if v > reached:  # never so for a NaN: as a value it compares false, as a cost it sorts last
            # Add what lies between the staircase and the point, from step to step, until one is as
            # high as the point.
            edge, end = c, first
            while step_values[end] < v:
                area += (step_costs[end] - edge) * (v - reached)
                edge, reached = step_costs[end], step_values[end]
                end += 1
            area += (step_costs[end] - edge) * (v - reached)
            if step_costs[first - 1] == c:
                first -= 1
            step_costs[first:end], step_values[first:end] = [c], [v]
        areas[row] = area
    return areas


def _as_arrays(cost: ArrayLike, value: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return both as 1-D arrays of numbers. Raises ValueError unless they have one length."""
    costs, values = np.asarray(cost), np.asarray(value)
    # What pandas holds as objects (None beside numbers) becomes floats, None a NaN.
    if costs.dtype == object:
        costs = costs.astype(float)
    if values.dtype == object:
        values = values.astype(float)
    if costs.ndim != 1 or costs.shape != values.shape:
        raise ValueError(
            f"a cost and a value per point are needed, not shapes {costs.shape} and {values.shape}"
        )
    return costs, values


def _finite(reference: tuple[float, float]) -> tuple[float, float]:
    highest_cost, lowest_value = float(reference[0]), float(reference[1])
    if not (math.isfinite(highest_cost) and math.isfinite(lowest_value)):
        raise ValueError(f"the reference must be finite, not {highest_cost}, {lowest_value}")
    return highest_cost, lowest_value
