"""How much of the ranking does one run settle, and what does it cost?

    python benchmarks/information.py [FOLDER ...]

A folder holds a study's curves (all its .parquet tables): every network with several seeds of one
length. Without one, those under studies/ are taken. Of each study and each view of a run (accuracy,
losses; higher is better):

- between, run: standard deviation of the networks' means, and of one run around its network, once
  the seeds' common part is taken off (two-way analysis of variance);
- ratio: between² / run², and per CPU-second of training;
- reliability: between² / (between² + run²), the intraclass correlation of one run;
- tau: Kendall's rank correlation of one run with the mean accuracy of the other seeds.

"all" is a composite of the views, standardised, whose weights are those of a shrunk discriminant
(Fisher's) towards the networks' mean accuracies on some seeds, and which is judged on the others.

Then the verdict, from 1, 2 and 3 seeds: the regret of its pick and its loss bound, against the mean
of the seeds that it has not seen. These are noisy themselves, so every regret is too large, alike
for all.

Intervals hold 95% of resamples of networks (with replacement) and seeds (a random part of them).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.recorded import recorded
from scaling_search.results.record import Record, by_network_key
from scaling_search.study.settings import Study
from scaling_search.training.trial import Epoch
from scaling_search.verdict.posterior import Array
from scaling_search.verdict.verdict import chances, model

STUDIES = Path(__file__).parent.parent / "studies"
RESAMPLES = 1000
SHRINKAGE = 0.3  # of the views' covariance within networks, towards its diagonal
SUBSETS = 10  # of so many seeds, for the verdict; six from one of six seeds

VIEWS: dict[str, Callable[[Record], float]] = {
    "accuracy": lambda run: run.val_acc,
    # logarithms, whose noise is even over networks
    "validation loss": lambda run: -math.log(epochs(run)[-1].val_loss),
    "training loss": lambda run: -math.log(epochs(run)[-1].train_loss),
    "sum of training losses": lambda run: -math.log(sum(e.train_loss for e in epochs(run))),
}


def epochs(run: Record) -> tuple[Epoch, ...]:
    assert run.outcome is not None
    return run.outcome.epochs


@dataclass(frozen=True)
class Table:
    """Runs of one length: `views` [views, networks, seeds] and `seconds`, the median of a run's."""

    name: str
    study: Study
    views: Array
    seconds: float
    runs: tuple[Record, ...]


@functools.cache
def load(folder: Path) -> Table:
    """The runs of a study's last rung, of the networks that have every seed."""
    study, every = recorded(folder)
    runs = [run for run in every if run.done and run.epochs == study.rungs[-1]]
    seeds = sorted({run.seed for run in runs})
    by_place = {(run.candidate.key, run.seed): run for run in runs}
    networks = dict.fromkeys(run.candidate.key for run in runs)
    complete = [n for n in networks if all((n, seed) in by_place for seed in seeds)]
    views = np.array(
        [
            [[view(by_place[network, seed]) for seed in seeds] for network in complete]
            for view in VIEWS.values()
        ]
    )
    seconds = float(np.median([run.outcome.seconds for run in runs if run.outcome]))
    return Table(folder.name, study, views, seconds, tuple(runs))


# ---- what one run says


def variances(values: Array) -> tuple[float, float]:
    """Between-network and run variance of `values` [networks, seeds], by two-way analysis of
    variance without replication; the first is not below 0."""
    networks, seeds = values.shape
    of_network = values.mean(1, keepdims=True)
    of_seed = values.mean(0, keepdims=True)
    rest = values - of_network - of_seed + values.mean()
    run = float((rest**2).sum() / ((networks - 1) * (seeds - 1)))
    total = float(of_network.var(ddof=1))
    return max(total - run / seeds, 0.0), run


def reliability(values: Array) -> float:
    between, run = variances(values)
    return between / (between + run) if between + run > 0 else 0.0


def rank_correlation(values: Array, accuracy: Array) -> float:
    """Mean Kendall's tau of one seed of `values` with the other seeds' mean of `accuracy`."""
    seeds = range(values.shape[1])
    taus = []
    for seed in seeds:
        others = [other for other in seeds if other != seed]
        taus.append(kendalltau(values[:, seed], accuracy[:, others].mean(1)).statistic)
    return float(np.nanmean(taus))


def composite(views: Array, train: Sequence[int]) -> Array:
    """The views [views, networks, seeds] as one [networks, seeds], weighted by what they say on the
    seeds `train`."""
    centred = views - views.mean(1, keepdims=True)  # the seed's common part
    scale = centred[:, :, train].std((1, 2), keepdims=True)
    standard = centred / np.maximum(scale, 1e-12)
    known = standard[:, :, train]
    means = known.mean(2)
    within = known - means[:, :, None]
    networks = views.shape[1]
    of_runs = np.einsum("ans,bns->ab", within, within) / (networks * max(len(train) - 1, 1))
    shrunk = (1 - SHRINKAGE) * of_runs + SHRINKAGE * np.diag(np.diag(of_runs))
    # towards what the views have in common with the accuracy's network means, and not towards
    # whatever separates networks best
    weights = np.linalg.solve(shrunk, means @ means[0] / networks)
    return np.asarray(np.tensordot(weights, standard, 1))


def reliability_of_all(views: Array) -> float:
    """Reliability of the composite, fitted on each half of the seeds and judged on the other; nan
    with fewer than two seeds in each."""
    seeds = range(views.shape[2])
    half = len(seeds) // 2
    if half < 2:
        return math.nan
    values = []
    for train in (seeds[:half], seeds[half:]):
        test = [seed for seed in seeds if seed not in train]
        values.append(reliability(composite(views, train)[:, test]))
    return float(np.mean(values))


def resampled(table: Table, statistic: Callable[[Array], float]) -> tuple[float, float, float]:
    """A statistic of views [views, networks, seeds], and the interval of its resamples."""
    rng = np.random.default_rng(0)
    _, networks, seeds = table.views.shape
    values = []
    for _ in range(RESAMPLES):
        rows = rng.integers(networks, size=networks)
        columns = np.unique(rng.integers(seeds, size=seeds))
        if len(columns) >= 2:
            values.append(statistic(table.views[:, rows][:, :, columns]))
    low, high = np.nanquantile(values, [0.025, 0.975])
    return statistic(table.views), float(low), float(high)


# ---- what a verdict says


@dataclass(frozen=True)
class Answer:
    """A verdict from some seeds, in points: `regret` against the unseen ones."""

    seeds: int
    regret: float
    bound: float

    @property
    def held(self) -> bool:
        return self.regret <= self.bound


def answer(job: tuple[Path, tuple[int, ...]]) -> Answer:
    """The verdict on a study's networks from the seeds of these numbers."""
    folder, columns = job
    table = load(folder)
    seeds = sorted({run.seed for run in table.runs})
    number = {seeds[column]: i for i, column in enumerate(columns)}
    seen, unseen = [], by_network_key([r for r in table.runs if r.seed not in number])
    for run in table.runs:
        if run.seed in number:
            # numbered anew: seeds far above the study's first one only confirm a verdict
            seen.append(replace(run, seed=table.study.seed + number[run.seed]))
    one_rung = table.study.model_copy(update={"rungs": table.study.rungs[-1:]})
    fitted = model(seen, one_rung, table.study.budgets[0])
    assert fitted is not None
    accuracy = fitted.sample().accuracy
    pick, _, bound = chances(accuracy)
    truth = {key: float(np.mean([r.val_acc for r in runs])) for key, runs in unseen.items()}
    regret = max(truth.values()) - truth[fitted.keys[pick]]
    return Answer(len(columns), 100 * regret, 100 * bound)


def subsets(seeds: int, size: int) -> list[tuple[int, ...]]:
    every = list(itertools.combinations(range(seeds), size))
    chosen = np.random.default_rng(size).permutation(len(every))[:SUBSETS]
    return [every[i] for i in sorted(chosen.tolist())]


# ---- tables


def report(table: Table) -> None:
    """Print what one run says."""
    _, networks, seeds = table.views.shape
    print(f"\n{table.name}: {networks} networks, {seeds} seeds, {table.seconds:.1f} s a run")
    print(f"{'view':24} between   run  ratio (95%)           per s   reliability (95%)   tau (95%)")
    for number, name in enumerate(VIEWS):
        between, run = variances(table.views[number])
        unit = 100 if name == "accuracy" else 1
        ratio = resampled(table, lambda views, n=number: _ratio(views[n]))
        reliable = resampled(table, lambda views, n=number: reliability(views[n]))
        tau = resampled(table, lambda views, n=number: rank_correlation(views[n], views[0]))
        print(
            f"{name:24} {unit * between**0.5:7.2f} {unit * run**0.5:5.2f}  {_words(ratio)}  "
            f"{ratio[0] / table.seconds:6.3f}  {_words(reliable)}   {_words(tau)}"
        )
    if seeds >= 4:
        print(f"{'all':72} {_words(resampled(table, reliability_of_all))}")


def _ratio(values: Array) -> float:
    between, run = variances(values)
    return between / run if run > 0 else float("inf")


def _words(interval: tuple[float, float, float]) -> str:
    value, low, high = interval
    return f"{value:5.2f} ({low:5.2f} to {high:5.2f})"


def report_answers(answers: Sequence[Answer]) -> None:
    print("verdict from  regret  bound  held, in points")
    for size in sorted({a.seeds for a in answers}):
        mine = [a for a in answers if a.seeds == size]
        regret, bound = np.mean([(a.regret, a.bound) for a in mine], axis=0)
        held = sum(a.held for a in mine)
        print(f"{size:12}  {regret:6.2f} {bound:6.2f}  {held} of {len(mine)}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    folders = args.folders or sorted(path.parent for path in STUDIES.glob("*/curves.parquet"))
    for folder in folders:
        table = load(folder)
        report(table)
        seeds = table.views.shape[2]
        jobs = [(folder, s) for size in (1, 2, 3) if size < seeds for s in subsets(seeds, size)]
        with ProcessPoolExecutor(args.workers) as pool:
            answers = list(pool.map(answer, jobs))
        report_answers(answers)


if __name__ == "__main__":
    main()
