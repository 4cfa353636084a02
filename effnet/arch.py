"""Networks as data: the rows of a baseline, how they scale, and the integers that come out.

Everything about a network's shape is computed here, once. `model.py` builds modules from
`ops(block)` and `cost.py` sums over the same operators, so a network and its cost cannot
drift apart. No torch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Rounding = Literal["official", "spread"]

# Multipliers such as (2**.5)**2 miss an integer by a few ulps; without a snap,
# ceil turns 2.0000000000000004 repeats into 3.
_SNAP = 1e-9


def snap(x: float) -> float:
    """`x`, or the integer within 1e-9 of it."""
    nearest = round(x)
    return float(nearest) if abs(x - nearest) < _SNAP else x


def round_half_up(x: float) -> int:
    return math.floor(snap(x) + 0.5)


@dataclass(frozen=True, slots=True)
class Stage:
    """One row of a baseline table (EfficientNet paper, Table 1)."""

    operator: Literal["mbconv"]
    expand: int
    kernel: int
    stride: int
    width: int  # output channels
    repeats: int


@dataclass(frozen=True, slots=True)
class Baseline:
    """An unscaled network of a family.

    `width` multiplies every channel count of the table before rounding (0.25 makes a quarter-width
    baseline); the width multiplier of a scaling multiplies it again, so rounding happens once.
    """

    name: str
    stem_width: int
    stem_stride: int
    stages: tuple[Stage, ...]
    head_width: int
    resolution: int  # px
    dropout_percent: int = 20
    rounding: Rounding = "official"
    divisor: int = 8
    width: float = 1.0

    @property
    def blocks(self) -> int:
        return sum(stage.repeats for stage in self.stages)

    @property
    def total_stride(self) -> int:
        return self.stem_stride * math.prod(stage.stride for stage in self.stages)

    def with_blocks(self, blocks: int) -> Baseline:
        """The same rows with `blocks` blocks spread over the stages."""
        repeats = spread_repeats(blocks, tuple(s.repeats for s in self.stages))
        stages = tuple(replace(s, repeats=n) for s, n in zip(self.stages, repeats, strict=True))
        return replace(self, stages=stages)


@dataclass(frozen=True, slots=True)
class Scaling:
    """Compound scaling (paper section 3.3): depth = alpha^phi, width = beta^phi, resolution = gamma^phi."""

    alpha: float
    beta: float
    gamma: float
    phi: float = 1.0

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "gamma"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} = {value}: must be a finite number above 0")
        if not math.isfinite(self.phi):
            raise ValueError(f"phi = {self.phi}: must be finite")
        for name in ("alpha", "beta", "gamma"):
            if abs(self.phi * math.log(getattr(self, name))) > math.log(1e6):
                raise ValueError(
                    f"{name} ** phi = {getattr(self, name):g} ** {self.phi:g}: beyond a factor of a million"
                )

    @property
    def depth(self) -> float:
        return snap(self.alpha**self.phi)

    @property
    def width(self) -> float:
        return snap(self.beta**self.phi)

    @property
    def resolution(self) -> float:
        return snap(self.gamma**self.phi)


@dataclass(frozen=True, slots=True)
class Arch:
    """A network after all rounding. `key` is its identity everywhere; the name is only a label."""

    stem_width: int
    stem_stride: int
    stages: tuple[Stage, ...]
    head_width: int
    resolution: int  # px, square input
    num_classes: int
    dropout_percent: int
    in_channels: int = 3
    name: str = field(default="", compare=False)

    @property
    def blocks(self) -> int:
        return sum(stage.repeats for stage in self.stages)

    @property
    def key(self) -> str:
        rows = [f"{s.operator},{s.expand},{s.kernel},{s.stride},{s.width},{s.repeats}" for s in self.stages]
        text = (
            f"{self.in_channels}|{self.stem_width},{self.stem_stride}|{';'.join(rows)}"
            f"|{self.head_width}|{self.resolution}|{self.num_classes}|{self.dropout_percent}"
        )
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON; `from_dict` is its inverse."""
        return {
            "in_channels": self.in_channels,
            "stem_width": self.stem_width,
            "stem_stride": self.stem_stride,
            "stages": [[s.operator, s.expand, s.kernel, s.stride, s.width, s.repeats] for s in self.stages],
            "head_width": self.head_width,
            "resolution": self.resolution,
            "num_classes": self.num_classes,
            "dropout_percent": self.dropout_percent,
            "name": self.name,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Arch:
        return cls(**{**data, "stages": tuple(Stage(*row) for row in data["stages"])})


@dataclass(frozen=True, slots=True)
class Block:
    """One block fully resolved, with its count of identical repeats.

    `expanded` is the inner width (the head's is its convolution's width), `squeezed` the
    squeeze-and-excitation width (0: none). Sides are in px.
    """

    operator: Literal["stem", "mbconv", "head"]
    repeats: int
    c_in: int
    expanded: int
    squeezed: int
    c_out: int
    kernel: int
    stride: int
    side_in: int
    side_out: int

    @property
    def residual(self) -> bool:
        return self.operator == "mbconv" and self.stride == 1 and self.c_in == self.c_out


@dataclass(frozen=True, slots=True)
class Op:
    """One convolution or linear layer with what follows it. Padding is kernel // 2."""

    kind: Literal["stem", "expand", "depthwise", "squeeze", "excite", "project", "head", "classifier"]
    c_in: int
    c_out: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    side: int = 1  # output px
    norm: bool = False  # a batch norm follows, and the layer itself has no bias


def channels(width: float, divisor: int, rounding: Rounding) -> int:
    """Round a channel count (facts: official TensorFlow `round_filters`; `spread`: nearest multiple)."""
    width = snap(width)
    if rounding == "spread":
        return max(divisor, round_half_up(width / divisor) * divisor)
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded


def spread_repeats(blocks: int, base: tuple[int, ...]) -> tuple[int, ...]:
    """`blocks` shared out in proportion to `base`: largest remainder, ties to the earlier stage, at least 1 each."""
    if blocks < len(base):
        raise ValueError(f"{blocks} blocks: at least one for each of the {len(base)} stages is needed")
    total = sum(base)
    counts = [max(1, blocks * n // total) for n in base]
    remainder = [blocks * n % total if blocks * n >= total else 0 for n in base]
    by_remainder = sorted(range(len(base)), key=lambda i: (-remainder[i], i))
    for i in by_remainder[: max(0, blocks - sum(counts))]:
        counts[i] += 1
    while sum(counts) > blocks:  # the floor of 1 gave out too many: take from the largest, late first
        counts[max(range(len(base)), key=lambda i: (counts[i], i))] -= 1
    return tuple(counts)


def scale(
    baseline: Baseline,
    depth: float = 1.0,
    width: float = 1.0,
    resolution: int | None = None,
    *,
    num_classes: int = 1000,
    dropout_percent: int | None = None,
    name: str = "",
) -> Arch:
    """Apply multipliers of depth and width and a resolution in px; round by the baseline's rule.

    Raises ValueError for a multiplier that is not a finite number above 0, a resolution or class
    count below 1, and, under `spread`, fewer blocks than stages.
    """
    for label, value in (("depth", depth), ("width", width)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{label} = {value}: must be a finite number above 0")
    resolution = baseline.resolution if resolution is None else resolution
    for label, count in (("resolution", resolution), ("num_classes", num_classes)):
        if int(count) != count or count < 1:
            raise ValueError(f"{label} = {count}: must be a whole number above 0")
    base_repeats = tuple(s.repeats for s in baseline.stages)
    if baseline.rounding == "spread":
        repeats = spread_repeats(round_half_up(depth * baseline.blocks), base_repeats)
    else:
        repeats = tuple(math.ceil(snap(depth * n)) for n in base_repeats)

    def wide(c: int) -> int:
        return channels(c * baseline.width * width, baseline.divisor, baseline.rounding)

    return Arch(
        stem_width=wide(baseline.stem_width),
        stem_stride=baseline.stem_stride,
        stages=tuple(replace(s, width=wide(s.width), repeats=n) for s, n in zip(baseline.stages, repeats, strict=True)),
        head_width=wide(baseline.head_width),
        resolution=int(resolution),
        num_classes=int(num_classes),
        dropout_percent=baseline.dropout_percent if dropout_percent is None else dropout_percent,
        name=name or baseline.name,
    )


def _after(side: int, stride: int) -> int:
    # kernel k, padding k // 2, odd k: floor((side - 1) / stride) + 1
    return -(-side // stride)


def blocks(arch: Arch) -> Iterator[Block]:
    """The network from input to logits; identical neighbours are one Block with `repeats`."""
    side, c = arch.resolution, arch.in_channels
    out = _after(side, arch.stem_stride)
    yield Block("stem", 1, c, 0, 0, arch.stem_width, 3, arch.stem_stride, side, out)
    side, c = out, arch.stem_width
    for stage in arch.stages:
        # only a stage's first block changes width and side
        for first, repeats in ((True, 1), (False, stage.repeats - 1)):
            if not repeats:
                continue
            stride = stage.stride if first else 1
            out = _after(side, stride)
            yield Block(
                stage.operator,
                repeats,
                c,
                c * stage.expand,
                max(1, c // 4),  # ratio 0.25 of the block's input width
                stage.width,
                stage.kernel,
                stride,
                side,
                out,
            )
            side, c = out, stage.width
    yield Block("head", 1, c, arch.head_width, 0, arch.num_classes, 1, 1, side, 1)


def ops(block: Block) -> tuple[Op, ...]:
    """The convolutions and linear layers of one repeat of `block`, in order."""
    b = block
    if b.operator == "stem":
        return (Op("stem", b.c_in, b.c_out, b.kernel, b.stride, side=b.side_out, norm=True),)
    if b.operator == "head":
        return (
            Op("head", b.c_in, b.expanded, side=b.side_in, norm=True),
            Op("classifier", b.expanded, b.c_out),
        )
    expand = (Op("expand", b.c_in, b.expanded, side=b.side_in, norm=True),)
    return (expand if b.expanded != b.c_in else ()) + (
        Op("depthwise", b.expanded, b.expanded, b.kernel, b.stride, b.expanded, b.side_out, norm=True),
        Op("squeeze", b.expanded, b.squeezed),
        Op("excite", b.squeezed, b.expanded),
        Op("project", b.expanded, b.c_out, side=b.side_out, norm=True),
    )
