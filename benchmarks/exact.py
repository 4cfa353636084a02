"""Random networks of every family: our cost beside fvcore, torch's counter and the built module.

python benchmarks/exact.py [--networks 1000] [--jobs 2] [--seed 0] [--sides 96x160] [--check]

The last line is how many are equal to all of them to the unit. `--check` exits 1 unless every one
is. With `--sides` all inputs have these rows and columns, or larger ones in their proportion."""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import multiprocessing
import random
import sys

from effnet.arch import Arch, scale
from effnet.cost import cost
from effnet.families import BASELINES
from effnet.rounding import ROUNDINGS

# what the referee can run: it really computes each network
MOST_MACS, MOST_PARAMS = 2e9, 1e8


def draw(rng: random.Random, sides: str) -> tuple[Arch, str, float, float]:
    """A network within the limits, with its baseline's name, depth and width multipliers."""
    while True:
        base = BASELINES[rng.choice(sorted(BASELINES))]
        stages = tuple(dataclasses.replace(s, kernel=rng.choice((3, 5, 7))) for s in base.stages)
        base = dataclasses.replace(base, stages=stages, stem_kernel=rng.choice((3, 5, 7)))
        if rng.random() < 0.3:
            base = dataclasses.replace(base, rounding=rng.choice(sorted(ROUNDINGS)))
        width, depth = 0.1 * 40 ** rng.random(), 0.1 + 4.9 * rng.random()
        if base.rounding == "spread":
            depth = max(depth, len(base.stages) / base.blocks)
        side = 2 * rng.randrange(8, 120) + 1
        if sides:
            base = base.at(sides)
            side = base.resolution + rng.choice((0, rng.randrange(64)))
        net = scale(base, depth, width, side, num_classes=int(22000 ** rng.random()))
        total = cost(net)
        if total.macs <= MOST_MACS and total.params <= MOST_PARAMS:
            return net, base.name, depth, width


def differs(net: Arch) -> str:
    """Return the counts in which a referee differs from ours, in words; "" where none does."""
    import torch

    from effnet.nn.measure import compare

    torch.set_num_threads(1)
    report = compare(net)
    if report.equal and report.explained:
        return ""
    return f"{net}: {[row for row in report.rows if not row.equal] or 'fvcore total'}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sides", default="", help="such as 96x160")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    drawn = [draw(rng, args.sides) for _ in range(args.networks)]
    families: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
        for i, difference in enumerate(pool.map(differs, [net for net, *_ in drawn]), 1):
            count = families[drawn[i - 1][1]]
            count[0] += 1
            count[1] += not difference
            if difference:
                print(difference)
            if i % 50 == 0:
                print(f"\r{i}/{args.networks}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(f"{'family':14}{'networks':>9}{'equal':>7}")
    for name, (count, equal) in sorted(families.items()):
        print(f"{name:14}{count:9}{equal:7}")
    for label, values in (
        ("width", [w for *_, w in drawn]),
        ("depth", [d for *_, d, _ in drawn]),
        ("px", [net.resolution for net, *_ in drawn]),
        ("classes", [net.num_classes for net, *_ in drawn]),
        ("params", [cost(net).params for net, *_ in drawn]),
        ("macs", [cost(net).macs for net, *_ in drawn]),
    ):
        print(f"{label:8} from {min(values):,.4g} to {max(values):,.4g}")
    equal = sum(n for _, n in families.values())
    print(f"{equal}/{args.networks}")
    return 1 if args.check and equal < args.networks else 0


if __name__ == "__main__":
    sys.exit(main())
