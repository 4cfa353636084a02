"""A network resolved: its blocks with every shape, and the layers of each.

Everything about shapes is computed here, once. `model.py` builds modules from `ops(block)` and
`cost.py` sums over the same layers, so a network and its cost cannot drift apart. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from effnet.arch import Arch, Stage


class Block(NamedTuple):
    """One block fully resolved, with its count of identical repeats.

    `expanded` is the inner width (the head's is its convolution's width, 0 without one), `squeezed`
    the squeeze-and-excitation width (0: none). Sides are in px, of rows (`side_`) and of columns
    (`across_`); the stem's outputs are its convolution's."""

    repeats: int
    side_in: int
    side_out: int
    across_in: int
    across_out: int
    # what follows decides weights and layers, whatever the sides
    operator: str  # an Operator, stem or head
    c_in: int
    expanded: int
    squeezed: int
    c_out: int
    kernel: int
    stride: int
    shortcut: Literal["", "identity", "conv"] = ""

    @property
    def area_in(self) -> int:
        """Pixels of a map that it reads."""
        return self.side_in * self.across_in

    @property
    def area_out(self) -> int:
        """Pixels of a map that it writes."""
        return self.side_out * self.across_out


class Op(NamedTuple):
    """One convolution or linear layer with what follows it. Padding is kernel // 2."""

    kind: str  # stem, expand, depthwise, squeeze, ...: its name in the module too
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

    An odd kernel k with padding k // 2 makes a side ceil(side / stride)."""
    channels = arch.stem_width
    rows, columns = arch.sides
    stem_rows, stem_columns = -(-rows // arch.stem_stride), -(-columns // arch.stem_stride)
    yield Block(
        repeats=1,
        side_in=rows,
        side_out=stem_rows,
        across_in=columns,
        across_out=stem_columns,
        operator="stem",
        c_in=arch.in_channels,
        expanded=0,
        squeezed=0,
        c_out=channels,
        kernel=arch.stem_kernel,
        stride=arch.stem_stride,
    )
    sides = (-(-stem_rows // arch.stem_pool), -(-stem_columns // arch.stem_pool))
    for stage in arch.stages:
        # Only the first repeat of a stage changes width and side. It differs from the others then,
        # and in a bottleneck always: a stage begins with a convolution on the shortcut.
        alike = channels == stage.width and stage.stride == 1 and stage.operator != "bottleneck"
        first_repeats = stage.repeats if alike else 1
        first = _block(stage, first_repeats, sides, channels, stage.stride, first=True)
        yield first
        sides, channels = (first.side_out, first.across_out), stage.width
        others = stage.repeats - first_repeats
        if others:
            yield _block(stage, others, sides, channels, 1, first=False)
    yield Block(
        repeats=1,
        side_in=sides[0],
        side_out=1,
        across_in=sides[1],
        across_out=1,
        operator="head",
        c_in=channels,
        expanded=arch.head_width,
        squeezed=0,
        c_out=arch.num_classes,
        kernel=1,
        stride=1,
    )


def _block(
    stage: Stage, repeats: int, sides: tuple[int, int], channels: int, stride: int, first: bool
) -> Block:
    """`repeats` repeats of a row on maps of `channels` channels and so many rows and columns."""
    shortcut: Literal["", "identity", "conv"] = ""
    if stage.operator == "bottleneck":
        inner = max(1, stage.width // stage.expand)
        shortcut = "conv" if first else "identity"
    else:
        inner = channels * stage.expand
        if stride == 1 and channels == stage.width and stage.operator != "separable":
            shortcut = "identity"
    squeezed = 0
    if stage.se_percent:
        squeezed = max(1, channels * stage.se_percent // 100)
    # by position: networks are costed twenty thousand a second, and names cost time
    rows, columns = sides
    return Block(
        repeats, rows, -(-rows // stride), columns, -(-columns // stride), stage.operator, channels,
        inner, squeezed, stage.width, stage.kernel, stride, shortcut,
    )  # fmt: skip


# ---- the layers of one repeat of a block, in order of execution; positions as in Op


def _stem(b: Block) -> tuple[Op, ...]:
    return (Op("stem", b.c_in, b.c_out, b.kernel, b.stride, 1, "out", True, True),)


def _inverted_residual(b: Block, expand_kernel: int) -> tuple[Op, ...]:
    layers: list[Op] = []
    if b.expanded != b.c_in:
        layers.append(Op("expand", b.c_in, b.expanded, expand_kernel, 1, 1, "in", True, True))
    layers.append(
        Op("depthwise", b.expanded, b.expanded, b.kernel, b.stride, b.expanded, "out", True, True)
    )
    if b.squeezed:
        layers.append(Op("squeeze", b.expanded, b.squeezed))
        layers.append(Op("excite", b.squeezed, b.expanded))
    layers.append(Op("project", b.expanded, b.c_out, 1, 1, 1, "out", True))
    return tuple(layers)


def _mbconv(b: Block) -> tuple[Op, ...]:
    return _inverted_residual(b, expand_kernel=1)


def _mbconv3x3(b: Block) -> tuple[Op, ...]:
    return _inverted_residual(b, expand_kernel=3)


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
    layers = (
        Op("reduce", b.c_in, b.expanded, 1, 1, 1, "in", True, True),
        Op("conv", b.expanded, b.expanded, b.kernel, b.stride, 1, "out", True, True),
        Op("expand", b.expanded, b.c_out, 1, 1, 1, "out", True),
    )
    if b.shortcut == "conv":
        return (*layers, Op("shortcut", b.c_in, b.c_out, 1, b.stride, 1, "out", True))
    return layers


def _head(b: Block) -> tuple[Op, ...]:
    if not b.expanded:
        return (Op("classifier", b.c_in, b.c_out),)
    return (
        Op("head", b.c_in, b.expanded, 1, 1, 1, "in", True, True),
        Op("classifier", b.expanded, b.c_out),
    )


_LAYERS: dict[str, Callable[[Block], tuple[Op, ...]]] = {
    "stem": _stem,
    "mbconv": _mbconv,
    "mbconv3x3": _mbconv3x3,
    "fused": _fused,
    "separable": _separable,
    "bottleneck": _bottleneck,
    "head": _head,
}


def ops(block: Block) -> tuple[Op, ...]:
    """The convolutions and linear layers of one repeat of `block`; a shortcut's convolution comes
    last."""
    return _LAYERS[block.operator](block)
