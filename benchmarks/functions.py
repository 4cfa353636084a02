"""Networks of functions: our counts beside torch's own counter, fvcore and the module, and how long
the space of one takes to be found.

python benchmarks/functions.py [--networks 100] [--seed 0] [--check]

For each example random networks; B0 through a function beside its table; then the plan of 2x for
each example, from an empty cache and again. The last line is how many networks are equal to all
that count them. `--check` exits 1 unless every one is, and unless each space is found at a rate
that finds that of a function of 50 ms a count within 60 s."""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from effnet import custom
from effnet.arch import scale
from effnet.cost import cost
from effnet.custom import CustomArch, Function
from effnet.families import BASELINES
from effnet.nn import count
from effnet.nn.measure import fvcore_macs

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = ("vit", "resnet", "convnext", "mobilenetv3")
NATIVE = {"vit": 32, "resnet": 160, "convnext": 96, "mobilenetv3": 160}
# A function of 50 ms a count has to be found within 60 s.
MOST_COUNTS = 60 / 0.05
B0 = """
import effnet
from effnet.families import BASELINES

def build(depth, width, resolution=224, num_classes=1000, in_channels=3):
    net = effnet.arch(BASELINES["b0"], depth=depth, width=width, resolution=resolution,
                      num_classes=num_classes, in_channels=in_channels)
    return effnet.build(net)
"""
PLAN = """
import sys, time
from effnet import counting
from scaling_search.study.plan import plan
from scaling_search.study.settings import preset_path, read
study = read(preset_path("quick"), {"baseline.name": sys.argv[1]})
began = time.perf_counter()
planned = plan(study, 10, int(sys.argv[2]))
seconds = time.perf_counter() - began
sizes = list(planned.sizes.values())
print(seconds, counting.counted(), sizes[0], len(planned.candidates))
"""


def drawn(function: Function, rng: random.Random) -> CustomArch:
    depth, width = rng.uniform(0.6, 2.5), rng.uniform(0.6, 2)
    net = scale(function, depth, width, rng.randrange(32, 161), num_classes=rng.randrange(2, 1001))
    assert isinstance(net, CustomArch)
    return net


def differs(net: CustomArch) -> str:
    """Which referee says otherwise, in words; "" where none does. fvcore is asked where it counts
    all that torch counts."""
    model = count.build(net)
    if net.counts.params != sum(p.numel() for p in model.parameters()):
        return f"{net.key}: parameters"
    side = net.resolution
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval().to("meta")(torch.zeros(1, net.in_channels, side, side, device="meta"))
    if net.counts.macs != counter.get_total_flops() // 2:
        return f"{net.key}: torch's counter"
    theirs, left_out = fvcore_macs(net)
    if not left_out and net.counts.macs != theirs:
        return f"{net.key}: fvcore, {theirs} and not {net.counts.macs}"
    return ""


def compare_with_table(networks: int, rng: random.Random) -> int:
    """How many of so many networks of B0 cost through a function what its table says."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "b0.py"
        path.write_text(B0)
        function = custom.find(f"{path}:build")
        equal = 0
        for _ in range(networks):
            channels = rng.randrange(1, 7)
            depth, width, side = rng.uniform(0.3, 3), rng.uniform(0.3, 3), rng.randrange(32, 400)
            through = scale(dataclasses.replace(function, in_channels=channels), depth, width, side)
            base = dataclasses.replace(BASELINES["b0"], in_channels=channels)
            equal += cost(through) == cost(scale(base, depth, width, side))
        return equal


def time_plan(name: str, cache: str) -> tuple[float, int, int, int]:
    """Seconds of planning 2x in a fresh process, networks known, in the space, and chosen."""
    place = f"{EXAMPLES / name}.py:build"
    output = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PLAN, place, str(NATIVE[name])],
        env={**os.environ, "SCALING_SEARCH_CACHE": cache},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    seconds, known, size, chosen = output.split()
    return float(seconds), int(known), int(size), int(chosen)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # torch's, of layers without weights on the meta device
    rng = random.Random(args.seed)
    total = equal = 0
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SCALING_SEARCH_CACHE"] = cache
        print(f"{'function':14}{'networks':>9}{'equal':>7}")
        for name in NAMES:
            function = custom.find(f"{EXAMPLES / name}.py:build")
            differences = [differs(drawn(function, rng)) for _ in range(args.networks)]
            alike = sum(not difference for difference in differences)
            print(f"{name:14}{args.networks:9}{alike:7}", flush=True)
            for difference in differences:
                if difference:
                    print(f"  {difference}")
            total, equal = total + args.networks, equal + alike
        alike = compare_with_table(args.networks, rng)
        print(f"{'b0, its table':14}{args.networks:9}{alike:7}")
        total, equal = total + args.networks, equal + alike

    too_many = []
    print(f"\n{'function':14}{'counts':>7}{'s':>7}{'again':>7}{'networks':>9}{'chosen':>7}")
    for name in NAMES:
        with tempfile.TemporaryDirectory() as cache:
            began = time.perf_counter()
            seconds, known, size, chosen = time_plan(name, cache)
            print(f"{name:14}{known:7}{seconds:7.1f}", end="", flush=True)
            again, *_ = time_plan(name, cache)
            print(f"{again:7.1f}{size:9}{chosen:7}  ({time.perf_counter() - began:.0f} s in all)")
        if known > MOST_COUNTS:
            too_many.append(name)
    print(f"{equal}/{total}")
    return 1 if args.check and (equal < total or too_many) else 0


if __name__ == "__main__":
    sys.exit(main())
