"""Where a network's extra cost went: shares, directions, and the network of a direction. No
torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

from effnet.arch import Baseline, Scaling, least_depth, least_side, repeats_at, scale
from effnet.budget import Budget
from effnet.cost import macs
from effnet.rounding import round_half_up
from effnet.solve import Solution, fit

Shares = tuple[float, float, float]  # depth, width, resolution; they sum to 1


def shares(
    base: Baseline, depth: float, width: float, resolution: int, num_classes: int
) -> Shares | None:
    """Real cost shares: each dial's mean contribution to the log of exact cost over all six orders
    of turning them (a Shapley value over 8 exact counts), divided by the log of the whole ratio.

    None where the network costs what the baseline costs: nothing is there to share."""
    settings = ((1.0, depth), (1.0, width), (base.resolution, resolution))
    log = {
        on: math.log(
            macs(
                scale(
                    base,
                    settings[0][on[0]],
                    settings[1][on[1]],
                    int(settings[2][on[2]]),
                    num_classes=num_classes,
                )
            )
        )
        for on in itertools.product((0, 1), repeat=3)
    }
    whole = log[1, 1, 1] - log[0, 0, 0]
    if whole == 0:
        return None
    added = [0.0, 0.0, 0.0]
    for order in itertools.permutations(range(3)):
        on = [0, 0, 0]
        for dial in order:
            before = log[on[0], on[1], on[2]]
            on[dial] = 1
            added[dial] += (log[on[0], on[1], on[2]] - before) / 6
    return (added[0] / whole, added[1] / whole, added[2] / whole)


def nominal_shares(s: Scaling) -> Shares:
    """Of bare coefficients: (log alpha, 2 log beta, 2 log gamma) over their own sum."""
    logs = (math.log(s.alpha), 2 * math.log(s.beta), 2 * math.log(s.gamma))
    total = sum(logs)
    if total == 0:
        raise ValueError("alpha = beta = gamma = 1 scales nothing and has no direction")
    return (logs[0] / total, logs[1] / total, logs[2] / total)


def direction(s: Shares, ratio: float) -> Scaling:
    """The coefficients that spend `ratio` in these shares."""
    return Scaling(ratio ** s[0], ratio ** (s[1] / 2), ratio ** (s[2] / 2))


def waste(base: Baseline, sides: Iterable[int], num_classes: int) -> dict[int, float]:
    """Per resolution [px]: the baseline's cost per pixel over the best among `sides`, minus 1.

    Feature maps shrink by ceil, so a side just above a multiple of a stride pays for a whole row
    more."""
    per_pixel = {
        px: macs(scale(base, resolution=px, num_classes=num_classes)) / px**2 for px in sides
    }
    best = min(per_pixel.values())
    return {px: c / best - 1 for px, c in per_pixel.items()}


def toward(
    base: Baseline,
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

    Raises ValueError for a budget that is not of MACs, or an aim that does not sum to 1."""
    if budget.of != "macs":
        raise ValueError(f"shares are of multiply-adds: {budget} is not")
    if not (abs(sum(aim) - 1) <= 1e-6 and min(aim) >= 0):
        raise ValueError(
            f"shares {aim}: depth, width and resolution, each at least 0, must sum to 1"
        )
    base_macs = macs(scale(base, num_classes=num_classes))
    s = direction(aim, budget.target(base_macs) / base_macs)
    side, least = s.resolution * base.resolution, least_side(base.total_stride)
    most = max(least, int(min(top, math.ceil(1.25 * side))))
    sides = range(max(least, min(most, math.floor(0.8 * side))), most + 1)
    wasted = waste(base, sides, num_classes)
    best_sides = sorted(
        (px for px in sides if wasted[px] <= max_waste), key=lambda px: abs(px - side)
    )[:3]

    def rank(found: Solution) -> tuple[float, float, int]:
        real = shares(base, found.depth, found.width, found.arch.resolution, num_classes)
        apart = math.dist(real, aim) if real else math.inf
        return 0.0 if found.met else abs(found.off), apart, -found.arch.resolution

    tried = [
        fit(base, budget, depth=depth, resolution=px, num_classes=num_classes)
        for depth, px in itertools.product(_depths(base, s.depth), best_sides)
    ]
    best = min(tried, key=rank)
    return best, wasted[best.arch.resolution]


def _depths(base: Baseline, depth: float) -> list[float]:
    """Depth multipliers of the three networks whose block counts are nearest to that many times the
    baseline's."""
    blocks = depth * base.blocks
    if least_depth(base):
        fewest = max(len(base.stages), round_half_up(blocks) - 1)
        return [n / base.blocks for n in range(fewest, fewest + 3)]
    around = (
        2000 // max(s.repeats for s in base.stages) + 1
    )  # two blocks of the longest stage, in thousandths
    middle = round_half_up(1000 * depth)
    thousandths = sorted(
        range(max(1, middle - around), middle + around + 1), key=lambda n: abs(n - middle)
    )
    built: dict[tuple[int, ...], float] = {}
    for n in thousandths:
        built.setdefault(repeats_at(base, n / 1000), n / 1000)
    return [built[repeats] for repeats in sorted(built, key=lambda r: abs(sum(r) - blocks))[:3]]
