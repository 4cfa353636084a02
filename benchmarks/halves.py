"""Does the verdict keep its word on real curves? One half of a recorded study's seeds against the
other: the part of calibration.py that simulates nothing (`--recorded`).

Of each budget of each recorded study: the verdict from a random half of the seeds, as users get it
(every rung, the baseline too), its bound and its set of what could be best, held against the other
half's means after the longest runs. Seeds that validate on the same fold share its images, so they
stay in one half.

Those means are noisy, and the best of noisy means lies above the best network (the winner's curse),
so a bound that is right 95% of the time is exceeded more often than that. How often is known: the
model that makes the statement says how networks may lie and how one run varies, so it is asked for
samples of both, and the same comparison is made with each sample as the truth and noisy means drawn
around it. *Expected* is how often that holds; *observed* is how often the other half does. A model
that keeps its word has them alike, whatever the noise (which is taken as the model's mean of it).
Beside them *all runs*: the probability that the half's statement was right, by the model of all the
study's runs, whose posterior draws noisy means together and so is free of the curse. It should be
0.95 at least; but it has seen the first half too.

Intervals are t intervals over studies (folders), since what comes from one is much alike. Studies
of networks of unequal cost are left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.recorded import recorded
from effnet.budget import Budget
from scaling_search import UserError
from scaling_search.data.dataset import FOLDS
from scaling_search.results.record import Record
from scaling_search.study.settings import Study
from scaling_search.verdict.chances import chances, tied_set
from scaling_search.verdict.confirm import half_interval
from scaling_search.verdict.posterior import Array
from scaling_search.verdict.verdict import Model, model

HALVES = 10  # of one study; fewer where there are not so many
FEWEST = 4  # networks: with fewer there is little to be wrong about


@dataclass(frozen=True)
class Experiment:
    """A recorded study's budget: every network with every seed after the longest runs."""

    folder: str
    study: Study
    budget: Budget
    runs: tuple[Record, ...]
    seeds: tuple[int, ...]
    networks: int

    @property
    def name(self) -> str:
        return f"{self.folder}, {self.budget}"


@dataclass(frozen=True)
class Statement:
    """Of one half: whether a statement held against the other half's means, how often it would if
    the model were right, and how probable it is by all runs. `size`: points of the bound, networks
    of the set."""

    size: float
    held: float
    expected: float
    by_all: float


def experiments(folder: Path) -> list[Experiment]:
    """Return what a recorded study can be asked; nothing of one fold, or of unequal costs."""
    study, runs = recorded(folder, ("candidate", "baseline"))
    every = []
    for budget in study.budgets:
        own = [r for r in runs if r.candidate.role != "candidate" or r.candidate.budget == budget]
        seeds_of: dict[str, set[int]] = {}
        for r in own:
            if r.done and r.candidate.role == "candidate" and r.epochs == study.rungs[-1]:
                seeds_of.setdefault(r.candidate.key, set()).add(r.seed)
        common = sorted(set.intersection(*seeds_of.values())) if seeds_of else []
        folds = {seed % FOLDS for seed in common}
        if len(folds) < 2 or len(seeds_of) < FEWEST or study.space.mode == "nominal":
            continue
        complete = tuple(r for r in own if r.seed in common)
        # so that none of the seeds counts as a fresh one, which a verdict leaves out
        study_of = study.model_copy(update={"seed": common[-1]})
        every.append(
            Experiment(folder.name, study_of, budget, complete, tuple(common), len(seeds_of))
        )
    return every


def halves(seeds: Sequence[int], most: int = HALVES) -> list[tuple[int, ...]]:
    """Return different random halves of the seeds, those of a fold together; where the number of
    folds is odd, the one with fewer. What is left is the other half."""
    folds = sorted({seed % FOLDS for seed in seeds})
    every = list(itertools.combinations(folds, len(folds) // 2))
    order = np.random.default_rng(len(seeds)).permutation(len(every))
    chosen = [every[i] for i in order[:most]]
    return [tuple(seed for seed in seeds if seed % FOLDS in half) for half in chosen]


def judge(experiment: Experiment) -> list[tuple[Statement, Statement]]:
    """Hold the verdicts of some halves of the seeds against the other halves: of each the bound and
    the set of what could be best."""
    of_all = model(experiment.runs, experiment.study, experiment.budget)
    assert of_all is not None
    statements = []
    for half in halves(experiment.seeds):
        fitted = model(
            [r for r in experiment.runs if r.seed in half], experiment.study, experiment.budget
        )
        assert fitted is not None
        other = [r for r in experiment.runs if r.seed not in half]
        statements.append(_statements(fitted, of_all, other, experiment.study))
    return statements


def _statements(
    fitted: Model, of_all: Model, other: Sequence[Record], study: Study
) -> tuple[Statement, Statement]:
    keys = [c.key for c in fitted.networks if c.role == "candidate"]
    samples = fitted.sample()
    accuracy = samples.accuracy[:, [fitted.keys.index(key) for key in keys]]
    pick, best, bound = chances(accuracy)
    tied = sorted({*tied_set(best), pick})

    of_network: dict[str, list[float]] = {key: [] for key in keys}
    for r in other:
        if r.done and r.epochs == study.rungs[-1] and r.candidate.key in of_network:
            of_network[r.candidate.key].append(r.val_acc)
    means = np.array([[np.mean(of_network[key]) for key in keys]])
    error = samples.noise / len(of_network[keys[0]]) ** 0.5
    noisy = accuracy + error * np.random.default_rng(0).standard_normal(accuracy.shape)
    truth = of_all.sample().accuracy[:, [of_all.keys.index(key) for key in keys]]

    def holds_bound(values: Array) -> float:
        return float((values.max(1) - values[:, pick] <= bound).mean())

    def holds_set(values: Array) -> float:
        return float(np.isin(values.argmax(1), tied).mean())

    def statement(size: float, holds: Callable[[Array], float]) -> Statement:
        return Statement(size, holds(means), holds(noisy), holds(truth))

    return statement(100 * bound, holds_bound), statement(len(tied), holds_set)


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of one value a study, and its t interval."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, -np.inf, np.inf
    half = half_interval(values)
    return mean, mean - half, mean + half


def report(paths: Sequence[Path], workers: int) -> list[str]:
    """Print the table; return the statements that held less often than expected, beyond what the
    choice of studies explains. Raises UserError where there is nothing to judge."""
    every = [experiment for path in paths for experiment in experiments(path)]
    if not every:
        raise UserError("no study has networks of one cost with seeds of two folds or more")
    with ProcessPoolExecutor(workers) as pool:
        results = list(pool.map(judge, every))
    print("a half's statements against the other half's means")
    print(f"{'':<36}networks seeds halves   bound, points: observed,   networks in the set:")
    print(f"{'':<59}expected; by all runs      observed, expected; by all")
    for experiment, statements in zip(every, results, strict=True):
        line = f"{experiment.name:<36}{experiment.networks:>8}{len(experiment.seeds):>6}"
        line += f"{len(statements):>7}"
        for of_kind in zip(*statements, strict=True):
            size, held, expected, by_all = np.mean(
                [(s.size, s.held, s.expected, s.by_all) for s in of_kind], axis=0
            )
            line += f"{size:>8.2f}: {held:.2f}, {expected:.2f}; {by_all:.2f}"
        print(line)
    misses = []
    for kind, what in enumerate(("bound", "set of what could be best")):
        columns: dict[str, list[tuple[float, float, float]]] = {}
        for experiment, statements in zip(every, results, strict=True):
            for pair in statements:
                s = pair[kind]
                columns.setdefault(experiment.folder, []).append((s.held, s.expected, s.by_all))
        of_study = np.array([np.mean(values, axis=0) for values in columns.values()])
        observed, expected, by_all = of_study.T
        difference = _interval(observed - expected)
        print(
            f"{what}: observed {observed.mean():.3f}, expected {expected.mean():.3f}, difference "
            f"{difference[0]:+.3f} ({difference[1]:+.3f} to {difference[2]:+.3f}) over "
            f"{len(of_study)} studies; by all runs {by_all.mean():.3f}"
        )
        if difference[2] < 0:
            misses.append(f"recorded studies, {what}: {difference[0]:+.3f}")
    return misses
