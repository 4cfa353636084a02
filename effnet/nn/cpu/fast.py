"""A ConvNet's forward and backward pass on a CPU through `kernels`: the same modules and weights,
fewer passes over memory. Results equal the modules' own up to rounding.

Maps are [n, c, h, w] float32 in channels_last, whose memory is [n, h, w, c]: what the kernels take
by address."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from effnet.nn.cpu import kernels
from effnet.nn.model import ConvBlock, ConvNet, ConvNorm, SameConv2d, SqueezeExcite

# From this many channels on, a 1x1 convolution is faster as a matrix product than in oneDNN.
_MATRIX_CHANNELS = 40
_CHANNELS_LAST = torch.channels_last


def _address(tensor: Tensor | None) -> int:
    """Where a tensor's numbers begin; 0 stands for none."""
    return 0 if tensor is None else tensor.data_ptr()


# ---- autograd functions


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution padded by half its kernel; its weight gradient is our kernel's where
    that is the faster. x [n, c, h, w], weight [c, 1, k, k]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        dy = dy.contiguous(memory_format=_CHANNELS_LAST)
        n, c, h, w = x.shape
        k, stride = weight.shape[-1], ctx.stride
        # The kernel takes registers of 16 channels. oneDNN is fast at 3x3 on maps above 3 px.
        ours = c >= 16 and (k > 3 or h <= 3)
        dx, dw, _ = torch.ops.aten.convolution_backward(
            dy, x, weight, None, [stride] * 2, [k // 2] * 2, [1, 1], False, [0, 0], c,
            [True, not ours, False],  # the gradients wanted: of the input, the weight, the bias
        )  # fmt: skip
        if ours:
            taps = torch.empty(k * k, c)
            kernels.call(
                kernels.depthwise, x.data_ptr(), dy.data_ptr(), taps.data_ptr(), n, h, w, c,
                *dy.shape[2:], k, stride,
            )  # fmt: skip
            dw = taps.t().reshape(weight.shape)
        return dx, dw, None


class _Norm(torch.autograd.Function):
    """act(norm(z)) (+ residual), the activation being SiLU or none."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        gamma: Tensor,
        beta: Tensor,
        residual: Tensor | None,
        norm: nn.BatchNorm2d,
        silu: bool,
    ) -> Tensor:
        # gamma and beta are the norm's own: autograd gives gradients to arguments alone
        y, stats = torch.empty_like(z), torch.empty(4 * z.shape[1])
        _run_forward(norm, z, y, stats, silu, residual=residual)
        ctx.save_for_backward(z, gamma, stats)
        ctx.silu = silu
        ctx.has_residual = residual is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        z, gamma, stats = ctx.saved_tensors
        dy = dy.contiguous(memory_format=_CHANNELS_LAST)
        dz, dgamma, dbeta = _run_backward(dy, z, gamma, stats, ctx.silu)
        dresidual = dy if ctx.has_residual else None
        return dz, dgamma, dbeta, dresidual, None, None


class _NormGate(torch.autograd.Function):
    """silu(norm(z)) times the gate of squeeze-and-excitation, whose two small layers are inside:
    w1 [s, c, 1, 1] and w2 [c, s, 1, 1] with their biases."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        gamma: Tensor,
        beta: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        norm: nn.BatchNorm2d,
    ) -> Tensor:
        n, c, h, w = z.shape
        y, stats, pool = torch.empty_like(z), torch.empty(4 * c), torch.empty(n, c)
        _run_forward(norm, z, y, stats, silu=True, pool=pool)
        squeezed = torch.addmm(b1, pool, w1.flatten(1).t())
        active = F.silu(squeezed)
        gate = torch.addmm(b2, active, w2.flatten(1).t()).sigmoid_()
        out = torch.empty_like(y)
        kernels.call(
            kernels.gate, y.data_ptr(), gate.data_ptr(), out.data_ptr(), n, h * w, c,
            torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(z, y, gamma, stats, pool, squeezed, active, gate, w1, w2)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> Any:
        z, y, gamma, stats, pool, squeezed, active, gate, w1, w2 = ctx.saved_tensors
        dout = dout.contiguous(memory_format=_CHANNELS_LAST)
        n, c, h, w = z.shape
        dgate = torch.empty(n, c)
        kernels.call(
            kernels.gate_backward, dout.data_ptr(), y.data_ptr(), dgate.data_ptr(), n, h * w, c,
            torch.get_num_threads(),
        )  # fmt: skip
        dexcited = torch.ops.aten.sigmoid_backward(dgate, gate)
        dsqueezed = torch.ops.aten.silu_backward(dexcited @ w2.flatten(1), squeezed)
        dpool = dsqueezed @ w1.flatten(1)
        dz, dgamma, dbeta = _run_backward(dout, z, gamma, stats, True, gate=gate, dpool=dpool)
        dw1 = (dsqueezed.t() @ pool).view_as(w1)
        dw2 = (dexcited.t() @ active).view_as(w2)
        return dz, dgamma, dbeta, dw1, dsqueezed.sum(0), dw2, dexcited.sum(0), None


def _run_forward(
    norm: nn.BatchNorm2d,
    z: Tensor,
    y: Tensor,
    stats: Tensor,
    silu: bool,
    residual: Tensor | None = None,
    pool: Tensor | None = None,
) -> None:
    """Fill y, `stats` and, where it is given, `pool` [n, c] with the means of y; in training also
    move the norm's running averages. Raises ValueError where a channel has one value."""
    n, c, h, w = z.shape
    momentum = norm.momentum
    if norm.training:
        if n * h * w == 1:  # as torch refuses it
            raise ValueError(
                f"more than one value per channel is needed in training, not {tuple(z.shape)}"
            )
        count = cast(Tensor, norm.num_batches_tracked).add_(1)
        if momentum is None:  # the plain average of all batches, as torch means it
            momentum = 1 / count.item()
    mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    kernels.call(
        kernels.forward, z.data_ptr(), y.data_ptr(), _address(residual), _address(pool),
        norm.weight.data_ptr(), norm.bias.data_ptr(), mean.data_ptr(), var.data_ptr(),
        stats.data_ptr(), n, h * w, c, norm.eps, float(momentum or 0), norm.training, silu,
        torch.get_num_threads(),
    )  # fmt: skip


def _run_backward(
    dy: Tensor,
    z: Tensor,
    gamma: Tensor,
    stats: Tensor,
    silu: bool,
    gate: Tensor | None = None,
    dpool: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of z, gamma and beta; with a gate, dy is that of y · gate."""
    n, c, h, w = z.shape
    dz, dgamma, dbeta = torch.empty_like(z), torch.empty(c), torch.empty(c)
    kernels.call(
        kernels.backward, dy.data_ptr(), z.data_ptr(), dz.data_ptr(), _address(gate),
        _address(dpool), gamma.data_ptr(), stats.data_ptr(), dgamma.data_ptr(), dbeta.data_ptr(),
        n, h * w, c, silu, torch.get_num_threads(),
    )  # fmt: skip
    return dz, dgamma, dbeta


# ---- layers


def _conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Return conv(x), computed the fastest way."""
    n, c, h, w = x.shape
    kernel, stride, groups = conv.kernel_size[0], conv.stride[0], conv.groups
    if isinstance(conv, SameConv2d) or conv.bias is not None:
        return conv(x)
    pointwise = kernel == 1 and stride == 1 and groups == 1
    if pointwise and (min(c, conv.out_channels) >= _MATRIX_CHANNELS or h * w == 1):
        rows = x.permute(0, 2, 3, 1).reshape(-1, c)
        return (rows @ conv.weight.flatten(1).t()).view(n, h, w, -1).permute(0, 3, 1, 2)
    if groups == c == conv.out_channels and kernel > 1:
        if h == w == 1:
            # only the middle tap meets a pixel; torch would take such maps for another layout
            middle = conv.weight[:, 0, kernel // 2, kernel // 2]
            return x * middle.view(1, c, 1, 1)
        return cast(Tensor, _Depthwise.apply(x, conv.weight, stride))
    return conv(x)


def _norm(norm: nn.BatchNorm2d, z: Tensor, silu: bool, residual: Tensor | None = None) -> Tensor:
    z = z.contiguous(memory_format=_CHANNELS_LAST)
    return cast(Tensor, _Norm.apply(z, norm.weight, norm.bias, residual, norm, silu))


def _conv_norm(layer: ConvNorm, x: Tensor, residual: Tensor | None = None) -> Tensor:
    z, norm = _conv(cast(nn.Conv2d, layer[0]), x), cast(nn.BatchNorm2d, layer[1])
    has_act = len(layer) == 3
    if has_act and not isinstance(layer[2], nn.SiLU):
        return cast(Tensor, layer[2](norm(z)))
    return _norm(norm, z, has_act, residual)


def _conv_norm_gate(layer: ConvNorm, se: SqueezeExcite, x: Tensor) -> Tensor:
    z, norm = _conv(cast(nn.Conv2d, layer[0]), x), cast(nn.BatchNorm2d, layer[1])
    squeeze, excite = se.squeeze, se.excite
    gated = _NormGate.apply(
        z.contiguous(memory_format=_CHANNELS_LAST), norm.weight, norm.bias,
        squeeze.weight, squeeze.bias, excite.weight, excite.bias, norm,
    )  # fmt: skip
    return cast(Tensor, gated)


def _block(block: ConvBlock, x: Tensor) -> Tensor:
    # a plain sum directly after a norm without activation is part of that norm's kernel
    sums_in_norm = block.residual and block.last is None and not block.drops
    y = x
    names = list(block.path)
    while names:
        layer = getattr(block, names.pop(0))
        if isinstance(layer, SqueezeExcite):
            y = layer(y)
        elif names[:1] == ["se"] and isinstance(layer[2], nn.SiLU):
            names.pop(0)
            y = _conv_norm_gate(layer, block.se, y)
        elif sums_in_norm and not names and len(layer) == 2:
            # x itself: a block whose shortcut has a layer of its own also has a last one
            return _conv_norm(layer, y, x.contiguous(memory_format=_CHANNELS_LAST))
        else:
            y = _conv_norm(layer, y)
    return block.join(x, y)


def forward(net: ConvNet, x: Tensor) -> Tensor:
    """Return net(x), for x [n, 3, r, r] float32 on the CPU, as the weights are."""
    x = _conv_norm(net.stem, x.contiguous(memory_format=_CHANNELS_LAST))
    x = net.pool(x)
    for block in net.blocks:
        x = _block(cast(ConvBlock, block), x)
    if isinstance(net.head, ConvNorm):
        x = _conv_norm(net.head, x)
    return cast(Tensor, net.classifier(net.dropout(x.mean((2, 3)))))
