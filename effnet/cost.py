"""The exact cost of a network, from its description alone. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from effnet.arch import Arch
from effnet.blocks import Block, Op, blocks, ops


@dataclass(frozen=True, slots=True)
class Cost:
    """`macs`: multiply-adds per image, forward, convolutions and linear layers, no biases.
    `params`: trainable parameters. `acts`: output elements per image of every convolution and
    linear layer (pycls' and fvcore's activation count)."""

    macs: int
    params: int
    acts: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.macs + other.macs, self.params + other.params, self.acts + other.acts)

    def __mul__(self, n: int) -> Cost:
        return Cost(n * self.macs, n * self.params, n * self.acts)


_Parts = tuple[int, int, int, int, int, int, int]


def _parts(layers: Iterable[Op]) -> _Parts:
    """What layers cost whatever the sides of their block: macs per pixel of side_in, of side_out
    and once; acts in the same three parts; params, with a batch norm's scale and shift or the
    layer's own bias."""
    macs_in = macs_out = macs_one = acts_in = acts_out = acts_one = params = 0
    for _, c_in, c_out, kernel, _, groups, side, norm, _ in layers:
        weights = c_in // groups * c_out * kernel * kernel
        params += weights + (2 * c_out if norm else c_out)
        if side == "out":
            macs_out += weights
            acts_out += c_out
        elif side == "in":
            macs_in += weights
            acts_in += c_out
        else:
            macs_one += weights
            acts_one += c_out
    return macs_in, macs_out, macs_one, acts_in, acts_out, acts_one, params


@lru_cache(maxsize=1 << 15)
def _block_parts(*shape: Any) -> _Parts:
    """Of one repeat of a block: networks differ far more often than their blocks' shapes do."""
    return _parts(ops(Block(1, 1, 1, *shape)))


def _at(parts: _Parts, side_in: int, side_out: int) -> tuple[int, int, int]:
    """macs, params, acts at these sides [px]."""
    macs_in, macs_out, macs_one, acts_in, acts_out, acts_one, params = parts
    area_in, area_out = side_in * side_in, side_out * side_out
    return (
        macs_in * area_in + macs_out * area_out + macs_one,
        params,
        acts_in * area_in + acts_out * area_out + acts_one,
    )


def op_cost(op: Op, block: Block) -> Cost:
    """One layer of one repeat, with its batch norm or its bias."""
    return Cost(*_at(_parts((op,)), block.side_in, block.side_out))


def cost(arch: Arch) -> Cost:
    """MACs, params and acts of the whole network."""
    total_macs = total_params = total_acts = 0
    for block in blocks(arch):
        n, side_in, side_out = block[:3]
        macs, params, acts = _at(_block_parts(*block[3:]), side_in, side_out)
        total_macs += n * macs
        total_params += n * params
        total_acts += n * acts
    return Cost(total_macs, total_params, total_acts)


def cost_by_block(arch: Arch) -> list[tuple[Block, Cost]]:
    """Each block, stem to head, with the cost of all its repeats."""
    return [
        (b, sum((op_cost(op, b) for op in ops(b)), Cost(0, 0, 0)) * b.repeats) for b in blocks(arch)
    ]


def cost_by_kind(arch: Arch) -> dict[str, Cost]:
    """Cost per operator kind (stem, expand, depthwise, ...), in order of first use."""
    kinds: dict[str, Cost] = {}
    for block in blocks(arch):
        for op in ops(block):
            kinds[op.kind] = kinds.get(op.kind, Cost(0, 0, 0)) + op_cost(op, block) * block.repeats
    return kinds


def macs(arch: Arch) -> int:
    """The multiply-adds alone."""
    return cost(arch).macs


# ---- memory, estimated

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")


def _kept(op: Op, acts: int, block: Block, activation: str) -> int:
    """Elements per image that a layer leaves for the backward pass: the convolution's output for
    the batch norm, the norm's for the activation (ReLU needs only its own result), and what the
    next layer reads."""
    if not op.norm:
        return 3 * acts
    copies = (2 if activation == "relu" else 3) if op.act else 2
    if op.kind == "shortcut":
        copies = 1  # its sum is counted with the main path
    elif op.kind == "depthwise" and block.squeezed:
        copies += 1  # and once more, gated
    return copies * acts


def training_memory(
    arch: Arch, batch: int = 32, precision: Precision = "fp32", states: int = 1
) -> int:
    """Estimated peak bytes of one training step under PyTorch: weights, gradients, `states`
    optimizer states per weight (1: SGD with momentum; 2: AdamW), and at the worst moment of the
    backward pass the activations still kept, the gradients already there and the pair in flight.
    fp16 and bf16 are autocast: weights, gradients and states stay fp32, activations and a copy of
    the weights take 2 bytes.

    Not in it: the allocator's rounding, the convolutions' workspace, the CUDA context. Raises
    ValueError for a batch below 1 or an unknown precision."""
    if precision not in PRECISIONS or batch < 1:
        raise ValueError(
            f"batch {batch} in {precision}: a batch of at least 1 in {', '.join(PRECISIONS)}"
        )
    element = 4 if precision == "fp32" else 2
    copies = 0 if precision == "fp32" else 2  # bytes per weight that autocast adds
    params, after, peak = cost(arch).params, 0, 0
    kept = batch * arch.in_channels * arch.resolution**2 * 4
    for block in blocks(arch):
        parts = [(op, op_cost(op, block)) for op in ops(block)]
        layers = [
            (batch * element * _kept(op, part.acts, block, arch.activation), part)
            for op, part in parts
        ]
        if (
            block.operator == "stem" and arch.stem_pool > 1
        ):  # the pool's result, and an int64 index for each
            kept += (
                batch * block.c_out * (-(-block.side_out // arch.stem_pool)) ** 2 * (element + 8)
            )
        left, weights = sum(k for k, _ in layers), sum(part.params for _, part in layers)
        # what is held moves evenly from repeat to repeat: it is most at the first or the last
        for last in range(min(2, block.repeats)):
            between = last * (block.repeats - 2)
            kept += between * (left + copies * weights)
            after += between * weights
            for k, part in layers:
                kept += k + copies * part.params
                after += part.params
                in_flight = 2 * batch * part.acts * element
                peak = max(peak, kept + 4 * (params - after) + in_flight)
    return max(peak, 4 * params) + 4 * params * (1 + states)


# ---- the same network under other conventions


CONVENTIONS = {
    "macs": "multiply-adds of convolutions and linear layers, no biases: what this project means by cost",
    "torch": "FlopCounterMode: a multiply and an add are two",
    "pycls": "with the biases of squeeze-and-excitation and classifier",
    "fvcore-torchvision": "FlopCountAnalysis.total() on torchvision's modules in eval mode: with batch norms and pools",
    "fvcore-timm": "the same on timm's, whose squeeze-and-excitation pools with mean(), which fvcore does not count",
}


def conventions(arch: Arch) -> dict[str, int]:
    """What other tools print for this network, exactly; CONVENTIONS says what each counts."""
    biases = norms = gates = final = 0
    for block in blocks(arch):
        for op in ops(block):
            elements = block.repeats * op_cost(op, block).acts
            norms += elements if op.norm else 0
            biases += 0 if op.norm else elements
            gates += block.repeats * op.c_in * block.side_out**2 if op.kind == "squeeze" else 0
            final += op.c_in * block.side_in**2 if op.kind == "classifier" else 0
    plain = macs(arch)
    pooled = plain + 2 * norms + final
    return {
        "macs": plain,
        "torch": 2 * plain,
        "pycls": plain + biases,
        "fvcore-torchvision": pooled + gates,
        "fvcore-timm": pooled,
    }
