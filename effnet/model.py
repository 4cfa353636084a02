"""The torch modules, built from the Arch's blocks: no shape is computed here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effnet.arch import Arch
from effnet.blocks import Block, Op, blocks, ops

# TensorFlow's momentum 0.99 is torch's 0.01; eps from the same source.
BN_MOMENTUM, BN_EPS = 0.01, 1e-3

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": lambda: nn.SiLU(inplace=True),
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
}


class SameConv2d(nn.Conv2d):
    """TensorFlow's `SAME`: the odd pixel of padding goes after, not before, so strided layers see other pixels."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = []
        for side in (x.shape[-1], x.shape[-2]):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _conv(op: Op, same: bool = False) -> nn.Conv2d:
    kind, padding = (SameConv2d, 0) if same and op.stride > 1 else (nn.Conv2d, op.kernel // 2)
    return kind(op.c_in, op.c_out, op.kernel, op.stride, padding, groups=op.groups, bias=not op.norm)


class ConvNorm(nn.Sequential):
    """Convolution, batch norm and, where the layer has one, the activation."""

    def __init__(self, op: Op, activation: str, same: bool, eps: float) -> None:
        norm = nn.BatchNorm2d(op.c_out, eps=eps, momentum=BN_MOMENTUM)
        super().__init__(_conv(op, same), norm, *([_ACTIVATIONS[activation]()] if op.act else []))


class SqueezeExcite(nn.Module):
    def __init__(self, squeeze: Op, excite: Op, activation: str) -> None:
        super().__init__()
        self.squeeze, self.excite = _conv(squeeze), _conv(excite)
        self.act = _ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        s = self.act(self.squeeze(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.excite(s))


class ConvBlock(nn.Module):
    """One repeat of a Block; input and output [N, C, side, side]. Its layers are named by their kinds.

    `drop` is the probability that an image's residual branch is dropped in training
    (stochastic depth)."""

    def __init__(self, block: Block, drop: float, activation: str, same: bool, eps: float) -> None:
        super().__init__()
        layers = {op.kind: op for op in ops(block)}
        self.path: list[str] = []
        self.shortcut: nn.Module | None = None
        for kind, op in layers.items():
            if kind == "squeeze":
                self.se = SqueezeExcite(op, layers["excite"], activation)
                self.path.append("se")
            elif kind != "excite":
                setattr(self, kind, ConvNorm(op, activation, same, eps))
                if kind != "shortcut":
                    self.path.append(kind)
        self.residual, self.drop = bool(block.shortcut), drop
        # a bottleneck's last activation comes after the sum
        self.last = _ACTIVATIONS[activation]() if block.operator == "bottleneck" else None

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """Of the residual branch."""
        return cast(nn.BatchNorm2d, cast(ConvNorm, getattr(self, self.path[-1]))[1])

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for name in self.path:
            y = getattr(self, name)(y)
        if not self.residual:
            return y
        if self.training and self.drop > 0:
            keep = 1 - self.drop
            y = y * (torch.empty(len(y), 1, 1, 1, dtype=y.dtype, device=y.device).bernoulli_(keep) / keep)
        y = y + (x if self.shortcut is None else self.shortcut(x))
        return y if self.last is None else cast(Tensor, self.last(y))


class ConvNet(nn.Module):
    """[N, 3, r, r] → logits [N, classes].

    `dropout` (before the classifier) defaults to the Arch's; block i of N drops its residual
    branch with probability drop_path · i / N (official TensorFlow code; the teaching notebook's at a
    constant drop_path). `bn_eps` is every batch norm's eps, and `same_padding` pads as TensorFlow does:
    weights trained elsewhere may want either."""

    def __init__(
        self,
        arch: Arch,
        *,
        dropout: float | None = None,
        drop_path: float = 0.2,
        bn_eps: float = BN_EPS,
        same_padding: bool = False,
    ) -> None:
        super().__init__()
        self.arch, self.bn_eps, self.same_padding = arch, bn_eps, same_padding
        style = (arch.activation, same_padding, bn_eps)
        stem, *middle, head = blocks(arch)
        self.stem = ConvNorm(ops(stem)[0], *style)
        self.pool = nn.MaxPool2d(3, arch.stem_pool, 1) if arch.stem_pool > 1 else nn.Identity()
        body: list[ConvBlock] = []
        for block in middle:
            for _ in range(block.repeats):
                share = 1.0 if block.operator == "mbconv3x3" else len(body) / arch.blocks
                body.append(ConvBlock(block, drop_path * share, *style))
        self.blocks = nn.Sequential(*body)
        *conv, linear = ops(head)
        self.head = ConvNorm(conv[0], *style) if conv else nn.Identity()
        self.dropout = nn.Dropout(arch.dropout_percent / 100 if dropout is None else dropout)
        self.classifier = nn.Linear(linear.c_in, linear.c_out)
        self.reset()

    def reset(self) -> None:
        """TensorFlow's initialisation: He normal over fan-out, the classifier uniform in ±1/sqrt(classes);
        the last batch norm of a residual branch starts at zero, so that a deep network begins shallow."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * module.kernel_size[0] ** 2 // module.groups
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                bound = 1 / math.sqrt(module.out_features)
                nn.init.uniform_(module.weight, -bound, bound)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ConvBlock) and module.residual:
                nn.init.zeros_(module.last_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.pool(self.stem(x))))
        return cast(Tensor, self.classifier(self.dropout(x.mean((2, 3)))))
