"""ConvNets at any (alpha, beta, gamma, phi) and any budget, with exact cost.

net = effnet.solve("b0", budget="2x", depth=1.2, resolution=257)
effnet.cost(net).macs
model = effnet.build(net)      # needs torch; nothing else here does
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, Unpack, overload

from effnet.arch import Arch, Baseline, Network, Scaling, Stage
from effnet.blocks import Block
from effnet.budget import Budget
from effnet.cost import Cost, cost
from effnet.custom import CustomArch, Function, FunctionError
from effnet.definition import read_baseline, read_config
from effnet.families import arch, baseline, implied_phi, names
from effnet.solve import InfeasibleError, Solution, fit, solve

if TYPE_CHECKING:
    from torch import nn

    from effnet.nn.model import ConvNet

__all__ = [
    "Arch",
    "Baseline",
    "Block",
    "Budget",
    "Cost",
    "CustomArch",
    "Function",
    "FunctionError",
    "InfeasibleError",
    "Network",
    "Scaling",
    "Solution",
    "Stage",
    "arch",
    "baseline",
    "build",
    "cost",
    "fit",
    "implied_phi",
    "names",
    "read_baseline",
    "read_config",
    "solve",
]


class BuildOptions(TypedDict, total=False):
    """What `build` passes on to `effnet.nn.model.ConvNet`, which has the defaults."""

    dropout: float | None
    drop_path: float
    bn_eps: float | None
    same_padding: bool


@overload
def build(
    net: Arch, *, num_classes: int | None = None, **options: Unpack[BuildOptions]
) -> ConvNet: ...


@overload
def build(
    net: Network | str, *, num_classes: int | None = None, **options: Unpack[BuildOptions]
) -> nn.Module: ...


def build(
    net: Network | str, *, num_classes: int | None = None, **options: Unpack[BuildOptions]
) -> nn.Module:
    """The torch module of a network, of a published member (`build("b3", num_classes=10)`) or of a
    search's pick (`build("runs/photos-2x")`).

    See `effnet.nn.model.ConvNet` for the options; a function's network has none of them but a
    `dropout` of 0, which turns off what it has. Raises ValueError for an unknown name, and for
    `num_classes` beside an Arch, which has its own; FunctionError for what a function raises."""
    from effnet.nn.model import ConvNet

    if isinstance(net, str):
        net = arch(net, num_classes=num_classes)
    elif num_classes is not None:
        raise ValueError("num_classes: an Arch has its own; give it to effnet.arch")
    if isinstance(net, CustomArch):
        from effnet.nn import count

        return count.build(net, without_dropout=options.get("dropout") == 0)
    return ConvNet(net, **options)
