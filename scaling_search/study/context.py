"""What every network of a study is built from and held to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from effnet import shares
from effnet.arch import AnyBaseline, Scaling, scale
from effnet.budget import BASELINE_MACS, Budget
from effnet.cost import cost, macs
from effnet.latency import Times
from effnet.shares import Shares
from scaling_search.study.candidate import Candidate
from scaling_search.study.directions import NAMED, by_measure


@dataclass(frozen=True)
class ScalingContext:
    """The baseline that is scaled, and the limits on what it becomes.

    `classes` of the data set; `max_side` [px] is the images' native side, or infinity where
    upscaling is allowed; `max_waste` is the largest fraction by which a pixel may cost more than at
    the cheapest resolution; `times` are the networks' latencies, where the budget is one."""

    base: AnyBaseline
    classes: int
    max_side: float
    max_waste: float
    times: Times | None = None

    @cached_property
    def base_macs(self) -> int:
        """The baseline's exact multiply-adds."""
        return macs(scale(self.base, num_classes=self.classes))

    def base_cost(self, budget: Budget) -> int:
        """What the baseline costs by the measure of a budget."""
        return budget.measure(scale(self.base, num_classes=self.classes))

    def ratio(self, budget: Budget) -> float:
        """A budget as a multiple of what the baseline costs by its measure."""
        return budget.ratio(self.base_cost(budget))

    def candidate(
        self,
        scaling: Scaling,
        side: int,
        budget: Budget,
        waste: float,
        role: Literal["baseline", "reference", "candidate"] = "candidate",
    ) -> Candidate:
        """The network of these coefficients at `side` px, with its exact cost and shares. `waste`
        is that of its resolution."""
        depth, width = scaling.depth, scaling.width
        arch = scale(self.base, depth, width, side, num_classes=self.classes)
        exact = cost(arch)
        return Candidate(
            arch=arch,
            role=role,
            budget=budget,
            alpha=scaling.alpha,
            beta=scaling.beta,
            gamma=scaling.gamma,
            shares=shares.shares(self.base, depth, width, side, self.classes, budget.measure),
            cost=exact,
            ratio=exact.macs / self.base_macs,
            waste=waste,
            latency=self.times.latency(arch) if self.times else None,
        )

    def toward(self, aim: Shares, ratio: float, like: Budget = BASELINE_MACS) -> Candidate:
        """The network nearest to a direction at `ratio` times the baseline's cost
        (effnet.shares.toward), as a reference; cost and shares by the measure of `like`."""
        budget = replace(like, value=ratio, relative=True)
        solution, waste = shares.toward(
            self.base,
            aim,
            budget,
            self.classes,
            max_waste=self.max_waste,
            top=self.max_side,
        )
        side = solution.arch.resolution
        scaling = Scaling(solution.depth, solution.width, side / self.base.resolution)
        return self.candidate(scaling, side, budget, waste, role="reference")

    def toward_paper(self, ratio: float, like: Budget) -> Candidate:
        """The network nearest to the paper's direction, as `toward` finds it."""
        aim = by_measure(NAMED, shares.exponents(like))["paper"]
        return self.toward(aim, ratio, like)


def distinct(candidates: list[Candidate]) -> list[Candidate]:
    """Without the networks that an earlier candidate is already; each takes the place of the last
    of its kind."""
    first: dict[str, Candidate] = {}
    for candidate in reversed(candidates):
        first[candidate.key] = candidate
    return list(first.values())[::-1]
