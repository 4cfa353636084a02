"""Does the verdict keep its word on real curves? One half of a recorded study's seeds against the
other: the part of calibration.py that simulates nothing (`--recorded`).

Of each recorded study, each of its budgets and each length of runs: the verdict from a random half
of the seeds, its bound and its set of what could be best, held against the means of the other half.

Those means are noisy, and the best of noisy means lies above the best network (the winner's curse),
so a bound that is right 95% of the time is exceeded more often than that. How often is known: the
model that makes the statement says how networks may lie and how one run varies, so it is asked for
samples of both, and the same comparison is made with each sample as the truth and noisy means drawn
around it. *Expected* is how often that holds; *observed* is how often the other half does. A model
that keeps its word has them alike, whatever the noise. Beside it *all runs*: the probability that
the statement of the half was right, by the model of all the study's runs, whose posterior draws
noisy means together and so is free of the curse; it should be 0.95, though it has seen the first
half too.

Intervals hold 95% of resamples of studies, since halves of one study are much alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.recorded import recorded
from effnet.budget import Budget
from scaling_search.results.record import Record
from scaling_search.study.settings import Study
from scaling_search.verdict.chances import CONFIDENCE, chances, tied_set
from scaling_search.verdict.lengths import at_length
from scaling_search.verdict.posterior import Array
from scaling_search.verdict.verdict import Model, model

STUDIES = Path(__file__).resolve().parent.parent / "studies"
HALVES = 10  # of one study; fewer where there are not so many
FEWEST = 4  # networks: with fewer there is little to be wrong about
RESAMPLES = 2000


@dataclass(frozen=True)
class Experiment:
    """Runs of one length of a recorded study's budget, every network with every seed."""

    name: str
    study: Study
    budget: Budget
    runs: tuple[Record, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Held:
    """Of one half of the seeds: whether its statements held against the other half's means, how
    often they would if the model were right, and how probable they are by all runs."""

    bound: float
    bound_held: bool
    bound_expected: float
    bound_by_all: float
    tied: int
    tied_held: bool
    tied_expected: float
    tied_by_all: float


def experiments(folder: Path) -> list[Experiment]:
    """Return what a recorded study holds; nothing of lengths with one seed."""
    study, every = recorded(folder)
    found = []
    for budget, epochs in itertools.product(study.budgets, study.rungs):
        runs, short_study = at_length(every, study, epochs)
        done = [r for r in runs if r.done and r.candidate.budget == budget]
        keys = {r.candidate.key for r in done}
        seeds_of = {key: {r.seed for r in done if r.candidate.key == key} for key in keys}
        seeds = sorted(set.intersection(*seeds_of.values())) if seeds_of else []
        if len(seeds) < 2 or len(keys) < FEWEST:
            continue
        name = f"{folder.name}, {budget}, {epochs} of {study.rungs[-1]} epochs"
        complete = tuple(r for r in done if r.seed in seeds)
        # so that none of them counts as a fresh seed, which a verdict leaves out
        short_study = short_study.model_copy(update={"seed": seeds[-1]})
        found.append(Experiment(name, short_study, budget, complete, tuple(seeds)))
    return found


def halves(seeds: Sequence[int], most: int = HALVES) -> list[tuple[int, ...]]:
    """Return different random halves of the seeds, the smaller one where their number is odd: what
    is left is the other half."""
    every = list(itertools.combinations(seeds, len(seeds) // 2))
    order = np.random.default_rng(len(seeds)).permutation(len(every))
    return [every[i] for i in order[:most]]


def judge(experiment: Experiment, half: Sequence[int]) -> Held:
    """Hold the verdict of one half of the seeds against the other half."""
    runs = [r for r in experiment.runs if r.seed in half]
    other = [r for r in experiment.runs if r.seed not in half]
    fitted = model(runs, experiment.study, experiment.budget)
    of_all = model(experiment.runs, experiment.study, experiment.budget)
    assert fitted is not None and of_all is not None
    samples = fitted.sample()
    pick, best, bound = chances(samples.accuracy)
    tied = sorted({*tied_set(best), pick})
    seeds = len({r.seed for r in other})

    means = _means(other, fitted)
    random = np.random.default_rng(0)
    error = samples.noise / seeds**0.5
    noisy = samples.accuracy + error * random.standard_normal(samples.accuracy.shape)
    truth = _in_order(of_all, fitted)
    return Held(
        bound=bound,
        bound_held=bool(means.max() - means[pick] <= bound),
        bound_expected=float((noisy.max(1) - noisy[:, pick] <= bound).mean()),
        bound_by_all=float((truth.max(1) - truth[:, pick] <= bound).mean()),
        tied=len(tied),
        tied_held=int(means.argmax()) in tied,
        tied_expected=float(np.isin(noisy.argmax(1), tied).mean()),
        tied_by_all=float(np.isin(truth.argmax(1), tied).mean()),
    )


def _means(runs: Sequence[Record], fitted: Model) -> Array:
    """Each network's mean accuracy, in the model's order; every one has the same seeds."""
    return np.array(
        [np.mean([r.val_acc for r in runs if r.candidate.key == key]) for key in fitted.keys]
    )


def _in_order(of_all: Model, fitted: Model) -> Array:
    """Samples [samples, networks] of the model of all runs, in the order of the other model."""
    accuracies = of_all.sample().accuracy
    column = {key: place for place, key in enumerate(of_all.keys)}
    return accuracies[:, [column[key] for key in fitted.keys]]


def _judge(job: tuple[Experiment, tuple[int, ...]]) -> Held:
    return judge(*job)


def _column(groups: Mapping[str, Sequence[Held]], field: str) -> Array:
    """The mean over halves of each experiment."""
    return np.array([np.mean([getattr(h, field) for h in held]) for held in groups.values()])


def _in_words(means: Array) -> str:
    return "{:.3f} ({:.3f} to {:.3f})".format(*_interval(means))


def _interval(means: Array) -> tuple[float, float, float]:
    """The mean over experiments, and the interval over resamples of them."""
    random = np.random.default_rng(0)
    drawn = means[random.integers(0, len(means), (RESAMPLES, len(means)))].mean(1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(means.mean()), float(low), float(high)


def report(folders: Sequence[Path], workers: int) -> list[str]:
    """Print the table; return the statements that held less often than expected, beyond what the
    choice of studies explains."""
    every = [experiment for folder in folders for experiment in experiments(folder)]
    jobs = [(experiment, half) for experiment in every for half in halves(experiment.seeds)]
    with ProcessPoolExecutor(workers) as pool:
        results = list(pool.map(_judge, jobs))
    groups: dict[str, list[Held]] = {experiment.name: [] for experiment in every}
    for (experiment, _), held in zip(jobs, results, strict=True):
        groups[experiment.name].append(held)

    networks = {e.name: len({r.candidate.key for r in e.runs}) for e in every}
    seeds = {e.name: len(e.seeds) for e in every}
    print("the half's statements against the other half: observed, expected; by all runs")
    print(
        f"{'':<58}{'networks':>9}{'seeds':>6}{'halves':>7}{'bound':>7}{'holds':>18}{'':>6}", end=""
    )
    print(f"{'set':>6}{'holds':>18}")
    for name, held in groups.items():
        bound = 100 * np.mean([h.bound for h in held])
        tied = np.mean([h.tied for h in held])
        print(
            f"{name:<58}{networks[name]:>9}{seeds[name]:>6}{len(held):>7}{bound:>7.2f}"
            f"{_three(held, 'bound'):>24}{tied:>6.1f}{_three(held, 'tied'):>24}"
        )
    misses = []
    for statement, what in (("bound", "bound"), ("tied", "set of what could be best")):
        observed = _column(groups, f"{statement}_held")
        expected = _column(groups, f"{statement}_expected")
        difference, low, high = _interval(observed - expected)
        print(
            f"{what}: observed {_in_words(observed)}, expected {_in_words(expected)}, "
            f"apart {difference:+.3f} ({low:+.3f} to {high:+.3f}); "
            f"by all runs {_in_words(_column(groups, f'{statement}_by_all'))}"
        )
        if high < 0:
            misses.append(f"recorded studies, {what}: {difference:+.3f}, at most {high:+.3f}")
    return misses


def _three(held: Sequence[Held], statement: str) -> str:
    columns = ("held", "expected", "by_all")
    means = [np.mean([getattr(h, f"{statement}_{column}") for h in held]) for column in columns]
    return "{:.2f}, {:.2f}; {:.2f}".format(*means)
