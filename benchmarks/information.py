"""How much of the ranking does one run settle, and what does it cost?

    python benchmarks/information.py [FOLDER ...] [--check]

(Not signal.py: a script of that name hides Python's own module.)

A folder holds a study's curves (all its .parquet tables): every network with several seeds of one
length. Without one, those under studies/ are taken. Of each study and each view of a run (accuracy,
losses; higher is better):

- between, run: standard deviation of the networks' means, and of one run around its network, once
  the seeds' common part is taken off (two-way analysis of variance); in points of accuracy, and per
  cent of a loss;
- ratio: between² / run², and per second of training on one thread, which are those of each
  network's fastest run: other programs may have slowed the others;
- reliability: between² / (between² + run²), the intraclass correlation of one run;
- tau: Kendall's rank correlation of one run with the mean accuracy of the other seeds.

"all" is the mean of what the verdict's model sees of a run (accuracy, validation loss, training
loss over all epochs), each standardised: no weights that would have to be learned.

Then the verdict, from 1, 2 and 3 seeds: the regret of its pick and its loss bound, against the mean
of the seeds that it has not seen. The best of noisy means lies above the best network, so every
regret is too large, alike for all, and a bound that holds is exceeded at times. "ahead" is without
that: how far the network that one half of the unseen seeds calls the best is ahead of the pick on
the other half. Beside each number, in brackets, that of the verdict by accuracies alone.

Intervals hold 95% of resamples of networks (with replacement) and seeds (a random part of them).
With --check, exit status 1 where a target is missed (below).
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

from benchmarks.recorded import folders, recorded
from scaling_search.results.record import Record, by_network_key
from scaling_search.study.settings import Study
from scaling_search.training.trial import Epoch
from scaling_search.verdict.chances import chances, tied_set
from scaling_search.verdict.posterior import Array
from scaling_search.verdict.verdict import LOSSES, model

# a value, and the ends of its interval
Interval = tuple[float, float, float]

RESAMPLES = 1000
SUBSETS = 10  # of so many seeds, for the verdict; six from one of six seeds

# The least reliability of one run, all views together, and the longest median run, in seconds of
# one thread: 18 runs on two cores are to end within five minutes.
RELIABILITY = {"quick-cifar10-seeds": 0.5, "quick-imagenette-seeds": 0.4}
LONGEST_RUN = 33.0
# Of the verdict from one seed of this study, in points: regret at most, mean bound at most (0.7 of
# what accuracies alone gave), and how often that held, of six.
ONE_SEED = "imagenette-24px-2x"
MOST_REGRET, WIDEST_BOUND, HELD = 0.5, 0.7 * 1.83, 5

VIEWS: dict[str, Callable[[Record], float]] = {
    "accuracy": lambda run: run.val_acc,
    # logarithms, whose noise is even over networks
    "validation loss": lambda run: -math.log(epochs(run)[-1].val_loss),
    "training loss": lambda run: -math.log(sum(e.train_loss for e in epochs(run))),
    "of the last epoch": lambda run: -math.log(epochs(run)[-1].train_loss),
    "of its last quarter": lambda run: -math.log(float(np.mean(tail(run)))),
}
SEEN = [list(VIEWS).index(name) for name in ("accuracy", *(loss.name for loss in LOSSES))]


def epochs(run: Record) -> tuple[Epoch, ...]:
    assert run.outcome is not None
    return run.outcome.epochs


def tail(run: Record) -> Sequence[float]:
    """The last quarter of the training losses in detail; the last epoch's, where there are none."""
    last = epochs(run)[-1]
    return last.losses[-math.ceil(len(last.losses) / 4) :] or (last.train_loss,)


@dataclass(frozen=True)
class Table:
    """`views` [views, networks, seeds] of the runs of the last rung, and their `seconds`, the
    median over networks of each one's fastest. `runs` has those of every rung."""

    name: str
    study: Study
    views: Array
    seconds: float
    runs: tuple[Record, ...]


@functools.cache
def load(folder: Path) -> Table:
    """The runs of a study, of the networks that have every seed at the last rung."""
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
    fastest: dict[str, float] = {}
    for run in runs:
        if run.outcome:
            key = run.candidate.key
            fastest[key] = min(fastest.get(key, math.inf), run.outcome.seconds)
    seconds = float(np.median([fastest[network] for network in complete]))
    done = tuple(run for run in every if run.done and run.candidate.key in complete)
    return Table(folder.name, study, views, seconds, done)


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


def composite(views: Array) -> Array:
    """The mean [networks, seeds] of the standardised views that the verdict's model sees."""
    seen = views[SEEN]
    centred = seen - seen.mean(1, keepdims=True)  # the seed's common part
    standard = centred / np.maximum(centred.std((1, 2), keepdims=True), 1e-12)
    return np.asarray(standard.mean(0))


def reliability_of_all(views: Array) -> float:
    return reliability(composite(views))


def resampled(table: Table, statistic: Callable[[Array], float]) -> Interval:
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
    ahead: float  # of the pick, by halves of the unseen ones
    bound: float
    tied: int

    @property
    def held(self) -> bool:
        return self.regret <= self.bound


def answers(job: tuple[Path, tuple[int, ...]]) -> tuple[Answer, Answer]:
    """The verdict on a study's networks from the seeds of these numbers; and from their accuracies
    alone."""
    folder, columns = job
    table = load(folder)
    last = [run for run in table.runs if run.epochs == table.study.rungs[-1]]
    seeds = sorted({run.seed for run in last})
    number = {seeds[column]: i for i, column in enumerate(columns)}
    seen, unseen = [], by_network_key([run for run in last if run.seed not in number])
    for run in table.runs:
        if run.seed in number:
            # numbered anew: seeds far above the study's first one only confirm a verdict
            seen.append(replace(run, seed=table.study.seed + number[run.seed]))
    truth = {key: np.array([r.val_acc for r in runs]) for key, runs in unseen.items()}
    return answer(seen, truth, table.study), answer(list(map(blind, seen)), truth, table.study)


def blind(run: Record) -> Record:
    """The run without its losses."""
    assert run.outcome is not None
    kept = tuple(
        replace(epoch, train_loss=math.nan, val_loss=math.nan) for epoch in run.outcome.epochs
    )
    return replace(run, outcome=replace(run.outcome, epochs=kept))


def answer(seen: Sequence[Record], truth: dict[str, Array], study: Study) -> Answer:
    """The verdict on these runs, against each network's accuracies [unseen seeds]."""
    fitted = model(seen, study, study.budgets[0])
    assert fitted is not None
    networks = [i for i, c in enumerate(fitted.networks) if c.role == "candidate"]
    pick, best, bound = chances(fitted.sample().accuracy[:, networks])
    accuracy = np.array([truth[fitted.keys[i]] for i in networks])
    mean = accuracy.mean(1)
    ahead = [math.nan]  # one unseen seed has no halves
    if accuracy.shape[1] > 1:
        halves = accuracy[:, ::2].mean(1), accuracy[:, 1::2].mean(1)
        ahead = [other[one.argmax()] - other[pick] for one, other in (halves, halves[::-1])]
    return Answer(
        seeds=len({run.seed for run in seen}),
        regret=100 * float(mean.max() - mean[pick]),
        ahead=100 * float(np.mean(ahead)),
        bound=100 * bound,
        tied=len({*tied_set(best), pick}),
    )


def subsets(seeds: int, size: int) -> list[tuple[int, ...]]:
    every = list(itertools.combinations(range(seeds), size))
    chosen = np.random.default_rng(size).permutation(len(every))[:SUBSETS]
    return [every[i] for i in sorted(chosen.tolist())]


# ---- tables


def report(table: Table) -> None:
    """Print what one run says."""
    _, networks, seeds = table.views.shape
    print(f"\n{table.name}: {networks} networks, {seeds} seeds, {table.seconds:.1f} s a run")
    print(f"{'view':20} between   run  ratio (95%)           per s   reliability (95%)   tau (95%)")
    for number, name in enumerate(VIEWS):
        between, run = variances(table.views[number])
        ratio, reliable, tau = _of_view(table, number)
        print(
            f"{name:20} {100 * between**0.5:7.2f} {100 * run**0.5:5.2f}  {_words(ratio)}  "
            f"{ratio[0] / table.seconds:6.3f}  {_words(reliable)}   {_words(tau)}"
        )
    tau = resampled(table, lambda views: rank_correlation(composite(views), views[0]))
    print(f"{'all':65} {_words(resampled(table, reliability_of_all))}   {_words(tau)}")


def _of_view(table: Table, number: int) -> tuple[Interval, Interval, Interval]:
    """Ratio, reliability and rank correlation of one view."""
    return (
        resampled(table, lambda views: _ratio(views[number])),
        resampled(table, lambda views: reliability(views[number])),
        resampled(table, lambda views: rank_correlation(views[number], views[0])),
    )


def _ratio(values: Array) -> float:
    between, run = variances(values)
    return between / run if run > 0 else float("inf")


def _words(interval: Interval) -> str:
    value, low, high = interval
    return f"{value:5.2f} ({low:5.2f} to {high:5.2f})"


def report_answers(pairs: Sequence[tuple[Answer, Answer]]) -> None:
    """Print the verdicts from so many seeds, those by accuracies alone in brackets."""
    print("verdict from    regret        ahead          bound        held           tied")
    for size in sorted({a.seeds for a, _ in pairs}):
        of_size = [pair for pair in pairs if pair[0].seeds == size]
        cells = []
        for column in ("regret", "ahead", "bound", "held", "tied"):
            ours, alone = np.mean([[getattr(a, column) for a in pair] for pair in of_size], axis=0)
            if column == "held":
                many = len(of_size)
                cells.append(f"{ours * many:2.0f} ({alone * many:2.0f}) of {many:2}")
            else:
                cells.append(f"{ours:5.2f} ({alone:5.2f})")
        print(f"{size:7} seed{' ' if size == 1 else 's'} {'  '.join(cells)}")


def misses_of(table: Table, pairs: Sequence[tuple[Answer, Answer]]) -> list[str]:
    """Return the targets that a study misses."""
    misses = []
    if table.name in RELIABILITY:
        least, reached = RELIABILITY[table.name], reliability_of_all(table.views)
        if reached < least:
            misses.append(f"{table.name}: reliability {reached:.2f}, wanted {least}")
        if table.seconds > LONGEST_RUN:
            misses.append(f"{table.name}: {table.seconds:.0f} s a run, at most {LONGEST_RUN:g}")
    if table.name == ONE_SEED:
        one = [a for a, _ in pairs if a.seeds == 1]
        regret, bound = np.mean([(a.regret, a.bound) for a in one], axis=0)
        held = sum(a.held for a in one)
        if regret > MOST_REGRET:
            misses.append(f"{ONE_SEED}, one seed: regret {regret:.2f}, at most {MOST_REGRET}")
        if bound > WIDEST_BOUND:
            misses.append(f"{ONE_SEED}, one seed: bound {bound:.2f}, at most {WIDEST_BOUND:.2f}")
        if held < HELD:
            misses.append(f"{ONE_SEED}, one seed: the bound held in {held} of {len(one)}")
    return misses


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    paths = args.folders or folders()
    reliabilities = []
    misses = []
    if not args.folders:
        here = {folder.name for folder in paths}
        misses += [f"{name}: not recorded" for name in RELIABILITY if name not in here]
    for folder in paths:
        table = load(folder)
        report(table)
        seeds = table.views.shape[2]
        jobs = [(folder, s) for size in (1, 2, 3) if size < seeds for s in subsets(seeds, size)]
        with ProcessPoolExecutor(args.workers) as pool:
            pairs = list(pool.map(answers, jobs))
        report_answers(pairs)
        misses += misses_of(table, pairs)
        reliabilities.append(f"{table.name} {reliability_of_all(table.views):.2f}")
    print()
    print(*misses, sep="\n")
    print(f"reliability of one run: {', '.join(reliabilities)}; {len(misses)} targets missed")
    return int(args.check and bool(misses))


if __name__ == "__main__":
    sys.exit(main())
