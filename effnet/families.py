"""Published families as data, and the one call that names a network."""

from __future__ import annotations

from dataclasses import dataclass, replace

from effnet.arch import Arch, Baseline, Scaling, Stage, round_half_up, scale

# EfficientNet paper (arXiv 1905.11946), Table 1; TensorFlow `efficientnet_builder.py`.
_B0 = Baseline(
    name="b0",
    stem_width=32,
    stem_stride=2,
    stages=(
        #     operator  expand kernel stride width repeats
        Stage("mbconv", 1, 3, 1, 16, 1),
        Stage("mbconv", 6, 3, 2, 24, 2),
        Stage("mbconv", 6, 5, 2, 40, 2),
        Stage("mbconv", 6, 3, 2, 80, 3),
        Stage("mbconv", 6, 5, 1, 112, 3),
        Stage("mbconv", 6, 5, 2, 192, 4),
        Stage("mbconv", 6, 3, 1, 320, 1),
    ),
    head_width=1280,
    resolution=224,
)


def _less_stride(name: str, removed: int) -> Baseline:
    """B0 with its first `removed` strides of 2 made 1, at the resolution that keeps the size of B0's last maps."""
    stages, left = list(_B0.stages), removed - 1
    for i, stage in enumerate(stages):
        if left and stage.stride == 2:
            stages[i], left = replace(stage, stride=1), left - 1
    return replace(_B0, name=name, stem_stride=1, stages=tuple(stages), resolution=224 >> removed)


BASELINES: dict[str, Baseline] = {
    "b0": _B0,
    "b0-s16": _less_stride("b0-s16", 1),
    "b0-s8": _less_stride("b0-s8", 2),
    "b0-s4": _less_stride("b0-s4", 3),
}


@dataclass(frozen=True, slots=True)
class Member:
    baseline: str
    width: float
    depth: float
    resolution: int  # px
    dropout_percent: int


# TensorFlow `efficientnet_builder.py`, `efficientnet_params`.
MEMBERS: dict[str, Member] = {
    #              baseline width depth px dropout
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
}

# The paper's answer (section 5.2): alpha, beta, gamma at phi = 1.
PAPER = Scaling(1.2, 1.1, 1.15)


def baseline(name: str) -> Baseline:
    """The baseline of that name. Raises ValueError naming the known ones."""
    if name not in BASELINES:
        raise ValueError(f"unknown baseline {name!r}: known are {', '.join(BASELINES)}")
    return BASELINES[name]


def arch(
    name: str | Baseline,
    *,
    alpha: float | None = None,
    beta: float | None = None,
    gamma: float | None = None,
    phi: float | None = None,
    depth: float | None = None,
    width: float | None = None,
    resolution: int | None = None,
    num_classes: int = 1000,
) -> Arch:
    """A published member (`arch("b3")`), compound coefficients on a baseline
    (`arch("b0", alpha=1.2, beta=1.1, gamma=1.15, phi=1)`), or direct multipliers
    (`arch("b0", depth=1.4, width=1.2, resolution=291)`; resolution in px).

    `phi` defaults to 1. Raises ValueError for an unknown name, both kinds of coefficients at once, phi alone,
    or a value out of range.
    """
    compound = any(c is not None for c in (alpha, beta, gamma))
    if phi is not None and not compound:
        raise ValueError("phi scales alpha, beta and gamma: give at least one of them")
    direct = any(c is not None for c in (depth, width, resolution))
    if compound and direct:
        raise ValueError("give alpha, beta, gamma, phi or depth, width, resolution, not both")
    if isinstance(name, str) and name in MEMBERS and not (compound or direct):
        m = MEMBERS[name]
        return scale(
            BASELINES[m.baseline],
            m.depth,
            m.width,
            m.resolution,
            num_classes=num_classes,
            dropout_percent=m.dropout_percent,
            name=name,
        )
    if isinstance(name, str) and name not in BASELINES:
        if name in MEMBERS:
            raise ValueError(f"{name!r} is already scaled: scale {MEMBERS[name].baseline!r} instead")
        known = ", ".join({**BASELINES, **MEMBERS})
        raise ValueError(f"unknown network {name!r}: known are {known}")
    base = BASELINES[name] if isinstance(name, str) else name
    if compound:
        a, b, c = (1.0 if x is None else x for x in (alpha, beta, gamma))
        s = Scaling(a, b, c, 1.0 if phi is None else phi)
        side = max(1, round_half_up(base.resolution * s.resolution))
        return scale(base, s.depth, s.width, side, num_classes=num_classes)
    return scale(
        base,
        1.0 if depth is None else depth,
        1.0 if width is None else width,
        resolution,
        num_classes=num_classes,
    )
