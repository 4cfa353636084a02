"""Networks as data: the rows of a baseline, how they scale, and the integers that come out.

`blocks.py` resolves an Arch into blocks and layers. No torch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from effnet.rounding import round_half_up, rule, snap, spread_repeats

Operator = Literal["mbconv", "mbconv3x3", "fused", "separable", "bottleneck"]
OPERATORS: dict[str, str] = {
    "mbconv": "inverted residual: 1x1 expand, depthwise, squeeze-and-excitation, project (EfficientNet, MobileNetV2)",
    "mbconv3x3": "the same with a dense 3x3 expansion (the teaching notebook)",
    "fused": "one k x k convolution instead of expand and depthwise (EfficientNetV2)",
    "separable": "depthwise, then 1x1, no residual (MobileNetV1)",
    "bottleneck": "1x1 down to width / expand, k x k, 1x1 up, with a shortcut (ResNet)",
}
ACTIVATIONS = ("silu", "relu", "relu6")
_FARTHEST = 1e6  # for a multiplier, a side, a number of channels


@dataclass(frozen=True, slots=True)
class Stage:
    """One row of a baseline table (EfficientNet paper, Table 1).

    `width` is the row's output channels. `se_percent` is the squeeze-and-excitation ratio, in
    percent of the block's input width (0: none; only the two mbconv operators have one). A
    bottleneck's inner width is width // expand."""

    operator: Operator
    expand: int
    kernel: int
    stride: int
    width: int
    repeats: int
    se_percent: int = 25


# by construction order, for messages and TOML rows
STAGE_KEYS = tuple(Stage.__dataclass_fields__)


def check_stage(stage: Stage, where: str) -> None:
    """Raises ValueError naming the row and the key that is wrong, and what would be right."""
    if not isinstance(stage.operator, str) or stage.operator not in OPERATORS:
        raise ValueError(
            f"{where}: operator = {stage.operator!r}: known are {', '.join(OPERATORS)}"
        )
    for key in STAGE_KEYS[1:]:
        _check_count(where, key, getattr(stage, key), 0 if key == "se_percent" else 1)
    if stage.kernel % 2 == 0:
        raise ValueError(f"{where}: kernel = {stage.kernel}: must be odd, such as 3, 5 or 7")
    if stage.se_percent and not stage.operator.startswith("mbconv"):
        raise ValueError(
            f"{where}: se_percent = {stage.se_percent}: must be 0, {stage.operator} has no such layer"
        )
    if stage.se_percent > 100:
        raise ValueError(f"{where}: se_percent = {stage.se_percent}: at most 100")
    if stage.operator == "separable" and stage.expand != 1:
        raise ValueError(f"{where}: expand = {stage.expand}: must be 1, separable does not expand")


def _check_count(
    where: str, key: str, value: object, least: int, most: int = int(_FARTHEST)
) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(
            f"{where}: {key} = {value!r}: must be a whole number from {least} to {most:,}"
        )


def _check_network(net: Baseline | Arch, where: str) -> None:
    """What a Baseline and an Arch have in common."""
    if not net.stages:
        raise ValueError(f"{where}: stages: at least one row")
    for i, stage in enumerate(net.stages, 1):
        check_stage(stage, f"{where}: stage {i}")
    for key in ("stem_width", "stem_kernel", "stem_stride", "stem_pool", "resolution"):
        _check_count(where, key, getattr(net, key), 1)
    _check_count(where, "head_width", net.head_width, 0)
    _check_count(where, "dropout_percent", net.dropout_percent, 0, 99)
    if net.stem_kernel % 2 == 0:
        raise ValueError(f"{where}: stem_kernel = {net.stem_kernel}: must be odd")
    if net.activation not in ACTIVATIONS:
        raise ValueError(
            f"{where}: activation = {net.activation!r}: known are {', '.join(ACTIVATIONS)}"
        )
    _check_side(net.resolution, net.total_stride)


def _check_side(resolution: int, total_stride: int) -> None:
    # maps shrink by ceil, so the sum always works out; but below half of the total stride
    # whole stages would stride over a single pixel
    if 2 * resolution < total_stride:
        raise ValueError(
            f"resolution = {resolution} px: a total stride of {total_stride} leaves no pixels; "
            f"at least {least_side(total_stride)}"
        )


def least_side(total_stride: int) -> int:
    """The smallest resolution [px] that a network of this total stride is built for."""
    return -(-total_stride // 2)


def _total_stride(net: Baseline | Arch) -> int:
    return net.stem_stride * net.stem_pool * math.prod([stage.stride for stage in net.stages])


@dataclass(frozen=True, slots=True)
class Baseline:
    """An unscaled network of a family.

    `width` multiplies every channel count of the table before rounding (0.25 makes a quarter-width
    baseline), stem and head too where the family's rule keeps them from scaling; the width
    multiplier of a scaling multiplies it again, so rounding happens once. `stem_pool` is the stride
    of a 3x3 max-pool after the stem (1: none); a `head_width` of 0 means that the classifier
    follows the last stage. Raises ValueError naming the row and the key that is wrong."""

    name: str
    stem_width: int
    stem_stride: int
    stages: tuple[Stage, ...]
    head_width: int
    resolution: int  # px
    dropout_percent: int = 20
    rounding: str = "official"  # a name in rounding.ROUNDINGS
    divisor: int = 8
    width: float = 1.0
    stem_kernel: int = 3
    stem_pool: int = 1
    activation: str = "silu"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ValueError(f"baseline: name = {self.name!r}: must be a string")
        where = f"baseline {self.name}"
        _check_network(self, where)
        rule(self.rounding)
        _check_count(where, "divisor", self.divisor, 1)
        _check_multiplier("width", self.width)

    @property
    def blocks(self) -> int:
        return sum(stage.repeats for stage in self.stages)

    @property
    def total_stride(self) -> int:
        return _total_stride(self)

    def with_blocks(self, blocks: int) -> Baseline:
        """The same rows with `blocks` blocks spread over the stages."""
        repeats = spread_repeats(blocks, tuple(s.repeats for s in self.stages))
        stages = tuple(replace(s, repeats=n) for s, n in zip(self.stages, repeats, strict=True))
        return replace(self, stages=stages)

    def with_stages(self, changes: Mapping[int, Mapping[str, Any]]) -> Baseline:
        """Rows overridden, counted from 1 as in the paper's table: `{5: {"kernel": 3, "repeats":
        4}}`.

        Raises ValueError for a row or a key that is not there."""
        rows = list(self.stages)
        for number, change in changes.items():
            if number not in range(1, len(rows) + 1):
                raise ValueError(f"stage {number}: {self.name} has stages 1 to {len(rows)}")
            for key in change:
                if key not in STAGE_KEYS:
                    raise ValueError(
                        f"stage {number}: {key}: known keys are {', '.join(STAGE_KEYS)}"
                    )
            rows[number - 1] = replace(rows[number - 1], **change)
        return replace(self, stages=tuple(rows))


def _check_multiplier(name: str, value: float) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (math.isfinite(value) and value > 0)
    ):
        raise ValueError(f"{name} = {value!r}: must be a finite number above 0")
    if not 1 / _FARTHEST <= value <= _FARTHEST:
        raise ValueError(f"{name} = {value:g}: beyond a factor of a million")


@dataclass(frozen=True, slots=True)
class Scaling:
    """Compound scaling (paper section 3.3): depth = alpha^phi, width = beta^phi, resolution =
    gamma^phi."""

    alpha: float
    beta: float
    gamma: float
    phi: float = 1.0

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "gamma"):
            _check_multiplier(name, getattr(self, name))
        if not math.isfinite(self.phi):
            raise ValueError(f"phi = {self.phi}: must be finite")
        for name in ("alpha", "beta", "gamma"):
            if abs(self.phi * math.log(getattr(self, name))) > math.log(_FARTHEST):
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
    stem_kernel: int = 3
    stem_pool: int = 1
    activation: str = "silu"

    @property
    def blocks(self) -> int:
        return sum(stage.repeats for stage in self.stages)

    @property
    def total_stride(self) -> int:
        return _total_stride(self)

    @property
    def key(self) -> str:
        """12 hexadecimal digits. What has its default is left out, so that a new field changes no
        old key."""
        rows = [
            f"{s.operator},{s.expand},{s.kernel},{s.stride},{s.width},{s.repeats}"
            + (f",{s.se_percent}" if s.se_percent != 25 else "")
            for s in self.stages
        ]
        more = (self.stem_kernel, self.stem_pool, self.activation)
        text = (
            f"{self.in_channels}|{self.stem_width},{self.stem_stride}|{';'.join(rows)}"
            f"|{self.head_width}|{self.resolution}|{self.num_classes}|{self.dropout_percent}"
        ) + (f"|{more}" if more != (3, 1, "silu") else "")
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON; `from_dict` is its inverse."""
        fields: dict[str, object] = {name: getattr(self, name) for name in self.__slots__}
        return {**fields, "stages": [[getattr(s, key) for key in STAGE_KEYS] for s in self.stages]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Arch:
        """Raises ValueError naming what is missing or wrong."""
        try:
            net = cls(**{**data, "stages": tuple(Stage(*row) for row in data["stages"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"network: not a description of one: {error}") from None
        net.check()
        return net

    def check(self) -> None:
        """Raises ValueError naming the row and the key that no network can have. `scale` makes none
        such; a file or `dataclasses.replace` may."""
        _check_network(self, "network")
        _check_count("network", "num_classes", self.num_classes, 1)
        _check_count("network", "in_channels", self.in_channels, 1)


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

    Raises ValueError for a multiplier that is not a finite number above 0, a resolution that the
    strides leave no pixels of, a class count below 1, and, under `spread`, fewer blocks than
    stages.
    """
    return assemble(
        baseline,
        repeats_at(baseline, depth),
        widths_at(baseline, width),
        baseline.resolution if resolution is None else resolution,
        num_classes=num_classes,
        dropout_percent=dropout_percent,
        name=name,
    )


def repeats_at(baseline: Baseline, depth: float) -> tuple[int, ...]:
    """Repeats per stage at a depth multiplier."""
    _check_multiplier("depth", depth)
    return rule(baseline.rounding).repeats(depth, tuple([s.repeats for s in baseline.stages]))


def widths_at(baseline: Baseline, width: float) -> tuple[int, ...]:
    """Channels at a width multiplier: stem, each stage, head."""
    _check_multiplier("width", width)
    rounding, divisor, multiplier = (
        rule(baseline.rounding),
        baseline.divisor,
        baseline.width * width,
    )
    channels = rounding.channels

    def unscaled(c: int) -> int:
        return c if baseline.width == 1 else channels(c * baseline.width, divisor)

    stages = [channels(s.width * multiplier, divisor) for s in baseline.stages]
    stem, head = baseline.stem_width, baseline.head_width
    stem = (
        unscaled(stem)
        if rounding.stem_fixed
        else (rounding.stem or channels)(stem * multiplier, divisor)
    )
    if head:
        head = rounding.head(
            unscaled(head), head * multiplier, channels(head * multiplier, divisor), stages[-1]
        )
    return (stem, *stages, head)


def side_at(baseline: Baseline, resolution: float, step: int = 1) -> int:
    """Resolution [px] at a multiplier, in whole steps."""
    return step * round_half_up(baseline.resolution * resolution / step)


def least_depth(baseline: Baseline) -> float:
    """Depth multipliers below it are refused; 0 where the rule gives every stage a block at any
    depth."""
    return (
        (len(baseline.stages) - 0.5) / baseline.blocks
        if rule(baseline.rounding).whole_blocks
        else 0.0
    )


def assemble(
    baseline: Baseline,
    repeats: Iterable[int],
    widths: tuple[int, ...],
    resolution: int,
    *,
    num_classes: int = 1000,
    dropout_percent: int | None = None,
    name: str = "",
) -> Arch:
    """The network of these repeats (`repeats_at`), channels (`widths_at`) and resolution in px."""
    for label, count in (("resolution", resolution), ("num_classes", num_classes)):
        if not (math.isfinite(count) and int(count) == count and 1 <= count <= _FARTHEST):
            raise ValueError(
                f"{label} = {count}: must be a whole number from 1 to {_FARTHEST:,.0f}"
            )
    _check_side(int(resolution), baseline.total_stride)
    return Arch(
        widths[0],
        baseline.stem_stride,
        tuple(
            [
                Stage(s.operator, s.expand, s.kernel, s.stride, w, n, s.se_percent)
                for s, w, n in zip(baseline.stages, widths[1:-1], repeats, strict=True)
            ]
        ),
        widths[-1],
        int(resolution),
        int(num_classes),
        baseline.dropout_percent if dropout_percent is None else dropout_percent,
        name=name or baseline.name,
        stem_kernel=baseline.stem_kernel,
        stem_pool=baseline.stem_pool,
        activation=baseline.activation,
    )
