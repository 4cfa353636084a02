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

from scaling_search.driver.allocation import half, top_two
from scaling_search.results.curves import read
from scaling_search.study.directions import distance, on_triangle
from scaling_search.verdict.posterior import Array, Runs, posterior

STUDY = Path(__file__).parent.parent / "studies" / "imagenette-24px-2x"
SHARES_OF_GRID = (0.25, 0.5, 1.0)
UNIT = 0.0113
BATCH = 4  # runs decided at once: extra_batch of the study


@dataclass(frozen=True)
class Table:
    """Accuracies [networks, seeds]: after 1 epoch of training for 1 (`short`), after the first of 2
    (`first`), after 2 (`long`); `x` the shares."""

    x: Array
    short: Array
    first: Array
    long: Array


def table() -> Table:
    records = [
        r for name in ("curves", "heldout") for r in read(STUDY / f"{name}.parquet").records()
    ]
    records = [r for r in records if r.candidate.role == "candidate" and not 500 <= r.seed < 1000]
    order = list(dict.fromkeys(r.candidate.key for r in records))
    seeds = sorted({r.seed for r in records})
    shares = {r.candidate.key: r.candidate.shares for r in records}
    found = np.full((3, len(order), len(seeds)), np.nan)
    for r in records:
        at = order.index(r.candidate.key), seeds.index(r.seed)
        assert r.outcome is not None
        if r.epochs == 1:
            found[0][at] = r.val_acc
        else:
            found[1][at], found[2][at] = r.outcome.epochs[0].val_acc, r.val_acc
    assert not np.isnan(found).any()
    return Table(np.array([shares[k] for k in order]), *found)


# ---- the methods: (table, the three seeds, epochs to spend, random numbers) → the chosen network

Method = Callable[[Table, list[int], float, np.random.Generator], int]


def flat(t: Table, seeds: list[int], budget: float, rng: np.random.Generator) -> int:
    """Every network with one seed in the study's order while it lasts, then where the posterior
    says."""
    runs: list[tuple[int, int]] = []
    while 2 * (len(runs) + 1) <= budget:
        if len(runs) < len(t.x):
            runs.append((len(runs), 0))
            continue
        accuracy = believed(t, seeds, [(k, 1, s) for k, s in runs], 1)
        for _ in range(BATCH):
            able = [k for k in range(len(t.x)) if sum(r[0] == k for r in runs) < len(seeds)]
            if able and 2 * (len(runs) + 1) <= budget:
                k = able[top_two(accuracy[:, able], rng)]
                runs.append((k, sum(r[0] == k for r in runs)))
    accuracy = believed(t, seeds, [(k, 1, s) for k, s in runs], 1)
    tried = sorted({k for k, _ in runs})
    return tried[int(accuracy[:, tried].mean(0).argmax())]


def rungs(t: Table, seeds: list[int], budget: float, rng: np.random.Generator) -> int:
    """One epoch for all, half of them on to two, then where the posterior says."""
    runs = [(k, 0, 0) for k in range(len(t.x))]
    spent = float(len(runs))
    accuracy = believed(t, seeds, runs, 2)
    for k in np.argsort(-accuracy.mean(0))[: half(len(t.x))]:
        if spent + 1.2 <= budget:  # from the checkpoint before the decay
            runs.append((int(k), 1, 0))
            spent += 1.2
    while spent + 2 <= budget:
        accuracy = believed(t, seeds, runs, 2)
        for _ in range(BATCH):
            able = [k for k in range(len(t.x)) if sum(r[:2] == (k, 1) for r in runs) < len(seeds)]
            if not able or spent + 2 > budget:
                break
            k = able[top_two(accuracy[:, able], rng)]
            runs.append((k, 1, sum(r[:2] == (k, 1) for r in runs)))
            spent += 2
        if not able:
            break
    return int(believed(t, seeds, runs, 2).mean(0).argmax())


def believed(t: Table, seeds: list[int], runs: list[tuple[int, int, int]], levels: int) -> Array:
    network, rung, seed = (np.array(column) for column in zip(*runs, strict=True))
    y = np.array([(t.short, t.long)[r][k, seeds[s]] for k, r, s in runs])
    return posterior(
        Runs(t.x, network, rung - (2 - levels), seed, y, levels, UNIT), samples=2048
    ).accuracy


def random_search(t: Table, seeds: list[int], budget: float, rng: np.random.Generator) -> int:
    """Random networks, the luckiest run wins; one drawn again gets its next seed."""
    every = [(k, s) for s in seeds for k in rng.permutation(len(t.x)).tolist()]
    return max(every[: int(budget // 2)], key=lambda run: t.long[run])[0]


def tpe(t: Table, seeds: list[int], budget: float, rng: np.random.Generator) -> int:
    """Optuna as its users run it: TPE over the map, MedianPruner after the first epoch, best_trial
    at the end."""
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=int(rng.integers(2**31))),
        pruner=optuna.pruners.MedianPruner(),
    )
    used = dict.fromkeys(range(len(t.x)), 0)
    spent = 0
    while spent + 2 <= budget and any(n < len(seeds) for n in used.values()):
        trial = study.ask()
        point = on_triangle(trial.suggest_float("u", 0, 1), trial.suggest_float("v", 0, 1))
        free = [k for k in used if used[k] < len(seeds)]
        k = min(free, key=lambda k: distance(tuple(t.x[k]), point))
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
    "random": random_search,
    "TPE + median": tpe,
}


def repeat(number: int) -> dict[tuple[str, float], float]:
    """Regret of each method at each cost, on one draw of seeds."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    t, found = table(), {}
    rng = np.random.default_rng(number)
    seeds = rng.permutation(t.long.shape[1]).tolist()
    use, held = seeds[:3], seeds[3:]
    truth = t.long[:, held].mean(1)
    for part in SHARES_OF_GRID:
        for name, method in METHODS.items():
            choice = method(t, use, part * 6 * len(t.x), np.random.default_rng([number, 1]))
            found[name, part] = float(truth.max() - truth[choice])
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=120)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    with ProcessPoolExecutor(args.workers) as pool:
        results = list(pool.map(repeat, range(args.repeats), chunksize=5))
    print(
        f"mean regret in points, ± 95%, over {args.repeats} draws of seeds; in brackets: more than with rungs by"
    )
    print(f"{'of the grid':>12} " + " ".join(f"{name:>28}" for name in METHODS))
    lost = 0
    for part in SHARES_OF_GRID:
        regret = {name: 100 * np.array([r[name, part] for r in results]) for name in METHODS}
        cells = []
        for name, values in regret.items():
            more = values - regret["rungs"]
            half_width = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
            apart_by = 1.96 * more.std(ddof=1) / np.sqrt(len(more))
            cells.append(
                f"{values.mean():5.2f} ± {half_width:.2f} [{more.mean():+.2f} ± {apart_by:.2f}]".rjust(
                    28
                )
            )
            lost += name in ("random", "TPE + median") and more.mean() <= 0
        print(f"{part:12.0%} " + " ".join(cells))
    print(
        f"rungs has the lower mean regret in {2 * len(SHARES_OF_GRID) - lost} of {2 * len(SHARES_OF_GRID)} comparisons"
    )
    return int(args.check and lost > 0)


if __name__ == "__main__":
    sys.exit(main())
