"""Nominal mode: the paper's lattice of coefficients (arXiv 1905.11946, section 3.3), whose networks
cost what they cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

from effnet.arch import Arch, Baseline, Scaling, assemble, repeats_at, side_at, widths_at
from effnet.budget import Budget
from effnet.families import PAPER
from effnet.rounding import round_half_up
from effnet.shares import waste
from scaling_search import UserError
from scaling_search.study.candidate import Candidate
from scaling_search.study.context import ScalingContext
from scaling_search.study.settings import Space

# alpha, beta and gamma in hundredths, so that sums and comparisons are exact
Triple = tuple[int, int, int]
_BASELINE = (100, 100, 100)
_UNIT = 10**10  # alpha · beta² · gamma² of the baseline, in hundredths to the fifth power


def product(triple: Triple) -> int:
    """alpha · beta² · gamma², in parts of 10^10."""
    alpha, beta, gamma = triple
    return alpha * beta**2 * gamma**2


def nominal_triples(
    step: int, budget: float, tolerance: float, maxima: tuple[float, float, float] = (2.0, 1.5, 1.5)
) -> list[Triple]:
    """(alpha, beta, gamma) in hundredths, multiples of `step` from 100, with |alpha beta² gamma² −
    budget| within `tolerance` of the budget, boundary included, in exact integers (paper section
    3.3)."""
    most = round(tolerance * budget * _UNIT)
    middle = round(budget * _UNIT)
    axes = [range(100, round(100 * maximum) + 1, step) for maximum in maxima]
    triples = []
    for alpha, beta, gamma in itertools.product(*axes):
        if abs(product((alpha, beta, gamma)) - middle) <= most:
            triples.append((alpha, beta, gamma))
    return triples


def lattice(
    base: Baseline, triples: Iterable[Triple], classes: int, resolution_step: int = 1
) -> list[tuple[Triple, Arch]]:
    """The distinct networks that the triples build at phi = 1, each with the first triple that
    builds it; resolution in whole steps of px.

    Most triples differ from their neighbours in nothing: each dial's rounding is done once per
    value."""
    triples = list(triples)
    repeats = {a: repeats_at(base, a / 100) for a in {t[0] for t in triples}}
    widths = {b: widths_at(base, b / 100) for b in {t[1] for t in triples}}
    sides = {c: side_at(base, c / 100, resolution_step) for c in {t[2] for t in triples}}
    first: dict[tuple[tuple[int, ...], tuple[int, ...], int], Triple] = {}
    for triple in triples:
        alpha, beta, gamma = triple
        first.setdefault((repeats[alpha], widths[beta], sides[gamma]), triple)
    networks = []
    for dimensions, triple in first.items():
        networks.append((triple, assemble(base, *dimensions, num_classes=classes)))
    return networks


def nominal(context: ScalingContext, budget: Budget, space: Space) -> list[Candidate]:
    """The distinct networks that the lattice builds by the baseline's own rounding; each one's real
    cost is its own.

    Raises UserError for a budget below 1x (the lattice only grows) or without a triple."""
    base, ratio = context.base, context.ratio(budget)
    if ratio < 1:
        raise UserError(
            f"budget {budget}: the nominal lattice has alpha, beta, gamma >= 1; use measured mode "
            "below 1x"
        )
    root = math.sqrt(ratio / 2)
    maxima = (
        space.alpha_max or max(2.0, ratio),
        space.beta_max or max(1.5, 1.5 * root),
        space.gamma_max or max(1.5, 1.5 * root),
    )
    highest = math.ceil(maxima[2] * base.resolution) + space.resolution_step
    wastes = waste(base, range(base.resolution, highest + 1), context.classes)
    triples = []
    for triple in nominal_triples(space.step, ratio, space.nominal_tolerance, maxima):
        side = side_at(base, triple[2] / 100, space.resolution_step)
        if triple != _BASELINE and side in wastes and side <= context.max_side:
            triples.append(triple)
    if not triples:
        raise UserError(_no_triple(context, budget, space, maxima))
    # of several triples that build one network, the paper's own, else the first
    paper = tuple(round_half_up(100 * c) for c in (PAPER.alpha, PAPER.beta, PAPER.gamma))
    assert isinstance(base, Baseline)  # a study in nominal mode takes no function
    triples.sort(key=lambda triple: triple != paper)
    candidates = []
    for triple, arch in lattice(base, triples, context.classes, space.resolution_step):
        alpha, beta, gamma = triple
        scaling = Scaling(alpha / 100, beta / 100, gamma / 100)
        side = arch.resolution
        candidates.append(context.candidate(scaling, side, budget, wastes[side]))
    return candidates


def _no_triple(
    context: ScalingContext, budget: Budget, space: Space, maxima: tuple[float, float, float]
) -> str:
    """That the lattice holds nothing for a budget, and what comes nearest."""
    ratio = context.ratio(budget)
    all_triples = nominal_triples(space.step, ratio, 10.0, maxima)
    nearest = min(all_triples, key=lambda triple: abs(product(triple) / _UNIT - ratio))
    alpha, beta, gamma = (value / 100 for value in nearest)
    return (
        f"budget {budget}: no alpha, beta, gamma on the lattice within "
        f"{space.nominal_tolerance:.0%} and {context.max_side:g} px; the nearest is "
        f"{alpha}, {beta}, {gamma} at {product(nearest) / _UNIT:.3f}. Take a smaller step, wider "
        "bounds or a smaller base resolution"
    )
