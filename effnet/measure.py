"""The referee: fvcore's counters on the built module, beside our own numbers, per operator kind."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from torch import nn

import effnet
from effnet.arch import Arch
from effnet.cost import Cost, cost_by_kind


@dataclass(frozen=True, slots=True)
class Comparison:
    """One operator kind: our cost and what fvcore (MACs, acts) and the module (params) count for it."""

    kind: str
    ours: Cost
    theirs: Cost

    @property
    def equal(self) -> bool:
        return self.ours == self.theirs


def compare(arch: Arch) -> list[Comparison]:
    """Build `arch`, trace it once on the CPU in eval mode, and compare kind by kind.

    fvcore counts convolutions and the linear layer as we do; its batch norms and pools, which its total()
    adds, belong to no kind here."""
    model = effnet.build(arch).eval()
    image = torch.zeros(1, arch.in_channels, arch.resolution, arch.resolution)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("fvcore").setLevel(logging.ERROR)
        flops = FlopCountAnalysis(model, image).unsupported_ops_warnings(False)
        acts = ActivationCountAnalysis(model, image).unsupported_ops_warnings(False)
        flops_by, acts_by = flops.by_module(), acts.by_module()
    ours = cost_by_kind(arch)
    theirs = dict.fromkeys(ours, Cost(0, 0, 0))
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        kind = next(part for part in reversed(name.split(".")) if not part.isdigit())
        params = sum(p.numel() for p in module.parameters())
        parent, _, leaf = name.rpartition(".")
        if leaf == "0":  # the convolution of a ConvNorm: the batch norm after it is part of the operator
            params += sum(p.numel() for p in modules[f"{parent}.1"].parameters())
        theirs[kind] += Cost(int(flops_by[name]), params, int(acts_by[name]))
    return [Comparison(kind, ours[kind], theirs[kind]) for kind in ours]
