"""The exact cost of a network, from its description alone: multiply-adds, parameters, activations;
what other tools print for it; and an estimate of training memory. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from effnet.arch import Arch, Network
from effnet.blocks import Block, Op, blocks, ops
from effnet.custom import CustomArch


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


# ---- exact cost

# What a block costs whatever its sides: macs per pixel of side_in, of side_out, and once; acts in
# the same three parts; params. A plain tuple, since networks are costed by the ten thousand.
_Parts = tuple[int, int, int, int, int, int, int]


def _parts(layers: Iterable[Op]) -> _Parts:
    """The parts of some layers together; params with a batch norm's scale and shift, or with the
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
    """The parts of one repeat of a block, given all its fields but repeats and sides. Remembered:
    networks differ far more often than their blocks' shapes do."""
    return _parts(ops(Block(1, 1, 1, 1, 1, *shape)))


def _at(parts: _Parts, area_in: int, area_out: int) -> tuple[int, int, int]:
    """macs, params and acts on maps of these areas [px]."""
    macs_in, macs_out, macs_one, acts_in, acts_out, acts_one, params = parts
    return (
        macs_in * area_in + macs_out * area_out + macs_one,
        params,
        acts_in * area_in + acts_out * area_out + acts_one,
    )


def op_cost(op: Op, block: Block) -> Cost:
    """The cost of one layer of one repeat, with its batch norm or its bias."""
    return Cost(*_at(_parts((op,)), block.area_in, block.area_out))


def cost(arch: Network) -> Cost:
    """MACs, params and acts of the whole network; of a function's as torch has counted them."""
    if isinstance(arch, CustomArch):
        return Cost(arch.counts.macs, arch.counts.params, arch.counts.acts)
    total_macs = total_params = total_acts = 0
    for block in blocks(arch):
        n, side_in, side_out, across_in, across_out = block[:5]
        parts = _block_parts(*block[5:])
        macs, params, acts = _at(parts, side_in * across_in, side_out * across_out)
        total_macs += n * macs
        total_params += n * params
        total_acts += n * acts
    return Cost(total_macs, total_params, total_acts)


def cost_by_block(arch: Arch) -> list[tuple[Block, Cost]]:
    """Each block, stem to head, with the cost of all its repeats."""
    rows = []
    for block in blocks(arch):
        repeat = Cost(0, 0, 0)
        for op in ops(block):
            repeat += op_cost(op, block)
        rows.append((block, repeat * block.repeats))
    return rows


def cost_by_kind(arch: Arch) -> dict[str, Cost]:
    """Cost per operator kind (stem, expand, depthwise, ...), in order of first use."""
    kinds: dict[str, Cost] = {}
    for block in blocks(arch):
        for op in ops(block):
            so_far = kinds.get(op.kind, Cost(0, 0, 0))
            kinds[op.kind] = so_far + op_cost(op, block) * block.repeats
    return kinds


def macs(arch: Network) -> int:
    """The multiply-adds alone."""
    return cost(arch).macs


# ---- memory, estimated

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")


def _kept_acts(op: Op, acts: int, block: Block, activation: str) -> int:
    """Elements per image that a layer of `acts` outputs leaves for the backward pass: the
    convolution's output for the batch norm, the norm's for the activation (ReLU needs only its own
    result), and what the next layer reads."""
    if op.kind == "shortcut":
        return acts  # its sum is counted with the main path
    if not op.norm:
        return 3 * acts
    copies = 2
    if op.act and activation != "relu":
        copies += 1
    if op.kind == "depthwise" and block.squeezed:
        copies += 1  # once more, gated
    return copies * acts


def _kept_by_pool(block: Block, stem_pool: int, element: int) -> int:
    """Bytes per image that the max-pool after the stem leaves: its result, and an int64 index for
    each."""
    rows, columns = -(-block.side_out // stem_pool), -(-block.across_out // stem_pool)
    return block.c_out * rows * columns * (element + 8)


def training_memory(
    arch: Network, batch: int = 32, precision: Precision = "fp32", states: int = 1
) -> int:
    """Estimated peak bytes of one training step under PyTorch: weights, gradients, `states`
    optimizer states per weight (1: SGD with momentum; 2: AdamW), and at the worst moment of the
    backward pass the activations still kept, the gradients already computed and the pair in flight.
    fp16 and bf16 are autocast: weights, gradients and states stay fp32, activations and a copy of
    the weights take 2 bytes.

    Of a function's network: what its forward pass saves, whole. Raises FunctionError then.

    Not in it: the allocator's rounding, the convolutions' workspace, the CUDA context. Within 10%
    of what torch's CPU allocator sees (tests/test_cost.py). Raises ValueError for a batch below 1
    or an unknown precision."""
    if precision not in PRECISIONS or batch < 1:
        raise ValueError(
            f"batch {batch} in {precision}: a batch of at least 1 in {', '.join(PRECISIONS)}"
        )
    element, copied = 4, 0  # bytes per activation; bytes per weight that autocast adds
    if precision != "fp32":
        element, copied = 2, 2
    params = cost(arch).params
    if isinstance(arch, CustomArch):
        from effnet.nn.count import saved_for_backward

        kept = batch * element * saved_for_backward(arch) + copied * params
        return max(kept, 4 * params) + 4 * params * (1 + states)
    # Walked forward: at each layer, what is kept by then, and the gradients of the layers after it,
    # which the backward pass has computed when it comes back to this one.
    rows, columns = arch.sides
    kept = batch * arch.in_channels * rows * columns * 4
    params_so_far = 0
    peak = 0
    for block in blocks(arch):
        if block.operator == "stem" and arch.stem_pool > 1:
            kept += batch * _kept_by_pool(block, arch.stem_pool, element)
        layers = []
        kept_by_repeat = params_of_repeat = 0
        for op in ops(block):
            part = op_cost(op, block)
            kept_by_op = batch * element * _kept_acts(op, part.acts, block, arch.activation)
            layers.append((kept_by_op + copied * part.params, part))
            kept_by_repeat += kept_by_op + copied * part.params
            params_of_repeat += part.params
        # What is held moves evenly from repeat to repeat, so it is most at the first or the last.
        for repeat in range(min(2, block.repeats)):
            if repeat == 1:
                kept += (block.repeats - 2) * kept_by_repeat
                params_so_far += (block.repeats - 2) * params_of_repeat
            for kept_by_layer, part in layers:
                kept += kept_by_layer
                params_so_far += part.params
                gradients = 4 * (params - params_so_far)
                in_flight = 2 * batch * part.acts * element
                peak = max(peak, kept + gradients + in_flight)
    return max(peak, 4 * params) + 4 * params * (1 + states)


# ---- the same network under other conventions

CONVENTIONS = {
    "macs": "multiply-adds of convolutions and linear layers, no biases: "
    "what this project means by cost",
    "torch": "FlopCounterMode: a multiply and an add are two",
    "pycls": "with the biases of squeeze-and-excitation and classifier",
    "fvcore-torchvision": "FlopCountAnalysis.total() on torchvision's modules in eval mode: "
    "with batch norms and pools",
    "fvcore-timm": "the same on timm's, whose squeeze-and-excitation pools with mean(), "
    "which fvcore does not count",
}


def conventions(arch: Arch) -> dict[str, int]:
    """What other tools print for this network, exactly; CONVENTIONS says what each counts."""
    biases = normed = pooled_by_gates = pooled_at_the_end = 0
    for block in blocks(arch):
        for op in ops(block):
            acts = block.repeats * op_cost(op, block).acts
            if op.norm:
                normed += acts
            else:
                biases += acts
            if op.kind == "squeeze":
                pooled_by_gates += block.repeats * op.c_in * block.area_out
            if op.kind == "classifier":
                pooled_at_the_end += op.c_in * block.area_in
    plain = macs(arch)
    # fvcore counts two per element that a batch norm scales and shifts, one per element pooled
    timm = plain + 2 * normed + pooled_at_the_end
    return {
        "macs": plain,
        "torch": 2 * plain,
        "pycls": plain + biases,
        "fvcore-torchvision": timm + pooled_by_gates,
        "fvcore-timm": timm,
    }
