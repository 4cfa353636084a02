"""Which network meets a budget: one dial (width, depth, resolution or phi) is left free and solved
in exact cost. No torch.

Cost never falls as a dial is turned up, so a bisection over the dial's integer positions finds the
nearest network. Where depth moves in whole blocks the order can be disturbed, and a search over
the pieces in which it is not takes its place."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypedDict, Unpack

from effnet.arch import (
    AnyBaseline,
    Baseline,
    Network,
    Scaling,
    columns_at,
    least_depth,
    least_rows,
    parse_sides,
    scale,
    side_at,
)
from effnet.budget import Budget
from effnet.cost import macs
from effnet.custom import Function, FunctionError
from effnet.families import PAPER, baseline, default_classes
from effnet.rounding import round_half_up, shortest_decimal

Dial = Literal["width", "depth", "resolution", "phi"]

# How far each dial is searched, well beyond any network that could be trained.
_MAX_WIDTH, _MAX_DEPTH, _MAX_RESOLUTION = 100.0, 1000.0, 16384
# Dials turn in whole steps. Widths and depths go in thousandths, finer than any divisor's rounding
# can tell apart; phi in millionths, since all three dimensions round at each of its steps.
_THOUSANDTHS, _MILLIONTHS = 1000, 1_000_000
_LEAST_GROWTH = 1.001  # of the largest of alpha, beta and gamma, for phi to lead anywhere


@dataclass(frozen=True, slots=True)
class Solution:
    """The network that comes nearest to a budget with one dial left free. It may still miss it:
    `met` says.

    `value` is the free dial's setting (a multiplier, px, or phi), `depth` and `width` the
    multipliers that build `arch`, `cost` in the budget's unit, `off` the signed relative distance
    from the target."""

    arch: Network
    budget: Budget
    free: Dial
    value: float
    depth: float
    width: float
    cost: int
    off: float

    @property
    def met(self) -> bool:
        return abs(self.off) <= self.budget.tolerance

    def __str__(self) -> str:
        size = f"{self.arch.blocks} blocks"
        if self.arch.blocks is None:  # of a function
            size = f"depth {self.depth:.4g}"
        return (
            f"{self.free} {self.value:g}: {size}, width {self.width:.4g}, "
            f"{self.arch.px}, {self.budget.quantity(self.cost)} "
            f"({self.off:+.2%} of {self.budget})"
        )


class InfeasibleError(ValueError):
    """No setting meets the budget; `solution` is the network that comes closest, and how close."""

    def __init__(self, solution: Solution) -> None:
        super().__init__(solution)
        self.solution = solution

    def __str__(self) -> str:
        budget = self.solution.budget
        return (
            f"nothing within {100 * budget.tolerance:g}% of {budget}; "
            f"the nearest has {self.solution}"
        )


# ---- searches over integers


def _nearest(
    cost_at: Callable[[int], int], target: float, low: int, high: int, start: int | None = None
) -> int:
    """The integer in [low, high] whose cost is nearest to `target`, the lower one on a tie; cost_at
    must not decrease. Given `start`, it is asked for no integer farther from there than it takes to
    pass the target by doubling or halving."""
    if start is not None and low <= start <= high:
        below, above = start, start
        while low < below and cost_at(below) >= target:
            below = max(low, below // 2) if below > 1 else low  # phi goes below 0
        while above < high and cost_at(above) < target:
            above = min(high, 2 * above)
        low, high = below, above
    # the first whose cost reaches the target, else the last
    above = low + bisect_left(range(low, high), target, key=cost_at)
    if above == low:
        return low
    below = above - 1
    if target - cost_at(below) <= abs(cost_at(above) - target):
        return below
    return above


def _last_of_equal_cost(cost_at: Callable[[int], int], start: int, high: int) -> int:
    """The last integer up to `high` that costs what `start` does; cost_at must not decrease. It is
    asked for no integer farther from `start` than it takes to find a higher cost by doubling."""
    cost = cost_at(start)
    low, stride = start, 1
    while low < high:
        above = min(high, start + stride)
        if cost_at(above) > cost:
            return low + bisect_right(range(low, above), cost, key=cost_at) - 1
        low, stride = above, 2 * stride
    return high


def _shortest_decimal(builds: Callable[[int], bool], start: int, unit: int) -> int:
    """The shortest decimal among the integers, in parts of `unit` (a power of ten), around `start`
    for which `builds` holds; of several, the one nearest to the middle of their interval.

    So a width is printed as 1.1 where 1.0983 builds the same network."""
    low, high = start, start
    stride = unit
    while stride:  # the interval is connected: its ends are reached in shrinking strides
        while builds(low - stride):
            low -= stride
        while builds(high + stride):
            high += stride
        stride //= 2

    return shortest_decimal(low, high, unit)


# ---- width alone, as spaces of networks are made with


def nearest_width(
    base: AnyBaseline,
    target: float,
    depth: float,
    resolution: int,
    num_classes: int,
    limits: tuple[float, float] = (0.001, _MAX_WIDTH),
    measure: Callable[[Network], int] = macs,
) -> float:
    """The width multiplier, in whole thousandths within `limits`, that comes nearest to `target` by
    `measure`: multiply-adds, unless another is given."""

    def cost_at(position: int) -> int:
        width = position / _THOUSANDTHS
        return measure(scale(base, depth, width, resolution, num_classes=num_classes))

    low = max(1, round_half_up(_THOUSANDTHS * limits[0]))
    high = max(low, round_half_up(_THOUSANDTHS * limits[1]))
    return _nearest(cost_at, target, low, high, _THOUSANDTHS) / _THOUSANDTHS


# Of a function's networks the first within this part of the tolerance is taken, where the nearest
# would take twice the counts.
NEAR_ENOUGH = 0.25


def width_within(
    base: AnyBaseline,
    target: float,
    depth: float,
    resolution: int,
    num_classes: int,
    limits: tuple[float, float],
    within: float,
    measure: Callable[[Network], int] = macs,
) -> float:
    """A width multiplier, in whole thousandths within `limits`, whose cost by `measure` lies within
    this fraction of `target`, else the nearest: by few counts, where each takes long.

    Regula falsi on logarithms, since cost grows as a power of width, every other step a halving,
    since channels round."""

    def cost_at(position: int) -> int:
        width = position / _THOUSANDTHS
        return measure(scale(base, depth, width, resolution, num_classes=num_classes))

    below, above = (round_half_up(_THOUSANDTHS * limit) for limit in limits)
    cost_below = cost_at(below)
    if cost_below >= target or above <= below:
        return below / _THOUSANDTHS
    cost_above = cost_at(above)
    if cost_above <= target:
        return above / _THOUSANDTHS
    halve = False
    while above - below > 1:
        middle = (below + above) // 2
        if not halve:
            part = math.log(target / cost_below) / math.log(cost_above / cost_below)
            middle = round(below * (above / below) ** part)
            middle = min(max(middle, below + 1), above - 1)
        halve = not halve
        cost = cost_at(middle)
        if abs(cost / target - 1) <= within:
            return middle / _THOUSANDTHS
        if cost < target:
            below, cost_below = middle, cost
        else:
            above, cost_above = middle, cost
    nearest = below if target - cost_below <= cost_above - target else above
    return nearest / _THOUSANDTHS


def fit_width_within(
    base: AnyBaseline,
    budget: Budget,
    depth: float,
    resolution: int,
    num_classes: int,
    limits: tuple[float, float],
) -> Solution:
    """The network of `width_within` as a Solution."""
    base_cost = budget.measure(scale(base, num_classes=num_classes))
    width = width_within(
        base,
        budget.target(base_cost),
        depth,
        resolution,
        num_classes,
        limits,
        within=NEAR_ENOUGH * budget.tolerance,
        measure=budget.measure,
    )
    arch = scale(base, depth, width, resolution, num_classes=num_classes)
    cost = budget.measure(arch)
    off = budget.off(cost, base_cost)
    return Solution(arch, budget, "width", width, depth, width, cost, off)


def shortest_width(base: AnyBaseline, arch: Network, depth: float, near: float) -> float:
    """The shortest decimal (up to three places) among the width multipliers that build `arch`, of
    which `near` is one; of several, the one nearest to the middle of their interval. Raises
    ValueError where `near` builds another network."""

    def builds(position: int) -> bool:
        if position <= 0:
            return False
        width = position / _THOUSANDTHS
        return scale(base, depth, width, arch.resolution, num_classes=arch.num_classes) == arch

    start = round_half_up(near * _THOUSANDTHS)
    if not builds(start):
        raise ValueError(f"width {near:g} does not build this network")
    return _shortest_decimal(builds, start, _THOUSANDTHS) / _THOUSANDTHS


# ---- any dial


@dataclass(frozen=True, slots=True)
class _FreeDial:
    """One free dial as a range of integer positions in parts of `unit`, and the depth, width and
    resolution [px] that it gives at each."""

    name: Dial
    unit: int
    low: int
    high: int
    at: Callable[[int], tuple[float, float, int]]
    start: int  # the baseline's own position, or near it


class Dials(TypedDict, total=False):
    """The arguments of `fit` beside baseline and budget."""

    depth: float | None
    width: float | None
    resolution: int | str | None
    along: Scaling | Literal["paper"] | None
    num_classes: int | None


def solve(base: AnyBaseline | str, budget: Budget | str, **dials: Unpack[Dials]) -> Network:
    """The network of `fit`; raises InfeasibleError, which holds the nearest, when it misses the
    tolerance."""
    solution = fit(base, budget, **dials)
    if not solution.met:
        raise InfeasibleError(solution)
    return solution.arch


def fit(
    base: AnyBaseline | str,
    budget: Budget | str,
    *,
    depth: float | None = None,
    width: float | None = None,
    resolution: int | str | None = None,
    along: Scaling | Literal["paper"] | None = None,
    num_classes: int | None = None,
) -> Solution:
    """The network nearest to `budget` with one dial left free, whether or not it meets it.

    Given resolution [px], width is solved; given width, resolution; given both, depth (which is
    otherwise 1 unless given). Given `along` (alpha, beta and gamma of at least 1), phi is solved: a
    step function, since all three dimensions round. Of resolutions, and of phi, that cost the same,
    the largest. A resolution of unequal sides is "480x640", rows and columns. A relative budget is
    relative to the baseline at its own resolution, or at its own rows in that proportion.
    `num_classes`: by default 1000, or those of the pick where `base` is a run folder.

    Raises ValueError for another combination, or a value out of range, FunctionError (one too) for
    what a function raises or lacks."""
    if num_classes is None:
        num_classes = default_classes(base)
    base = reference = baseline(base)
    if resolution is not None:
        base, reference = of_sides(base, resolution)
    if isinstance(resolution, str):
        resolution, _ = parse_sides(resolution)
    if isinstance(budget, str):
        budget = Budget.parse(budget)
    if along == "paper":
        along = PAPER
    if along is not None and not isinstance(along, Scaling):
        raise ValueError(f'along = {along!r}: must be "paper" or a Scaling')
    # first, as it says what is wrong with a function that has no resolution
    base_cost = budget.measure(scale(reference, num_classes=num_classes))
    dial = _free_dial(base, depth, width, resolution, along)

    def arch_at(position: int) -> Network:
        return scale(base, *dial.at(position), num_classes=num_classes)

    position = _nearest_position(base, budget, dial, arch_at, budget.target(base_cost))
    arch = arch_at(position)
    if dial.name != "resolution":

        def builds(other: int) -> bool:
            return dial.low <= other <= dial.high and arch_at(other) == arch

        position = _shortest_decimal(builds, position, dial.unit)
    cost = budget.measure(arch)
    depth, width, _ = dial.at(position)
    return Solution(
        arch=arch,
        budget=budget,
        free=dial.name,
        value=position / dial.unit,
        depth=depth,
        width=width,
        cost=cost,
        off=budget.off(cost, base_cost),
    )


def of_sides(base: AnyBaseline, resolution: int | str) -> tuple[AnyBaseline, AnyBaseline]:
    """The baseline that builds networks of just this resolution, 224 or "480x640", and the one that
    a relative budget is relative to: in that proportion, at its own rows.

    A function without a side of its own gets this one. Raises ValueError for no sides, and for
    columns of a function."""
    rows, columns = (resolution, 0) if isinstance(resolution, int) else parse_sides(resolution)
    if isinstance(base, Function):
        if columns:
            raise ValueError(f"resolution = {resolution}: a function is given one side")
        if not base.resolution:
            base = replace(base, resolution=rows)
        return base, base
    if not columns:
        return base, base
    at_sides = base.at(resolution)
    return at_sides, replace(base, columns=columns_at(at_sides, base.resolution))


def _nearest_position(
    base: AnyBaseline,
    budget: Budget,
    dial: _FreeDial,
    arch_at: Callable[[int], Network],
    target: float,
) -> int:
    """The dial's position whose network comes nearest to `target`."""

    def cost_at(position: int) -> int:
        return budget.measure(arch_at(position))

    # no parameter of a table depends on resolution, some function's do (a table of positions)
    is_idle = budget.of == "params" and dial.name == "resolution"
    if is_idle and (isinstance(base, Baseline) or not _grows(cost_at, base.resolution)):
        return base.resolution
    best = _nearest(cost_at, target, dial.low, dial.high, dial.start)
    high = dial.high
    if isinstance(base, Baseline) and least_depth(base) and dial.name in ("depth", "phi"):
        # One more block can move another to a cheaper stage, so cost may fall as the dial rises.
        # At equal repeats it never does.
        candidates = []
        for piece_low, piece_high in _pieces(base, dial, arch_at, best):
            nearest = _nearest(cost_at, target, piece_low, piece_high)
            candidates.append((abs(cost_at(nearest) - target), nearest, piece_high))
        _, best, high = min(candidates, key=lambda candidate: candidate[0])
    if dial.name in ("resolution", "phi") and budget.of != "params":
        # a side just below a multiple of the strides costs what the multiple does: pixels that
        # cost nothing are taken
        best = _last_of_equal_cost(cost_at, best, high)
    return best


def _grows(cost_at: Callable[[int], int], side: int) -> bool:
    """Whether a function costs more at twice the side; one that refuses it is taken not to."""
    try:
        return cost_at(2 * side) > cost_at(side)
    except FunctionError:
        return False


def _pieces(
    base: Baseline, dial: _FreeDial, arch_at: Callable[[int], Network], middle: int
) -> list[tuple[int, int]]:
    """Ranges of the dial at equal block counts, as far around `middle` as counts of blocks can
    disturb the order of costs: largest remainders keep every stage within one block of its share,
    so no further than one block of the smallest stage is worth."""

    def blocks_at(position: int) -> int:
        return arch_at(position).blocks or 0

    smallest = min([stage.repeats for stage in base.stages])
    reach = math.ceil(base.blocks / smallest) + 1
    blocks = blocks_at(middle)
    positions = range(dial.low, dial.high + 1)
    starts = set()
    for count in range(blocks - reach, blocks + reach + 2):
        # the first position with at least so many blocks
        starts.add(dial.low + bisect_left(positions, count, key=blocks_at))
    return [(low, high - 1) for low, high in itertools.pairwise(sorted(starts))]


def _free_dial(
    base: AnyBaseline,
    depth: float | None,
    width: float | None,
    resolution: int | None,
    along: Scaling | None,
) -> _FreeDial:
    """Which dial is free, and how far it reaches. Raises ValueError where it is none, or two."""
    if along is not None:
        if depth is not None or width is not None or resolution is not None:
            raise ValueError(
                "along leaves phi free and sets depth, width and resolution: give it alone"
            )
        return _phi_dial(base, along)
    fixed_depth = 1.0 if depth is None else depth
    if resolution is None:
        if width is None:
            raise ValueError(
                "give resolution (width is solved), width (resolution is solved), "
                "both (depth), or along"
            )
        return _resolution_dial(base, fixed_depth, width)
    if width is None:
        return _width_dial(fixed_depth, resolution)
    if depth is None:
        return _depth_dial(base, width, resolution)
    raise ValueError("depth, width and resolution are all given: leave one of them free")


def _width_dial(depth: float, resolution: int) -> _FreeDial:
    def at(position: int) -> tuple[float, float, int]:
        return depth, position / _THOUSANDTHS, resolution

    high = round(_THOUSANDTHS * _MAX_WIDTH)
    return _FreeDial("width", _THOUSANDTHS, 1, high, at, _THOUSANDTHS)


def _resolution_dial(base: AnyBaseline, depth: float, width: float) -> _FreeDial:
    def at(position: int) -> tuple[float, float, int]:
        return depth, width, position

    low = least_rows(base)
    return _FreeDial("resolution", 1, low, _MAX_RESOLUTION, at, base.resolution)


def _depth_dial(base: AnyBaseline, width: float, resolution: int) -> _FreeDial:
    def at(position: int) -> tuple[float, float, int]:
        return position / _THOUSANDTHS, width, resolution

    low = max(1, math.ceil(_THOUSANDTHS * least_depth(base)))
    high = round(_THOUSANDTHS * _MAX_DEPTH)
    return _FreeDial("depth", _THOUSANDTHS, low, high, at, _THOUSANDTHS)


def _phi_dial(base: AnyBaseline, along: Scaling) -> _FreeDial:
    coefficients = (along.alpha, along.beta, along.gamma)
    if min(coefficients) < 1 or max(coefficients) < _LEAST_GROWTH:
        raise ValueError(
            f"along {coefficients}: alpha, beta and gamma must be at least 1, and one of them "
            f"{_LEAST_GROWTH} or more"
        )
    # phi reaches as far as the first of the three dimensions does
    reach = (
        (least_depth(base) or 0.001, _MAX_DEPTH),
        (0.001, _MAX_WIDTH),
        (least_rows(base) / base.resolution, _MAX_RESOLUTION / base.resolution),
    )
    lows, highs = [], []
    for coefficient, (low, high) in zip(coefficients, reach, strict=True):
        if coefficient > 1:
            lows.append(math.log(low) / math.log(coefficient))
            highs.append(math.log(high) / math.log(coefficient))

    def at(position: int) -> tuple[float, float, int]:
        scaling = Scaling(*coefficients, position / _MILLIONTHS)
        return scaling.depth, scaling.width, side_at(base, scaling.resolution)

    lowest = math.ceil(max(lows) * _MILLIONTHS)
    highest = math.floor(min(highs) * _MILLIONTHS)
    return _FreeDial("phi", _MILLIONTHS, lowest, highest, at, _MILLIONTHS)
