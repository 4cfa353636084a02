"""EfficientNets at any (alpha, beta, gamma, phi) and any budget, with exact cost.

net = effnet.solve("b0", budget="2x", depth=1.2, resolution=257)
effnet.cost(net).macs
model = effnet.build(net)      # needs torch; nothing else here does
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from effnet.arch import Arch, Baseline, Block, Scaling, Stage
from effnet.budget import Budget, InfeasibleError, solve
from effnet.cost import Cost, cost
from effnet.families import arch

if TYPE_CHECKING:
    from effnet.model import EfficientNet

__all__ = [
    "Arch",
    "Baseline",
    "Block",
    "Budget",
    "Cost",
    "InfeasibleError",
    "Scaling",
    "Stage",
    "arch",
    "build",
    "cost",
    "solve",
]


def build(net: Arch, *, dropout: float | None = None, drop_path: float = 0.2) -> EfficientNet:
    """The torch module of `net`. See `effnet.model.EfficientNet`."""
    from effnet.model import EfficientNet

    return EfficientNet(net, dropout=dropout, drop_path=drop_path)
