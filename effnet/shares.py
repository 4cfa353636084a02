"""Where a network's extra cost went: its shares of depth, width and resolution; directions in
shares, and the network of a direction. No torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

from effnet import counting
from effnet.arch import AnyBaseline, Network, Scaling, least_depth, least_side, repeats_at, scale
from effnet.budget import Budget, Measure
from effnet.cost import macs
from effnet.custom import Function, FunctionError
from effnet.rounding import round_half_up
from effnet.solve import Solution, fit, fit_width_within

Shares = tuple[float, float, float]  # depth, width, resolution; they sum to 1

# A direction's network is looked for at resolutions within these factors of the exact one, which
# is seldom of low waste itself.
_SIDES_FROM, _SIDES_TO = 0.8, 1.25
_BEYOND = 1.1  # times the largest side: how far a function's waste is looked at
# Where cost grows less than depth, networks so much deeper are tried too.
_DEEPER = 1.15
# Of a function, which takes long to count: depths and widths are tried within these factors.
_DEPTHS_AROUND, _WIDTHS_AROUND = 1.3, 1.5
_FARTHEST = 32  # times a function's depth and width: thousands of layers take seconds to count
_DIMENSIONS = ("depth", "width", "resolution")
_CHOICES = 3  # block counts, and resolutions, that are tried around a direction


# The powers of depth, width and resolution with which a measure grows.
Exponents = tuple[float, float, float]

# Those of each measure, nominally (paper, section 3.3, for multiply-adds). Training memory is
# activations, mostly. Latency grows as the device will: see `exponents`.
EXPONENTS: dict[Measure, Exponents] = {
    "macs": (1, 2, 2),
    "params": (1, 2, 0),
    "acts": (1, 1, 2),
    "memory": (1, 1, 2),
}


def exponents(budget: Budget) -> Exponents:
    """Those of a budget's measure: of latency as measured, else multiply-adds'."""
    if budget.times is not None:
        return budget.times.exponents
    return EXPONENTS.get(budget.of, EXPONENTS["macs"])


def shares(
    base: AnyBaseline,
    depth: float,
    width: float,
    resolution: int,
    num_classes: int,
    measure: Callable[[Network], int] = macs,
) -> Shares | None:
    """Real cost shares, of cost by `measure`: each dial's mean contribution to the log of exact
    cost over all six orders of turning them (a Shapley value over 8 exact counts), divided by the
    log of the whole ratio.

    None where the network costs what the baseline costs: nothing was added that could be shared."""
    # log cost for each choice of dials turned: (1, 0, 0) is depth alone
    log_cost: dict[tuple[int, ...], float] = {}
    for turned in itertools.product((0, 1), repeat=3):
        net = scale(
            base,
            depth if turned[0] else 1.0,
            width if turned[1] else 1.0,
            resolution if turned[2] else base.resolution,
            num_classes=num_classes,
        )
        log_cost[turned] = math.log(measure(net))
    whole = log_cost[1, 1, 1] - log_cost[0, 0, 0]
    if whole == 0:
        return None
    added = [0.0, 0.0, 0.0]
    for order in itertools.permutations(range(3)):
        dials = [0, 0, 0]
        for dial in order:
            before = log_cost[tuple(dials)]
            dials[dial] = 1
            added[dial] += (log_cost[tuple(dials)] - before) / 6
    return (added[0] / whole, added[1] / whole, added[2] / whole)


def nominal_shares(s: Scaling) -> Shares:
    """The shares of bare coefficients: (log alpha, 2 log beta, 2 log gamma) over their own sum.

    Cost grows with depth, and with the squares of width and resolution (paper, section 3.3). Raises
    ValueError where no coefficient scales."""
    logs = (math.log(s.alpha), 2 * math.log(s.beta), 2 * math.log(s.gamma))
    total = sum(logs)
    if total == 0:
        raise ValueError("alpha = beta = gamma = 1 scales nothing and has no direction")
    return (logs[0] / total, logs[1] / total, logs[2] / total)


def direction(s: Shares, ratio: float, powers: Exponents = EXPONENTS["macs"]) -> Scaling:
    """The coefficients that spend `ratio` of a measure in these shares, where it grows with these
    powers of the dimensions. A dimension that it does not grow with stays as it is."""
    factors = []
    for share, exponent in zip(s, powers, strict=True):
        factors.append(ratio ** (share / exponent) if exponent else 1.0)
    return Scaling(*factors)


def translated(s: Shares, powers: Exponents) -> Shares | None:
    """A direction in shares of multiply-adds as shares of a measure that grows with these powers:
    the same ratio between the logarithms of the three coefficients. None where nothing of it grows
    the measure, as resolution does not grow parameters."""
    grown = []
    for share, ours, theirs in zip(s, EXPONENTS["macs"], powers, strict=True):
        grown.append(share / ours * theirs)
    total = sum(grown)
    if total == 0:
        return None
    return (grown[0] / total, grown[1] / total, grown[2] / total)


def waste(base: AnyBaseline, sides: Iterable[int], num_classes: int) -> dict[int, float]:
    """Per resolution [px]: the baseline's cost per pixel over the best among `sides`, minus 1.

    Feature maps shrink by ceil, so a side just above a multiple of a stride pays for a whole row
    more: B0 at 225 px wastes 15% against 224. A function's networks may cost more a pixel as they
    grow, as attention does, and waste nothing: see `_waste_of_function`."""
    if isinstance(base, Function):
        return _waste_of_function(base, list(sides), num_classes)
    per_pixel = {}
    for px in sides:
        net = scale(base, resolution=px, num_classes=num_classes)
        per_pixel[px] = macs(net) / math.prod(net.sides)
    best = min(per_pixel.values())
    return {px: each / best - 1 for px, each in per_pixel.items()}


def _waste_of_function(base: Function, sides: list[int], num_classes: int) -> dict[int, float]:
    """Per side [px]: its cost over that of the frugal sides around it, minus 1.

    Frugal are those on the lower convex hull of log cost over log side: cost is a sum of powers of
    the side (a head's 0, convolutions' 2, attention's 4), whose logarithm is convex. Sides a little
    beyond the last are looked at too, or that one, being the end, would pass for frugal."""
    beyond = range(max(sides) + 1, math.ceil(_BEYOND * max(sides)) + 1)
    points = []
    for px in sorted({*sides, *beyond}):
        try:
            net = scale(base, resolution=px, num_classes=num_classes)
        except FunctionError:
            if px <= max(sides):
                raise
            break  # it is not built for more
        points.append((math.log(px), math.log(macs(net))))
    hull: list[tuple[float, float]] = []
    for point in points:
        while len(hull) > 1 and _turns_down(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    wastes = {}
    for x, y in points:
        right = next(i for i, (at, _) in enumerate(hull) if at >= x)
        (x0, y0), (x1, y1) = hull[max(0, right - 1)], hull[right]
        frugal = y1 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
        wastes[round(math.exp(x))] = math.exp(y - frugal) - 1
    return {px: wastes[px] for px in sides}


def _turns_down(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether `b` lies on or above the line from `a` to `c`."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])


def toward(
    base: AnyBaseline,
    aim: Shares,
    budget: Budget,
    num_classes: int = 1000,
    *,
    max_waste: float = 0.08,
    top: float = math.inf,
) -> tuple[Solution, float]:
    """The network of `budget` nearest to a direction, and its resolution's waste: three block
    counts and three resolutions of low waste around the direction, at most `top` px, width solved;
    of those that meet the budget the nearest in shares, else the nearest in cost.

    Shares are of the budget's measure. Raises ValueError for an aim that does not sum to 1, and for
    a function where the direction leads too far."""
    if not (abs(sum(aim) - 1) <= 1e-6 and min(aim) >= 0):
        raise ValueError(
            f"shares {aim}: depth, width and resolution, each at least 0, must sum to 1"
        )
    powers = exponents(budget)
    for share, exponent, dimension in zip(aim, powers, _DIMENSIONS, strict=True):
        if share > 0 and not exponent:
            raise ValueError(f"shares {aim}: {dimension} costs no {budget.unit}")
    base_cost = budget.measure(scale(base, num_classes=num_classes))
    exact = direction(aim, budget.ratio(base_cost), powers)
    if isinstance(base, Function) and max(exact.depth, exact.width) > _FARTHEST:
        raise FunctionError(
            f"budget {budget}: depth {exact.depth:.3g} and width {exact.width:.3g}; a function is "
            f"tried up to {_FARTHEST} times the baseline's: larger networks take long to count"
        )
    sides = {base.resolution: 0.0}
    if powers[2]:  # else no side costs more than another
        sides = _sides(base, exact.resolution * base.resolution, top, max_waste, num_classes)

    def rank(solution: Solution) -> tuple[float, float, int]:
        side = solution.arch.resolution
        real = shares(base, solution.depth, solution.width, side, num_classes, budget.measure)
        distance = math.inf if real is None else math.dist(real, aim)
        miss = 0.0 if solution.met else abs(solution.off)
        return miss, distance, -side  # of equals the larger

    solutions = []
    depths = _depths(base, exact.depth, num_classes)
    if budget.of in ("acts", "memory", "latency") and aim[0] > 0:
        # these grow less than depth does, as the stem has its part
        depths += _depths(base, exact.depth * _DEEPER, num_classes)
    for depth in depths:
        for side in sides:
            if isinstance(base, Function):
                around = (exact.width / _WIDTHS_AROUND, exact.width * _WIDTHS_AROUND)
                solution = fit_width_within(base, budget, depth, side, num_classes, around)
            else:
                solution = fit(base, budget, depth=depth, resolution=side, num_classes=num_classes)
            solutions.append(solution)
    best = min(solutions, key=rank)
    return best, sides[best.arch.resolution]


def _sides(
    base: AnyBaseline, exact: float, top: float, max_waste: float, num_classes: int
) -> dict[int, float]:
    """The resolutions [px] of low waste nearest to `exact`, at most `top`, with their waste."""
    least = least_side(base.total_stride)
    most = max(least, int(min(top, math.ceil(_SIDES_TO * exact))))
    fewest = max(least, min(most, math.floor(_SIDES_FROM * exact)))
    wasted = waste(base, range(fewest, most + 1), num_classes)
    frugal = [px for px in wasted if wasted[px] <= max_waste]
    nearest = sorted(frugal, key=lambda px: abs(px - exact))
    return {px: wasted[px] for px in nearest[:_CHOICES]}


def _depths(base: AnyBaseline, depth: float, num_classes: int) -> list[float]:
    """Depth multipliers of the three networks whose block counts are nearest to that many times the
    baseline's."""
    if isinstance(base, Function):
        low, high = depth / _DEPTHS_AROUND, depth * _DEPTHS_AROUND
        multipliers = counting.distinct_depths(base, low, high, num_classes)
        return sorted(multipliers, key=lambda multiplier: abs(multiplier - depth))[:_CHOICES]
    blocks = depth * base.blocks
    if least_depth(base):  # depth moves in whole blocks
        fewest = max(len(base.stages), round_half_up(blocks) - 1)
        return [count / base.blocks for count in range(fewest, fewest + _CHOICES)]
    # Elsewhere each stage rounds by itself: depths are tried in thousandths, as far as two blocks
    # of the longest stage reach.
    reach = 2000 // max([stage.repeats for stage in base.stages]) + 1
    middle = round_half_up(1000 * depth)
    thousandths = range(max(1, middle - reach), middle + reach + 1)
    depth_of: dict[tuple[int, ...], float] = {}
    for n in sorted(thousandths, key=lambda n: abs(n - middle)):
        depth_of.setdefault(repeats_at(base, n / 1000), n / 1000)
    nearest = sorted(depth_of, key=lambda repeats: abs(sum(repeats) - blocks))
    return [depth_of[repeats] for repeats in nearest[:_CHOICES]]
