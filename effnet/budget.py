"""Budgets met in exact cost: what a text such as `2x` asks for, and the network that meets it. No
torch."""

from __future__ import annotations

import itertools
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypedDict, Unpack

from effnet.arch import Arch, Baseline, Scaling, least_depth, least_side, scale, side_at
from effnet.cost import PRECISIONS, Precision, cost, macs, training_memory
from effnet.families import PAPER, baseline
from effnet.rounding import round_half_up

Measure = Literal["macs", "params", "acts", "memory"]
MEASURES: tuple[Measure, ...] = ("macs", "params", "acts", "memory")
_SUFFIX = {"K": 1e3, "M": 1e6, "G": 1e9, "KI": 2.0**10, "MI": 2.0**20, "GI": 2.0**30}
_TEXT = re.compile(
    r"(?P<value>\d+(?:\.\d*)?|\.\d+)(?P<unit>x|[KMG](?P<bytes>i?B)?)"
    r"(?:\s*(?P<of>macs|params|acts|memory))?(?:@(?P<batch>\d+))?(?:/(?P<precision>\w+))?",
    re.IGNORECASE,
)
_WANTED = (
    "a budget is a ratio such as 2x or 0.5x, or multiply-adds such as 400M or 1.2G; or either of something else: "
    "5M params, 2x acts, 8GiB@64 (training memory at batch 64), 2x memory@64/bf16"
)
# How far each dial is searched. Widths and depths go in thousandths, finer than any divisor's
# rounding can tell apart; phi in millionths.
_MAX_WIDTH, _MAX_DEPTH, _MAX_RESOLUTION = 100.0, 1000.0, 16384
_PHI_UNIT = 1_000_000


@dataclass(frozen=True, slots=True)
class Budget:
    """A target with a relative tolerance: a ratio to the baseline's cost (`relative`) or absolute.

    `of` macs [multiply-adds], params, acts [elements], or memory [bytes at the peak of a training
    step of `batch` images in `precision`, estimated]."""

    value: float
    relative: bool
    tolerance: float = field(default=0.02, compare=False)  # 2.00x within 1% is no other target
    of: Measure = "macs"
    batch: int = 32
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0 and 0 <= self.tolerance < 1):
            raise ValueError(
                f"budget of {self.value} ± {self.tolerance}: a finite number above 0, and a tolerance from 0 to below 1"
            )
        if self.of not in MEASURES or self.precision not in PRECISIONS or self.batch < 1:
            raise ValueError(
                f"budget of {self.of} at batch {self.batch}, {self.precision}: of {', '.join(MEASURES)}; "
                f"a batch of at least 1, a precision of {' or '.join(PRECISIONS)}"
            )

    @classmethod
    def parse(cls, text: str, tolerance: float = 0.02) -> Budget:
        """`2x`, `0.5x` (ratios), `400M`, `1.2G` (multiply-adds), `5M params`, `2x acts`, `8GiB@64`,
        `2x memory@64/bf16`; a ratio from 0.01 to 1000. Raises ValueError."""
        return cls._read(text, tolerance, limited=True)

    @classmethod
    def from_text(cls, text: str) -> Budget:
        """What `str` of a budget gave, of any size. Raises ValueError."""
        return cls._read(text, 0.02, limited=False)

    @classmethod
    def _read(cls, text: str, tolerance: float, limited: bool) -> Budget:
        match = _TEXT.fullmatch(text.strip())
        if not match:
            raise ValueError(f"budget {text!r}: {_WANTED}")
        unit, of = (
            match["unit"].upper(),
            (match["of"] or ("memory" if match["bytes"] else "macs")).lower(),
        )
        in_bytes, precision = bool(match["bytes"]), (match["precision"] or "fp32").lower()
        if in_bytes != (of == "memory" and unit != "X") or (
            of != "memory" and (match["batch"] or match["precision"])
        ):
            raise ValueError(
                f"budget {text!r}: memory, and only memory, has bytes, a batch and a precision; {_WANTED}"
            )
        value = float(match["value"]) * _SUFFIX.get(unit.removesuffix("B"), 1.0)
        low, high = (0.01, 1000.0) if unit == "X" else (1e3, 1e15)
        if limited and not low <= value <= high:
            limits = f"from {low:g}x to {high:g}x" if unit == "X" else "from 1K to 1000000G"
            raise ValueError(f"budget {text!r} is out of range ({limits}): {_WANTED}")
        return cls(value, unit == "X", tolerance, of, int(match["batch"] or 32), precision)  # type: ignore[arg-type]

    def __str__(self) -> str:
        """A text that `parse` reads as this target, to twelve digits."""
        units = (
            ["x"]
            if self.relative
            else [u for u in ("G", "M", "K") if self.value >= _SUFFIX[u] or u == "K"]
        )
        if self.of == "memory" and not self.relative:
            binary = [u for u in ("Gi", "Mi") if self.value % _SUFFIX[u.upper()] == 0]
            units = [f"{(binary or units)[0]}B"]
        number = (
            f"{self.value / _SUFFIX.get(units[0].removesuffix('B').upper(), 1.0):.12g}{units[0]}"
        )
        if self.of == "memory":
            return f"{number}{' memory' if self.relative else ''}@{self.batch}/{self.precision}"
        return number if self.of == "macs" else f"{number} {self.of}"

    def measure(self, arch: Arch) -> int:
        """What `arch` costs in this budget's unit."""
        if self.of == "macs":
            return macs(arch)
        if self.of == "memory":
            return training_memory(arch, self.batch, self.precision)
        return int(getattr(cost(arch), self.of))

    def target(self, base_cost: int) -> float:
        """In the budget's unit; `base_cost` is the baseline's."""
        return self.value * base_cost if self.relative else self.value

    def off(self, cost: int, base_cost: int) -> float:
        """Signed relative distance from the target."""
        return cost / self.target(base_cost) - 1

    def met(self, cost: int, base_cost: int) -> bool:
        return abs(self.off(cost, base_cost)) <= self.tolerance


def human(count: float) -> str:
    """17275808 → '17.3M'."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= 0.9995 * size:  # what three digits would round up to the unit
            return f"{count / size:.3g}{unit}"
    return f"{count:g}"


@dataclass(frozen=True, slots=True)
class Solution:
    """The network that comes nearest to a budget with one dial left free. It may still miss it:
    `met` says.

    `value` is the free dial's setting (a multiplier, px, or phi), `depth` and `width` the
    multipliers that build `arch`, `cost` in the budget's unit, `off` the signed relative distance
    from the target."""

    arch: Arch
    budget: Budget
    free: Literal["width", "depth", "resolution", "phi"]
    value: float
    depth: float
    width: float
    cost: int
    off: float

    @property
    def met(self) -> bool:
        return abs(self.off) <= self.budget.tolerance

    def __str__(self) -> str:
        unit = {"macs": "multiply-adds", "memory": "bytes"}.get(self.budget.of, self.budget.of)
        return (
            f"{self.free} {self.value:g}: {self.arch.blocks} blocks, width {self.width:.4g}, "
            f"{self.arch.resolution} px, {human(self.cost)} {unit} ({self.off:+.2%} of {self.budget})"
        )


class InfeasibleError(ValueError):
    """No setting meets the budget; `solution` is the network that comes closest, and how close."""

    def __init__(self, solution: Solution) -> None:
        super().__init__(solution)
        self.solution = solution

    def __str__(self) -> str:
        budget = self.solution.budget
        return f"nothing within {100 * budget.tolerance:g}% of {budget}; the nearest has {self.solution}"


def _nearest(cost_at: Callable[[int], int], target: float, low: int, high: int) -> int:
    """The integer in [low, high] whose cost is nearest to `target`, the lower one on a tie; cost_at
    must not decrease."""
    # the first whose cost reaches the target, else the last
    found = low + bisect_left(range(low, high), target, key=cost_at)
    below = found > low and target - cost_at(found - 1) <= abs(cost_at(found) - target)
    return found - 1 if below else found


def _last(cost_at: Callable[[int], int], here: int, high: int) -> int:
    """The last integer up to `high` that costs what `here` does: pixels that cost nothing are
    taken."""
    return here + bisect_right(range(here, high + 1), cost_at(here), key=cost_at) - 1


def _shortest(builds: Callable[[int], bool], here: int, unit: int) -> int:
    """The shortest decimal among the integers, in parts of `unit` (a power of ten), around `here`
    that build the same network; of several, the one nearest to the middle of their interval."""
    low, high = here, here
    step = unit
    while step:  # the interval is connected: walk outwards in shrinking strides
        while builds(low - step):
            low -= step
        while builds(high + step):
            high += step
        step //= 2
    while unit > 1:
        inside = range(-(-low // unit) * unit, high + 1, unit)
        if inside:
            return min(inside, key=lambda i: abs(2 * i - low - high))
        unit //= 10
    return min(range(low, high + 1), key=lambda i: abs(2 * i - low - high))


def nearest_width(
    base: Baseline,
    target: float,
    depth: float,
    resolution: int,
    num_classes: int,
    limits: tuple[float, float] = (0.001, _MAX_WIDTH),
) -> float:
    """The width multiplier, in whole thousandths within `limits`, that comes nearest to `target`
    multiply-adds."""

    def cost_at(thousandths: int) -> int:
        return macs(scale(base, depth, thousandths / 1000, resolution, num_classes=num_classes))

    low, high = (round_half_up(1000 * w) for w in limits)
    return _nearest(cost_at, target, max(1, low), max(1, low, high)) / 1000


def shortest_width(base: Baseline, arch: Arch, depth: float, near: float) -> float:
    """The shortest decimal (up to three places) among the width multipliers that build `arch`, of
    which `near` is one; of several, the one nearest to the middle of their interval."""

    def builds(n: int) -> bool:
        return (
            n > 0
            and scale(base, depth, n / 1000, arch.resolution, num_classes=arch.num_classes) == arch
        )

    here = round_half_up(near * 1000)
    if not builds(here):
        raise ValueError(f"width {near:g} does not build this network")
    return _shortest(builds, here, 1000) / 1000


@dataclass(frozen=True, slots=True)
class _Dial:
    """One free dial as a range of integers in parts of `unit`, and depth, width and resolution at
    each."""

    name: Literal["width", "depth", "resolution", "phi"]
    unit: int
    low: int
    high: int
    at: Callable[[int], tuple[float, float, int]]


def fit(
    base: Baseline | str,
    budget: Budget | str,
    *,
    depth: float | None = None,
    width: float | None = None,
    resolution: int | None = None,
    along: Scaling | Literal["paper"] | None = None,
    num_classes: int = 1000,
) -> Solution:
    """The network nearest to `budget` with one dial left free, whether or not it meets it.

    Given resolution [px], width is solved; given width, resolution; given both, depth (which is
    otherwise 1 unless given). Given `along` (alpha, beta and gamma of at least 1), phi is solved: a
    step function, since all three dimensions round. Of resolutions, and of phi, that cost the same,
    the largest. A relative budget is relative to the baseline at its own resolution.

    Raises ValueError for another combination, or a value out of range."""
    base = baseline(base)
    budget = Budget.parse(budget) if isinstance(budget, str) else budget
    along = PAPER if along == "paper" else along
    if along is not None and not isinstance(along, Scaling):
        raise ValueError(f'along = {along!r}: must be "paper" or a Scaling')
    dial = _dial(base, depth, width, resolution, along)
    base_cost = budget.measure(scale(base, num_classes=num_classes))
    target = budget.target(base_cost)

    def net_at(n: int) -> Arch:
        return scale(base, *dial.at(n), num_classes=num_classes)

    def cost_at(n: int) -> int:
        return budget.measure(net_at(n))

    found, high = _nearest(cost_at, target, dial.low, dial.high), dial.high
    if least_depth(base) and dial.name in ("depth", "phi"):
        # a block more can move another to a cheaper stage: only at equal repeats does cost never
        # fall
        pieces = _pieces(base, dial, lambda n: net_at(n).blocks, found)
        each = [(_nearest(cost_at, target, low, high), high) for low, high in pieces]
        found, high = min(each, key=lambda piece: abs(cost_at(piece[0]) - target))
    if budget.of == "params" and dial.name == "resolution":
        found = base.resolution  # no parameter depends on it
    elif budget.of != "params" and dial.name in ("resolution", "phi"):
        found = _last(cost_at, found, high)
    arch = net_at(found)
    if dial.name != "resolution":
        found = _shortest(
            lambda n: dial.low <= n <= dial.high and net_at(n) == arch, found, dial.unit
        )
    cost, (depth, width, _) = budget.measure(arch), dial.at(found)
    return Solution(
        arch, budget, dial.name, found / dial.unit, depth, width, cost, budget.off(cost, base_cost)
    )


class Dials(TypedDict, total=False):
    """What `fit` takes beside baseline and budget."""

    depth: float | None
    width: float | None
    resolution: int | None
    along: Scaling | Literal["paper"] | None
    num_classes: int


def solve(base: Baseline | str, budget: Budget | str, **dials: Unpack[Dials]) -> Arch:
    """The network of `fit`; raises InfeasibleError, which holds the nearest, when it misses the
    tolerance."""
    solution = fit(base, budget, **dials)
    if not solution.met:
        raise InfeasibleError(solution)
    return solution.arch


def _dial(
    base: Baseline,
    depth: float | None,
    width: float | None,
    resolution: int | None,
    along: Scaling | None,
) -> _Dial:
    """Which dial is free, and how far it reaches."""
    least = least_side(base.total_stride)
    if along is not None:
        if depth is not None or width is not None or resolution is not None:
            raise ValueError(
                "along leaves phi free and sets depth, width and resolution: give it alone"
            )
        return _phi_dial(base, along, least)
    if width is None and resolution is None:
        raise ValueError(
            "give resolution (width is solved), width (resolution is solved), both (depth), or along"
        )
    if depth is not None and width is not None and resolution is not None:
        raise ValueError("depth, width and resolution are all given: leave one of them free")
    d, w = (1.0 if given is None else given for given in (depth, width))
    px = least if resolution is None else resolution
    if width is None:
        return _Dial("width", 1000, 1, round(1000 * _MAX_WIDTH), lambda n: (d, n / 1000, px))
    if resolution is None:
        return _Dial("resolution", 1, least, _MAX_RESOLUTION, lambda n: (d, w, n))
    low = max(1, math.ceil(1000 * least_depth(base)))
    return _Dial("depth", 1000, low, round(1000 * _MAX_DEPTH), lambda n: (n / 1000, w, px))


def _phi_dial(base: Baseline, along: Scaling, least: int) -> _Dial:
    coefficients = (along.alpha, along.beta, along.gamma)
    if min(coefficients) < 1 or max(coefficients) == 1:
        raise ValueError(
            f"along {coefficients}: alpha, beta and gamma must be at least 1, and one of them above"
        )
    lows, highs = [], []
    reach = (
        (least_depth(base) or 0.001, _MAX_DEPTH),
        (0.001, _MAX_WIDTH),
        (least / base.resolution, _MAX_RESOLUTION / base.resolution),
    )
    for c, (low, high) in zip(coefficients, reach, strict=True):
        if c > 1:
            lows.append(math.log(low) / math.log(c))
            highs.append(math.log(high) / math.log(c))

    def at(n: int) -> tuple[float, float, int]:
        s = Scaling(*coefficients, n / _PHI_UNIT)
        return s.depth, s.width, side_at(base, s.resolution)

    return _Dial(
        "phi", _PHI_UNIT, math.ceil(max(lows) * _PHI_UNIT), math.floor(min(highs) * _PHI_UNIT), at
    )


def _pieces(
    base: Baseline, dial: _Dial, blocks_at: Callable[[int], int], found: int
) -> list[tuple[int, int]]:
    """Ranges of the dial at equal block counts, as far around `found` as counts of blocks can
    disturb the order: largest remainders keep every stage within one block of its share, so no
    further than one block of the smallest stage is worth."""
    around = math.ceil(base.blocks / min(s.repeats for s in base.stages)) + 1
    middle = blocks_at(found)

    reach = range(dial.low, dial.high + 1)
    # the first position with at least so many blocks, for each count
    edges = {
        dial.low + bisect_left(reach, middle + k, key=blocks_at) for k in range(-around, around + 2)
    }
    return [(low, high - 1) for low, high in itertools.pairwise(sorted(edges))]
