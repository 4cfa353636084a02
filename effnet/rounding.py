"""How multiplied channel counts and repeats become integers: one rule per family, by name. No
torch.

The rules are written down from their sources and tested against them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Repeats = tuple[int, ...]

# Multipliers such as (2**.5)**2 miss an integer by a few ulps; without a snap, ceil turns
# 2.0000000000000004 repeats into 3.
_SNAP = 1e-9


def snap(x: float) -> float:
    """`x`, or the integer within 1e-9 of it."""
    nearest = round(x)
    return float(nearest) if abs(x - nearest) < _SNAP else x


def round_half_up(x: float) -> int:
    """The nearest integer; halves up, where Python's round sends them to the even one."""
    return math.floor(snap(x) + 0.5)


# ---- channels: (multiplied width, divisor) → channels


def _nearest_multiple(width: float, divisor: int) -> int:
    """EfficientNetV2's `round_filters`: the nearest multiple, halves up, at least one divisor."""
    return max(divisor, int(width + divisor / 2) // divisor * divisor)


def _nearest_multiple_snapped(width: float, divisor: int) -> int:
    """Ours: the nearest multiple, where a product of decimals that misses a half by an ulp is still
    that half."""
    return _nearest_multiple(snap(width), divisor)


def _nearest_multiple_guarded(width: float, divisor: int) -> int:
    """EfficientNet's `round_filters`: the nearest multiple, and one divisor more where that lost
    over a tenth."""
    rounded = _nearest_multiple(width, divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded


def _half_to_even(width: float, divisor: int) -> int:
    """pycls' scaler: Python's round, which sends a half to the even multiple."""
    return max(1, round(width / divisor)) * divisor


def _up_to_fours(width: float, divisor: int) -> int:
    """The teaching notebook: cut to an integer, then up to a multiple of 4, whatever the
    divisor."""
    return max(4, 4 * math.ceil(int(width) / 4))


def _cut(width: float, divisor: int) -> int:
    """The teaching notebook's stem: cut to an integer."""
    return max(1, int(width))


# ---- repeats: (depth multiplier, repeats of the stages) → repeats


def _ceil(depth: float, base: Repeats) -> Repeats:
    return tuple([math.ceil(snap(depth * n)) for n in base])


def _inner_ceil(depth: float, base: Repeats) -> Repeats:
    """EfficientNet-Lite: the first and the last stage keep their repeats."""
    if len(base) == 1:
        return base
    return (base[0], *_ceil(depth, base[1:-1]), base[-1])


def _round(depth: float, base: Repeats) -> Repeats:
    return tuple([max(1, round(snap(depth * n))) for n in base])


def spread_repeats(blocks: int, base: Repeats) -> Repeats:
    """`blocks` shared out in proportion to `base` by the largest remainders, ties to the earlier
    stage; at least 1 each. Raises ValueError for fewer blocks than stages."""
    if blocks < len(base):
        raise ValueError(
            f"{blocks} blocks: at least one for each of the {len(base)} stages is needed"
        )
    total = sum(base)
    counts, remainders = [], []
    for n in base:
        whole, remainder = divmod(blocks * n, total)
        if whole == 0:  # the one block that it gets is more than its share
            whole, remainder = 1, 0
        counts.append(whole)
        remainders.append(remainder)
    by_remainder = sorted(range(len(base)), key=lambda i: (-remainders[i], i))
    for i in by_remainder[: max(0, blocks - sum(counts))]:
        counts[i] += 1
    # the floor of 1 may have given out too many: they are taken from the largest, late first
    while sum(counts) > blocks:
        largest = max(range(len(base)), key=lambda i: (counts[i], i))
        counts[largest] -= 1
    return tuple(counts)


def _spread(depth: float, base: Repeats) -> Repeats:
    """Ours: depth sets the number of blocks, and they are spread. Under ceil B0 takes seven more
    blocks at a depth of 1.0001; here depth moves in single blocks."""
    return spread_repeats(round_half_up(depth * sum(base)), base)


# ---- heads: (base width, multiplied width, rounded, last stage's channels) → channels


def _scaled_head(base: int, multiplied: float, rounded: int, last: int) -> int:
    return rounded


def _fixed_head(base: int, multiplied: float, rounded: int, last: int) -> int:
    return base


def _head_at_least_base(base: int, multiplied: float, rounded: int, last: int) -> int:
    return max(base, rounded)


def _head_of_four_times_last(base: int, multiplied: float, rounded: int, last: int) -> int:
    return 4 * last


def _ceil_head(base: int, multiplied: float, rounded: int, last: int) -> int:
    return math.ceil(multiplied)


# ---- the rules


@dataclass(frozen=True, slots=True)
class Rounding:
    """A family's rule, as functions of the kinds above."""

    channels: Callable[[float, int], int]
    repeats: Callable[[float, Repeats], Repeats]
    head: Callable[[int, float, int, int], int] = _scaled_head
    stem: Callable[[float, int], int] | None = None  # None: as channels
    stem_fixed: bool = False
    whole_blocks: bool = False  # depth sets the number of blocks, not each stage's


ROUNDINGS: dict[str, Rounding] = {
    # tensorflow/tpu `efficientnet_builder.py`; timm
    "official": Rounding(_nearest_multiple_guarded, _ceil),
    # torchvision/models/efficientnet.py
    "torchvision": Rounding(_nearest_multiple_guarded, _ceil, head=_head_of_four_times_last),
    # MobileNetV2 (arXiv 1801.04381), section 4: a thin network keeps its head
    "mobilenet": Rounding(_nearest_multiple_guarded, _ceil, head=_head_at_least_base),
    # tensorflow/tpu efficientnet/lite
    "lite": Rounding(_nearest_multiple_guarded, _inner_ceil, head=_fixed_head, stem_fixed=True),
    # huawei-noah tinynet_pytorch
    "tinynet": Rounding(
        _nearest_multiple_guarded, _round, head=_head_at_least_base, stem_fixed=True
    ),
    # pycls models/scaler.py
    "nearest": Rounding(_half_to_even, _round),
    # google/automl efficientnetv2
    "v2": Rounding(_nearest_multiple, _ceil),
    # the widely copied `EfficientNet(version, num_classes)`
    "notebook": Rounding(_up_to_fours, _ceil, head=_ceil_head, stem=_cut),
    # ours
    "spread": Rounding(_nearest_multiple_snapped, _spread, whole_blocks=True),
}


def rule(name: str) -> Rounding:
    """The rule of that name. Raises ValueError naming the known ones."""
    if not isinstance(name, str) or name not in ROUNDINGS:
        raise ValueError(f"rounding = {name!r}: known are {', '.join(ROUNDINGS)}")
    return ROUNDINGS[name]


def shortest_decimal(low: int, high: int, unit: int) -> int:
    """The shortest decimal among the integers of [low, high], in parts of `unit` (a power of ten);
    of several, the one nearest to the middle."""

    def off_the_middle(position: int) -> int:
        return abs(2 * position - low - high)

    step = unit
    while step > 1:
        first = -(-low // step) * step
        positions = range(first, high + 1, step)
        if positions:
            return min(positions, key=off_the_middle)
        step //= 10
    return min(range(low, high + 1), key=off_the_middle)
