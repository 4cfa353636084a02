"""Autograd functions around Triton's kernels: batch norm with what follows it, depthwise
convolution.

Maps are [n, c, h, w], channels_last (others are copied), bf16 or fp32, on the current device.
Nothing here waits for the device or looks at its data, so a CUDA graph records all of it, after a
first call outside the capture: kernels are compiled and loaded then, which a capture refuses.

Launches of our own, forward and backward:

norm_act   forward 2: moments, normalise
           backward 2: gradient_sums, gradient_maps
norm_gate  forward 4: moments, pool, excite, normalise
           backward 5: gate_gradient, excite_maps_gradient, excite_weights_gradient, gradient_sums,
           gradient_maps
depthwise  forward: torch's convolution
           backward 2, beside torch's for the input: depthwise_sums, depthwise_total
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Programs a launch should have: an H100 has 132 multiprocessors, a T4 has 40, and each holds
# several programs at a time. A constant, so that the splits, and with them the sums' order, are the
# same on every card.
_PROGRAMS = 512
# Every program of the second kernel adds up all splits of its channels: beyond this many the sums
# cost more than the parallelism brings.
_MAX_SPLITS = 256
_CHANNELS_LAST = torch.channels_last  # the order [n, h, w, c] in memory that the kernels read


def norm_act(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    silu: bool,
    residual: Tensor | None = None,
) -> Tensor:
    """act(batch_norm(z)) (+ residual), as z in shape and dtype, by the statistics of this batch.

    `weight` and `bias` [c] are fp32; `residual` is as z. There are no running averages. Raises
    ValueError where a channel has one value, ImportError where Triton is not installed."""
    return cast(Tensor, _NormAct.apply(z, weight, bias, eps, silu, residual))


def norm_gate(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
) -> Tensor:
    """y · sigmoid(silu(mean(y) @ w1.T + b1) @ w2.T + b2) with y = silu(batch_norm(z)).

    This is squeeze-and-excitation after a norm (Hu et al. 2018, arXiv:1709.01507, section 3).

    `w1` [s, c], `w2` [c, s], `b1` [s] and `b2` [c] are of the maps' dtype; between the two layers
    everything is fp32. Raises as `norm_act` does."""
    return cast(Tensor, _NormGate.apply(z, weight, bias, eps, w1, b1, w2, b2))


def depthwise(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The convolution of each channel with its own kernel, padded by half of it.

    x [n, c, h, w], weight [c, 1, k, k] of the same dtype, k odd → [n, c, ho, wo]. The weight's
    gradient has the weight's dtype and strides. Raises ImportError where there is no Triton."""
    return cast(Tensor, _Depthwise.apply(x, weight, stride))


@functools.cache
def _kernels() -> ModuleType:
    """The module of kernels. It is imported late, since torch for the CPU comes without Triton."""
    try:
        from effnet.nn.cuda import kernels
    except ImportError as error:
        raise ImportError(
            f"the fused CUDA kernels need Triton, which does not load here ({error}):"
            " install the triton package that belongs to this torch, or train without them"
        ) from error
    return kernels


class _NormAct(torch.autograd.Function):
    """Autograd's side of `norm_act`."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        silu: bool,
        residual: Tensor | None,
    ) -> Tensor:
        kernels = _kernels()
        z = z.contiguous(memory_format=_CHANNELS_LAST)
        if residual is not None:
            residual = residual.contiguous(memory_format=_CHANNELS_LAST)
        rows = _Partition.of_rows(z)
        partial = _moments(z, rows)
        stats = _floats(z, 2, z.shape[1])
        y = torch.empty_like(z)
        kernels.normalise[rows.grid](
            z, partial, stats, weight, bias, residual, None, y, rows.length, 1, rows.groups,
            rows.span, rows.splits, eps, SILU=silu, SPLITS=kernels.SPLITS, **rows.tile,
        )  # fmt: skip
        ctx.save_for_backward(z, weight, bias, stats)
        ctx.silu = silu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        z, weight, bias, stats = ctx.saved_tensors
        dy = dy.contiguous(memory_format=_CHANNELS_LAST)
        dz, dweight, dbias = _norm_backward(dy, z, weight, bias, stats, None, None, ctx.silu)
        return dz, dweight, dbias, None, None, dy if ctx.needs_input_grad[5] else None


class _NormGate(torch.autograd.Function):
    """Autograd's side of `norm_gate`."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
    ) -> Tensor:
        kernels = _kernels()
        z, w1, w2 = z.contiguous(memory_format=_CHANNELS_LAST), w1.contiguous(), w2.contiguous()
        n, c, h, w = z.shape
        s = len(w1)  # squeezed units
        rows, images = _Partition.of_rows(z), _Partition.of_images(z)
        partial = _moments(z, rows)
        stats, pooled = _floats(z, 2, c), _floats(z, n, c)
        kernels.pool[images.grid](
            z, partial, stats, weight, bias, pooled, n, h * w, images.groups, images.span,
            rows.splits, eps, SPLITS=kernels.SPLITS, **images.tile,
        )  # fmt: skip
        squeezed, gate = _floats(z, n, s), _floats(z, n, c)
        kernels.excite[(n,)](
            pooled, w1, b1, w2, b2, squeezed, gate, c, s,
            EXCITED=kernels.EXCITED, SQUEEZED=kernels.SQUEEZED, num_warps=8,
        )  # fmt: skip
        out = torch.empty_like(z)
        kernels.normalise[rows.grid](
            z, None, stats, weight, bias, None, gate, out, rows.length, h * w, rows.groups,
            rows.span, rows.splits, eps, SILU=True, SPLITS=kernels.SPLITS, **rows.tile,
        )  # fmt: skip
        ctx.save_for_backward(z, weight, bias, stats, w1, w2, pooled, squeezed, gate)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> Any:
        z, weight, bias, stats, w1, w2, pooled, squeezed, gate = ctx.saved_tensors
        kernels = _kernels()
        dout = dout.contiguous(memory_format=_CHANNELS_LAST)
        n, c, h, w = z.shape
        s = len(w1)
        images = _Partition.of_images(z)
        dexcited = torch.empty_like(gate)
        kernels.gate_gradient[(n, images.grid[0])](
            dout, z, stats, weight, bias, gate, dexcited, h * w, images.groups, **images.tile
        )
        dsqueezed, dpooled = torch.empty_like(squeezed), torch.empty_like(pooled)
        kernels.excite_maps_gradient[(n,)](
            dexcited, squeezed, w1, w2, dsqueezed, dpooled, c, s, h * w,
            EXCITED=kernels.EXCITED, SQUEEZED=kernels.SQUEEZED, num_warps=8,
        )  # fmt: skip
        dw1, dw2 = torch.empty_like(w1), torch.empty_like(w2)
        db1, db2 = w1.new_empty(s), w2.new_empty(c)
        kernels.excite_weights_gradient[(images.grid[0], _ceil_div(s, kernels.SQUEEZED))](
            pooled, squeezed, dsqueezed, dexcited, dw1, db1, dw2, db2, n, c, s,
            IMAGES=16, CHANNELS=kernels.CHANNELS, SQUEEZED=kernels.SQUEEZED, num_warps=8,
        )  # fmt: skip
        dz, dweight, dbias = _norm_backward(dout, z, weight, bias, stats, gate, dpooled, True)
        return dz, dweight, dbias, None, dw1, db1, dw2, db2


class _Depthwise(torch.autograd.Function):
    """Autograd's side of `depthwise`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        _kernels()  # raises now, not in the backward pass
        x = x.contiguous(memory_format=_CHANNELS_LAST)
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        dy = dy.contiguous(memory_format=_CHANNELS_LAST)
        dx = dw = None
        if ctx.needs_input_grad[0]:
            padding = weight.shape[-1] // 2
            dx, _, _ = torch.ops.aten.convolution_backward(
                dy, x, weight, None, [ctx.stride] * 2, [padding] * 2, [1, 1], False, [0, 0],
                len(weight), [True, False, False],
            )  # fmt: skip
        if ctx.needs_input_grad[1]:
            dw = _depthwise_weight_gradient(x, dy, weight, ctx.stride)
        return dx, dw, None


class _Partition(NamedTuple):
    """How the rows or images of a map are divided over programs: channel blocks by splits."""

    length: int  # rows or images of the whole map
    span: int  # of one split
    splits: int
    groups: int  # channels / ALIGN
    grid: tuple[int, int]
    tile: dict[str, int]  # the kernels' constants

    @classmethod
    def of_rows(cls, z: Tensor) -> _Partition:
        """Rows in whole tiles. Raises ValueError for one row, which has no variance."""
        n, c, h, w = z.shape
        if n * h * w == 1:  # as torch refuses it
            raise ValueError(f"more than one value per channel is needed, not {tuple(z.shape)}")
        rows = _kernels().ROWS
        return cls._divide(c, n * h * w, rows, {"ROWS": rows, "num_warps": 8})

    @classmethod
    def of_images(cls, z: Tensor) -> _Partition:
        """Images, each in tiles of its own."""
        n, c, _, _ = z.shape
        return cls._divide(c, n, 1, {"ROWS": _kernels().IMAGE_ROWS, "num_warps": 4})

    @classmethod
    def _divide(cls, c: int, length: int, unit: int, tile: dict[str, int]) -> _Partition:
        channels = _kernels().CHANNELS
        align = _alignment(c)
        blocks = _ceil_div(c, channels)
        units = _ceil_div(length, unit)
        span = unit * _ceil_div(units, _most_splits(blocks))
        splits = _ceil_div(length, span)
        tile = {**tile, "ALIGN": align, "CHANNELS": channels}
        return cls(length, span, splits, c // align, (blocks, splits), tile)


def _moments(z: Tensor, rows: _Partition) -> Tensor:
    """Partial sums of z [splits, 2, c], from which its mean and variance follow."""
    partial = _floats(z, rows.splits, 2, z.shape[1])
    _kernels().moments[rows.grid](z, partial, rows.length, rows.groups, rows.span, **rows.tile)
    return partial


def _norm_backward(
    dy: Tensor,
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    stats: Tensor,
    gate: Tensor | None,
    dpooled: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of z, weight and bias; with a gate, dy is that of y · gate."""
    kernels = _kernels()
    rows = _Partition.of_rows(z)
    hw = z.shape[2] * z.shape[3]
    partial = _floats(z, rows.splits, 2, z.shape[1])
    kernels.gradient_sums[rows.grid](
        dy, z, stats, weight, bias, gate, dpooled, partial, rows.length, hw, rows.groups, rows.span,
        SILU=silu, **rows.tile,
    )  # fmt: skip
    dz = torch.empty_like(z)
    dweight, dbias = torch.empty_like(weight), torch.empty_like(bias)
    kernels.gradient_maps[rows.grid](
        dy, z, stats, weight, bias, gate, dpooled, partial, dz, dweight, dbias,
        rows.length, hw, rows.groups, rows.span, rows.splits,
        SILU=silu, SPLITS=kernels.SPLITS, **rows.tile,
    )  # fmt: skip
    return dz, dweight, dbias


def _depthwise_weight_gradient(x: Tensor, dy: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The gradient of the weight [c, 1, k, k], with its dtype and strides."""
    kernels = _kernels()
    n, c, h, w = x.shape
    ho, wo = dy.shape[2:]
    k = weight.shape[-1]
    taps = 1 << (k * k - 1).bit_length()  # the next power of two: Triton has no other tiles
    images = max(1, kernels.TAPS_BY_IMAGES // taps)
    blocks, image_blocks = _ceil_div(c, kernels.CHANNELS), _ceil_div(n, images)
    # smaller programs than the norms': 4 warps, and the sums over splits are a kernel of their own
    row_blocks = max(1, 2 * _PROGRAMS // (blocks * image_blocks))
    span = _ceil_div(ho, row_blocks)
    row_blocks = _ceil_div(ho, span)
    splits = image_blocks * row_blocks
    align = _alignment(c)
    partial = _floats(x, splits, k * k, c)
    kernels.depthwise_sums[(blocks, image_blocks, row_blocks)](
        x, dy, partial, n, h, w, c // align, ho, wo, span, stride,
        KERNEL=k, TAPS=taps, ALIGN=align, IMAGES=images, CHANNELS=kernels.CHANNELS, num_warps=4,
    )  # fmt: skip
    dw = torch.empty_like(weight)  # c kernels one after the other, whatever the strides of size 1
    elements = kernels.CHANNELS
    kernels.depthwise_total[(_ceil_div(k * k * c, elements),)](
        partial, dw, splits, c, k * k, SPLITS=kernels.SPLITS, ELEMENTS=elements, num_warps=4
    )
    return dw


def _floats(like: Tensor, *shape: int) -> Tensor:
    """Uninitialised fp32 memory on the device of `like`."""
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _alignment(c: int) -> int:
    """The kernels' ALIGN for `c` channels: 8 of them are one access of 16 bytes in bf16."""
    return 8 if c % 8 == 0 else 1


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _most_splits(blocks: int) -> int:
    """How many splits fill the card beside `blocks` channel blocks, within _MAX_SPLITS."""
    return min(_MAX_SPLITS, max(1, _PROGRAMS // blocks))
