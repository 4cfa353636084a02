"""The front of 2-D points beside numpy's sort of them, Optuna's front and pymoo's, in one run.

    python benchmarks/front.py [--points 10000] [--rounds 9] [--check]

A report draws five fronts of its networks, ten thousand at the most. The last lines give the
seconds that ours takes on the slowest of four clouds of points, and how often that is one numpy
sort of the costs. `--check` exits 1 above LIMIT seconds for --points of them.

With --points 1000000 the second figure has a target of its own, 1.3, from the time when a prefilter
dropped most of the points unsorted. The front is plain sort and sweep since, and misses it: nothing
here has a million points. The line says so.

"One numpy sort" is `np.argsort` of the costs, float64, default kind: the order of rows by one
column is the least that a front by sorting needs. `np.lexsort` (by cost, then value: a sort of the
points as pairs) stands beside it. The peers are Optuna's `_is_pareto_front`, which
`Study.best_trials` calls once it has the values as an array, and pymoo's `NonDominatedSorting` for
the first front alone; "not installed" where pymoo is not. They run on the first cloud alone, since
both need minutes for a million points that are all on the front. All must find the same rows.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from optuna.study._multi_objective import _is_pareto_front

from scaling_search.report.front import front, hypervolume, hypervolume_so_far

try:
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting
except ImportError:
    NonDominatedSorting = None

# A hundredth of the 5 s that a report of ten thousand runs may take (benchmarks/report.py).
LIMIT = 0.05
# By one numpy sort, for a million points: what the prefilter was built for.
FORMER_TARGET = 1.3

SORT, OURS, LEXSORT, OPTUNA, PYMOO = (
    "np.argsort of costs",
    "scaling_search's front",
    "np.lexsort",
    "Optuna",
    "pymoo",
)


def clouds(n: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return costs and values of n points by the shape of their cloud."""
    g = np.random.default_rng(0)
    x = g.random(n)
    return {
        "uniform": (x, g.random(n)),
        "rising, with noise": (x, x + 0.1 * g.standard_normal(n)),  # as in a real study
        "all on the front": (x, x.copy()),
        "ties on the front": (np.round(x, 4), np.round(x, 4)),
    }


def contenders(cost: np.ndarray, value: np.ndarray, peers: bool) -> dict[str, Callable[[], Any]]:
    """Return what is timed, by name; a front's call returns its rows."""
    calls: dict[str, Callable[[], Any]] = {
        SORT: lambda: np.argsort(cost),
        OURS: lambda: front(cost, value),
        LEXSORT: lambda: np.lexsort((value, cost)),
    }
    losses = np.column_stack([cost, -value])
    if peers:
        calls[OPTUNA] = lambda: np.flatnonzero(
            _is_pareto_front(losses, assume_unique_lexsorted=False)
        )
    if peers and NonDominatedSorting is not None:
        calls[PYMOO] = lambda: NonDominatedSorting().do(losses, only_non_dominated_front=True)
    return calls


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return seconds, and what the call returned."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def compare(name: str, cost: np.ndarray, value: np.ndarray, rounds: int) -> dict[str, float]:
    """Print a cloud's lines and return the median seconds of each contender."""
    calls = contenders(cost, value, peers=name == "uniform")
    seconds: dict[str, list[float]] = {label: [] for label in calls}
    rows: dict[str, np.ndarray] = {}
    # Every contender in every round, so that a noisy machine is noisy for all.
    for _ in range(rounds):
        for label, call in calls.items():
            taken, rows[label] = timed(call)
            seconds[label].append(taken)
    medians = {label: statistics.median(taken) for label, taken in seconds.items()}
    for label, median in medians.items():
        size = "" if label.startswith("np.") else f"{len(rows[label]):14,}"
        print(f"{name:20}{label:24}{median:10.5f}{median / medians[SORT]:8.2f}x{size}")
    if name == "uniform" and NonDominatedSorting is None:
        print(f"{name:20}{PYMOO:24}{'not installed':>19}")
    for label in (OPTUNA, PYMOO):
        if label in rows:
            assert sorted(rows[label]) == sorted(rows[OURS]), f"{label} has another front"
    return medians


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    print(f"{args.points:,} points, medians of {args.rounds} interleaved rounds")
    print(f"{'':44}{'seconds':>10}{'by sort':>9}  on the front")
    slowest, by_sort = 0.0, 0.0
    for name, (cost, value) in clouds(args.points).items():
        medians = compare(name, cost, value, args.rounds)
        slowest = max(slowest, medians[OURS])
        by_sort = max(by_sort, medians[OURS] / medians[SORT])

    cost, value = clouds(10_000)["all on the front"]
    once, total = timed(lambda: hypervolume(cost, value, (1, 0)))
    running, areas = timed(lambda: hypervolume_so_far(cost, value, (1, 0)))
    assert abs(areas[-1] - total) < 1e-9
    print(
        "hypervolume of 10,000 points, all on the front: "
        f"{once:.4f} s; after each of them: {running:.4f} s"
    )
    target = ""
    if args.points == 1_000_000:
        verdict = "met" if by_sort <= FORMER_TARGET else "MISSED"
        target = f", at most {FORMER_TARGET} while there was a prefilter: {verdict}"
    print(f"the slowest cloud by one numpy sort: {by_sort:.1f}{target}")
    verdict = "met" if slowest <= LIMIT else "MISSED"
    print(f"the slowest cloud: {slowest:.4f} s (at most {LIMIT}: {verdict})")
    return int(args.check and slowest > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
