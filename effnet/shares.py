"""Where a network's extra cost went: shares, directions, and the network of a direction. No torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

from effnet.arch import Baseline, Scaling, least_side, repeats_at, scale
from effnet.budget import nearest_width, shortest_width
from effnet.cost import macs
from effnet.rounding import round_half_up

Shares = tuple[float, float, float]  # depth, width, resolution; they sum to 1


def shares(base: Baseline, depth: float, width: float, resolution: int, num_classes: int) -> Shares | None:
    """Real cost shares: each dial's mean contribution to the log of exact cost over all six orders of
    turning them (a Shapley value over 8 exact counts), divided by the log of the whole ratio.

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


def distance(a: Shares, b: Shares) -> float:
    """Euclidean, over the three shares."""
    return math.dist(a, b)


def waste(base: Baseline, sides: Iterable[int], num_classes: int) -> dict[int, float]:
    """Per resolution [px]: the baseline's cost per pixel over the best among `sides`, minus 1.

    Feature maps shrink by ceil, so a side just above a multiple of a stride pays for a whole row more."""
    per_pixel = {px: macs(scale(base, resolution=px, num_classes=num_classes)) / px**2 for px in sides}
    best = min(per_pixel.values())
    return {px: c / best - 1 for px, c in per_pixel.items()}


def along(
    base: Baseline,
    toward: Shares,
    ratio: float,
    num_classes: int,
    *,
    max_waste: float = 0.08,
    top: float = math.inf,
) -> Scaling:
    """The network at `ratio` times the baseline's MACs nearest to a direction (design.md, family): three
    block counts and three resolutions of low waste around it, at most `top` px, width solved; of those
    within 2% the nearest in shares, else the nearest in cost. Its coefficients rebuild it at phi = 1.

    Raises ValueError for a ratio that is not a finite number above 0, or shares that do not sum to 1."""
    if not (math.isfinite(ratio) and ratio > 0):
        raise ValueError(f"ratio = {ratio}: must be a finite number above 0")
    if not abs(sum(toward) - 1) <= 1e-6:
        raise ValueError(f"shares {toward}: depth, width and resolution must sum to 1")
    s = direction(toward, ratio)
    base_macs = macs(scale(base, num_classes=num_classes))
    blocks, side = s.depth * base.blocks, s.resolution * base.resolution
    least = least_side(base.total_stride)
    most = max(least, int(min(top, math.ceil(1.25 * side))))
    sides = range(max(least, min(most, math.floor(0.8 * side))), most + 1)
    wasted = waste(base, sides, num_classes)
    best_sides = sorted((px for px in sides if wasted[px] <= max_waste), key=lambda px: abs(px - side))[:3]
    best: tuple[float, float] | None = None
    found = Scaling(1, 1, 1)
    for depth, px in itertools.product(_depths(base, blocks), best_sides):
        width = nearest_width(base, ratio * base_macs, depth, px, num_classes)
        off = abs(macs(scale(base, depth, width, px, num_classes=num_classes)) / base_macs / ratio - 1)
        real = shares(base, depth, width, px, num_classes)
        rank = (0.0 if off <= 0.02 else off, distance(real, toward) if real else math.inf)
        if best is None or rank < best:
            best, found = rank, Scaling(depth, width, px / base.resolution)
    net = scale(base, found.alpha, found.beta, round_half_up(found.gamma * base.resolution), num_classes=num_classes)
    return Scaling(found.alpha, shortest_width(base, net, found.alpha, found.beta), found.gamma)


def _depths(base: Baseline, blocks: float) -> list[float]:
    """Depth multipliers of the three networks whose block counts are nearest to `blocks`."""
    if base.rounding == "spread":
        fewest = max(len(base.stages), round_half_up(blocks) - 1)
        return [n / base.blocks for n in range(fewest, fewest + 3)]
    wanted = blocks / base.blocks
    thousandths = range(max(1, int(600 * wanted)), int(1600 * wanted) + 2)
    built: dict[tuple[int, ...], float] = {}
    for depth in sorted((n / 1000 for n in thousandths), key=lambda d: abs(d - wanted)):
        built.setdefault(repeats_at(base, depth), depth)
    return [built[repeats] for repeats in sorted(built, key=lambda r: abs(sum(r) - blocks))[:3]]
