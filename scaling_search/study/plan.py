"""The candidates: a budget becomes distinct networks that cost the same, the named directions among
them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from effnet.arch import (
    Arch,
    Baseline,
    Scaling,
    assemble,
    least_side,
    repeats_at,
    scale,
    side_at,
    widths_at,
)
from effnet.budget import Budget, human, nearest_width, shortest_width
from effnet.cost import cost, macs
from effnet.families import PAPER
from effnet.rounding import round_half_up
from effnet.shares import Shares, nominal_shares, shares, toward, waste
from scaling_search import UserError
from scaling_search.study.candidate import Candidate
from scaling_search.study.directions import NAMED, apart, simplex, sobol
from scaling_search.study.settings import Study

# In shares: as good as the direction itself; still worth its name; beside the paper's.
_EXACT, _NEAR, _BRACKET = 0.05, 0.25, 0.2
LEAST = 3  # networks of one cost: with fewer there is nothing to compare
_WASTE = 0.25  # of a resolution, where fewer than these waste less
_FARTHEST = 256  # times the baseline's cost, either way
_MOST = 64  # block counts, or resolutions, that a space is searched over


@dataclass(frozen=True, slots=True)
class Plan:
    """What a study trains. `found` networks meet each budget; `notes` say what could not be had."""

    baseline: Candidate
    references: tuple[Candidate, ...]
    candidates: tuple[Candidate, ...]
    found: dict[str, int]
    notes: tuple[str, ...]
    pool: tuple[Candidate, ...] = ()  # what TPE may propose beyond `candidates`

    @property
    def everything(self) -> tuple[Candidate, ...]:
        return (self.baseline, *self.references, *self.candidates)


def plan(study: Study, classes: int, native: int) -> Plan:
    """Everything that `study` trains on images of `native` px.

    Raises UserError where the base resolution exceeds the native side without `space.upscale`, or a
    budget holds no network."""
    base = study.network()
    space = study.space
    if base.resolution > native and not space.upscale:
        raise UserError(
            f"baseline.resolution = {base.resolution} px is above the images' native {native} px: interpolated "
            f"pixels carry nothing; take at most {native}, or give --upscale"
        )
    top = math.inf if space.upscale else native
    base_macs = macs(scale(base, num_classes=classes))
    notes: list[str] = []
    around = waste(base, range(base.resolution, math.floor(1.45 * base.resolution) + 1), classes)
    baseline = _candidate(
        base,
        Scaling(1, 1, 1),
        base.resolution,
        classes,
        role="baseline",
        budget=Budget(1, relative=True),
        wasted=around[base.resolution],
    )
    chosen: list[Candidate] = []
    found: dict[str, int] = {}
    pool: list[Candidate] = []
    for budget in study.budgets:
        ratio = budget.target(base_macs) / base_macs
        if not 1 / _FARTHEST <= ratio <= _FARTHEST:
            raise UserError(
                f"budget {budget}: {ratio:.3g} times the baseline's {human(base_macs)} multiply-adds; take one "
                f"between 1/{_FARTHEST} and {_FARTHEST} times, or another baseline"
            )
        if space.mode == "nominal":
            cells = nominal(base, budget, study, classes, ratio, top)
        else:
            cells = measured(base, budget, study, classes, ratio, top, space.max_waste)
            if len(cells) < LEAST and space.max_waste < _WASTE:
                cells = measured(base, budget, study, classes, ratio, top, _WASTE)
                worst = max(c.waste for c in cells)
                notes.append(
                    f"{budget}: too few networks of low waste, so resolutions that waste up to {worst:.0%} too"
                )
        if len(cells) < LEAST:
            raise UserError(
                f"budget {budget}: only {len(cells)} distinct networks within {budget.tolerance:.0%}; a search takes "
                f"at least {LEAST}. Take another budget, a larger baseline, or a wider tolerance"
            )
        found[str(budget)] = len(cells)
        at = _nominal_at if space.mode == "nominal" else _real_at
        adaptive = space.sampler == "tpe"
        # TPE starts from the named directions and a first look around; it proposes the rest itself
        count = math.ceil((space.candidates or len(cells)) / 2) if adaptive else space.candidates
        picked, missing = choose(cells, count, at, space.sampler, study.seed)
        pool += [replace(c, directions=()) for c in cells if adaptive and c.key != baseline.key]
        chosen += [c for c in picked if c.key != baseline.key]
        notes += [f"{budget}: {line}" for line in missing]
    references = []
    if len(study.budgets) == 1:
        taken = {baseline.key, *(c.key for c in chosen)}
        for ratio in study.references:
            member = reference(base, NAMED["paper"], ratio, classes, space.max_waste, top)
            if member.key not in taken:
                taken.add(member.key)
                references.append(member)
    taken = {c.key for c in chosen}
    candidates = _distinct(chosen)
    for budget in study.budgets:
        if (own := sum(c.budget == budget for c in candidates)) < min(
            LEAST, space.candidates or LEAST
        ):
            raise UserError(
                f"budget {budget}: {own} networks of its own, the others are another budget's or the baseline; a search "
                f"takes at least {LEAST}. Take budgets further apart, or more --candidates"
            )
    return Plan(
        baseline,
        tuple(references),
        candidates,
        found,
        tuple(notes),
        tuple(c for c in _distinct(pool) if c.key not in taken),
    )


def _distinct(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    return tuple({c.key: c for c in reversed(candidates)}.values())[::-1]


def _candidate(
    base: Baseline,
    s: Scaling,
    resolution: int,
    classes: int,
    *,
    role: Literal["baseline", "reference", "candidate"] = "candidate",
    budget: Budget,
    wasted: float = 0.0,
) -> Candidate:
    arch = scale(base, s.depth, s.width, resolution, num_classes=classes)
    base_macs = macs(scale(base, num_classes=classes))
    exact = cost(arch)
    return Candidate(
        arch=arch,
        role=role,
        budget=budget,
        alpha=s.alpha,
        beta=s.beta,
        gamma=s.gamma,
        shares=shares(base, s.depth, s.width, resolution, classes),
        cost=exact,
        ratio=exact.macs / base_macs,
        waste=wasted,
    )


# ---- measured: exact budgets


def measured(
    base: Baseline,
    budget: Budget,
    study: Study,
    classes: int,
    ratio: float,
    top: float,
    max_waste: float,
) -> list[Candidate]:
    """One network per (blocks, resolution): the width that comes nearest to the budget, kept when
    it meets it and its resolution wastes little. Below 1x every dial shrinks instead of growing.

    Raises UserError naming the nearest network where there is none."""
    space = study.space
    sides, depths, widths = _reach(base, study, ratio, top)
    wasted = waste(base, sides, classes)
    base_macs = macs(scale(base, num_classes=classes))
    target = budget.target(base_macs)
    kept: list[Candidate] = []
    nearest: tuple[float, str] | None = None
    for blocks, side in itertools.product(depths, sides):
        depth = blocks / base.blocks
        width = nearest_width(base, target, depth, side, classes, widths)
        arch = scale(base, depth, width, side, num_classes=classes)
        exact = macs(arch)
        off = budget.off(exact, base_macs)
        if nearest is None or abs(off) < nearest[0]:
            label = f"{blocks} blocks, width {width:g}, {side} px at {human(exact)} ({exact / base_macs:.2f}x)"
            nearest = abs(off), f"{label}, waste {wasted[side]:.0%}"
        if budget.met(exact, base_macs) and wasted[side] <= max_waste:
            s = Scaling(depth, shortest_width(base, arch, depth, width), side / base.resolution)
            kept.append(_candidate(base, s, side, classes, budget=budget, wasted=wasted[side]))
    kept = [c for c in _distinct(kept) if c.arch != scale(base, num_classes=classes)]
    if not kept and max_waste >= _WASTE:
        assert nearest is not None
        raise UserError(
            f"budget {budget}: no network within {budget.tolerance:.0%} of {human(target)} and of waste at most "
            f"{space.max_waste:.0%} in this space; the nearest is {nearest[1]}. Widen the bounds, the tolerance "
            "or max_waste, or take another budget"
        )
    return kept


def _reach(
    base: Baseline, study: Study, ratio: float, top: float
) -> tuple[list[int], list[int], tuple[float, float]]:
    """Resolutions [px], block counts and width limits within which a budget of `ratio` is sought.

    Each dial may spend the whole budget alone and a little more (at 2x: depth to 2, width to 1.5,
    resolution to 1.45 times the baseline's)."""
    space, root = study.space, math.sqrt(ratio / 2)
    if ratio >= 1:
        gamma = space.gamma_max or max(1.0, 1.45 * root)
        alpha, beta = space.alpha_max or ratio, space.beta_max or max(1.0, 1.5 * root)
        high = int(min(top, math.floor(gamma * base.resolution + 1e-9)))
        depths = list(range(base.blocks, math.floor(alpha * base.blocks + 1e-9) + 1))
        return (
            _thin(list(range(base.resolution, high + 1)), 2 * _MOST),
            _thin(depths, _MOST),
            (1.0, beta),
        )
    shrink = math.sqrt(ratio) / 1.05
    low = max(least_side(base.total_stride), math.ceil(base.resolution * shrink))
    fewest = max(len(base.stages), math.floor(ratio * base.blocks))
    return (
        list(range(low, base.resolution + 1)),
        list(range(fewest, base.blocks + 1)),
        (shrink, 1.0),
    )


def _thin(values: list[int], most: int) -> list[int]:
    """At most `most` of them, evenly spaced, both ends kept: large budgets would otherwise take
    minutes to plan."""
    if len(values) <= most:
        return values
    return [values[i * (len(values) - 1) // (most - 1)] for i in range(most)]


def reference(
    base: Baseline, aim: Shares, ratio: float, classes: int, max_waste: float, top: float
) -> Candidate:
    """The network at `ratio` nearest to a direction (effnet.shares.toward)."""
    found, wasted = toward(
        base, aim, Budget(ratio, relative=True), classes, max_waste=max_waste, top=top
    )
    side = found.arch.resolution
    s = Scaling(found.depth, found.width, side / base.resolution)
    return _candidate(
        base, s, side, classes, role="reference", budget=Budget(ratio, relative=True), wasted=wasted
    )


# ---- nominal: the paper's lattice


def nominal_triples(
    step: int, budget: float, tolerance: float, maxima: tuple[float, float, float] = (2.0, 1.5, 1.5)
) -> list[tuple[int, int, int]]:
    """(alpha, beta, gamma) in hundredths, multiples of `step` from 100, with |alpha beta² gamma² −
    budget| within `tolerance` of the budget, boundary included, in exact integers (paper section
    3.3)."""
    scaled = 10**10  # alpha beta² gamma² in hundredths to the fifth
    most = round(tolerance * budget * scaled)
    middle = round(budget * scaled)
    alphas, betas, gammas = (range(100, round(100 * m) + 1, step) for m in maxima)
    return [
        t
        for t in itertools.product(alphas, betas, gammas)
        if abs(t[0] * t[1] ** 2 * t[2] ** 2 - middle) <= most
    ]


def lattice(
    base: Baseline, triples: Iterable[tuple[int, int, int]], classes: int, resolution_step: int = 1
) -> list[tuple[tuple[int, int, int], Arch]]:
    """The distinct networks that (alpha, beta, gamma), in hundredths, build at phi = 1, each with
    the first triple that builds it; resolution in whole steps of px.

    Most triples differ from their neighbours in nothing: each dial's rounding is done once per
    value."""
    triples = list(triples)
    repeats = {a: repeats_at(base, a / 100) for a in {t[0] for t in triples}}
    widths = {b: widths_at(base, b / 100) for b in {t[1] for t in triples}}
    sides = {c: side_at(base, c / 100, resolution_step) for c in {t[2] for t in triples}}
    first: dict[tuple[tuple[int, ...], tuple[int, ...], int], tuple[int, int, int]] = {}
    for triple in triples:
        first.setdefault((repeats[triple[0]], widths[triple[1]], sides[triple[2]]), triple)
    return [
        (triple, assemble(base, *built, num_classes=classes)) for built, triple in first.items()
    ]


def nominal(
    base: Baseline, budget: Budget, study: Study, classes: int, ratio: float, top: float
) -> list[Candidate]:
    """The distinct networks that the lattice builds by the baseline's own rounding; each one's real
    cost is its own.

    Raises UserError for a budget below 1x (the lattice only grows) or without a triple."""
    space = study.space
    if ratio < 1:
        raise UserError(
            f"budget {budget}: the nominal lattice has alpha, beta, gamma >= 1; use measured mode below 1x"
        )
    maxima = (
        space.alpha_max or max(2.0, ratio),
        space.beta_max or max(1.5, 1.5 * math.sqrt(ratio / 2)),
        space.gamma_max or max(1.5, 1.5 * math.sqrt(ratio / 2)),
    )
    sides = range(
        base.resolution, math.ceil(maxima[2] * base.resolution) + space.resolution_step + 1
    )
    wasted = waste(base, sides, classes)
    triples = [
        t
        for t in nominal_triples(space.step, ratio, space.nominal_tolerance, maxima)
        if t != (100, 100, 100)  # the baseline itself
        and side_at(base, t[2] / 100, space.resolution_step) in wasted
        and side_at(base, t[2] / 100, space.resolution_step) <= top
    ]
    # of several triples that build one network, the paper's own, else the first
    paper = tuple(round_half_up(100 * c) for c in (PAPER.alpha, PAPER.beta, PAPER.gamma))
    triples.sort(key=lambda t: t != paper)
    built = []
    for t, net in lattice(base, triples, classes, space.resolution_step):
        s, side = Scaling(t[0] / 100, t[1] / 100, t[2] / 100), net.resolution
        built.append(_candidate(base, s, side, classes, budget=budget, wasted=wasted[side]))
    if not built:
        every = nominal_triples(space.step, ratio, 10.0, maxima)
        near = min(every, key=lambda t: abs(t[0] * t[1] ** 2 * t[2] ** 2 / 1e10 - ratio))
        product = near[0] * near[1] ** 2 * near[2] ** 2 / 1e10
        raise UserError(
            f"budget {budget}: no alpha, beta, gamma on the lattice within {space.nominal_tolerance:.0%} and "
            f"{top:g} px; the nearest is {near[0] / 100}, {near[1] / 100}, {near[2] / 100} at {product:.3f}. "
            "Take a smaller step, wider bounds or a smaller base resolution"
        )
    return built


# ---- which of them are trained


def _real_at(c: Candidate) -> Shares | None:
    return c.shares


def _nominal_at(c: Candidate) -> Shares | None:
    """Where the bare coefficients point: on the paper's lattice these name a network, not its real
    cost."""
    return nominal_shares(Scaling(c.alpha, c.beta, c.gamma))


def choose(
    cells: list[Candidate],
    count: int | None,
    at: Callable[[Candidate], Shares | None] = _real_at,
    sampler: str = "lattice",
    seed: int = 0,
) -> tuple[list[Candidate], list[str]]:
    """The named directions first, then for each point of a lattice or a Sobol sequence over the
    shares the nearest network, unless it is taken; what is still free after that, each time the one
    farthest from all chosen. And a line for each direction that no network comes near.

    Points of the lattice come farthest first too, so that a study that is stopped early has seen
    the whole map."""
    missing: list[str] = []
    chosen: dict[str, Candidate] = {}
    places = {c.key: at(c) for c in cells}

    def away(c: Candidate, aim: Shares | None) -> float:
        return apart(places[c.key], aim)

    def lonely(point: Shares | None) -> float:
        return min((apart(places[k], point) for k in chosen), default=0.0)

    most = len(cells) if count is None else count

    def add(c: Candidate, name: str) -> None:
        if c.key not in chosen and len(chosen) >= most:
            return
        before = chosen.get(c.key, c)
        chosen[c.key] = replace(before, directions=(*before.directions, name))

    for name, aim in NAMED.items():
        by_distance = sorted(cells, key=lambda c: (away(c, aim), c.key))
        nearest = by_distance[0]
        if away(nearest, aim) > _NEAR:
            missing.append(
                f"{name} is unreachable; the nearest of this cost is {nearest.label} "
                f"({nearest.ratio:.2f}x), too far from it to stand for it"
            )
            continue
        add(nearest, name if away(nearest, aim) <= _EXACT else f"nearest to {name}")
        if name == "paper":
            for c in by_distance[1:3]:
                if away(c, aim) <= _BRACKET:
                    add(c, "beside the paper")
    steps = next(m for m in itertools.count(1) if (m + 1) * (m + 2) // 2 >= most)
    points = sobol(most, seed) if sampler == "sobol" else simplex(steps)
    while points and len(chosen) < most:
        point = points[0] if sampler == "sobol" else max(points, key=lambda p: (lonely(p), p))
        points.remove(point)
        nearest = min(cells, key=lambda c: (away(c, point), c.key))
        chosen.setdefault(nearest.key, nearest)
    rest = [c for c in cells if c.key not in chosen]
    while rest and len(chosen) < most:
        farthest = max(rest, key=lambda c: (lonely(places[c.key]), c.key))
        chosen[farthest.key] = farthest
        rest.remove(farthest)
    return list(chosen.values()), missing
