"""Measured mode: one network for each depth (number of blocks) and each resolution, its width
solved so that its exact cost meets the budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from effnet import counting
from effnet.arch import Network, Scaling, least_side, scale
from effnet.budget import Budget
from effnet.cost import macs
from effnet.custom import Function
from effnet.shares import waste
from effnet.solve import NEAR_ENOUGH, nearest_width, shortest_width, width_within
from scaling_search import UserError
from scaling_search.study.candidate import Candidate, in_words
from scaling_search.study.context import ScalingContext, distinct
from scaling_search.study.settings import Space

LEAST = 3  # networks of one cost: with fewer there is nothing to compare
# Where fewer than LEAST networks waste little, those that waste up to this much are taken too.
_TOLERABLE_WASTE = 0.25
# Block counts, or resolutions, that a space is searched over: with all of a large budget's,
# planning takes minutes.
_MOST = 64
# Depths, and sides, of a function's networks, each of which takes torch some 50 ms to count.
_MOST_COUNTED, _MOST_COUNTED_SIDES = 16, 8

# How much farther than the budget's ratio a dial reaches that cost does not follow in proportion.
_SLOW = 1.3

_Value = TypeVar("_Value", int, float)
Progress = Callable[[str], None]  # is told how far the search for networks is


@dataclass(frozen=True, slots=True)
class _Cell:
    """The network of one depth at one resolution that comes nearest to the budget."""

    arch: Network
    depth: float
    width: float
    side: int
    cost: int  # by the budget's measure
    waste: float

    def describe(self, budget: Budget, base_cost: int) -> str:
        return (
            f"{in_words(self.arch, self.depth, self.width)} at "
            f"{budget.quantity(self.cost)} ({self.cost / base_cost:.2f}x), waste {self.waste:.0%}"
        )


def measured(
    context: ScalingContext, budget: Budget, space: Space, progress: Progress = lambda words: None
) -> tuple[list[Candidate], list[str]]:
    """The networks that meet the budget, and notes for the user. Those at a resolution of more than
    the context's waste are left out, unless too few are left then. Below 1x every dial shrinks
    instead of growing.

    Raises UserError naming the nearest network where there is none."""
    sides, depths, widths = reach(context, space, budget)
    notes = []
    if not _resolution_costs(context, budget, sides):
        sides = [context.base.resolution]
        notes.append(
            f"{budget}: resolution costs no {budget.unit}, so all networks are at "
            f"{context.base.resolution} px (--resolution takes another)"
        )
    cells = _solve_cells(context, budget, sides, depths, widths, progress)
    base_cost = context.base_cost(budget)
    met = [cell for cell in cells if budget.met(cell.cost, base_cost)]
    if budget.times is not None:
        met = [cell for cell in met if budget.times.may_be_compared(cell.arch)]
    progress(f"shares of {len(met)} networks")
    networks = _candidates(context, budget, met, context.max_waste)
    if len(networks) < LEAST and context.max_waste < _TOLERABLE_WASTE:
        networks = _candidates(context, budget, met, _TOLERABLE_WASTE)
        worst = max((candidate.waste for candidate in networks), default=0.0)
        notes.append(
            f"{budget}: too few networks of low waste, so resolutions that waste up to {worst:.0%} "
            "too"
        )
    if not networks:
        nearest = min(cells, key=lambda cell: abs(budget.off(cell.cost, base_cost)))
        target = budget.quantity(budget.target(base_cost))
        raise UserError(
            f"budget {budget}: no network within {budget.tolerance:.0%} of {target} and of "
            f"waste at most {space.max_waste:.0%} in this space; the nearest is "
            f"{nearest.describe(budget, base_cost)}. Widen the bounds, the tolerance or max_waste, "
            "or take another budget"
        )
    return networks, notes


def _solve_cells(
    context: ScalingContext,
    budget: Budget,
    sides: list[int],
    depths: list[float],
    width_limits: tuple[float, float],
    progress: Progress,
) -> list[_Cell]:
    """Every cell of the space, whether or not it meets the budget; of a function's not those that
    waste more than is ever taken. Sides, depths and limits are those of `reach`."""
    base, classes = context.base, context.classes
    progress(f"the baseline at {len(sides)} resolutions")
    wastes = waste(base, sides, classes)
    if isinstance(base, Function):
        sides = _frugal_sides(context, sides, wastes)
    target = budget.target(context.base_cost(budget))
    cells: list[_Cell] = []
    for depth, side in itertools.product(depths, sides):
        progress(f"{len(cells)} of {len(depths) * len(sides)} networks of {budget}")
        if isinstance(base, Function):
            near = NEAR_ENOUGH * budget.tolerance
            width = width_within(
                base, target, depth, side, classes, width_limits, near, budget.measure
            )
        else:
            width = nearest_width(base, target, depth, side, classes, width_limits, budget.measure)
        arch = scale(base, depth, width, side, num_classes=classes)
        cells.append(_Cell(arch, depth, width, side, budget.measure(arch), wastes[side]))
    return cells


def _resolution_costs(context: ScalingContext, budget: Budget, sides: list[int]) -> bool:
    """Whether the largest of these sides costs more than the smallest, by the budget's measure."""
    smallest, largest = (
        scale(context.base, resolution=side, num_classes=context.classes)
        for side in (sides[0], sides[-1])
    )
    return len(sides) == 1 or budget.measure(largest) > budget.measure(smallest)


def _frugal_sides(context: ScalingContext, sides: list[int], wastes: dict[int, float]) -> list[int]:
    """The sides [px] at which a function's networks are looked for: those of least waste, where
    there are enough, and of sides that cost the same the largest."""
    largest: dict[int, int] = {}  # by what the baseline costs there
    for side in sides:
        arch = scale(context.base, resolution=side, num_classes=context.classes)
        largest[macs(arch)] = side
    distinct_sides = sorted({context.base.resolution, *largest.values()})
    frugal = [side for side in distinct_sides if wastes[side] <= context.max_waste]
    if len(frugal) < LEAST:
        frugal = [side for side in distinct_sides if wastes[side] <= _TOLERABLE_WASTE]
    return _thin(frugal, _MOST_COUNTED_SIDES)


def _candidates(
    context: ScalingContext, budget: Budget, cells: list[_Cell], max_waste: float
) -> list[Candidate]:
    """The distinct networks of the cells of at most `max_waste`, the baseline itself excepted."""
    base = context.base
    baseline = scale(base, num_classes=context.classes)
    candidates = []
    for cell in cells:
        if cell.waste <= max_waste and cell.arch != baseline:
            width = cell.width
            if not isinstance(base, Function):  # whose widths were not tried one by one
                width = shortest_width(base, cell.arch, cell.depth, cell.width)
            scaling = Scaling(cell.depth, width, cell.side / base.resolution)
            candidates.append(context.candidate(scaling, cell.side, budget, cell.waste))
    return distinct(candidates)


def reach(
    context: ScalingContext, space: Space, budget: Budget
) -> tuple[list[int], list[float], tuple[float, float]]:
    """Resolutions [px], depths and width limits within which a budget is sought.

    Each dial may spend the whole budget alone and a little more (at 2x: depth to 2, width to 1.5,
    resolution to 1.45 times the baseline's)."""
    base, ratio = context.base, context.ratio(budget)
    # Activations, memory and latency grow with width itself, and less than depth does, as the stem
    # has its part; a function's cost may grow so too, as with the tokens of attention.
    of_width_itself = budget.of in ("acts", "memory", "latency")
    slow = _SLOW if of_width_itself else 1.0
    if ratio < 1:
        shrink = math.sqrt(ratio) / 1.05
        low = max(least_side(base.total_stride), math.ceil(base.resolution * shrink))
        sides = list(range(low, base.resolution + 1))
        narrowest = ratio / slow if of_width_itself else shrink
        return sides, _depths(context, ratio / slow, 1.0), (narrowest, 1.0)
    root = math.sqrt(ratio / 2)
    alpha = space.alpha_max or slow * ratio
    widest = 1.5 * root
    if of_width_itself or isinstance(base, Function):
        widest = max(widest, _SLOW * ratio)
    largest = 1.45 * root
    if budget.of == "latency":
        # where launches are most of it, width and resolution grow far before it doubles
        widest, largest = 2 * ratio, max(largest, _SLOW * ratio)
    beta = space.beta_max or max(1.0, widest)
    gamma = space.gamma_max or max(1.0, largest)
    # 1e-9: 1.4 * 10 is 13.999... in floating point
    high = int(min(context.max_side, math.floor(gamma * base.resolution + 1e-9)))
    sides = _thin(list(range(base.resolution, high + 1)), 2 * _MOST)
    return sides, _depths(context, 1.0, alpha), (1.0, beta)


def _depths(context: ScalingContext, low: float, high: float) -> list[float]:
    """The depth multipliers within these limits: a table's whole blocks; of a function one for each
    network that they make."""
    base = context.base
    if isinstance(base, Function):
        return _thin(counting.distinct_depths(base, low, high, context.classes), _MOST_COUNTED)
    fewest = max(len(base.stages), math.floor(low * base.blocks))
    most = math.floor(high * base.blocks + 1e-9)
    return [blocks / base.blocks for blocks in _thin(list(range(fewest, most + 1)), _MOST)]


def _thin(values: list[_Value], most: int) -> list[_Value]:
    """At most `most` of them, evenly spaced, both ends kept."""
    if len(values) <= most:
        return values
    return [values[i * (len(values) - 1) // (most - 1)] for i in range(most)]
