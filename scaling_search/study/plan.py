"""The plan: a study's budgets become distinct networks to train, the named directions among
them."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from effnet import counting
from effnet.arch import Scaling
from effnet.budget import BASELINE_MACS, Budget
from effnet.custom import Function, FunctionError
from effnet.shares import exponents, waste
from scaling_search import UserError
from scaling_search.study.candidate import Candidate
from scaling_search.study.choice import choose, nominal_position, real_position
from scaling_search.study.context import ScalingContext, distinct
from scaling_search.study.directions import NAMED, by_measure
from scaling_search.study.measured import LEAST, Progress, measured
from scaling_search.study.nominal import nominal
from scaling_search.study.settings import Study

logger = logging.getLogger(__name__)

_FARTHEST = 256  # times the baseline's cost, either way
# A reference of a latency with so many times fewer multiply-adds than its latency says is no
# network that anybody would use.
_DEGENERATE = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """The networks that a study trains. `sizes` says how many networks meet each budget, `notes`
    what could not be had, and `pool` what TPE may propose beyond `candidates`."""

    baseline: Candidate
    references: tuple[Candidate, ...]
    candidates: tuple[Candidate, ...]
    sizes: dict[str, int]
    notes: tuple[str, ...]
    pool: tuple[Candidate, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the pool; `from_dict` is its inverse."""
        return {
            "baseline": self.baseline.as_dict(),
            "references": [candidate.as_dict() for candidate in self.references],
            "candidates": [candidate.as_dict() for candidate in self.candidates],
            "sizes": self.sizes,
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Plan:
        """The plan of recorded plain data. Raises what a malformed record raises."""
        return cls(
            Candidate.from_dict(data["baseline"]),
            tuple(map(Candidate.from_dict, data["references"])),
            tuple(map(Candidate.from_dict, data["candidates"])),
            dict(data["sizes"]),
            tuple(data["notes"]),
        )

    @property
    def everything(self) -> tuple[Candidate, ...]:
        """Every network that is certain to be trained."""
        return (self.baseline, *self.references, *self.candidates)


def plan(
    study: Study,
    classes: int,
    native: int,
    kept: Collection[str] = (),
    progress: Progress = lambda words: None,
) -> Plan:
    """Everything that `study` trains on images of `native` px; the networks whose keys are `kept`
    among its candidates, as they were trained before it grew. `progress` is told how far it is.

    Raises UserError where the base resolution exceeds the native side without `space.upscale`, a
    budget holds no network, or a function cannot be the baseline."""
    try:
        return _plan(study, classes, native, kept, progress)
    except FunctionError as error:
        raise UserError(f"baseline {error}") from error


def _plan(
    study: Study, classes: int, native: int, kept: Collection[str], progress: Progress
) -> Plan:
    context = scaling_context(study, classes, native)
    progress(f"counting {context.base.name}")
    notes = _check_function(context)
    baseline = _baseline(context)
    chosen: list[Candidate] = []
    pool: list[Candidate] = []
    sizes: dict[str, int] = {}
    for budget in study.budgets:
        networks, lines = _networks_of(context, study, budget, progress)
        sizes[str(budget)] = len(networks)
        picked, missing = _choose(study, networks, kept)
        chosen += [network for network in picked if network.key != baseline.key]
        if study.space.sampler == "tpe":
            pool += [network for network in networks if network.key != baseline.key]
        notes += [*lines, *(f"{budget}: {line}" for line in missing)]
    candidates = distinct(chosen)
    _check_counts(study, candidates)
    chosen_keys = {candidate.key for candidate in candidates}
    free = [candidate for candidate in distinct(pool) if candidate.key not in chosen_keys]
    references, unreachable = _references(context, study, {baseline.key, *chosen_keys})
    notes += unreachable
    logger.info(
        "planned %d networks of %s, and %d references",
        len(candidates),
        ", ".join(f"{size} at {budget}" for budget, size in sizes.items()),
        len(references),
    )
    return Plan(
        baseline,
        tuple(references),
        tuple(candidates),
        sizes,
        tuple(notes),
        tuple(replace(candidate, directions=()) for candidate in free),
    )


def scaling_context(study: Study, classes: int, native: float) -> ScalingContext:
    """The study's baseline with its limits, for images of `native` px.

    Raises UserError where the base resolution exceeds the native side without `space.upscale`."""
    base, space = study.network(), study.space
    if base.resolution > native and not space.upscale:
        raise UserError(
            f"baseline.resolution = {base.resolution} px is above the images' native {native} px: "
            f"interpolated pixels carry nothing; take at most {native}, or give --upscale"
        )
    max_side = math.inf if space.upscale else native
    return ScalingContext(base, classes, max_side, space.max_waste, study.budgets[0].times)


def _check_function(context: ScalingContext) -> list[str]:
    """Hold a function that is the baseline to what a search takes for granted; notes for the user.
    Raises FunctionError."""
    if not isinstance(context.base, Function):
        return []
    return counting.check(context.base, context.classes, context.max_side)


def _baseline(context: ScalingContext) -> Candidate:
    """The baseline as a candidate; its waste is stated beside the resolutions that a budget of 2x
    reaches."""
    side = context.base.resolution
    most = math.floor(1.45 * side)
    if isinstance(context.base, Function):  # which may refuse what is larger than the images
        most = max(side, int(min(most, context.max_side)))
    wastes = waste(context.base, range(side, most + 1), context.classes)
    return context.candidate(Scaling(1, 1, 1), side, BASELINE_MACS, wastes[side], role="baseline")


def check_ratio(context: ScalingContext, budget: Budget) -> None:
    """Raises UserError for a budget that is too far from the baseline's cost."""
    ratio = context.ratio(budget)
    if not 1 / _FARTHEST <= ratio <= _FARTHEST:
        raise UserError(
            f"budget {budget}: {ratio:.3g} times the baseline's "
            f"{budget.quantity(context.base_cost(budget))}; take one "
            f"between 1/{_FARTHEST} and {_FARTHEST} times, or another baseline"
        )


def _networks_of(
    context: ScalingContext, study: Study, budget: Budget, progress: Progress
) -> tuple[list[Candidate], list[str]]:
    """Every network of a budget, and notes for the user. Raises UserError where there are too
    few."""
    check_ratio(context, budget)
    notes: list[str] = []
    if study.space.mode == "nominal":
        networks = nominal(context, budget, study.space)
    else:
        networks, notes = measured(context, budget, study.space, progress)
    if len(networks) < LEAST:
        raise UserError(
            f"budget {budget}: only {len(networks)} distinct networks within "
            f"{budget.tolerance:.0%}; a search takes at least {LEAST}. Take another budget, a "
            "larger baseline, or a wider tolerance (--set space.tolerance=0.04)"
        )
    return networks, notes


def _choose(
    study: Study, networks: list[Candidate], kept: Collection[str]
) -> tuple[list[Candidate], list[str]]:
    """The networks of a budget that are trained, and a line for each direction without one."""
    space = study.space
    count = space.candidates
    if space.sampler == "tpe":
        # TPE starts from the named directions and a first look around; it proposes the rest itself
        count = math.ceil((count or len(networks)) / 2)
    position = nominal_position if space.mode == "nominal" else real_position
    directions = by_measure({**NAMED, **study.directions}, exponents(study.budgets[0]))
    return choose(networks, count, position, space.sampler, study.seed, kept, directions)


def _check_counts(study: Study, candidates: list[Candidate]) -> None:
    """Raises UserError for a budget whose networks are nearly all another budget's."""
    least = min(LEAST, study.space.candidates or LEAST)
    for budget in study.budgets:
        own = sum(candidate.budget == budget for candidate in candidates)
        if own < least:
            raise UserError(
                f"budget {budget}: {own} networks of its own, the others are another budget's or "
                f"the baseline; a search takes at least {LEAST}. Take budgets further apart, or "
                "more --candidates"
            )


def _references(
    context: ScalingContext, study: Study, taken: set[str]
) -> tuple[list[Candidate], list[str]]:
    """The networks along the paper's direction at other costs, for the front; none of those whose
    keys are taken. With several budgets, these show the front themselves. And a line for each that
    a function refuses to build."""
    if len(study.budgets) > 1:
        return [], []
    references: dict[str, Candidate] = {}
    notes: list[str] = []
    for ratio in study.references:
        try:
            member = context.toward_paper(ratio, study.budgets[0])
        except FunctionError as error:
            notes.append(f"the reference of {ratio:g}x is left out: {error}")
            continue
        if study.budgets[0].of == "latency" and member.ratio < ratio / _DEGENERATE:
            notes.append(
                f"the reference of {ratio:g}x is left out: it has {member.ratio:.2f} of the "
                "baseline's multiply-adds, as launches are most of such a latency"
            )
            continue
        if member.key not in taken:
            references.setdefault(member.key, member)
    return list(references.values()), notes
