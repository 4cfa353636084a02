"""What the runs say: for now the plain statistics, in plain words.

Accuracies at the last rung follow y(network, seed) = network + seed + noise: the seed's part (its
initialisation and its validation fold) is common to all networks, the noise is pooled over those that
were repeated. Two networks cannot be told apart when they lie within two standard errors of their difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from scaling_search.space import NAMED, Candidate
from scaling_search.store import Record


@dataclass(frozen=True, slots=True)
class Row:
    """One network at the last rung. `mean` is adjusted to the average over all seeds used; accuracies are
    fractions. `behind` is the pick minus this network, `behind_error` its standard error."""

    candidate: Candidate
    mean: float
    error: float
    seeds: int
    behind: float
    behind_error: float
    test: float | None  # mean over its tested runs

    @property
    def tied(self) -> bool:
        return self.behind <= 2 * self.behind_error


@dataclass(frozen=True, slots=True)
class Verdict:
    """For one budget: the pick, everything else of that cost, the baseline. Best first."""

    budget: str
    pick: Row
    rows: tuple[Row, ...]  # the candidates of this budget, the pick among them
    baseline: Row | None
    references: tuple[Row, ...]
    dropped: tuple[Candidate, ...]  # finished a lower rung, and were not promoted
    noise: float  # standard deviation of one run around its network
    repeats: int  # degrees of freedom behind `noise`; 0: from the count of validation images alone
    failed: tuple[Candidate, ...]

    @property
    def equal_cost(self) -> bool:
        """Whether these networks may be compared without saying what each costs."""
        ratios = [row.candidate.ratio for row in self.rows]
        return max(ratios) <= 1.1 * min(ratios)

    @property
    def tied(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.tied)

    def named(self, name: str) -> Row | None:
        """The network that stands for a direction, exactly or nearest."""
        for row in self.rows:
            if any(d in (name, f"nearest to {name}") for d in row.candidate.directions):
                return row
        return None

    def beside(self, row: Row) -> str:
        """A network against the pick, in words."""
        return "it is the pick" if row.candidate.key == self.pick.candidate.key else against(row)

    @property
    def best_single(self) -> tuple[str, Row] | None:
        """The best of depth only, width only, resolution only."""
        found = [(name, self.named(name)) for name in NAMED if name != "paper"]
        reached = [(name, row) for name, row in found if row is not None]
        return max(reached, key=lambda pair: pair[1].mean) if reached else None


def verdicts(records: list[Record], epochs: int) -> list[Verdict]:
    """One for each budget with a finished network, from the runs of the last rung."""
    last = [r for r in records if r.epochs == epochs]
    done = [r for r in last if r.done]
    if not done:
        return []
    means, covariance, noise, repeats = _fit(done)
    seeds = {key: sum(r.candidate.key == key for r in done) for key in means}
    networks = {r.candidate.key: r.candidate for r in last}
    keys = list(means)

    def row(key: str, pick: str) -> Row:
        i, j = keys.index(key), keys.index(pick)
        spread = covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]
        tests = [r.test_acc for r in done if r.candidate.key == key and r.test_acc is not None]
        return Row(
            candidate=networks[key],
            mean=means[key],
            error=math.sqrt(covariance[i, i]),
            seeds=seeds[key],
            behind=means[pick] - means[key],
            behind_error=math.sqrt(max(0.0, spread)),
            test=float(np.mean(tests)) if tests else None,
        )

    found = []
    candidates = [c for c in networks.values() if c.role == "candidate"]
    for budget in dict.fromkeys(c.budget for c in candidates):
        group = [c for c in candidates if c.budget == budget]
        finished = [c.key for c in group if c.key in means]
        if not finished:
            continue
        # the pick is one of those measured most often: a single lucky run is no finalist
        most = max(seeds[key] for key in finished)
        pick = max((key for key in finished if seeds[key] == most), key=lambda key: means[key])
        base = next((c.key for c in networks.values() if c.role == "baseline" and c.key in means), None)
        references = [c.key for c in networks.values() if c.role == "reference" and c.key in means]
        lower = {r.candidate.key: r.candidate for r in records if r.epochs < epochs and r.done}
        found.append(
            Verdict(
                budget=budget,
                pick=row(pick, pick),
                rows=tuple(sorted((row(k, pick) for k in finished), key=lambda r: (-r.mean, r.candidate.key))),
                baseline=row(base, pick) if base else None,
                references=tuple(row(key, pick) for key in references),
                dropped=tuple(
                    c for k, c in lower.items() if c.role == "candidate" and c.budget == budget and k not in networks
                ),
                noise=noise,
                repeats=repeats,
                failed=tuple(c for c in group if c.key not in means),
            )
        )
    return found


def _fit(done: list[Record]) -> tuple[dict[str, float], np.ndarray, float, int]:
    """Least squares for network + seed: (means per network at the average seed, their covariance, noise, degrees
    of freedom)."""
    keys = list(dict.fromkeys(r.candidate.key for r in done))
    seeds = sorted({r.seed for r in done})
    y = np.array([r.val_acc for r in done])
    x = np.zeros((len(done), len(keys) + len(seeds) - 1))
    for i, r in enumerate(done):
        x[i, keys.index(r.candidate.key)] = 1
        # sum-to-zero coding: the last seed is minus the sum of the others, so a network's coefficient
        # is its mean over all seeds
        s = seeds.index(r.seed)
        if s < len(seeds) - 1:
            x[i, len(keys) + s] = 1
        else:
            x[i, len(keys) :] = -1
    solution, _, rank, _ = np.linalg.lstsq(x, y, rcond=None)
    repeats = len(done) - int(rank)
    residual = float(((y - x @ solution) ** 2).sum())
    noise = math.sqrt(residual / repeats) if repeats else 0.0
    if repeats < 3:  # too few to trust a small value: never below what the count of validation images alone gives
        images = 4 * max(len(r.outcome.right) for r in done if r.outcome)  # bits, in hex digits
        p = float(np.clip(y.mean(), 0.01, 0.99))
        noise = max(noise, math.sqrt(p * (1 - p) / max(1, images)))
    covariance = np.linalg.pinv(x.T @ x)[: len(keys), : len(keys)] * noise**2
    return dict(zip(keys, solution[: len(keys)].tolist(), strict=True)), covariance, noise, repeats


# ---- in words


def points(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def percent(share: float) -> str:
    return f"{round(100 * share)}%"  # rounds to an integer, which has no minus zero


def against(row: Row) -> str:
    """'1.1 ± 0.9 below', 'not to be told apart (0.2 ± 0.8)'."""
    size = f"{points(abs(row.behind))} ± {points(2 * row.behind_error)}"
    if abs(row.behind) <= 2 * row.behind_error:
        return f"cannot be told apart ({points(-row.behind)} ± {points(2 * row.behind_error)} points)"
    return f"{size} points {'below' if row.behind > 0 else 'above'}"


def coefficients(c: Candidate) -> str:
    return f"alpha {c.alpha:.3g}, beta {c.beta:.3g}, gamma {c.gamma:.3g}"


def share_words(c: Candidate) -> str:
    if c.shares is None:
        return "shares: none, it is the baseline's cost"
    depth, width, resolution = (percent(share) for share in c.shares)
    return f"shares: depth {depth} width {width} resolution {resolution}"


def noise_words(v: Verdict) -> str:
    if v.repeats:
        rough = ", so every ± here is itself rough and two standard errors miss more than 5%" if v.repeats < 10 else ""
        repeats = "1 repeat" if v.repeats == 1 else f"{v.repeats} repeats"
        return f"one run varies by ± {points(v.noise)} points (from {repeats}{rough})"
    return f"no run was repeated; ± {points(v.noise)} points a run is what the number of validation images alone gives"


def tied_words(v: Verdict) -> str:
    """A whole sentence."""
    total, tied = len(v.rows), len(v.tied)
    ratios = [row.candidate.ratio for row in v.rows]
    cost = "of this cost" if v.equal_cost else f"that really cost {min(ratios):.2f}x to {max(ratios):.2f}x"
    if total == 1:
        sentence = "It is the only network of this cost that finished"
    elif tied == total:
        sentence = f"All {total} networks {cost} are tied: within two standard errors none can be told apart from it"
    elif tied == 1:
        sentence = f"Each of the other {total - 1} networks {cost} lies more than two standard errors below it"
    else:
        sentence = f"{tied} of {total} networks {cost}, itself among them, cannot be told apart (two standard errors)"
    if v.dropped:
        named = [f"{c.label} ({', '.join(c.directions)})" for c in v.dropped if c.directions]
        sentence += f"; {len(v.dropped)} more were left behind at fewer epochs" + (
            f", among them {'; '.join(named)}" if named else ""
        )
    return sentence


def single_words(v: Verdict) -> str | None:
    """The best single dimension against the pick; None where none was reached."""
    if v.best_single is None:
        return None
    name, row = v.best_single
    exact = name in row.candidate.directions
    return f"{name if exact else f'nearest to {name}'}, {row.candidate.label}: {v.beside(row)}"


def baseline_words(v: Verdict) -> str | None:
    """What the larger cost has brought."""
    if v.baseline is None:
        return None
    cost = f"at {1 / v.pick.candidate.ratio:.2f} of the pick's cost"
    words = f"val {points(v.baseline.mean)}, {cost}: {against(v.baseline)}"
    if v.pick.candidate.ratio > 1 and v.baseline.tied:
        words += ". The extra cost does not show at this length of training: train longer before trusting a direction"
    return words
