"""A network as a torch module, built from the Arch's blocks: no shape is computed here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effnet.arch import Arch
from effnet.blocks import Block, Op, blocks, ops

# In place, which saves a map: the gradient of the batch norm before needs its input alone.
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": lambda: nn.SiLU(inplace=True),
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
}


class BlockStyle(NamedTuple):
    """The properties that all layers of a network share."""

    activation: str
    same_padding: bool
    bn_eps: float
    bn_momentum: float


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's `SAME` padding: the odd pixel of padding goes after, not
    before, so strided layers see other pixels than torch's padding shows them."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        padding = []
        for side in (x.shape[-1], x.shape[-2]):  # F.pad takes the last axis first
            outputs = -(-side // stride)
            total = max((outputs - 1) * stride + kernel - side, 0)
            padding += [total // 2, total - total // 2]
        padded = F.pad(x, padding)
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _convolution(op: Op, same_padding: bool = False) -> nn.Conv2d:
    kind, padding = nn.Conv2d, op.kernel // 2
    if same_padding and op.stride > 1:  # at stride 1 both ways of padding are the same
        kind, padding = SameConv2d, 0
    bias = not op.norm  # the shift of a batch norm makes a bias before it idle
    return kind(op.c_in, op.c_out, op.kernel, op.stride, padding, groups=op.groups, bias=bias)


class ConvNorm(nn.Sequential):
    """Convolution, batch norm and, where the layer has one, the activation."""

    def __init__(self, op: Op, style: BlockStyle) -> None:
        layers: list[nn.Module] = [
            _convolution(op, style.same_padding),
            nn.BatchNorm2d(op.c_out, eps=style.bn_eps, momentum=style.bn_momentum),
        ]
        if op.act:
            layers.append(_ACTIVATIONS[style.activation]())
        super().__init__(*layers)


class SqueezeExcite(nn.Module):
    """A gate from 0 to 1 for each channel of each image, computed from the channels' means
    (squeeze-and-excitation, arXiv 1709.01507). Input and output [N, C, side, side]."""

    def __init__(self, squeeze: Op, excite: Op, activation: str) -> None:
        super().__init__()
        self.squeeze = _convolution(squeeze)
        self.excite = _convolution(excite)
        self.act = _ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.act(self.squeeze(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.excite(squeezed))


class ConvBlock(nn.Module):
    """One repeat of a Block; input and output [N, C, side, side]. Its layers are attributes named
    by their kinds (`expand`, `depthwise`, `se`, ...), which run in the order of `path`.

    `drop` is the probability that an image's residual branch is dropped in training (stochastic
    depth, arXiv 1603.09382)."""

    def __init__(self, block: Block, drop: float, style: BlockStyle) -> None:
        super().__init__()
        self.path: list[str] = []
        self.shortcut: nn.Module | None = None
        layers = {op.kind: op for op in ops(block)}
        for kind, op in layers.items():
            if kind == "excite":
                continue  # part of the module that "squeeze" makes
            if kind == "shortcut":
                self.shortcut = ConvNorm(op, style)
            elif kind == "squeeze":
                self.se = SqueezeExcite(op, layers["excite"], style.activation)
                self.path.append("se")
            else:
                setattr(self, kind, ConvNorm(op, style))
                self.path.append(kind)
        self.residual = bool(block.shortcut)
        self.drop = drop
        # a bottleneck's last activation comes after the sum (ResNet paper, Figure 2)
        self.last: nn.Module | None = None
        if block.operator == "bottleneck":
            self.last = _ACTIVATIONS[style.activation]()

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The last batch norm of the residual branch."""
        return cast(nn.BatchNorm2d, cast(ConvNorm, getattr(self, self.path[-1]))[1])

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for name in self.path:
            y = getattr(self, name)(y)
        return self.join(x, y)

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        """The block's output from its input `x` and the output `y` of its path."""
        if not self.residual:
            return y
        shortcut = x if self.shortcut is None else self.shortcut(x)
        y = self.drop_branches(y) + shortcut
        return y if self.last is None else cast(Tensor, self.last(y))

    @property
    def drops(self) -> bool:
        """Whether a forward pass now drops some images' branches."""
        return self.training and self.drop > 0

    def drop_branches(self, y: Tensor) -> Tensor:
        """Stochastic depth: in training some images' branches are zeroed, and the others scaled up
        so that the mean stays."""
        if not self.drops:
            return y
        keep = 1 - self.drop
        mask = torch.empty(len(y), 1, 1, 1, dtype=y.dtype, device=y.device).bernoulli_(keep)
        return y * (mask / keep)


class ConvNet(nn.Module):
    """A whole network: [N, 3, r, r] → logits [N, classes].

    `dropout` (before the classifier) defaults to the Arch's rate. Block i of N drops its residual
    branch with probability drop_path · i / N, or with drop_path itself where the Arch's
    `drop_path_rule` is "constant". `bn_eps` defaults to the Arch's; `same_padding` pads as
    TensorFlow does: weights trained elsewhere may want either. Raises ValueError for a network that
    cannot be built, or a rate or an eps out of range."""

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
        if dropout is None:
            dropout = arch.dropout_percent / 100
        if bn_eps is None:
            bn_eps = arch.bn_eps
        _check_rates(bn_eps, drop_path, dropout)
        self.arch = arch
        self.bn_eps = bn_eps
        self.same_padding = same_padding
        style = BlockStyle(arch.activation, same_padding, bn_eps, arch.bn_momentum)

        stem, *middle, head = blocks(arch)
        self.stem = ConvNorm(ops(stem)[0], style)
        self.pool: nn.Module = nn.Identity()
        if arch.stem_pool > 1:
            self.pool = nn.MaxPool2d(kernel_size=3, stride=arch.stem_pool, padding=1)
        body: list[ConvBlock] = []
        for block in middle:
            for _ in range(block.repeats):
                drop = drop_path
                if arch.drop_path_rule == "linear":
                    drop *= len(body) / arch.blocks
                body.append(ConvBlock(block, drop, style))
        self.blocks = nn.Sequential(*body)

        *convolution, linear = ops(head)
        self.head: nn.Module = nn.Identity()
        if convolution:
            self.head = ConvNorm(convolution[0], style)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(linear.c_in, linear.c_out)
        if arch.initialisation == "tensorflow":
            self._initialise_as_tensorflow()

    def _initialise_as_tensorflow(self) -> None:
        """Draw weights as the official code does (`conv_kernel_initializer` and
        `dense_kernel_initializer`): He normal over fan-out, the classifier uniform in
        ±1/sqrt(classes).

        In addition, the last batch norm of a residual branch starts at zero, so that a deep network
        begins shallow (arXiv 1706.02677, section 5.1)."""
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


def block_module(block: Block, style: BlockStyle, stem_pool: int = 1) -> nn.Module:
    """One repeat of a block alone, of the stem and the head too, as the network runs it: [N, C,
    side, side] → the next block's input, or the logits."""
    if block.operator == "stem":
        stem = ConvNorm(ops(block)[0], style)
        if stem_pool == 1:
            return stem
        return nn.Sequential(stem, nn.MaxPool2d(kernel_size=3, stride=stem_pool, padding=1))
    if block.operator != "head":
        return ConvBlock(block, 0.0, style)
    *convolution, linear = ops(block)
    layers: list[nn.Module] = [ConvNorm(op, style) for op in convolution]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(linear.c_in, linear.c_out)]
    return nn.Sequential(*layers)


def _check_rates(bn_eps: float, drop_path: float, dropout: float) -> None:
    if not 0 < bn_eps < 1:
        raise ValueError(f"bn_eps = {bn_eps}: must be from 0 to below 1, and above 0")
    for name, rate in (("drop_path", drop_path), ("dropout", dropout)):
        if not 0 <= rate < 1:
            raise ValueError(f"{name} = {rate}: must be from 0 to below 1")
