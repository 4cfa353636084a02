"""Compiles the Triton kernels for a card that is not here: `python -m tests.ahead 90 bfloat16 all`.

The functions of `fused` run as they are, on tensors of the CPU, with a driver that only names the
card; each launch compiles and does no more. Prints, per kernel, the shared memory [bytes] of every
compilation, as JSON.
"""

import json
import sys
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
    """Of the device `capability`, which it cannot reach."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

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


def gated(n: int, c: int, side: int, s: int, dtype: torch.dtype) -> None:
    weight, bias = flat_views((c,), (c,), dtype=torch.float32)
    layers = flat_views((s, c), (s,), (c, s), (c,), dtype=dtype)
    y = fused.norm_gate(maps(n, c, side, dtype), weight, bias, 1e-3, *layers)
    torch.autograd.grad(y, [weight], torch.zeros_like(y))


def normed(n: int, c: int, side: int, dtype: torch.dtype) -> None:
    weight, bias = flat_views((c,), (c,), dtype=torch.float32)
    z = maps(n, c, side, dtype)
    for silu, residual in ((True, None), (False, z)):
        y = fused.norm_act(z, weight, bias, 1e-3, silu, residual)
        torch.autograd.grad(y, [weight], torch.zeros_like(y))


def depthwise(n: int, c: int, side: int, kernel: int, stride: int, dtype: torch.dtype) -> None:
    (weight,) = flat_views((c, 1, kernel, kernel), dtype=dtype)
    y = fused.depthwise(maps(n, c, side, dtype).detach(), weight, stride)
    torch.autograd.grad(y, [weight], torch.zeros_like(y))


def main(capability: int, dtype: torch.dtype, part: str) -> dict[str, list[int]]:
    """{kernel: shared memory of each compilation}; part "gate" compiles each kernel one time."""
    compiled: dict[str, dict[int, Any]] = {}
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, warmup: bool, **settings: Any) -> Any:
        kernel = run(self, *args, warmup=True, **settings)
        assert kernel.asm["cubin"]
        compiled.setdefault(self.fn.__name__, {})[id(kernel)] = kernel
        return kernel

    driver.set_active(Driver(capability))  # type: ignore[arg-type]
    JITFunction.run = compile_only
    for n, c, side, s in SHAPES:
        gated(n, c, side, s, dtype)
        depthwise(n, c, side, 5, 1, dtype)
        if part == "all":
            normed(n, c, side, dtype)
            depthwise(n, c, side, 3, 2, dtype)
    return {
        name: [kernel.metadata.shared for kernel in kernels.values()]
        for name, kernels in compiled.items()
    }


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), getattr(torch, sys.argv[2]), sys.argv[3])))
