"""How multiplied channel counts and repeats become integers: one rule per family, by name. No
torch.

The rules are written down from their sources and tested against them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

# Multipliers such as (2**.5)**2 miss an integer by a few ulps; without a snap,
# ceil turns 2.0000000000000004 repeats into 3.
_SNAP = 1e-9

Repeats = tuple[int, ...]


def snap(x: float) -> float:
    """`x`, or the integer within 1e-9 of it."""
    nearest = round(x)
    return float(nearest) if abs(x - nearest) < _SNAP else x


def round_half_up(x: float) -> int:
    """The nearest integer; halves up."""
    return math.floor(snap(x) + 0.5)


# ---- channels: (multiplied width, divisor) → channels


def _plain(width: float, divisor: int) -> int:
    """EfficientNetV2's `round_filters`: the nearest multiple, halves up, at least one divisor."""
    return max(divisor, int(width + divisor / 2) // divisor * divisor)


def _snapped(width: float, divisor: int) -> int:
    """Ours: the same, and a product of decimals that misses a half by an ulp is still that half."""
    return _plain(snap(width), divisor)


def _guarded(width: float, divisor: int) -> int:
    """EfficientNet's `round_filters`: the same, and one divisor more where that lost over a
    tenth."""
    rounded = _plain(width, divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded


def _half_even(width: float, divisor: int) -> int:
    """pycls' scaler: Python's round, which sends a half to the even multiple."""
    return max(1, round(width / divisor)) * divisor


def _fours(width: float, divisor: int) -> int:
    """The teaching notebook: cut to an integer, then up to a multiple of 4, whatever the
    divisor."""
    return max(4, 4 * math.ceil(int(width) / 4))


def _cut(width: float, divisor: int) -> int:
    return max(1, int(width))


# ---- repeats: (depth multiplier, repeats of the stages) → repeats


def _ceil(depth: float, base: Repeats) -> Repeats:
    return tuple([math.ceil(snap(depth * n)) for n in base])


def _inner_ceil(depth: float, base: Repeats) -> Repeats:
    """Lite: the first and the last stage keep their repeats."""
    return (*base[:1], *_ceil(depth, base[1:-1]), *(base[-1:] if len(base) > 1 else ()))


def _round(depth: float, base: Repeats) -> Repeats:
    return tuple([max(1, round(snap(depth * n))) for n in base])


def spread_repeats(blocks: int, base: Repeats) -> Repeats:
    """`blocks` shared out in proportion to `base`: largest remainder, ties to the earlier stage, at
    least 1 each."""
    if blocks < len(base):
        raise ValueError(
            f"{blocks} blocks: at least one for each of the {len(base)} stages is needed"
        )
    total = sum(base)
    counts = [max(1, blocks * n // total) for n in base]
    remainder = [blocks * n % total if blocks * n >= total else 0 for n in base]
    by_remainder = sorted(range(len(base)), key=lambda i: (-remainder[i], i))
    for i in by_remainder[: max(0, blocks - sum(counts))]:
        counts[i] += 1
    while (
        sum(counts) > blocks
    ):  # the floor of 1 gave out too many: take from the largest, late first
        counts[max(range(len(base)), key=lambda i: (counts[i], i))] -= 1
    return tuple(counts)


def _spread(depth: float, base: Repeats) -> Repeats:
    return spread_repeats(round_half_up(depth * sum(base)), base)


# ---- heads: (base width, multiplied width, rounded, last stage) → channels


def _scaled(base: int, multiplied: float, rounded: int, last: int) -> int:
    return rounded


def _fixed(base: int, multiplied: float, rounded: int, last: int) -> int:
    return base


def _at_least(base: int, multiplied: float, rounded: int, last: int) -> int:
    return max(base, rounded)


def _four_times_last(base: int, multiplied: float, rounded: int, last: int) -> int:
    return 4 * last


def _up(base: int, multiplied: float, rounded: int, last: int) -> int:
    return math.ceil(multiplied)


@dataclass(frozen=True, slots=True)
class Rounding:
    channels: Callable[[float, int], int]
    repeats: Callable[[float, Repeats], Repeats]
    head: Callable[[int, float, int, int], int] = _scaled
    stem: Callable[[float, int], int] | None = None  # None: as channels
    stem_fixed: bool = False
    whole_blocks: bool = False  # depth sets the number of blocks, not each stage's


ROUNDINGS: dict[str, Rounding] = {
    "official": Rounding(_guarded, _ceil),  # tensorflow/tpu efficientnet_builder.py; timm
    "torchvision": Rounding(
        _guarded, _ceil, head=_four_times_last
    ),  # torchvision/models/efficientnet.py
    "mobilenet": Rounding(
        _guarded, _ceil, head=_at_least
    ),  # MobileNetV2 paper: a thin net keeps its head
    "lite": Rounding(
        _guarded, _inner_ceil, head=_fixed, stem_fixed=True
    ),  # tensorflow/tpu efficientnet/lite
    "tinynet": Rounding(
        _guarded, _round, head=_at_least, stem_fixed=True
    ),  # huawei-noah tinynet_pytorch
    "nearest": Rounding(_half_even, _round),  # pycls models/scaler.py
    "v2": Rounding(_plain, _ceil),  # google/automl efficientnetv2
    "notebook": Rounding(
        _fours, _ceil, head=_up, stem=_cut
    ),  # the widely copied EfficientNet(version, num_classes)
    "spread": Rounding(_snapped, _spread, whole_blocks=True),  # ours
}


def rule(name: str) -> Rounding:
    """The rule of that name. Raises ValueError naming the known ones."""
    if not isinstance(name, str) or name not in ROUNDINGS:
        raise ValueError(f"rounding = {name!r}: known are {', '.join(ROUNDINGS)}")
    return ROUNDINGS[name]
