"""A ConvNet's forward and backward pass on a CPU through `kernels`: the same modules and weights,
fewer passes over memory. Results equal the modules' own up to rounding."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from effnet.nn.cpu import kernels
from effnet.nn.model import ConvBlock, ConvNet, ConvNorm, SameConv2d

_MM_CHANNELS = 40  # from here on a 1x1 convolution is faster as a matrix product than in oneDNN
_last = torch.channels_last


def _parts() -> int:
    return torch.get_num_threads()


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        dy = dy.contiguous(memory_format=_last)
        n, c, h, w = x.shape
        k, stride = weight.shape[-1], ctx.stride
        fast = c >= 16 and (k > 3 or h <= 3)
        dx, dw, _ = torch.ops.aten.convolution_backward(
            dy,
            x,
            weight,
            None,
            [stride] * 2,
            [k // 2] * 2,
            [1, 1],
            False,
            [0, 0],
            c,
            [True, not fast, False],
        )
        if fast:
            taps = torch.empty(k * k, c)
            kernels.call(
                kernels.depthwise,
                x.data_ptr(),
                dy.data_ptr(),
                taps.data_ptr(),
                n,
                h,
                w,
                c,
                *dy.shape[2:],
                k,
                stride,
            )
            dw = taps.t().reshape(weight.shape)
        return dx, dw, None


class _Norm(torch.autograd.Function):
    """act(norm(z)) (+ residual)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None, norm: nn.BatchNorm2d,
                silu: bool) -> Tensor:  # fmt: skip
        y, stats = torch.empty_like(z), torch.empty(4 * z.shape[1])
        ctx.save_for_backward(z, gamma, stats)
        ctx.silu, ctx.residual = silu, residual is not None
        _forward(z, y, residual, None, norm, stats, silu)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        z, gamma, stats = ctx.saved_tensors
        dy = dy.contiguous(memory_format=_last)
        dz, dgamma, dbeta = _backward(dy, z, None, None, gamma, stats, ctx.silu)
        return dz, dgamma, dbeta, dy if ctx.residual else None, None, None


class _NormGate(torch.autograd.Function):
    """silu(norm(z)) times the gate of squeeze-and-excitation, whose two small layers are inside."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, gamma: Tensor, beta: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
                norm: nn.BatchNorm2d) -> Tensor:  # fmt: skip
        n, c, h, w = z.shape
        y, stats, pool = torch.empty_like(z), torch.empty(4 * c), torch.empty(n, c)
        _forward(z, y, None, pool, norm, stats, True)
        squeezed = torch.addmm(b1, pool, w1.flatten(1).t())
        active = F.silu(squeezed)
        gate = torch.addmm(b2, active, w2.flatten(1).t()).sigmoid_()
        out = torch.empty_like(y)
        kernels.call(
            kernels.gate, y.data_ptr(), gate.data_ptr(), out.data_ptr(), n, h * w, c, _parts()
        )
        ctx.save_for_backward(z, y, gamma, stats, pool, squeezed, active, gate, w1, w2)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> Any:
        z, y, gamma, stats, pool, squeezed, active, gate, w1, w2 = ctx.saved_tensors
        dout = dout.contiguous(memory_format=_last)
        n, c, h, w = z.shape
        dgate = torch.empty(n, c)
        kernels.call(
            kernels.gate_backward,
            dout.data_ptr(),
            y.data_ptr(),
            dgate.data_ptr(),
            n,
            h * w,
            c,
            _parts(),
        )
        d2 = torch.ops.aten.sigmoid_backward(dgate, gate)
        d1 = torch.ops.aten.silu_backward(d2 @ w2.flatten(1), squeezed)
        dpool = d1 @ w1.flatten(1)
        dz, dgamma, dbeta = _backward(dout, z, gate, dpool, gamma, stats, True)
        return (dz, dgamma, dbeta, (d1.t() @ pool).view_as(w1), d1.sum(0), (d2.t() @ active).view_as(w2), d2.sum(0),
                None)  # fmt: skip


def _forward(z: Tensor, y: Tensor, residual: Tensor | None, pool: Tensor | None, norm: nn.BatchNorm2d, stats: Tensor,
             silu: bool) -> None:  # fmt: skip
    n, c, h, w = z.shape
    momentum, mean, var = (
        norm.momentum,
        cast(Tensor, norm.running_mean),
        cast(Tensor, norm.running_var),
    )
    if norm.training:
        if n * h * w == 1:  # as torch refuses it
            raise ValueError(
                f"more than one value per channel is needed in training, not {tuple(z.shape)}"
            )
        count = cast(Tensor, norm.num_batches_tracked).add_(1)
        momentum = 1 / count.item() if momentum is None else momentum
    kernels.call(
        kernels.forward, z.data_ptr(), y.data_ptr(), 0 if residual is None else residual.data_ptr(),
        0 if pool is None else pool.data_ptr(), norm.weight.data_ptr(), norm.bias.data_ptr(), mean.data_ptr(),
        var.data_ptr(), stats.data_ptr(), n, h * w, c, norm.eps, float(momentum or 0), norm.training, silu, _parts(),
    )  # fmt: skip


def _backward(dy: Tensor, z: Tensor, gate: Tensor | None, dpool: Tensor | None, gamma: Tensor, stats: Tensor,
              silu: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    n, c, h, w = z.shape
    dz, dgamma, dbeta = torch.empty_like(z), torch.empty(c), torch.empty(c)
    kernels.call(
        kernels.backward, dy.data_ptr(), z.data_ptr(), dz.data_ptr(), 0 if gate is None else gate.data_ptr(),
        0 if dpool is None else dpool.data_ptr(), gamma.data_ptr(), stats.data_ptr(), dgamma.data_ptr(),
        dbeta.data_ptr(), n, h * w, c, silu, _parts(),
    )  # fmt: skip
    return dz, dgamma, dbeta


def _conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    kernel, stride, groups = conv.kernel_size[0], conv.stride[0], conv.groups
    if isinstance(conv, SameConv2d) or conv.bias is not None:
        return conv(x)
    if (
        kernel == 1
        and stride == 1
        and groups == 1
        and (min(c, conv.out_channels) >= _MM_CHANNELS or h * w == 1)
    ):
        rows = x.permute(0, 2, 3, 1).reshape(-1, c)
        return (rows @ conv.weight.flatten(1).t()).view(n, h, w, -1).permute(0, 3, 1, 2)
    if groups == c == conv.out_channels and kernel > 1:
        if (
            h == w == 1
        ):  # only the middle tap meets a pixel; torch would take such maps for another layout
            return x * conv.weight[:, 0, kernel // 2, kernel // 2].view(1, c, 1, 1)
        return cast(Tensor, _Depthwise.apply(x, conv.weight, stride))
    return conv(x)


def _norm(norm: nn.BatchNorm2d, z: Tensor, silu: bool, residual: Tensor | None = None) -> Tensor:
    return cast(
        Tensor,
        _Norm.apply(
            z.contiguous(memory_format=_last), norm.weight, norm.bias, residual, norm, silu
        ),
    )


def _conv_norm(layer: ConvNorm, x: Tensor, residual: Tensor | None = None) -> Tensor:
    z, norm = _conv(cast(nn.Conv2d, layer[0]), x), cast(nn.BatchNorm2d, layer[1])
    if len(layer) == 2 or isinstance(layer[2], nn.SiLU):
        return _norm(norm, z, len(layer) == 3, residual)
    return cast(Tensor, layer[2](norm(z)))


def _block(block: ConvBlock, x: Tensor) -> Tensor:
    y, residual = (
        x,
        block.residual and block.last is None and not (block.training and block.drop > 0),
    )
    names = list(block.path)
    while names:
        layer, name = getattr(block, names[0]), names.pop(0)
        if names[:1] == ["se"] and isinstance(layer[2], nn.SiLU):
            se = block.se
            z, norm = _conv(layer[0], y), layer[1]
            y = _NormGate.apply(z.contiguous(memory_format=_last), norm.weight, norm.bias, se.squeeze.weight,
                                se.squeeze.bias, se.excite.weight, se.excite.bias, norm)  # fmt: skip
            names.pop(0)
        elif name == "se":
            y = layer(y)
        elif not names and residual and len(layer) == 2:
            shortcut = (
                x if block.shortcut is None else _conv_norm(cast(ConvNorm, block.shortcut), x)
            )
            return _conv_norm(layer, y, shortcut.contiguous(memory_format=_last))
        else:
            y = _conv_norm(layer, y)
    return block.join(x, y)


def forward(net: ConvNet, x: Tensor) -> Tensor:
    """What net(x) gives; x [N, 3, r, r] float32 on the CPU, as the weights are."""
    x = _conv_norm(net.stem, x.contiguous(memory_format=_last))
    x = net.pool(x)
    for block in net.blocks:
        x = _block(cast(ConvBlock, block), x)
    if isinstance(net.head, ConvNorm):
        x = _conv_norm(net.head, x)
    return cast(Tensor, net.classifier(net.dropout(x.mean((2, 3)))))
