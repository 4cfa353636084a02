"""Where should runs go? Our allocations beside random search and Optuna's TPE with its median
pruner, on real curves.

    python benchmarks/allocation.py [--repeats 120] [--check]

The curves are studies/imagenette-24px-2x: 24 networks of one cost, six seeds (curves.parquet,
heldout.parquet). Each repeat draws three seeds that can be trained on and leaves the other three as
the truth, which no method sees: regret is the best network's mean over these, minus the chosen
one's. Costs are epochs; the full grid, every network with three seeds at 2 epochs, is 144 of them.
`rungs` is held against the peers, `flat` is for comparison. The truth is three seeds' mean, so its
own noise makes every regret larger, alike for all; what is compared is paired.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.recorded import recorded
from scaling_search.driver.allocation import half, most_telling
from scaling_search.study.directions import distance, on_triangle
from scaling_search.verdict.posterior import Array, Posterior, Runs, fit
from scaling_search.verdict.verdict import expected_luck

STUDY = Path(__file__).parent.parent / "studies" / "imagenette-24px-2x"
SHARES_OF_GRID = (0.25, 0.5, 1.0)
UNIT = 0.0113  # the noise of 1,930 validation images at 53%
PROMOTION = 1.2  # epochs from the checkpoint before the first one's decay to the end of two
BATCH = 4  # runs decided at once: extra_batch of the study


@dataclass(frozen=True)
class Table:
    """Recorded accuracies [networks, seeds], as fractions."""

    shares: Array  # [networks, 3]
    short: Array  # after 1 epoch of a training of 1
    first: Array  # after the first epoch of a training of 2
    long: Array  # after both


def table() -> Table:
    _, records = recorded(STUDY)
    order = list(dict.fromkeys(r.candidate.key for r in records))
    seeds = sorted({r.seed for r in records})
    shares = {r.candidate.key: r.candidate.shares for r in records}
    short, first, long = np.full((3, len(order), len(seeds)), np.nan)
    for r in records:
        cell = order.index(r.candidate.key), seeds.index(r.seed)
        assert r.outcome is not None
        if r.epochs == 1:
            short[cell] = r.val_acc
        else:
            first[cell], long[cell] = r.outcome.epochs[0].val_acc, r.val_acc
    for values in (short, first, long):
        assert not np.isnan(values).any()
    return Table(np.array([shares[key] for key in order]), short, first, long)


# ---- the methods: (table, the three seeds, epochs to spend, random numbers) → the chosen network

Method = Callable[[Table, list[int], float, np.random.Generator], int]


@dataclass(frozen=True)
class Run:
    """`rung` 0 is a training of one epoch, 1 of two; `seed` counts the seeds at hand."""

    network: int
    rung: int
    seed: int


def flat(t: Table, seeds: list[int], budget: float, rng: np.random.Generator) -> int:
    """Every network with one seed in the study's order while the epochs last, then where the loss
    bound is expected to fall most."""
    return flat_by(t, seeds, budget, lambda runs, count: telling(t, seeds, runs, 1, count))


def flat_top_two(t: Table, seeds: list[int], budget: float, rng: np.random.Generator) -> int:
    """The same, but by top-two Thompson sampling."""

    def choose(runs: list[Run], count: int) -> list[int]:
        accuracy = infer(t, seeds, runs, 1).accuracy
        left = runs_left(t, seeds, runs)
        chosen: list[int] = []
        while len(chosen) < count and any(left.values()):
            able = [k for k, more in left.items() if more]
            chosen.append(able[top_two(accuracy[:, able], rng)])
            left[chosen[-1]] -= 1
        return chosen

    return flat_by(t, seeds, budget, choose)


def flat_by(
    t: Table, seeds: list[int], budget: float, choose: Callable[[list[Run], int], list[int]]
) -> int:
    """Every network with one seed in the study's order while the epochs last, then what `choose`
    says: of the runs so far and a number of runs, the networks of that many more."""
    most = int(budget // 2)
    runs = [Run(k, 1, 0) for k in range(len(t.shares))][:most]
    while len(runs) < most:
        chosen = choose(runs, min(BATCH, most - len(runs)))
        if not chosen:
            break
        for k in chosen:
            runs.append(next_run(k, runs))
    return pick(t, seeds, runs)


def top_two(accuracy: Array, rng: np.random.Generator) -> int:
    """Top-two Thompson sampling (Russo, "Simple Bayesian Algorithms for Best-Arm Identification",
    2020): one sample's best, another sample's best that differs, one of the two.

    `accuracy` [samples, networks]. Returns the index of a network."""
    leader, *others = accuracy[rng.permutation(len(accuracy))].argmax(1).tolist()
    rival = next((k for k in others if k != leader), leader)
    return int(rng.choice([leader, rival]))


def pick(t: Table, seeds: list[int], runs: list[Run]) -> int:
    """The network of the largest expected accuracy, of those with a long run."""
    accuracy = infer(t, seeds, runs, 1).accuracy
    tried = sorted({r.network for r in runs})
    return tried[int(accuracy[:, tried].mean(0).argmax())]


def rungs(t: Table, seeds: list[int], budget: float, rng: np.random.Generator) -> int:
    """One epoch for all, half of them on to two, then where the posterior says."""
    runs = [Run(k, 0, 0) for k in range(len(t.shares))]
    spent = float(len(runs))
    accuracy = infer(t, seeds, runs, 2).accuracy
    for k in np.argsort(-accuracy.mean(0))[: half(len(t.shares))]:
        if spent + PROMOTION <= budget:
            runs.append(Run(int(k), 1, 0))
            spent += PROMOTION
    while spent + 2 <= budget:
        chosen = telling(t, seeds, runs, 2, min(BATCH, int((budget - spent) // 2)))
        if not chosen:
            break
        for k in chosen:
            runs.append(next_run(k, runs))
            spent += 2
    return int(infer(t, seeds, runs, 2).accuracy.mean(0).argmax())


def telling(t: Table, seeds: list[int], runs: list[Run], levels: int, count: int) -> list[int]:
    """The networks of the next long runs, by the library's own rule."""
    samples, costs = infer(t, seeds, runs, levels), np.ones(len(t.shares))
    left = runs_left(t, seeds, runs)
    return most_telling(samples.seen, samples.run, costs, left, count)


def long_runs(network: int, runs: list[Run]) -> int:
    return sum((r.network, r.rung) == (network, 1) for r in runs)


def runs_left(t: Table, seeds: list[int], runs: list[Run]) -> dict[int, int]:
    """Return how many seeds each network has left for a long run."""
    return {k: len(seeds) - long_runs(k, runs) for k in range(len(t.shares))}


def next_run(network: int, runs: list[Run]) -> Run:
    return Run(network, 1, long_runs(network, runs))


def infer(t: Table, seeds: list[int], runs: list[Run], levels: int) -> Posterior:
    """Return the model's samples; with 1 of `levels`, all runs are long."""
    values = []
    for r in runs:
        accuracy = (t.short, t.long)[r.rung][r.network, seeds[r.seed]]
        values.append((r.network, r.rung - (2 - levels), r.seed, accuracy))
    data = Runs.of(
        t.shares,
        values,
        rungs=levels,
        unit=UNIT,
        luck=expected_luck((), levels),
    )
    return fit(data).sample(2048)


def random_search(t: Table, seeds: list[int], budget: float, rng: np.random.Generator) -> int:
    """Random networks, the luckiest run wins; one drawn again gets its next seed."""
    every = []
    for seed in seeds:
        every += [(k, seed) for k in rng.permutation(len(t.shares)).tolist()]
    return max(every[: int(budget // 2)], key=lambda run: t.long[run])[0]


def tpe(t: Table, seeds: list[int], budget: float, rng: np.random.Generator) -> int:
    """Optuna as its users run it: TPE over the map, MedianPruner after the first epoch, best_trial
    at the end."""
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=int(rng.integers(2**31))),
        pruner=optuna.pruners.MedianPruner(),
    )
    used = dict.fromkeys(range(len(t.shares)), 0)
    spent = 0
    while spent + 2 <= budget and any(n < len(seeds) for n in used.values()):
        trial = study.ask()
        point = on_triangle(trial.suggest_float("u", 0, 1), trial.suggest_float("v", 0, 1))
        free = [k for k in used if used[k] < len(seeds)]
        k = min(free, key=lambda k: distance(tuple(t.shares[k]), point))
        seed = seeds[used[k]]
        used[k] += 1
        trial.set_user_attr("network", k)
        trial.report(t.first[k, seed], 1)
        spent += 1
        if trial.should_prune():
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            continue
        spent += 1
        study.tell(trial, t.long[k, seed])
    return int(study.best_trial.user_attrs["network"])


METHODS: dict[str, Method] = {
    "rungs": rungs,
    "flat": flat,
    "flat, top-two": flat_top_two,
    "random": random_search,
    "TPE + median": tpe,
}
PEERS = ("random", "TPE + median")  # what `rungs` is held against


def repeat(number: int) -> dict[tuple[str, float], float]:
    """Regret of each method at each cost, on one draw of seeds."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    t = table()
    regret = {}
    rng = np.random.default_rng(number)
    seeds = rng.permutation(t.long.shape[1]).tolist()
    use, held = seeds[:3], seeds[3:]
    truth = t.long[:, held].mean(1)
    for part in SHARES_OF_GRID:
        for name, method in METHODS.items():
            choice = method(t, use, part * 6 * len(t.shares), np.random.default_rng([number, 1]))
            regret[name, part] = float(truth.max() - truth[choice])
    return regret


def half_interval(values: Array) -> float:
    """Return half the width of the mean's 95% interval."""
    return float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))


def mean_words(values: Array) -> str:
    return f"{values.mean():5.2f} ± {half_interval(values):.2f}"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=120)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    with ProcessPoolExecutor(args.workers) as pool:
        results = list(pool.map(repeat, range(args.repeats), chunksize=5))
    print(
        f"mean regret in points, ± 95%, over {args.repeats} draws of seeds; in brackets: more than "
        "with rungs by"
    )
    print(f"{'of the grid':>12} " + " ".join(f"{name:>28}" for name in METHODS))
    lost = 0
    for part in SHARES_OF_GRID:
        regret = {name: 100 * np.array([r[name, part] for r in results]) for name in METHODS}
        cells = []
        for name, values in regret.items():
            more = values - regret["rungs"]  # paired: the same draws of seeds
            cell = f"{mean_words(values)} [{more.mean():+.2f} ± {half_interval(more):.2f}]"
            cells.append(f"{cell:>28}")
            if name in PEERS and more.mean() <= 0:
                lost += 1
        print(f"{part:12.0%} " + " ".join(cells))
    comparisons = len(PEERS) * len(SHARES_OF_GRID)
    won = f"{comparisons - lost} of {comparisons} comparisons"
    print(f"rungs has the lower mean regret in {won}")
    return int(args.check and lost > 0)


if __name__ == "__main__":
    sys.exit(main())
