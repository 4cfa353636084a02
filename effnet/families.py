"""Published families as data: literal tables that cite their source, and networks by name. No
torch."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from effnet import custom
from effnet.arch import (
    AnyBaseline,
    Arch,
    Baseline,
    Network,
    Operator,
    Scaling,
    Stage,
    parse_sides,
    scale,
    side_at,
)
from effnet.custom import Function
from effnet.definition import (
    find_config,
    is_config_path,
    read_baseline,
    read_config,
    read_config_baseline,
)
from effnet.rounding import round_half_up

Row = tuple[int, int, int, int, int]  # expand, kernel, stride, width, repeats


def _rows(operator: Operator, se_percent: int, *rows: Row) -> tuple[Stage, ...]:
    """Rows of one operator."""
    return tuple([Stage(operator, *row, se_percent) for row in rows])


# ---- baselines

# EfficientNet (arXiv 1905.11946), Table 1; tensorflow/tpu `efficientnet_builder.py`.
_B0_ROWS = (
    # expand, kernel, stride, width, repeats
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
_B0 = Baseline(
    "b0",
    stem_width=32,
    stem_stride=2,
    stages=_rows("mbconv", 25, *_B0_ROWS),
    head_width=1280,
    resolution=224,
)


def _less_stride(name: str, removed: int) -> Baseline:
    """B0 with its first `removed` strides of 2 made 1, the stem's among them, at the resolution
    that keeps the size of B0's last maps: for images too small for a total stride of 32."""
    stages = list(_B0.stages)
    to_remove = removed - 1  # the stem's is the first
    for i, stage in enumerate(stages):
        if to_remove and stage.stride == 2:
            stages[i] = replace(stage, stride=1)
            to_remove -= 1
    resolution = _B0.resolution // 2**removed
    return replace(_B0, name=name, stem_stride=1, stages=tuple(stages), resolution=resolution)


_BASELINES = (
    _B0,
    _less_stride("b0-s16", 1),
    _less_stride("b0-s8", 2),
    _less_stride("b0-s4", 3),
    # EfficientNet-Lite, tensorflow/tpu efficientnet/lite: B0 without squeeze-and-excitation and
    # with ReLU6, which integer hardware computes well.
    replace(
        _B0,
        name="lite",
        stages=_rows("mbconv", 0, *_B0_ROWS),
        rounding="lite",
        activation="relu6",
    ),
    # TinyNet (arXiv 2010.14819): B0's rows under another rounding.
    replace(_B0, name="tinynet", rounding="tinynet"),
    # EfficientNetV2 (arXiv 2104.00298), Table 4; M and L: google/automl efficientnetv2
    # `effnetv2_configs.py`. The resolutions are those of evaluation; training grows towards them.
    Baseline(
        "v2-s",
        stem_width=24,
        stem_stride=2,
        stages=(
            *_rows("fused", 0, (1, 3, 1, 24, 2), (4, 3, 2, 48, 4), (4, 3, 2, 64, 4)),
            *_rows("mbconv", 25, (4, 3, 2, 128, 6), (6, 3, 1, 160, 9), (6, 3, 2, 256, 15)),
        ),
        head_width=1280,
        resolution=384,
        rounding="v2",
    ),
    Baseline(
        "v2-m",
        stem_width=24,
        stem_stride=2,
        stages=(
            *_rows("fused", 0, (1, 3, 1, 24, 3), (4, 3, 2, 48, 5), (4, 3, 2, 80, 5)),
            *_rows("mbconv", 25, (4, 3, 2, 160, 7), (6, 3, 1, 176, 14)),
            *_rows("mbconv", 25, (6, 3, 2, 304, 18), (6, 3, 1, 512, 5)),
        ),
        head_width=1280,
        resolution=480,
        dropout_percent=30,
        rounding="v2",
    ),
    Baseline(
        "v2-l",
        stem_width=32,
        stem_stride=2,
        stages=(
            *_rows("fused", 0, (1, 3, 1, 32, 4), (4, 3, 2, 64, 7), (4, 3, 2, 96, 7)),
            *_rows("mbconv", 25, (4, 3, 2, 192, 10), (6, 3, 1, 224, 19)),
            *_rows("mbconv", 25, (6, 3, 2, 384, 25), (6, 3, 1, 640, 7)),
        ),
        head_width=1280,
        resolution=480,
        dropout_percent=40,
        rounding="v2",
    ),
    # EfficientNetV2's order, fused blocks before MBConv ones, in small, with a total stride of 4:
    # ours, for images of 16 to 32 px on a CPU. Dense early convolutions train several times as many
    # images a second there as depthwise ones of equal multiply-adds.
    Baseline(
        "v2-s4",
        stem_width=16,
        stem_stride=1,
        stages=(
            *_rows("fused", 0, (1, 3, 1, 16, 1), (1, 3, 2, 32, 3)),
            *_rows("mbconv", 0, (4, 3, 2, 64, 2)),
        ),
        head_width=256,
        resolution=32,
        rounding="v2",
    ),
    # MobileNetV1 (arXiv 1704.04861), Table 1.
    Baseline(
        "mobilenetv1",
        stem_width=32,
        stem_stride=2,
        stages=_rows(
            "separable",
            0,
            (1, 3, 1, 64, 1),
            (1, 3, 2, 128, 2),
            (1, 3, 2, 256, 2),
            (1, 3, 2, 512, 6),
            (1, 3, 2, 1024, 2),
        ),
        head_width=0,
        resolution=224,
        activation="relu6",
    ),
    # MobileNetV2 (arXiv 1801.04381), Table 2.
    Baseline(
        "mobilenetv2",
        stem_width=32,
        stem_stride=2,
        stages=_rows(
            "mbconv",
            0,
            (1, 3, 1, 16, 1),
            (6, 3, 2, 24, 2),
            (6, 3, 2, 32, 3),
            (6, 3, 2, 64, 4),
            (6, 3, 1, 96, 3),
            (6, 3, 2, 160, 3),
            (6, 3, 1, 320, 1),
        ),
        head_width=1280,
        resolution=224,
        rounding="mobilenet",
        activation="relu6",
    ),
    # ResNet (arXiv 1512.03385), Table 1, with the stride of a block on its 3x3, as torchvision and
    # everybody since ("ResNet v1.5") have it; the paper's is on the first 1x1.
    Baseline(
        "resnet50",
        stem_width=64,
        stem_stride=2,
        stages=_rows(
            "bottleneck",
            0,
            (4, 3, 1, 256, 3),
            (4, 3, 2, 512, 4),
            (4, 3, 2, 1024, 6),
            (4, 3, 2, 2048, 3),
        ),
        head_width=0,
        resolution=224,
        dropout_percent=0,
        stem_kernel=7,
        stem_pool=2,
        activation="relu",
    ),
    # The widely copied teaching notebook, `EfficientNet(version, num_classes)`: dense 3x3
    # expansions, channels to multiples of 4. It leaves batch norms (eps 1e-5, momentum 0.1) and
    # initialisation to torch's modules, and drops every block at one rate (its
    # `survival_prob = 0.8`).
    replace(
        _B0,
        name="notebook",
        stages=_rows("mbconv3x3", 25, *_B0_ROWS),
        rounding="notebook",
        bn_eps=1e-5,
        bn_momentum=0.1,
        initialisation="torch",
        drop_path_rule="constant",
    ),
)
BASELINES: dict[str, Baseline] = {b.name: b for b in _BASELINES}


# ---- members


@dataclass(frozen=True, slots=True)
class Member:
    """A published network: multipliers on a baseline, the resolution [px] and the classifier's
    dropout."""

    baseline: str
    width: float
    depth: float
    resolution: int
    dropout_percent: int


# The paper's answer (section 5.2): alpha, beta, gamma at phi = 1.
PAPER = Scaling(1.2, 1.1, 1.15)


def _notebook(phi: float, resolution: int, dropout_percent: int) -> Member:
    # its `calculate_factors`: depth and width follow phi; the resolution is listed, so gamma is
    # never applied
    return Member("notebook", PAPER.beta**phi, PAPER.alpha**phi, resolution, dropout_percent)


MEMBERS: dict[str, Member] = {
    # tensorflow/tpu efficientnet_builder.py, `efficientnet_params`: width, depth, px, dropout
    "b0": Member("b0", 1.0, 1.0, 224, 20),
    "b1": Member("b0", 1.0, 1.1, 240, 20),
    "b2": Member("b0", 1.1, 1.2, 260, 30),
    "b3": Member("b0", 1.2, 1.4, 300, 30),
    "b4": Member("b0", 1.4, 1.8, 380, 40),
    "b5": Member("b0", 1.6, 2.2, 456, 40),
    "b6": Member("b0", 1.8, 2.6, 528, 50),
    "b7": Member("b0", 2.0, 3.1, 600, 50),
    "b8": Member("b0", 2.2, 3.6, 672, 50),
    "l2": Member("b0", 4.3, 5.3, 800, 50),
    # tensorflow/tpu efficientnet/lite/efficientnet_lite_builder.py
    "lite0": Member("lite", 1.0, 1.0, 224, 20),
    "lite1": Member("lite", 1.0, 1.1, 240, 20),
    "lite2": Member("lite", 1.1, 1.2, 260, 30),
    "lite3": Member("lite", 1.2, 1.4, 280, 30),
    "lite4": Member("lite", 1.4, 1.8, 300, 30),
    # TinyNet paper, Table 6; huawei-noah tinynet_pytorch
    "tinynet-a": Member("tinynet", 1.0, 1.2, 192, 20),
    "tinynet-b": Member("tinynet", 0.75, 1.1, 188, 20),
    "tinynet-c": Member("tinynet", 0.54, 0.85, 184, 20),
    "tinynet-d": Member("tinynet", 0.54, 0.695, 152, 20),
    "tinynet-e": Member("tinynet", 0.51, 0.6, 106, 20),
    # EfficientNet-X (arXiv 2102.05610), released builder: B0's rows at its GPU multipliers, dropout
    # as B1-B7
    "x-gpu-b1": Member("b0", 1.05, 1.09, 229, 20),
    "x-gpu-b2": Member("b0", 1.13, 1.24, 237, 30),
    "x-gpu-b3": Member("b0", 1.31, 1.63, 255, 30),
    "x-gpu-b4": Member("b0", 1.63, 2.40, 282, 40),
    "x-gpu-b5": Member("b0", 1.94, 3.29, 306, 40),
    "x-gpu-b6": Member("b0", 2.25, 4.28, 328, 50),
    "x-gpu-b7": Member("b0", 2.58, 5.46, 350, 50),
    # the notebook's `phi_values`
    "notebook-b0": _notebook(0, 224, 20),
    "notebook-b1": _notebook(0.5, 240, 20),
    "notebook-b2": _notebook(1, 260, 30),
    "notebook-b3": _notebook(2, 300, 30),
    "notebook-b4": _notebook(3, 380, 40),
    "notebook-b5": _notebook(4, 456, 40),
    "notebook-b6": _notebook(5, 528, 50),
    "notebook-b7": _notebook(6, 600, 50),
}


def names() -> list[str]:
    """Everything that `arch` and `build` take by name: published members, then the other
    baselines."""
    return list(dict.fromkeys([*MEMBERS, *BASELINES]))


def _canonical(name: str) -> str:
    """Our name for what others call `EfficientNet_B3`, `efficientnet_v2_s` or `mobilenet_v2`: b3,
    v2-s, mobilenetv2."""
    text = name.strip().lower().replace("_", "-").removeprefix("efficientnet-")
    for theirs, ours in (("efficientnetv2-", "v2-"), ("mobilenet-v", "mobilenetv")):
        if text.startswith(theirs):
            text = ours + text.removeprefix(theirs)
    return text


def is_run(name: str) -> bool:
    """Whether a name is none of a network but the path of a run folder or a config.json."""
    if name.endswith((".toml", ".py")) or custom.is_place(name):
        return False
    return _canonical(name) not in names() and is_config_path(name)


def _unknown(kind: str, name: str, known: list[str]) -> ValueError:
    if name.endswith(".py"):
        return ValueError(f"{name}: say which of its functions builds the network: {name}:build")
    nearest = difflib.get_close_matches(_canonical(name), known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    return ValueError(f"unknown {kind} {name!r}: {hint}known are {', '.join(known)}")


def baseline(name: str | AnyBaseline) -> AnyBaseline:
    """The baseline of that name, from a file whose name ends in `.toml`, or a function, such as
    `file.py:build`, whose file is run; of a run folder or its config.json the search's own
    baseline; a Baseline is itself.

    Raises ValueError naming the nearest and the known ones."""
    if isinstance(name, Baseline | Function):
        return name
    if custom.is_place(name):
        return custom.find(name)
    if is_run(name):
        return read_config_baseline(name)
    return named_baseline(name)


def default_classes(name: str | AnyBaseline) -> int:
    """The classes of what is scaled from a baseline, where nobody says how many: those of the pick
    of a run folder, else 1000. Raises ValueError for a folder whose pick cannot be read."""
    if isinstance(name, str) and is_run(name):
        return read_config(name).num_classes
    return 1000


def named_baseline(name: str) -> Baseline:
    """The table of that name, or from a file whose name ends in `.toml`. Raises ValueError."""
    if name.endswith(".toml"):
        return read_baseline(name)
    if _canonical(name) not in BASELINES:
        if is_run(name):  # as search is given one, which keeps a copy of a table
            raise ValueError(
                f"{name}: no baseline but the pick of a search; its own baseline is "
                f"{_baseline_file(name)}"
            )
        raise _unknown("baseline", name, [*BASELINES, "a TOML file of your own"])
    return BASELINES[_canonical(name)]


def _to_be_scaled(name: str | AnyBaseline) -> AnyBaseline:
    """Return what `baseline` does; its errors are worded for somebody who called `arch`."""
    if isinstance(name, Baseline | Function) or name.endswith(".toml") or custom.is_place(name):
        return baseline(name)
    canonical = _canonical(name)
    if canonical in BASELINES:
        return BASELINES[canonical]
    if canonical in MEMBERS:
        raise ValueError(
            f"{name!r} is already scaled: scale {MEMBERS[canonical].baseline!r} instead"
        )
    raise _unknown("network", name, [*names(), "a TOML file of your own", "a run folder"])


def arch(
    name: str | AnyBaseline,
    *,
    alpha: float | None = None,
    beta: float | None = None,
    gamma: float | None = None,
    phi: float | None = None,
    depth: float | None = None,
    width: float | None = None,
    resolution: int | str | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    rounding: str | None = None,
    stages: Mapping[int, Mapping[str, Any]] | None = None,
    function: str | None = None,
) -> Network:
    """A published member (`arch("b3")`, at another `resolution` too), the pick of a search
    (`arch("runs/photos-2x")`, or a config.json), compound coefficients on a baseline (`arch("b0",
    alpha=1.2, beta=1.1, gamma=1.15, phi=1)`), or direct multipliers (`arch("b0", depth=1.4,
    width=1.2, resolution=291)`; resolution in px, or rows and columns as in "96x160").

    `phi` defaults to 1; it may be any real number. `num_classes` are 1000, a pick's its own.
    `in_channels` are those of the images: 3, a pick's its own; 1 for grey ones, more for those of
    several bands. `rounding` is the name of another rule (rounding.ROUNDINGS); `stages` overrides
    rows of the baseline, counted from 1, before they are scaled: `{5: {"kernel": 3, "repeats":
    4}}`. `function` is that of a pick which a function built, as file.py:build. Raises ValueError
    for an unknown name, both kinds of coefficients at once, phi alone, a value out of range, and
    for a pick that is to be scaled, which it is already."""
    compound = alpha is not None or beta is not None or gamma is not None
    direct = depth is not None or width is not None
    if phi is not None and not compound:
        raise ValueError("phi scales alpha, beta and gamma: give at least one of them")
    if compound and (direct or resolution is not None):
        raise ValueError("give alpha, beta, gamma, phi or depth, width, resolution, not both")

    if isinstance(name, str) and is_run(name):
        if compound or direct or rounding is not None or stages:
            raise ValueError(
                f"{name} is a pick, scaled already: scale its search's baseline instead, "
                f"{_baseline_file(name)}"
            )
        return _picked(read_config(name, function), resolution, num_classes, in_channels)
    if function is not None:
        raise ValueError(f"{function}: goes with a search's pick, which {name} is not")

    member = None
    if isinstance(name, str) and not compound and not direct:
        member = MEMBERS.get(_canonical(name))
    base: AnyBaseline
    if member is not None:
        base = BASELINES[member.baseline]
        label, dropout_percent = _canonical(str(name)), member.dropout_percent
        depth, width = member.depth, member.width
        if resolution is None:
            resolution = member.resolution
    else:
        base = _to_be_scaled(name)
        label = base.name
        dropout_percent = 0 if isinstance(base, Function) else base.dropout_percent

    if in_channels is not None:
        base = replace(base, in_channels=in_channels)
    if isinstance(base, Baseline):
        base = replace(base, rounding=base.rounding if rounding is None else rounding)
        base = base.with_stages(stages or {})
        if isinstance(resolution, str):
            base = base.at(resolution)
            resolution = base.resolution
    elif rounding is not None or stages:
        raise ValueError(f"{base.place}: rounding and stages are of tables, a function has its own")
    if compound:
        scaling = Scaling(_or_one(alpha), _or_one(beta), _or_one(gamma), _or_one(phi))
        depth, width = scaling.depth, scaling.width
        resolution = side_at(base, scaling.resolution)
        if base.resolution:  # a function may state none, which is told apart from 1 px
            resolution = max(1, resolution)
    if isinstance(resolution, str):
        rows, columns = parse_sides(resolution)
        if columns:
            raise ValueError(f"{base.name} at {resolution}: a function is given one side")
        resolution = rows
    return scale(
        base,
        _or_one(depth),
        _or_one(width),
        resolution,
        num_classes=1000 if num_classes is None else num_classes,
        dropout_percent=dropout_percent,
        name=label,
    )


def _baseline_file(name: str) -> str:
    """Where the baseline of the search behind a run folder or a config.json is, for people."""
    return str(find_config(name).parent / "baseline.toml")


def _picked(
    net: Network, resolution: int | str | None, num_classes: int | None, in_channels: int | None
) -> Network:
    """A pick, at another resolution, for other classes or other images where they are given."""
    rows, columns = net.resolution, net.sides[1]
    if resolution is not None:
        rows, columns = parse_sides(resolution)
        # rows alone keep the proportion
        columns = columns or max(1, round_half_up(rows * net.sides[1] / net.resolution))
    classes = net.num_classes if num_classes is None else num_classes
    channels = net.in_channels if in_channels is None else in_channels
    if isinstance(net, Arch):
        columns = 0 if columns == rows else columns
        net = replace(net, resolution=rows, columns=columns)
        net = replace(net, num_classes=classes, in_channels=channels)
        net.check()
        return net
    if columns != rows:
        raise ValueError(f"{net.name} at {resolution}: a function is given one side")
    if (rows, classes, channels) == (net.resolution, net.num_classes, net.in_channels):
        return net  # as it was recorded, whether or not its function is at hand
    own = replace(net.function, in_channels=channels)
    return scale(own, net.depth, net.width, rows, num_classes=classes)


def _or_one(multiplier: float | None) -> float:
    return 1.0 if multiplier is None else multiplier


def implied_phi(name: str, coefficients: Scaling = PAPER) -> tuple[float, float, float]:
    """The phi that each dimension of a published member would need under `coefficients`: depth,
    width, resolution. Compound scaling at one phi would make the three equal; no published member
    does.

    Raises ValueError for a name that is not a member's, or a coefficient of 1."""
    if _canonical(name) not in MEMBERS:
        raise _unknown("member", name, list(MEMBERS))
    if 1 in (coefficients.alpha, coefficients.beta, coefficients.gamma):
        raise ValueError("a coefficient of 1 reaches nothing at any phi")
    member = MEMBERS[_canonical(name)]
    resolution = member.resolution / BASELINES[member.baseline].resolution
    return (
        math.log(member.depth) / math.log(coefficients.alpha),
        math.log(member.width) / math.log(coefficients.beta),
        math.log(resolution) / math.log(coefficients.gamma),
    )
