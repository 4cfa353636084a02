"""Are latencies predicted, and is a latency budget met, on this machine?

    python benchmarks/latency.py [--preset quick] [--budget "2x latency"] [--heldout 100] [--check]

Plans a study under the budget as `search` does. Then, for networks of random depth, width and
resolution in the study's space that nothing was fitted to, as heavy as the model is for
(latency.HEAVIEST): how far the model's latency lies from the measured one. And for the networks
that were chosen: how far their latency, measured again in interleaved rounds with the baseline,
lies from the budget.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from effnet.arch import Network, scale
from effnet.cost import macs
from effnet.nn.timing import Stopwatch
from scaling_search.study.latency import HEAVIEST, in_words, open_bench, plan_by_latency
from scaling_search.study.measured import reach
from scaling_search.study.plan import scaling_context
from scaling_search.study.settings import preset_path, read

WITHIN, MEDIAN_ERROR = 0.03, 0.05
NATIVE, CLASSES, AT_ONCE = 32, 10, 25


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--budget", default="2x latency@1/cpu")
    parser.add_argument("--native", type=int, default=NATIVE, help="px of the images")
    parser.add_argument("--heldout", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    study = read(preset_path(args.preset), {"budgets": [args.budget]})
    begin = time.perf_counter()
    with open_bench(study, None, None) as bench:
        study, todo = plan_by_latency(study, CLASSES, args.native, (), bench, lambda words: None)
        seconds = time.perf_counter() - begin
        assert bench.stopwatch is not None
        base_cost = todo.baseline.latency or 1
        print(f"{args.preset}, {args.budget}: {in_words(bench.table.inference)}", end="")
        print(f" ({bench.table.inference.hardware}); measured and planned in {seconds:.0f} s")

        networks = [todo.baseline, *todo.candidates]
        measured = bench.stopwatch.networks([c.arch for c in networks])
        worst = 0.0
        print(f"\n{'network':32} {'ms':>7} {'again':>7} {'of budget':>10}")
        for candidate, again in zip(networks, measured, strict=True):
            off = study.budgets[0].off(round(again), round(measured[0]))
            if candidate is not todo.baseline:
                worst = max(worst, abs(off))
            before = (candidate.latency or 0) / 1e6
            print(f"{candidate.label:32} {before:7.3f} {again / 1e6:7.3f} {off:+10.1%}")

        errors = _errors(study, args, bench.stopwatch, todo.baseline.arch, base_cost)
    error = statistics.median(map(abs, errors))
    print(f"\n{len(errors)} networks held out: error of the predicted latency, median {error:.1%}")
    print(f"90% of them within {sorted(map(abs, errors))[int(0.9 * len(errors))]:.1%}")
    missed = error > MEDIAN_ERROR or worst > WITHIN
    print(
        f"chosen networks within {worst:.1%} of the budget, measured again (at most "
        f"{WITHIN:.0%}); held-out networks predicted to {error:.1%} (at most {MEDIAN_ERROR:.0%})"
    )
    return 1 if missed and args.check else 0


def _errors(study, args, stopwatch: Stopwatch, baseline: Network, base_cost: int) -> list[float]:  # type: ignore[no-untyped-def]
    """Signed relative errors of the model on networks that it has not seen."""
    context = scaling_context(study, CLASSES, args.native)
    sides, depths, widths = reach(context, study.space, study.budgets[0])
    times = study.budgets[0].times
    rng = random.Random(args.seed)
    drawn: dict[Network, None] = {}
    while len(drawn) < args.heldout:
        width = round(rng.uniform(*widths), 3)
        arch = scale(
            context.base, rng.choice(depths), width, rng.choice(sides), num_classes=CLASSES
        )
        heavy = macs(arch) > HEAVIEST * context.ratio(study.budgets[0]) * context.base_macs
        if arch not in times.networks and not heavy:
            drawn[arch] = None
    archs, errors = list(drawn), []
    for first in range(0, len(archs), AT_ONCE):
        some = archs[first : first + AT_ONCE]
        base, *measured = stopwatch.networks([baseline, *some])
        for arch, each in zip(some, measured, strict=True):
            errors.append(times.model.estimate(arch) / (each * base_cost / base) - 1)
    return errors


if __name__ == "__main__":
    sys.exit(main())
