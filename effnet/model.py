"""The torch modules, built from the Arch's blocks: no shape is computed here."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effnet.arch import Arch, Block, Op, blocks, ops

# TensorFlow's momentum 0.99 is torch's 0.01; eps from the same source.
BN_MOMENTUM, BN_EPS = 0.01, 1e-3


def _conv(op: Op) -> nn.Conv2d:
    return nn.Conv2d(op.c_in, op.c_out, op.kernel, op.stride, op.kernel // 2, groups=op.groups, bias=not op.norm)


def _norm(op: Op) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(op.c_out, eps=BN_EPS, momentum=BN_MOMENTUM)


class ConvNorm(nn.Sequential):
    """Convolution, batch norm and, unless it ends a block, SiLU."""

    def __init__(self, op: Op, act: bool = True) -> None:
        layers: list[nn.Module] = [_conv(op), _norm(op)]
        super().__init__(*layers, *([nn.SiLU(inplace=True)] if act else []))


class SqueezeExcite(nn.Module):
    def __init__(self, squeeze: Op, excite: Op) -> None:
        super().__init__()
        self.squeeze, self.excite = _conv(squeeze), _conv(excite)

    def forward(self, x: Tensor) -> Tensor:
        s = F.silu(self.squeeze(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.excite(s))


class MBConv(nn.Module):
    """Inverted residual with squeeze-and-excitation; input and output [N, C, side, side].

    `drop` is the probability that an image's residual branch is dropped in training
    (stochastic depth)."""

    def __init__(self, block: Block, drop: float) -> None:
        super().__init__()
        by_kind = {op.kind: op for op in ops(block)}
        self.expand = ConvNorm(by_kind["expand"]) if "expand" in by_kind else nn.Identity()
        self.depthwise = ConvNorm(by_kind["depthwise"])
        self.se = SqueezeExcite(by_kind["squeeze"], by_kind["excite"])
        self.project = ConvNorm(by_kind["project"], act=False)
        self.residual, self.drop = block.residual, drop

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.se(self.depthwise(self.expand(x))))
        if not self.residual:
            return y
        if self.training and self.drop > 0:
            keep = 1 - self.drop
            y = y * (torch.empty(len(y), 1, 1, 1, dtype=y.dtype, device=y.device).bernoulli_(keep) / keep)
        return x + y


class EfficientNet(nn.Module):
    """[N, 3, r, r] → logits [N, classes].

    `dropout` (before the classifier) defaults to the Arch's; block i of N drops its residual
    branch with probability drop_path · i / N (official TensorFlow code)."""

    def __init__(self, arch: Arch, *, dropout: float | None = None, drop_path: float = 0.2) -> None:
        super().__init__()
        self.arch = arch
        stem, *middle, head = blocks(arch)
        self.stem = ConvNorm(ops(stem)[0])
        body: list[MBConv] = []
        for block in middle:
            for _ in range(block.repeats):
                body.append(MBConv(block, drop_path * len(body) / arch.blocks))
        self.blocks = nn.Sequential(*body)
        conv, linear = ops(head)
        self.head = ConvNorm(conv)
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
            if isinstance(module, MBConv) and module.residual:
                nn.init.zeros_(cast(nn.BatchNorm2d, module.project[1]).weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return cast(Tensor, self.classifier(self.dropout(x.mean((2, 3)))))
