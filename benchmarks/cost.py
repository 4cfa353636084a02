"""How fast exact costs come, beside analytic counting in pycls' style and fvcore's tracing, in one
run.

python benchmarks/cost.py [--networks 20000] [--repeats 5] [--check]

Three figures: costs of B0-sized networks not seen before (blocks of the same shape count once,
times their number; shapes met before in other networks are remembered); the same with nothing
remembered; the lattice alpha in [1, 2], beta and gamma in [1, 1.5] at step 0.01, from its triples
to its distinct networks with their costs. The last line is costs per second. `--check` exits 1
below 20,000 of them, or when the lattice takes 2 s or more."""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from effnet.arch import Arch, scale
from effnet.cost import _block_parts, conventions, cost
from effnet.families import BASELINES
from scaling_search.study.nominal import lattice

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # fvcore decorates with the deprecated torch.jit.script
    from fvcore.nn import FlopCountAnalysis

LEAST_PER_SECOND, MOST_SECONDS = 20_000, 2.0


def per_layer(arch: Arch) -> dict[str, int]:
    """Counting as pycls does it: a running dictionary handed through every layer of every block,
    repeats one by one."""

    def conv(
        cx: dict[str, int],
        c_in: int,
        c_out: int,
        k: int,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
    ):  # type: ignore[no-untyped-def]
        side = (cx["side"] - 1) // stride + 1
        weights = k * k * c_in * c_out // groups
        return {
            "side": side,
            "macs": cx["macs"] + weights * side * side + (c_out * side * side if bias else 0),
            "params": cx["params"] + weights + (c_out if bias else 0),
            "acts": cx["acts"] + c_out * side * side,
        }

    def norm(cx: dict[str, int], c: int) -> dict[str, int]:
        return {**cx, "params": cx["params"] + 2 * c}

    cx = {"side": arch.resolution, "macs": 0, "params": 0, "acts": 0}
    cx = norm(conv(cx, arch.in_channels, arch.stem_width, 3, arch.stem_stride), arch.stem_width)
    c = arch.stem_width
    for stage in arch.stages:
        for i in range(stage.repeats):
            inner, stride = c * stage.expand, stage.stride if i == 0 else 1
            if inner != c:
                cx = norm(conv(cx, c, inner, 1), inner)
            cx = norm(conv(cx, inner, inner, stage.kernel, stride, inner), inner)
            side, cx = cx["side"], {**cx, "side": 1}
            cx = conv(conv(cx, inner, c // 4, 1, bias=True), c // 4, inner, 1, bias=True)
            cx = norm(conv({**cx, "side": side}, inner, stage.width, 1), stage.width)
            c = stage.width
    cx = norm(conv(cx, c, arch.head_width, 1), arch.head_width)
    return conv({**cx, "side": 1}, arch.head_width, arch.num_classes, 1, bias=True)


def drawn(count: int, seed: int) -> list[Arch]:
    """Distinct networks between B0 and about four times B0."""
    rng = random.Random(seed)
    networks: dict[Arch, None] = {}  # in the order drawn
    while len(networks) < count:
        net = scale(
            BASELINES["b0"], rng.uniform(1, 2), rng.uniform(1, 1.5), rng.randrange(224, 337)
        )
        networks[net] = None
    return list(networks)


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def whole_lattice() -> tuple[int, int]:
    triples = list(itertools.product(range(100, 201), range(100, 151), range(100, 151)))
    nets = [net for _, net in lattice(BASELINES["b0"], triples, 1000)]
    costs = [cost(net) for net in nets]
    return len(triples), len(costs)


def cold(nets: list[Arch]) -> None:
    for net in nets:
        _block_parts.cache_clear()
        cost(net)


def traced_macs(net: Arch) -> int:
    """Build the module (weights not drawn), trace it, count: convolutions and linear layers."""
    import effnet

    with torch.device("meta"):
        model = effnet.build(net)
    image = torch.zeros(1, 3, net.resolution, net.resolution)
    counts = (
        FlopCountAnalysis(model.to_empty(device="cpu").eval(), image)
        .unsupported_ops_warnings(False)
        .by_operator()
    )
    return int(counts["conv"] + counts["linear"])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    ours, unseen, theirs, traced, lattices, sizes = [], [], [], [], [], (0, 0)
    # every contender in every round, so that a noisy machine is noisy for all
    for repeat in range(args.repeats):
        nets = drawn(args.networks, repeat)
        _block_parts.cache_clear()
        ours.append(seconds(lambda n=nets: [cost(net) for net in n]) / len(nets))  # type: ignore[misc]
        few = nets[: len(nets) // 10]
        unseen.append(seconds(lambda n=few: cold(n)) / len(few))  # type: ignore[misc]
        theirs.append(seconds(lambda n=few: [per_layer(net) for net in n]) / len(few))  # type: ignore[misc]
        counted = per_layer(few[0])
        exact = cost(few[0])
        assert counted["macs"] == conventions(few[0])["pycls"], "the peer counts another network"
        assert (counted["params"], counted["acts"]) == (exact.params, exact.acts)
        if repeat < 3:
            start = time.perf_counter()
            counted_by_fvcore = traced_macs(few[0])
            traced.append(time.perf_counter() - start)
            assert counted_by_fvcore == exact.macs
        _block_parts.cache_clear()
        start = time.perf_counter()
        sizes = whole_lattice()
        lattices.append(time.perf_counter() - start)
    mine = statistics.median(ours)
    print(f"{'':34}{'a network':>12}{'per second':>12}{'slower':>9}")
    for label, values in (
        ("effnet.cost", ours),
        ("effnet.cost, nothing remembered", unseen),
        ("layer by layer, in pycls' style", theirs),
        ("fvcore (build, trace, count)", traced),
    ):
        each = statistics.median(values)
        print(f"{label:34}{1e6 * each:10,.1f}us{1 / each:12,.0f}{each / mine:8,.1f}x")
    lattice_seconds = statistics.median(lattices)
    counted = f"{sizes[0]:,} triples, {sizes[1]:,} distinct networks with their costs"
    print(f"lattice at 0.01: {counted}, {lattice_seconds:.2f} s")
    print(f"{1 / mine:,.0f} costs/s")
    return (
        1 if args.check and (1 / mine < LEAST_PER_SECOND or lattice_seconds >= MOST_SECONDS) else 0
    )


if __name__ == "__main__":
    sys.exit(main())
