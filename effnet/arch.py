"""Networks as data: the rows of a baseline, how they scale, and the integers that come out.

A `Baseline` is an unscaled network. `scale` multiplies its depth, width and resolution, rounds as
its family does, and gives an `Arch`; `blocks.py` resolves that into blocks and layers. A `Function`
(custom.py) is a baseline too, whose networks it builds itself. No torch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypedDict, Unpack, overload

from effnet import counting
from effnet.custom import CustomArch, Function
from effnet.rounding import round_half_up, rule, snap, spread_repeats

Operator = Literal["mbconv", "mbconv3x3", "fused", "separable", "bottleneck"]
OPERATORS: dict[str, str] = {
    # MobileNetV2 (arXiv 1801.04381), Figure 3; with the gate: MnasNet (1807.11626), Figure 7
    "mbconv": "inverted residual: 1x1 expand, depthwise, squeeze-and-excitation, project",
    "mbconv3x3": "the same with a dense 3x3 expansion (the teaching notebook)",
    # EfficientNetV2 (arXiv 2104.00298), Figure 2
    "fused": "one k x k convolution instead of expand and depthwise",
    # MobileNetV1 (arXiv 1704.04861), Figure 3
    "separable": "depthwise, then 1x1, no residual",
    # ResNet (arXiv 1512.03385), Figure 5
    "bottleneck": "1x1 down to width / expand, k x k, 1x1 up, with a shortcut",
}
GATED_OPERATORS = ("mbconv", "mbconv3x3")  # those with squeeze-and-excitation
ACTIVATIONS = ("silu", "relu", "relu6")
INITIALISATIONS = ("tensorflow", "torch")
DROP_PATH_RULES = ("linear", "constant")

# The farthest that a multiplier, a side or a number of channels may go: no network that anybody
# trains comes near, and a typing error is refused rather than built.
_FARTHEST = 1e6


# ---- rows


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


# In the order of construction, for messages and for rows in JSON.
STAGE_KEYS = tuple(Stage.__dataclass_fields__)


def check_stage(stage: Stage, where: str) -> None:
    """Check one row. Raises ValueError naming the row and the key that is wrong, and what would be
    right."""
    if not isinstance(stage.operator, str) or stage.operator not in OPERATORS:
        raise ValueError(
            f"{where}: operator = {stage.operator!r}: known are {', '.join(OPERATORS)}"
        )
    for key in ("expand", "kernel", "stride", "width", "repeats"):
        _check_count(where, key, getattr(stage, key), least=1)
    _check_count(where, "se_percent", stage.se_percent, least=0)
    if stage.kernel % 2 == 0:
        raise ValueError(f"{where}: kernel = {stage.kernel}: must be odd, such as 3, 5 or 7")
    if stage.se_percent and stage.operator not in GATED_OPERATORS:
        raise ValueError(
            f"{where}: se_percent = {stage.se_percent}: must be 0, "
            f"{stage.operator} has no such layer"
        )
    if stage.se_percent > 100:
        raise ValueError(f"{where}: se_percent = {stage.se_percent}: at most 100")
    if stage.operator == "separable" and stage.expand != 1:
        raise ValueError(f"{where}: expand = {stage.expand}: must be 1, separable does not expand")


# ---- checks that rows, baselines and networks share


def _check_count(
    where: str, key: str, value: object, least: int, most: int = int(_FARTHEST)
) -> None:
    # bool is a subclass of int: `repeats = true` in a TOML file would pass for 1
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(
            f"{where}: {key} = {value!r}: must be a whole number from {least} to {most:,}"
        )


def _check_choice(where: str, key: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{where}: {key} = {value!r}: known are {', '.join(known)}")


def _check_fraction(where: str, key: str, value: object) -> None:
    if not isinstance(value, int | float) or not 0 < value < 1:
        raise ValueError(f"{where}: {key} = {value!r}: must be above 0 and below 1")


def _check_multiplier(name: str, value: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} = {value!r}: must be a finite number above 0")
    if not 1 / _FARTHEST <= value <= _FARTHEST:
        raise ValueError(f"{name} = {value:g}: beyond a factor of a million")


def _check_network(net: Baseline | Arch, where: str) -> None:
    """Check what a Baseline and an Arch have in common."""
    if not net.stages:
        raise ValueError(f"{where}: stages: at least one row")
    for i, stage in enumerate(net.stages, 1):
        check_stage(stage, f"{where}: stage {i}")
    for key in ("stem_width", "stem_kernel", "stem_stride", "stem_pool", "resolution"):
        _check_count(where, key, getattr(net, key), least=1)
    _check_count(where, "head_width", net.head_width, least=0)
    _check_count(where, "dropout_percent", net.dropout_percent, least=0, most=99)
    if net.stem_kernel % 2 == 0:
        raise ValueError(f"{where}: stem_kernel = {net.stem_kernel}: must be odd")
    _check_choice(where, "activation", net.activation, ACTIVATIONS)
    _check_fraction(where, "bn_eps", net.bn_eps)
    _check_fraction(where, "bn_momentum", net.bn_momentum)
    _check_choice(where, "initialisation", net.initialisation, INITIALISATIONS)
    _check_choice(where, "drop_path_rule", net.drop_path_rule, DROP_PATH_RULES)
    _check_count(where, "columns", net.columns, least=0)
    _check_side(min(net.resolution, net.columns or net.resolution), net.total_stride)


def _check_side(resolution: int, total_stride: int) -> None:
    # Maps shrink by ceil, so that any side could be computed; but below half of the total stride
    # whole stages would stride over a single pixel.
    if resolution < least_side(total_stride):
        raise ValueError(
            f"resolution = {resolution} px: a total stride of {total_stride} leaves no pixels; "
            f"at least {least_side(total_stride)}"
        )


def least_side(total_stride: int) -> int:
    """The smallest resolution [px] that a network of this total stride is built for."""
    return -(-total_stride // 2)


def _total_stride(net: Baseline | Arch) -> int:
    return net.stem_stride * net.stem_pool * math.prod([stage.stride for stage in net.stages])


# ---- how layers train, apart from their shapes

# These fields came after the first recorded studies, in which the rows implied them: a network
# with the notebook's operator was the notebook, and trained with torch's defaults. So that recorded
# keys, checkpoints and studies hold, a field is left out of them where it is what was implied.
_LATER_FIELDS = ("bn_eps", "bn_momentum", "initialisation", "drop_path_rule", "columns")
_TENSORFLOWS_VALUES = (1e-3, 0.01, "tensorflow", "linear", 0)
_NOTEBOOKS_VALUES = (1e-5, 0.1, "torch", "constant", 0)


def _implied_fields(stages: Iterable[Stage]) -> dict[str, Any]:
    """The later fields of a network that was recorded without them."""
    values: tuple[Any, ...] = _TENSORFLOWS_VALUES
    for stage in stages:
        if stage.operator == "mbconv3x3":
            values = _NOTEBOOKS_VALUES
    return dict(zip(_LATER_FIELDS, values, strict=True))


def _stated_fields(net: Baseline | Arch) -> dict[str, Any]:
    """The later fields that a record must state: those that differ from what was implied."""
    stated = {}
    for name, implied in _implied_fields(net.stages).items():
        value = getattr(net, name)
        if value != implied:
            stated[name] = value
    return stated


# ---- an unscaled network


@dataclass(frozen=True, slots=True)
class Baseline:
    """An unscaled network of a family. Raises ValueError naming the row and the key that is wrong.

    `width` multiplies every channel count of the table before rounding (0.25 makes a quarter-width
    baseline), stem and head too where the family's rule keeps them from scaling; the width
    multiplier of a scaling multiplies it again, so rounding happens once. `stem_pool` is the stride
    of a 3x3 max-pool after the stem (1: none); a `head_width` of 0 means that the classifier
    follows the last stage.

    Those from `bn_eps` to `drop_path_rule` say how its layers train. Their defaults are those of
    the official code (tensorflow/tpu, `efficientnet_builder.py` and `efficientnet_model.py`):
    `batch_norm_epsilon` 1e-3; `batch_norm_momentum` 0.99, the weight of the old average, which is
    0.01 in torch, where it is that of the new one; its kernel initialisers; and a drop path rate
    that grows linearly from block to block."""

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
    bn_eps: float = 1e-3
    bn_momentum: float = 0.01
    initialisation: str = "tensorflow"  # or torch: as each module initialises itself
    drop_path_rule: str = "linear"  # or constant: every block drops alike
    in_channels: int = 3  # of the images
    columns: int = 0  # px across, where images are not square: `resolution` are their rows then

    def at(self, resolution: str | int) -> Baseline:
        """This baseline at another resolution: "96x160", or rows alone, in its own proportion.
        Raises ValueError."""
        rows, columns = parse_sides(resolution)
        columns = columns or columns_at(self, rows) or rows
        return replace(self, resolution=rows, columns=0 if columns == rows else columns)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ValueError(f"baseline: name = {self.name!r}: must be a string")
        where = f"baseline {self.name}"
        _check_network(self, where)
        rule(self.rounding)
        _check_count(where, "divisor", self.divisor, least=1)
        _check_count(where, "in_channels", self.in_channels, least=1)
        _check_multiplier("width", self.width)

    @property
    def blocks(self) -> int:
        return sum(stage.repeats for stage in self.stages)

    @property
    def total_stride(self) -> int:
        return _total_stride(self)

    def identity(self) -> dict[str, Any]:
        """Return the fields that determine this network's results, as plain data: all but the name
        and what is the data's, and the later fields only where they differ from what recorded
        studies implied."""
        fields = asdict(self)
        for name in ("name", "in_channels", *_LATER_FIELDS):
            del fields[name]
        return {**fields, **_stated_fields(self)}

    def with_blocks(self, blocks: int) -> Baseline:
        """Return this baseline with `blocks` blocks spread over its stages."""
        repeats = spread_repeats(blocks, tuple([stage.repeats for stage in self.stages]))
        stages = []
        for stage, count in zip(self.stages, repeats, strict=True):
            stages.append(replace(stage, repeats=count))
        return replace(self, stages=tuple(stages))

    def with_stages(self, changes: Mapping[int, Mapping[str, Any]]) -> Baseline:
        """Return this baseline with rows overridden, counted from 1 as in the paper's table:
        `{5: {"kernel": 3, "repeats": 4}}`.

        Raises ValueError for a row or a key that does not exist."""
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


# ---- a scaled network


@dataclass(frozen=True, slots=True)
class Scaling:
    """Compound scaling (paper, section 3.3): depth = alpha^phi, width = beta^phi, resolution =
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
            # compared as logarithms, because the power itself may overflow
            if abs(self.phi * math.log(getattr(self, name))) > math.log(_FARTHEST):
                raise ValueError(
                    f"{name} ** phi = {getattr(self, name):g} ** {self.phi:g}: "
                    "beyond a factor of a million"
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
    """A network after all rounding. `key` is its identity everywhere; the name is only a label.

    The fields are those of Baseline, rounded, with the classes and the input's channels."""

    stem_width: int
    stem_stride: int
    stages: tuple[Stage, ...]
    head_width: int
    resolution: int  # px
    num_classes: int
    dropout_percent: int
    in_channels: int = 3
    name: str = field(default="", compare=False)
    stem_kernel: int = 3
    stem_pool: int = 1
    activation: str = "silu"
    bn_eps: float = 1e-3
    bn_momentum: float = 0.01
    initialisation: str = "tensorflow"
    drop_path_rule: str = "linear"
    columns: int = 0  # px across, where the input is not square; `resolution` are its rows then

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of the input [px]."""
        return self.resolution, self.columns or self.resolution

    @property
    def px(self) -> str:
        """The input's size in words: 20 px, 96×160 px."""
        return f"{self.resolution}×{self.columns} px" if self.columns else f"{self.resolution} px"

    @property
    def blocks(self) -> int:
        return sum(stage.repeats for stage in self.stages)

    @property
    def total_stride(self) -> int:
        return _total_stride(self)

    @property
    def key(self) -> str:
        """12 hexadecimal digits over everything but the name.

        What has its default is left out of the hashed text, so that a new field changes no old key:
        recorded studies name their networks by it."""
        rows = []
        for s in self.stages:
            row = f"{s.operator},{s.expand},{s.kernel},{s.stride},{s.width},{s.repeats}"
            if s.se_percent != 25:
                row += f",{s.se_percent}"
            rows.append(row)
        text = (
            f"{self.in_channels}|{self.stem_width},{self.stem_stride}|{';'.join(rows)}"
            f"|{self.head_width}|{self.resolution}|{self.num_classes}|{self.dropout_percent}"
        )
        stem = (self.stem_kernel, self.stem_pool, self.activation)
        if stem != (3, 1, "silu"):
            text += f"|{stem}"
        stated = _stated_fields(self)
        if stated:
            text += f"|{sorted(stated.items())}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON; `from_dict` is its inverse."""
        fields: dict[str, object] = {}
        for name in self.__slots__:
            if name not in _LATER_FIELDS:
                fields[name] = getattr(self, name)
        fields["stages"] = [[getattr(s, key) for key in STAGE_KEYS] for s in self.stages]
        return {**fields, **_stated_fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Arch:
        """The network that `as_dict` described. Raises ValueError naming what is missing or
        wrong."""
        try:
            stages = tuple([Stage(*row) for row in data["stages"]])
            net = cls(**{**_implied_fields(stages), **data, "stages": stages})
        except (TypeError, KeyError) as error:
            raise ValueError(f"network: not a description of one: {error}") from error
        net.check()
        return net

    def check(self) -> None:
        """Check every field. Raises ValueError naming the row and the key that no network can have.
        `scale` makes no such network; a file or `dataclasses.replace` may."""
        _check_network(self, "network")
        _check_count("network", "num_classes", self.num_classes, least=1)
        _check_count("network", "in_channels", self.in_channels, least=1)


# ---- from the one to the other

_NUM_CLASSES = 1000  # ImageNet's

AnyBaseline = Baseline | Function
Network = Arch | CustomArch


def network_from_dict(data: Mapping[str, Any]) -> Network:
    """The network that its `as_dict` described. Raises ValueError."""
    return CustomArch.from_dict(data) if "function" in data else Arch.from_dict(data)


class ScaleOptions(TypedDict, total=False):
    """What `scale` passes on: as in `assemble`, with its defaults."""

    num_classes: int
    dropout_percent: int | None
    name: str


@overload
def scale(
    baseline: Baseline,
    depth: float = 1.0,
    width: float = 1.0,
    resolution: int | None = None,
    **options: Unpack[ScaleOptions],
) -> Arch: ...


@overload
def scale(
    baseline: AnyBaseline,
    depth: float = 1.0,
    width: float = 1.0,
    resolution: int | None = None,
    **options: Unpack[ScaleOptions],
) -> Network: ...


def scale(
    baseline: AnyBaseline,
    depth: float = 1.0,
    width: float = 1.0,
    resolution: int | None = None,
    **options: Unpack[ScaleOptions],
) -> Network:
    """Apply multipliers of depth and width and a resolution in px; round by the baseline's rule, or
    as its function does, which has dropout and name of its own.

    Raises ValueError for a multiplier that is not a finite number above 0, a resolution that the
    strides leave no pixels of, a class count below 1, and, under `spread`, fewer blocks than
    stages."""
    if resolution is None:
        resolution = baseline.resolution
    if isinstance(baseline, Function):
        _check_multiplier("depth", depth)
        _check_multiplier("width", width)
        num_classes = options.get("num_classes", _NUM_CLASSES)
        return counting.network(baseline, depth, width, resolution, num_classes)
    repeats, widths = repeats_at(baseline, depth), widths_at(baseline, width)
    return assemble(baseline, repeats, widths, resolution, **options)


def repeats_at(baseline: Baseline, depth: float) -> tuple[int, ...]:
    """Repeats of each stage at a depth multiplier."""
    _check_multiplier("depth", depth)
    repeats = tuple([stage.repeats for stage in baseline.stages])
    return rule(baseline.rounding).repeats(depth, repeats)


def widths_at(baseline: Baseline, width: float) -> tuple[int, ...]:
    """Channels at a width multiplier: stem, each stage, head (0 without one)."""
    _check_multiplier("width", width)
    rounding = rule(baseline.rounding)
    divisor = baseline.divisor
    multiplier = baseline.width * width
    # the widths that do not scale: of the table, times the baseline's own width where it has one
    base_stem, base_head = baseline.stem_width, baseline.head_width
    if baseline.width != 1:
        base_stem = rounding.channels(base_stem * baseline.width, divisor)
        base_head = rounding.channels(base_head * baseline.width, divisor)

    stages = [rounding.channels(s.width * multiplier, divisor) for s in baseline.stages]

    stem = base_stem
    if not rounding.stem_fixed:
        round_stem = rounding.stem or rounding.channels
        stem = round_stem(baseline.stem_width * multiplier, divisor)

    head = 0
    if baseline.head_width:
        multiplied = baseline.head_width * multiplier
        rounded = rounding.channels(multiplied, divisor)
        head = rounding.head(base_head, multiplied, rounded, stages[-1])
    return (stem, *stages, head)


def side_at(baseline: AnyBaseline, resolution: float, step: int = 1) -> int:
    """Resolution [px] at a multiplier, in whole steps."""
    return step * round_half_up(baseline.resolution * resolution / step)


def parse_sides(text: str | int) -> tuple[int, int]:
    """Rows and columns [px] of a resolution such as "96x160"; columns are 0 where it is rows alone,
    such as 224. Raises ValueError."""
    parts = [part.strip() for part in str(text).lower().replace("×", "x").split("x", 1)]
    if isinstance(text, bool) or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(
            f"resolution = {text!r}: px, such as 224, or rows and columns, such as 96x160"
        )
    rows, *columns = (int(part) for part in parts)
    return rows, columns[0] if columns else 0


def typed_sides(rows: int, columns: int) -> str:
    """The inverse of `parse_sides`: "96x160"; rows alone, "224", where columns are 0."""
    return f"{rows}x{columns}" if columns else f"{rows}"


def columns_at(baseline: AnyBaseline, resolution: int) -> int:
    """Columns [px] at so many rows, in the baseline's own proportion; 0 where it is square."""
    if isinstance(baseline, Function) or not baseline.columns:
        return 0
    return max(1, round_half_up(resolution * baseline.columns / baseline.resolution))


def least_rows(baseline: AnyBaseline) -> int:
    """The fewest rows [px] at which a baseline's images, in its own proportion, have sides that a
    network is built for."""
    least = least_side(baseline.total_stride)
    if isinstance(baseline, Function) or not baseline.columns:
        return least
    # `columns_at` rounds halves up
    by_columns = math.ceil((least - 0.5) * baseline.resolution / baseline.columns)
    return max(least, by_columns)


def least_depth(baseline: AnyBaseline) -> float:
    """The depth multiplier below which the rule refuses, having fewer blocks than stages; 0 where
    it gives every stage a block at any depth, and of a function, which refuses what it will."""
    if isinstance(baseline, Function) or not rule(baseline.rounding).whole_blocks:
        return 0.0
    # half a block below one for each stage still rounds up to it
    return (len(baseline.stages) - 0.5) / baseline.blocks


def assemble(
    baseline: Baseline,
    repeats: Iterable[int],
    widths: tuple[int, ...],
    resolution: int,
    *,
    num_classes: int = _NUM_CLASSES,
    dropout_percent: int | None = None,
    name: str = "",
) -> Arch:
    """The network of these repeats (`repeats_at`), channels (`widths_at`) and resolution in px.

    Apart from `scale` because a lattice of hundreds of thousands of points rounds each dial's few
    settings once. Raises ValueError as `scale` does."""
    for label, count in (("resolution", resolution), ("num_classes", num_classes)):
        # numpy's integers and 224.0 are whole numbers too, so isinstance would refuse too much
        if not (math.isfinite(count) and int(count) == count and 1 <= count <= _FARTHEST):
            raise ValueError(
                f"{label} = {count}: must be a whole number from 1 to {_FARTHEST:,.0f}"
            )
    columns = columns_at(baseline, int(resolution)) or int(resolution)
    _check_side(min(int(resolution), columns), baseline.total_stride)
    if dropout_percent is None:
        dropout_percent = baseline.dropout_percent
    rows = [
        Stage(s.operator, s.expand, s.kernel, s.stride, width, count, s.se_percent)
        for s, width, count in zip(baseline.stages, widths[1:-1], repeats, strict=True)
    ]
    return Arch(
        stem_width=widths[0],
        stem_stride=baseline.stem_stride,
        stages=tuple(rows),
        head_width=widths[-1],
        resolution=int(resolution),
        columns=columns_at(baseline, int(resolution)),
        num_classes=int(num_classes),
        dropout_percent=dropout_percent,
        in_channels=baseline.in_channels,
        name=name or baseline.name,
        stem_kernel=baseline.stem_kernel,
        stem_pool=baseline.stem_pool,
        activation=baseline.activation,
        bn_eps=baseline.bn_eps,
        bn_momentum=baseline.bn_momentum,
        initialisation=baseline.initialisation,
        drop_path_rule=baseline.drop_path_rule,
    )
