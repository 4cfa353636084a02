"""The front of a million 2-D points, beside one numpy sort of them, Optuna's front and pymoo's, in
one run.

python benchmarks/front.py [--points 1000000] [--rounds 9] [--slow-rounds 3] [--check]

"One numpy sort of them" is `np.argsort` of their costs, float64, default kind: the order of rows by
one column is the least that a front by sorting needs. `np.sort` (the same without knowing whose
cost it is) and `np.lexsort` (by cost, then value: a sort of the points as pairs, and the dearest)
stand beside it, and count for nothing. The peers are Optuna's `_is_pareto_front`, which
`Study.best_trials` calls once it has the values as an array, and pymoo's `NonDominatedSorting` for
the first front alone; "not installed" where pymoo is not. All must find the same rows.

Four clouds: independent uniform costs and values, of which most can be dropped unsorted; values
that rise with cost, with noise, as in a real study; every point on the front, in random order, so
that nothing can be dropped; few distinct values, so ties everywhere, and all of them on the front.
The last line is ours by numpy's sort on the first cloud, the one of the peers' known figures;
`--check` exits 1 above 1.3. The peers run on that cloud alone."""

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

MOST = 1.3


def clouds(n: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    g = np.random.default_rng(0)
    x = g.random(n)
    return {
        "uniform": (x, g.random(n)),
        "rising, with noise": (x, x + 0.1 * g.standard_normal(n)),
        "all on the front": (x, x.copy()),
        "ties on the front": (np.round(x, 4), np.round(x, 4)),
    }


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--slow-rounds", type=int, default=3, help="of the peers and lexsort")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    print(
        f"{args.points:,} points, medians of {args.rounds} interleaved rounds ({args.slow_rounds} of the peers)"
    )
    print(f"{'':20}{'':26}{'seconds':>9}{'by sort':>9}  on the front")
    figure = 0.0
    for name, (cost, value) in clouds(args.points).items():
        losses = np.column_stack([cost, -value])
        contenders: dict[str, Callable[[], Any]] = {
            "np.argsort of costs": lambda c=cost: np.argsort(c),
            "scaling_search.report.front": lambda c=cost, v=value: front(c, v),
            "np.sort of costs": lambda c=cost: np.sort(c),
            "np.lexsort": lambda c=cost, v=value: np.lexsort((v, c)),
        }
        slow = {"np.lexsort", "Optuna", "pymoo"}
        if name == "uniform":
            contenders["Optuna"] = lambda x=losses: np.flatnonzero(
                _is_pareto_front(x, assume_unique_lexsorted=False)
            )
            if NonDominatedSorting:
                contenders["pymoo"] = lambda x=losses: NonDominatedSorting().do(
                    x, only_non_dominated_front=True
                )
        taken: dict[str, list[float]] = {label: [] for label in contenders}
        found: dict[str, np.ndarray] = {}
        for i in range(
            args.rounds
        ):  # every contender in every round, so that a noisy machine is noisy for all
            for label, run in contenders.items():
                if i < args.slow_rounds or label not in slow:
                    seconds, found[label] = timed(run)
                    taken[label].append(seconds)
        medians = {label: statistics.median(seconds) for label, seconds in taken.items()}
        for label, seconds in medians.items():
            size = "" if label.startswith("np.") else f"{len(found[label]):14,}"
            print(
                f"{name:20}{label:26}{seconds:9.4f}{seconds / medians['np.argsort of costs']:8.2f}x{size}"
            )
        if name == "uniform" and not NonDominatedSorting:
            print(f"{name:20}{'pymoo':26}{'not installed':>18}")
        for label in {"Optuna", "pymoo"} & set(found):
            assert sorted(found[label]) == sorted(found["scaling_search.report.front"]), (
                f"{label} has another front"
            )
        figure = figure or medians["scaling_search.report.front"] / medians["np.argsort of costs"]
    n = 10_000
    cost, value = clouds(n)["all on the front"]
    once, total = timed(lambda: hypervolume(cost, value, (1, 0)))
    running, areas = timed(lambda: hypervolume_so_far(cost, value, (1, 0)))
    assert abs(areas[-1] - total) < 1e-9
    print(
        f"hypervolume of {n:,} points, all on the front: {once:.4f} s; after each of them: {running:.4f} s"
    )
    print(f"{figure:.2f} of one numpy sort (at most {MOST})")
    return 1 if args.check and figure > MOST else 0


if __name__ == "__main__":
    sys.exit(main())
