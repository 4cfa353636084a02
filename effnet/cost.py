"""The exact cost of a network, from its description alone. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from effnet.arch import Arch, Op, blocks, ops


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


def op_cost(op: Op) -> Cost:
    """One layer with its batch norm (scale and shift) or its bias."""
    extra = 2 * op.c_out if op.norm else op.c_out
    return Cost(_weights(op) * op.side**2, _weights(op) + extra, op.c_out * op.side**2)


def cost(arch: Arch) -> Cost:
    """MACs, params and acts of the whole network."""
    total = Cost(0, 0, 0)
    for block in blocks(arch):
        for op in ops(block):
            total += op_cost(op) * block.repeats
    return total


def cost_by_kind(arch: Arch) -> dict[str, Cost]:
    """Cost per operator kind (stem, expand, depthwise, ...), in order of first use."""
    kinds: dict[str, Cost] = {}
    for block in blocks(arch):
        for op in ops(block):
            kinds[op.kind] = kinds.get(op.kind, Cost(0, 0, 0)) + op_cost(op) * block.repeats
    return kinds


def macs(arch: Arch) -> int:
    """The multiply-adds alone: what solving for a budget evaluates thousands of times."""
    return sum(block.repeats * sum(_weights(op) * op.side**2 for op in ops(block)) for block in blocks(arch))
