"""The torch modules, built from the Arch's blocks: no shape is computed here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, cast

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


class _Style(NamedTuple):
    """What all layers of a network share."""

    activation: str
    same_padding: bool
    eps: float
    momentum: float


class SameConv2d(nn.Conv2d):
    """TensorFlow's `SAME`: the odd pixel of padding goes after, not before, so strided layers see
    other pixels."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = []
        for side in (x.shape[-1], x.shape[-2]):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(
            F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )


def _conv(op: Op, same: bool = False) -> nn.Conv2d:
    kind, padding = (SameConv2d, 0) if same and op.stride > 1 else (nn.Conv2d, op.kernel // 2)
    return kind(
        op.c_in, op.c_out, op.kernel, op.stride, padding, groups=op.groups, bias=not op.norm
    )


class ConvNorm(nn.Sequential):
    """Convolution, batch norm and, where the layer has one, the activation."""

    def __init__(self, op: Op, style: _Style) -> None:
        norm = nn.BatchNorm2d(op.c_out, eps=style.eps, momentum=style.momentum)
        act = [_ACTIVATIONS[style.activation]()] if op.act else []
        super().__init__(_conv(op, style.same_padding), norm, *act)


class SqueezeExcite(nn.Module):
    def __init__(self, squeeze: Op, excite: Op, activation: str) -> None:
        super().__init__()
        self.squeeze, self.excite = _conv(squeeze), _conv(excite)
        self.act = _ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        s = self.act(self.squeeze(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.excite(s))


class ConvBlock(nn.Module):
    """One repeat of a Block; input and output [N, C, side, side]. Its layers are named by their
    kinds.

    `drop` is the probability that an image's residual branch is dropped in training
    (stochastic depth)."""

    def __init__(self, block: Block, drop: float, style: _Style) -> None:
        super().__init__()
        layers = {op.kind: op for op in ops(block)}
        self.path: list[str] = []
        self.shortcut: nn.Module | None = None
        for kind, op in layers.items():
            if kind == "squeeze":
                self.se = SqueezeExcite(op, layers["excite"], style.activation)
                self.path.append("se")
            elif kind != "excite":
                setattr(self, kind, ConvNorm(op, style))
                if kind != "shortcut":
                    self.path.append(kind)
        self.residual, self.drop = bool(block.shortcut), drop
        # a bottleneck's last activation comes after the sum
        self.last = _ACTIVATIONS[style.activation]() if block.operator == "bottleneck" else None

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """Of the residual branch."""
        return cast(nn.BatchNorm2d, cast(ConvNorm, getattr(self, self.path[-1]))[1])

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for name in self.path:
            y = getattr(self, name)(y)
        return self.joined(x, y)

    def joined(self, x: Tensor, y: Tensor) -> Tensor:
        """The block's output from its input and its branch's."""
        if not self.residual:
            return y
        y = self.drop_branches(y) + (x if self.shortcut is None else self.shortcut(x))
        return y if self.last is None else cast(Tensor, self.last(y))

    def drop_branches(self, y: Tensor) -> Tensor:
        """Stochastic depth: in training, some images' branches zero and the others scaled up for
        them."""
        if not self.training or self.drop <= 0:
            return y
        keep = 1 - self.drop
        return y * (
            torch.empty(len(y), 1, 1, 1, dtype=y.dtype, device=y.device).bernoulli_(keep) / keep
        )


class ConvNet(nn.Module):
    """[N, 3, r, r] → logits [N, classes].

    `dropout` (before the classifier) defaults to the Arch's; block i of N drops its residual branch
    with probability drop_path · i / N (official TensorFlow code; the teaching notebook's at a
    constant drop_path). `bn_eps` is every batch norm's eps (1e-3; the notebook's 1e-5, whose batch
    norms and initialisation are torch's own), and `same_padding` pads as TensorFlow does: weights
    trained elsewhere may want either. Raises ValueError for a network that cannot be, or a rate or
    an eps out of range."""

    def __init__(
        self,
        arch: Arch,
        *,
        dropout: float | None = None,
        drop_path: float = 0.2,
        bn_eps: float | None = None,
        same_padding: bool = False,
    ) -> None:
        super().__init__()
        arch.check()
        notebook = any(stage.operator == "mbconv3x3" for stage in arch.stages)
        eps = bn_eps if bn_eps is not None else 1e-5 if notebook else BN_EPS
        rate = arch.dropout_percent / 100 if dropout is None else dropout
        for name, value in (("bn_eps", eps), ("drop_path", drop_path), ("dropout", rate)):
            if not 0 <= value < 1 or (name == "bn_eps" and value == 0):
                raise ValueError(
                    f"{name} = {value}: must be from 0 to below 1{', and above 0' * (name == 'bn_eps')}"
                )
        self.arch, self.bn_eps, self.same_padding = arch, eps, same_padding
        style = _Style(arch.activation, same_padding, eps, 0.1 if notebook else BN_MOMENTUM)
        stem, *middle, head = blocks(arch)
        self.stem = ConvNorm(ops(stem)[0], style)
        self.pool = nn.MaxPool2d(3, arch.stem_pool, 1) if arch.stem_pool > 1 else nn.Identity()
        body: list[ConvBlock] = []
        for block in middle:
            for _ in range(block.repeats):
                share = 1.0 if notebook else len(body) / arch.blocks
                body.append(ConvBlock(block, drop_path * share, style))
        self.blocks = nn.Sequential(*body)
        *conv, linear = ops(head)
        self.head = ConvNorm(conv[0], style) if conv else nn.Identity()
        self.dropout = nn.Dropout(rate)
        self.classifier = nn.Linear(linear.c_in, linear.c_out)
        if not notebook:
            self.reset()

    def reset(self) -> None:
        """TensorFlow's initialisation: He normal over fan-out, the classifier uniform in
        ±1/sqrt(classes); the last batch norm of a residual branch starts at zero, so that a deep
        network begins shallow."""
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
