"""Budgets met in exact multiply-adds, and cost shares. No torch."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from effnet.arch import Arch, Baseline, Scaling, round_half_up, scale
from effnet.cost import macs

_SUFFIX = {"K": 1e3, "M": 1e6, "G": 1e9}
# Widths are searched in thousandths: finer than any divisor-4 rounding can tell apart.
_MAX_WIDTH = 20.0
_MAX_RESOLUTION = 4096


class InfeasibleError(ValueError):
    """No setting meets the budget; `nearest` is the network that comes closest, `macs` its cost."""

    def __init__(self, message: str, nearest: Arch, cost: int) -> None:
        super().__init__(message)
        self.nearest, self.macs = nearest, cost


@dataclass(frozen=True, slots=True)
class Budget:
    """A target in multiply-adds: a ratio to the baseline's (`relative`) or absolute, with a relative tolerance."""

    value: float
    relative: bool
    tolerance: float = 0.02

    @classmethod
    def parse(cls, text: str, tolerance: float = 0.02) -> Budget:
        """`2x`, `0.5x` (ratios), `400M`, `1.2G` (multiply-adds). Raises ValueError."""
        wanted = "a budget is a ratio such as 2x or 0.5x, or multiply-adds such as 400M or 1.2G"
        match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(x|[KMG])", text.strip(), re.IGNORECASE)
        if not match:
            raise ValueError(f"budget {text!r}: {wanted}")
        value, unit = float(match[1]), match[2].upper()
        value *= _SUFFIX.get(unit, 1.0)
        low, high = (0.01, 1000.0) if unit == "X" else (1e3, 1e15)
        if not low <= value <= high:
            limits = f"from {low:g}x to {high:g}x" if unit == "X" else "from 1K to 1000000G"
            raise ValueError(f"budget {text!r} is out of range ({limits}): {wanted}")
        return cls(value, unit == "X", tolerance)

    def __str__(self) -> str:
        if self.relative:
            return f"{self.value:g}x"
        unit = next(u for u in ("G", "M", "K") if self.value >= _SUFFIX[u])
        return f"{self.value / _SUFFIX[unit]:.6g}{unit}"

    def target(self, base_macs: int) -> float:
        """In multiply-adds."""
        return self.value * base_macs if self.relative else self.value

    def off(self, cost: int, base_macs: int) -> float:
        """Signed relative distance from the target."""
        return cost / self.target(base_macs) - 1

    def met(self, cost: int, base_macs: int) -> bool:
        return abs(self.off(cost, base_macs)) <= self.tolerance


def human(count: float) -> str:
    """17275808 → '17.3M'."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= 0.9995 * size:  # what three digits would round up to the unit
            return f"{count / size:.3g}{unit}"
    return f"{count:g}"


def _nearest(cost_at: Callable[[int], int], target: float, low: int, high: int) -> int:
    """The integer in [low, high] whose cost is nearest to `target`; cost_at must not decrease.

    The lower one on a tie, and the smallest of those that cost the same."""
    if cost_at(high) < target:
        return high
    lo, hi = low, high
    while lo < hi:  # the first whose cost reaches the target
        mid = (lo + hi) // 2
        if cost_at(mid) >= target:
            hi = mid
        else:
            lo = mid + 1
    if lo > low and target - cost_at(lo - 1) <= cost_at(lo) - target:
        return lo - 1
    return lo


def nearest_width(
    base: Baseline,
    target: float,
    depth: float,
    resolution: int,
    num_classes: int,
    limits: tuple[float, float] = (0.001, _MAX_WIDTH),
) -> float:
    """The width multiplier, in whole thousandths within `limits`, that comes nearest to `target` multiply-adds."""

    def cost_at(thousandths: int) -> int:
        return macs(scale(base, depth, thousandths / 1000, resolution, num_classes=num_classes))

    low, high = (round_half_up(1000 * w) for w in limits)
    return _nearest(cost_at, target, max(1, low), max(1, low, high)) / 1000


def solve(
    base: Baseline | str,
    budget: Budget | str,
    *,
    depth: float = 1.0,
    width: float | None = None,
    resolution: int | None = None,
    num_classes: int = 1000,
) -> Arch:
    """The network of `budget` for (depth, resolution in px), solving width; or for (depth, width),
    solving resolution. A relative budget is relative to the baseline at its own resolution.

    Raises ValueError unless exactly one of width and resolution is given, and InfeasibleError when the
    nearest network misses the budget's tolerance.
    """
    from effnet.families import baseline  # families is data built on arch; solve only resolves names

    base = baseline(base) if isinstance(base, str) else base
    budget = Budget.parse(budget) if isinstance(budget, str) else budget
    if (width is None) == (resolution is None):
        raise ValueError("give resolution (width is solved) or width (resolution is solved), not both")
    base_macs = macs(scale(base, num_classes=num_classes))
    target = budget.target(base_macs)
    if resolution is not None:
        width = nearest_width(base, target, depth, resolution, num_classes)
    else:
        assert width is not None
        fixed = width
        resolution = _nearest(
            lambda px: macs(scale(base, depth, fixed, px, num_classes=num_classes)),
            target,
            1,
            _MAX_RESOLUTION,
        )
    arch = scale(base, depth, width, resolution, num_classes=num_classes)
    cost = macs(arch)
    if not budget.met(cost, base_macs):
        raise InfeasibleError(
            f"no network of {budget} ± {budget.tolerance:.0%} at depth {depth:g}: the nearest is width "
            f"{width:g} at {resolution} px, {human(cost)} multiply-adds ({budget.off(cost, base_macs):+.1%})",
            arch,
            cost,
        )
    return arch


def shortest_width(base: Baseline, arch: Arch, depth: float, near: float) -> float:
    """The shortest decimal (up to three places) among the width multipliers that build `arch`, of
    which `near` is one; of several, the one nearest to the middle of their interval."""

    def builds(thousandths: int) -> bool:
        width = thousandths / 1000
        return scale(base, depth, width, arch.resolution, num_classes=arch.num_classes) == arch

    here = round_half_up(near * 1000)
    if not builds(here):
        raise ValueError(f"width {near:g} does not build this network")
    low, high = here, here
    for step in (64, 16, 4, 1):  # the interval is connected: walk outwards in shrinking strides
        while low - step >= 1 and builds(low - step):
            low -= step
        while builds(high + step):
            high += step
    for unit in (1000, 100, 10, 1):
        inside = range(-(-low // unit) * unit, high + 1, unit)
        if inside:
            return min(inside, key=lambda w: abs(2 * w - low - high)) / 1000
    return near


# ---- shares


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
