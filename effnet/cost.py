"""The exact cost of a network, from its description alone. No torch."""

from __future__ import annotations

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


def _weights(op: Op) -> int:
    return op.c_in // op.groups * op.c_out * op.kernel**2


def _beside(op: Op) -> int:
    """Parameters beside the weights: a batch norm's scale and shift, or the layer's own bias."""
    return 2 * op.c_out if op.norm else op.c_out


def area(op: Op, block: Block) -> int:
    """Output pixels of a layer of `block`."""
    side = {"one": 1, "in": block.side_in, "out": block.side_out}[op.side]
    return side * side


def op_cost(op: Op, block: Block) -> Cost:
    """One layer of one repeat, with its batch norm or its bias."""
    pixels = area(op, block)
    weights = _weights(op)
    return Cost(weights * pixels, weights + _beside(op), op.c_out * pixels)


@lru_cache(maxsize=1 << 15)
def _per_pixel(*shape: Any) -> tuple[int, int, int, int, int, int, int]:
    """What a block costs whatever its sides: macs per pixel of side_in, of side_out and once; params;
    acts in the same three parts. Networks differ far more often than their blocks' shapes do."""
    macs_in = macs_out = macs_one = acts_in = acts_out = acts_one = params = 0
    for op in ops(Block(1, 1, 1, *shape)):
        weights = _weights(op)
        params += weights + _beside(op)
        if op.side == "out":
            macs_out, acts_out = macs_out + weights, acts_out + op.c_out
        elif op.side == "in":
            macs_in, acts_in = macs_in + weights, acts_in + op.c_out
        else:
            macs_one, acts_one = macs_one + weights, acts_one + op.c_out
    return macs_in, macs_out, macs_one, params, acts_in, acts_out, acts_one


def cost(arch: Arch) -> Cost:
    """MACs, params and acts of the whole network."""
    macs = params = acts = 0
    for block in blocks(arch):
        n, side_in, side_out = block[:3]
        before, after, once, weights, acts_before, acts_after, acts_once = _per_pixel(*block[3:])
        area_in, area_out = side_in * side_in, side_out * side_out
        macs += n * (before * area_in + after * area_out + once)
        acts += n * (acts_before * area_in + acts_after * area_out + acts_once)
        params += n * weights
    return Cost(macs, params, acts)


def cost_by_block(arch: Arch) -> list[tuple[Block, Cost]]:
    """Each block, stem to head, with the cost of all its repeats."""
    return [(b, sum((op_cost(op, b) for op in ops(b)), Cost(0, 0, 0)) * b.repeats) for b in blocks(arch)]


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


def _kept(op: Op, block: Block, activation: str) -> int:
    """Elements per image that a layer leaves for the backward pass: the convolution's output for the batch norm,
    the norm's for the activation (ReLU needs only its own result), and what the next layer reads."""
    if not op.norm:
        return 3 * op.c_out
    copies = (2 if activation == "relu" else 3) if op.act else 2
    if op.kind == "shortcut":
        copies = 1  # its sum is counted with the main path
    elif op.kind == "depthwise" and block.squeezed:
        copies += 1  # and once more, gated
    return copies * op.c_out * area(op, block)


def training_memory(arch: Arch, batch: int = 32, precision: Precision = "fp32", states: int = 1) -> int:
    """Estimated peak bytes of one training step under PyTorch: weights, gradients, `states` optimizer states per
    weight (1: SGD with momentum; 2: AdamW), and at the worst moment of the backward pass the activations still
    kept, the gradients already there and the pair in flight. fp16 and bf16 are autocast: weights, gradients and
    states stay fp32, activations and a copy of the weights take 2 bytes.

    Not in it: the allocator's rounding, the convolutions' workspace, the CUDA context. Raises ValueError for a
    batch below 1 or an unknown precision."""
    if precision not in PRECISIONS or batch < 1:
        raise ValueError(f"batch {batch} in {precision}: a batch of at least 1 in {', '.join(PRECISIONS)}")
    element = 4 if precision == "fp32" else 2
    copies = 0 if precision == "fp32" else 2  # bytes per weight that autocast adds
    params, after, peak = cost(arch).params, 0, 0
    kept = batch * arch.in_channels * arch.resolution**2 * 4
    for block in blocks(arch):
        layers = [(batch * element * _kept(op, block, arch.activation), op_cost(op, block)) for op in ops(block)]
        if block.operator == "stem" and arch.stem_pool > 1:  # the pool's result, and an int64 index for each
            kept += batch * block.c_out * (-(-block.side_out // arch.stem_pool)) ** 2 * (element + 8)
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
    """What other tools print for this network, exactly; CONVENTIONS says what each counts (facts.md section 5)."""
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
