"""A ConvNet's training forward pass on CUDA in few launches: the same modules and weights.

It differs from the modules' own pass in that it keeps no running averages (they are re-estimated
before each evaluation) and computes squeeze-and-excitation as linear layers. With `fused`, batch
norm, SiLU, the gate and the depthwise weights' gradients are Triton's kernels. Results equal the
modules' up to rounding.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effnet.nn.cuda import fused as kernels
from effnet.nn.model import ConvBlock, ConvNet, ConvNorm, SameConv2d, SqueezeExcite


class TrainingForward(nn.Module):
    """The forward pass of `net`: images [n, 3, r, r] in the weights' dtype → logits [n, classes].

    It is called by `torch.func.functional_call`, with parameters whose names begin with `net.`."""

    def __init__(self, net: ConvNet, fused: bool) -> None:
        super().__init__()
        self.net = net
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        x = net.pool(self._conv_norm(net.stem, x))
        for block in net.blocks:
            x = self._block(cast(ConvBlock, block), x)
        if isinstance(net.head, ConvNorm):
            x = self._conv_norm(net.head, x)
        return cast(Tensor, net.classifier(net.dropout(x.mean((2, 3)))))

    def _block(self, block: ConvBlock, x: Tensor) -> Tensor:
        # A plain sum directly after a norm without activation is part of that norm's kernel. Where
        # a branch may be dropped (stochastic depth), the sum comes after the drop.
        sums_in_norm = self.fused and block.residual and not block.drops
        y = x
        names = list(block.path)  # of the layers still to come
        while names:
            name = names.pop(0)
            layer = getattr(block, name)
            if isinstance(layer, SqueezeExcite):
                y = _squeeze_excite(layer, y)
            elif self.fused and names[:1] == ["se"] and isinstance(layer[2], nn.SiLU):
                y = self._gated(layer, block.se, y)
                names.pop(0)  # "se", which is part of that kernel
            elif sums_in_norm and not names and len(layer) == 2:
                y = self._conv_norm(layer, y, self._shortcut(block, x))
                return y if block.last is None else cast(Tensor, block.last(y))
            else:
                y = self._conv_norm(layer, y)
        if not block.residual:
            return y
        y = block.drop_branches(y) + self._shortcut(block, x)
        return y if block.last is None else cast(Tensor, block.last(y))

    def _shortcut(self, block: ConvBlock, x: Tensor) -> Tensor:
        """The other term of a block's residual sum: its input, or that through a convolution."""
        return x if block.shortcut is None else self._conv_norm(cast(ConvNorm, block.shortcut), x)

    def _conv_norm(self, layer: ConvNorm, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolution, batch norm, activation where `layer` has one; then `residual` is added.

        Only a fused norm without activation is given a `residual`."""
        z = self._conv(cast(nn.Conv2d, layer[0]), x)
        norm = cast(nn.BatchNorm2d, layer[1])
        act = layer[2] if len(layer) == 3 else None
        if self.fused and (act is None or isinstance(act, nn.SiLU)):
            return kernels.norm_act(
                z, norm.weight, norm.bias, norm.eps, silu=act is not None, residual=residual
            )
        # without running averages the momentum has nothing to act on
        y = F.batch_norm(z, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)
        return y if act is None else cast(Tensor, act(y))

    def _gated(self, layer: ConvNorm, se: SqueezeExcite, x: Tensor) -> Tensor:
        """Convolution, batch norm and SiLU, then the gate of `se`, fused."""
        z = self._conv(cast(nn.Conv2d, layer[0]), x)
        norm = cast(nn.BatchNorm2d, layer[1])
        squeeze, excite = se.squeeze, se.excite
        return kernels.norm_gate(
            z, norm.weight, norm.bias, norm.eps,
            squeeze.weight.flatten(1), cast(Tensor, squeeze.bias),
            excite.weight.flatten(1), cast(Tensor, excite.bias),
        )  # fmt: skip

    def _conv(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        depthwise = conv.groups == conv.in_channels == conv.out_channels and conv.kernel_size[0] > 1
        # our kernel pads by half of the convolution's, where SameConv2d pads as TensorFlow does
        if self.fused and depthwise and not isinstance(conv, SameConv2d) and conv.bias is None:
            return kernels.depthwise(x, conv.weight, conv.stride[0])
        return cast(Tensor, conv(x))


def _squeeze_excite(se: SqueezeExcite, x: Tensor) -> Tensor:
    """The module's result, computed on [n, c] rather than on maps of one pixel."""
    squeezed = F.linear(x.mean((2, 3)), se.squeeze.weight.flatten(1), se.squeeze.bias)
    gate = torch.sigmoid(F.linear(se.act(squeezed), se.excite.weight.flatten(1), se.excite.bias))
    return x * gate[:, :, None, None]
