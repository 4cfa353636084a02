"""Compiles the Triton kernels in bf16 for cards that are not here: `python -m tests.ahead`.

The functions of `fused` run as they are, on tensors of the CPU, with a driver that only names the
card; each launch compiles and does no more. Prints, as JSON, the shared memory [bytes] of every
compilation: {compute capability: {kernel: [bytes, ...]}}.
"""

import json
from typing import Any

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from effnet.nn.cuda import fused

# batch, channels, side, squeezed units; some are 1 or multiples of 16, for which Triton would
# compile once more
SHAPES = [(5, 24, 7, 6), (128, 32, 4, 8), (16, 16, 1, 1), (2, 1000, 3, 16), (1, 8, 16, 2)]


class Driver:
    """Of a card of this compute capability, which it cannot reach. The capability is the device's
    number as well: Triton keeps what it has compiled by number."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return device


def maps(n: int, c: int, side: int, dtype: torch.dtype) -> Tensor:
    z = torch.zeros(n, c, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return z.requires_grad_()


def flat_views(*shapes: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Parameters as views of one vector, which start where the last ended: at any address."""
    views = []
    start = 1
    vector = torch.zeros(1 + sum(torch.Size(shape).numel() for shape in shapes), dtype=dtype)
    for shape in shapes:
        size = torch.Size(shape).numel()
        views.append(vector[start : start + size].view(shape).requires_grad_())
        start += size
    return views


def gated(n: int, c: int, side: int, s: int, dtype: torch.dtype = torch.bfloat16) -> None:
    weight, bias = flat_views((c,), (c,), dtype=torch.float32)
    layers = flat_views((s, c), (s,), (c, s), (c,), dtype=dtype)
    y = fused.norm_gate(maps(n, c, side, dtype), weight, bias, 1e-3, *layers)
    torch.autograd.grad(y, [weight], torch.zeros_like(y))


def normed(n: int, c: int, side: int, dtype: torch.dtype = torch.bfloat16) -> None:
    weight, bias = flat_views((c,), (c,), dtype=torch.float32)
    z = maps(n, c, side, dtype)
    for silu, residual in ((True, None), (False, z)):
        y = fused.norm_act(z, weight, bias, 1e-3, silu, residual)
        torch.autograd.grad(y, [weight], torch.zeros_like(y))


def depthwise(
    n: int, c: int, side: int, kernel: int, stride: int, dtype: torch.dtype = torch.bfloat16
) -> None:
    (weight,) = flat_views((c, 1, kernel, kernel), dtype=dtype)
    y = fused.depthwise(maps(n, c, side, dtype).detach(), weight, stride)
    torch.autograd.grad(y, [weight], torch.zeros_like(y))


def compile_for(capability: int, everything: bool) -> dict[str, list[int]]:
    """{kernel: shared memory of each compilation}, for one use of each kernel or for all uses."""
    compiled: dict[str, dict[int, Any]] = {}

    def compile_only(self: Any, *args: Any, warmup: bool, **settings: Any) -> Any:
        kernel = run(self, *args, warmup=True, **settings)
        assert kernel.asm["cubin"]
        compiled.setdefault(self.fn.__name__, {})[id(kernel)] = kernel
        return kernel

    driver.set_active(Driver(capability))  # type: ignore[arg-type]
    run = JITFunction.run
    JITFunction.run = compile_only
    try:
        for n, c, side, s in SHAPES:
            gated(n, c, side, s)
            depthwise(n, c, side, 5, 1)
            if everything:
                normed(n, c, side)
                depthwise(n, c, side, 3, 2)
    finally:
        JITFunction.run = run
    return {
        name: [kernel.metadata.shared for kernel in kernels.values()]
        for name, kernels in compiled.items()
    }


if __name__ == "__main__":
    cards = ((90, True), (80, False), (75, False))
    print(json.dumps({card: compile_for(card, everything) for card, everything in cards}))
