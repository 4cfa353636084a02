"""A network resolved: its blocks with every shape, and the layers of each.

Everything about shapes is computed here, once. `model.py` builds modules from `ops(block)` and
`cost.py` sums over the same layers, so a network and its cost cannot drift apart. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from effnet.arch import Arch


class Block(NamedTuple):
    """One block fully resolved, with its count of identical repeats.

    `expanded` is the inner width (the head's is its convolution's width, 0 without one), `squeezed`
    the squeeze-and-excitation width (0: none). Sides are in px; the stem's `side_out` is its
    convolution's."""

    repeats: int
    side_in: int
    side_out: int
    # what follows decides weights and layers, whatever the sides
    operator: str  # an Operator, stem or head
    c_in: int
    expanded: int
    squeezed: int
    c_out: int
    kernel: int
    stride: int
    shortcut: Literal["", "identity", "conv"] = ""


class Op(NamedTuple):
    """One convolution or linear layer with what follows it. Padding is kernel // 2."""

    # stem expand depthwise squeeze excite project fused pointwise reduce conv shortcut head
    # classifier
    kind: str
    c_in: int
    c_out: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    side: Literal["one", "in", "out"] = "one"  # the output's: 1 px, the block's side_in or side_out
    norm: bool = False  # a batch norm follows, and the layer itself has no bias
    act: bool = False  # then the network's activation


def blocks(arch: Arch) -> Iterator[Block]:
    """The network from input to logits; identical neighbours are one Block with `repeats`.

    A kernel k, odd, with padding k // 2 makes a side ceil(side / stride)."""
    c, out = arch.stem_width, -(-arch.resolution // arch.stem_stride)
    yield Block(
        1,
        arch.resolution,
        out,
        "stem",
        arch.in_channels,
        0,
        0,
        c,
        arch.stem_kernel,
        arch.stem_stride,
    )
    side = -(-out // arch.stem_pool)
    for stage in arch.stages:
        operator, expand, kernel, stride, width, repeats, se = (
            stage.operator, stage.expand, stage.kernel, stage.stride, stage.width, stage.repeats, stage.se_percent,
        )  # fmt: skip
        # only a stage's first block changes width and side
        while repeats:
            n = (
                1
                if c != width
                or stride != 1
                or (operator == "bottleneck" and repeats == stage.repeats)
                else repeats
            )
            shortcut: Literal["", "identity", "conv"] = ""
            if operator == "bottleneck":  # a stage begins with a convolution on the shortcut
                inner = max(1, width // expand)
                shortcut = "conv" if repeats == stage.repeats else "identity"
            else:
                inner = c * expand
                if stride == 1 and c == width and operator != "separable":
                    shortcut = "identity"
            out = -(-side // stride)
            squeezed = max(1, c * se // 100) if se else 0
            yield Block(n, side, out, operator, c, inner, squeezed, width, kernel, stride, shortcut)
            side, c, stride, repeats = out, width, 1, repeats - n
    yield Block(1, side, 1, "head", c, arch.head_width, 0, arch.num_classes, 1, 1)


# ---- the layers of one repeat of a block, in order of execution


def _stem(b: Block) -> tuple[Op, ...]:
    return (Op("stem", b.c_in, b.c_out, b.kernel, b.stride, 1, "out", True, True),)


def _inverted(b: Block, expand_kernel: int) -> tuple[Op, ...]:
    expand = (Op("expand", b.c_in, b.expanded, expand_kernel, 1, 1, "in", True, True),)
    gate = (Op("squeeze", b.expanded, b.squeezed), Op("excite", b.squeezed, b.expanded))
    return (
        *(expand if b.expanded != b.c_in else ()),
        Op("depthwise", b.expanded, b.expanded, b.kernel, b.stride, b.expanded, "out", True, True),
        *(gate if b.squeezed else ()),
        Op("project", b.expanded, b.c_out, 1, 1, 1, "out", True),
    )


def _fused(b: Block) -> tuple[Op, ...]:
    if b.expanded == b.c_in:  # nothing to expand: one convolution does it all
        return (Op("fused", b.c_in, b.c_out, b.kernel, b.stride, 1, "out", True, True),)
    return (
        Op("fused", b.c_in, b.expanded, b.kernel, b.stride, 1, "out", True, True),
        Op("project", b.expanded, b.c_out, 1, 1, 1, "out", True),
    )


def _separable(b: Block) -> tuple[Op, ...]:
    return (
        Op("depthwise", b.c_in, b.c_in, b.kernel, b.stride, b.c_in, "out", True, True),
        Op("pointwise", b.c_in, b.c_out, 1, 1, 1, "out", True, True),
    )


def _bottleneck(b: Block) -> tuple[Op, ...]:
    shortcut = (Op("shortcut", b.c_in, b.c_out, 1, b.stride, 1, "out", True),)
    return (
        Op("reduce", b.c_in, b.expanded, 1, 1, 1, "in", True, True),
        Op("conv", b.expanded, b.expanded, b.kernel, b.stride, 1, "out", True, True),
        Op("expand", b.expanded, b.c_out, 1, 1, 1, "out", True),
        *(shortcut if b.shortcut == "conv" else ()),
    )


def _head(b: Block) -> tuple[Op, ...]:
    if not b.expanded:
        return (Op("classifier", b.c_in, b.c_out),)
    return (
        Op("head", b.c_in, b.expanded, 1, 1, 1, "in", True, True),
        Op("classifier", b.expanded, b.c_out),
    )


_LAYERS: dict[str, Callable[[Block], tuple[Op, ...]]] = {
    "stem": _stem,
    "mbconv": lambda b: _inverted(b, 1),
    "mbconv3x3": lambda b: _inverted(b, 3),
    "fused": _fused,
    "separable": _separable,
    "bottleneck": _bottleneck,
    "head": _head,
}


def ops(block: Block) -> tuple[Op, ...]:
    """The convolutions and linear layers of one repeat of `block`; a shortcut's convolution comes
    last."""
    return _LAYERS[block.operator](block)
