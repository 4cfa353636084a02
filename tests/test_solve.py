"""Solving, against an independent brute force: whole lattices of settings at once in numpy."""

import dataclasses
import math
import pickle
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import effnet
from benchmarks.space import ROWS, cells
from effnet.arch import Baseline, Scaling, scale
from effnet.budget import Budget
from effnet.cost import cost, macs, training_memory
from effnet.families import BASELINES, PAPER
from effnet.rounding import spread_repeats
from effnet.solve import InfeasibleError, Solution, fit, nearest_width, shortest_width, solve


def base(
    name: str, resolution: int, width: float = 1.0, divisor: int = 8, rounding: str = "spread"
) -> Baseline:
    return dataclasses.replace(
        BASELINES[name], resolution=resolution, width=width, divisor=divisor, rounding=rounding
    )


# ---- brute force


def every_macs(b: Baseline, depth: Any, width: Any, px: Any, classes: int) -> np.ndarray:
    """Multiply-adds of MBConv baselines at arrays of settings; for the rules official and
    spread."""
    depth, width, px = np.broadcast_arrays(
        *(np.atleast_1d(np.asarray(x, dtype=float)) for x in (depth, width, px))
    )

    def wide(c: int) -> np.ndarray:
        exact = (
            c * b.width * width
            if b.rounding == "official"
            else np.where(
                abs(c * b.width * width - np.round(c * b.width * width)) < 1e-9,
                np.round(c * b.width * width),
                c * b.width * width,
            )
        )
        if b.rounding == "spread":
            parts = exact / b.divisor
            parts = np.where(abs(parts - np.round(parts)) < 1e-9, np.round(parts), parts)
            return np.maximum(b.divisor, np.floor(parts + 0.5).astype(np.int64) * b.divisor)
        rounded = np.maximum(
            b.divisor, (exact + b.divisor / 2).astype(np.int64) // b.divisor * b.divisor
        )
        return rounded + b.divisor * (rounded < 0.9 * exact)

    base_repeats = tuple(s.repeats for s in b.stages)
    if b.rounding == "spread":
        rows = {
            d: spread_repeats(math.floor(d * b.blocks + 0.5 + 1e-9), base_repeats)
            for d in np.unique(depth)
        }
        repeats = [np.array([rows[d][i] for d in depth]) for i in range(len(base_repeats))]
    else:
        repeats = [
            np.ceil(
                np.where(
                    abs(depth * n - np.round(depth * n)) < 1e-9, np.round(depth * n), depth * n
                )
            )
            for n in base_repeats
        ]
    side = np.ceil(px / b.stem_stride).astype(np.int64)
    c = wide(b.stem_width)
    total = 3 * c * b.stem_kernel**2 * side**2
    for stage, n in zip(b.stages, repeats, strict=True):
        out = wide(stage.width)
        after = -(-side // stage.stride)
        for c_in, count, before in ((c, 1, side), (out, n.astype(np.int64) - 1, after)):
            inner, gate = c_in * stage.expand, np.maximum(1, c_in // 4)
            one = inner * stage.kernel**2 * after**2 + 2 * inner * gate + inner * out * after**2
            total = total + count * (one + (c_in * inner * before**2 if stage.expand > 1 else 0))
        side, c = after, out
    head = wide(b.head_width)
    return total + c * head * side**2 + head * classes


def test_brute_force_counts_what_cost_counts() -> None:
    for b in (BASELINES["b0"], base("b0-s4", 16, 0.25, 4)):
        counts = every_macs(b, [0.5, 1.0, 1.7], [1.0, 0.8, 1.33], [37, 64, 51], 10)
        nets = [
            scale(b, d, w, r, num_classes=10)
            for d, w, r in ((0.5, 1, 37), (1, 0.8, 64), (1.7, 1.33, 51))
        ]
        assert counts.tolist() == [macs(net) for net in nets]


def random_case(rng: random.Random) -> tuple[Baseline, Budget, dict[str, Any]]:
    name = rng.choice(["b0", "b0-s16", "b0-s8", "b0-s4"])
    b = base(
        name,
        rng.randrange(24, 160, 4),
        rng.choice([0.25, 0.5, 1.0]),
        rng.choice([4, 8]),
        rng.choice(["official", "spread"]),
    )
    budget = Budget(0.05 * 2000 ** rng.random(), True, tolerance=0.01)  # 0.05x to 100x
    depth, width = rng.uniform(0.5, 3), rng.uniform(0.3, 3)
    side = max(b.resolution // 2, rng.randrange(16, 320))
    free = rng.choice(["width", "resolution", "depth", "phi"])
    dials: dict[str, Any] = {
        "width": {"depth": depth, "resolution": side},
        "resolution": {"depth": depth, "width": width},
        "depth": {"width": width, "resolution": side},
        "phi": {"along": Scaling(rng.uniform(1, 1.5), rng.uniform(1, 1.3), rng.uniform(1.01, 1.3))},
    }[free]
    return b, budget, {**dials, "free": free}


@pytest.mark.parametrize("seed", range(10))
def test_solving_agrees_with_brute_force(seed: int) -> None:
    """50 random cases each: no setting of the free dial comes nearer."""
    rng = random.Random(seed)
    for _ in range(50):
        b, budget, dials = random_case(rng)
        free = dials.pop("free")
        solution = fit(b, budget, **dials, num_classes=10)
        assert solution.free == free
        assert solution.arch == scale(
            b, solution.depth, solution.width, solution.arch.resolution, num_classes=10
        )
        target = budget.value * macs(scale(b, num_classes=10))
        assert solution.cost == macs(solution.arch)
        assert solution.off == pytest.approx(solution.cost / target - 1, abs=1e-12)
        depth, width, px = (
            dials.get("depth", 1.0),
            dials.get("width", 1.0),
            dials.get("resolution", b.resolution),
        )
        least, lattice = -(-b.total_stride // 2), np.arange(1, 20_001) / 1000
        if free == "width":
            every = every_macs(b, depth, lattice, px, 10)
        elif free == "resolution":
            every = every_macs(b, depth, width, np.arange(least, 3000), 10)
        elif free == "depth":
            depths = (
                lattice[lattice * b.blocks >= len(b.stages) - 0.5]
                if b.rounding == "spread"
                else lattice
            )
            every = every_macs(b, np.append(depths, np.arange(20, 400, 0.05)), width, px, 10)
        else:
            s = dials["along"]
            phi = np.arange(-20, 40, 0.01)
            d, w, r = s.alpha**phi, s.beta**phi, np.floor(b.resolution * s.gamma**phi + 0.5)
            ok = (
                (r >= least)
                & (d * b.blocks >= len(b.stages))
                & (w > 0.002)
                & (r < 16384)
                & (d < 900)
                & (w < 90)
            )
            every = every_macs(b, d[ok], w[ok], r[ok], 10)
        best = float(abs(every / target - 1).min())
        assert abs(solution.off) <= best + 1e-12, (b, budget, dials, free)
        if free != "phi" and every.max() > target:  # phi is solved on a finer lattice
            assert abs(solution.off) == pytest.approx(best, abs=1e-12)
        if best <= 0.01:
            assert solution.met
            assert solve(b, budget, **dials, num_classes=10) == solution.arch


@settings(max_examples=15, deadline=None)
@given(st.integers(7, 30), st.integers(12, 40), st.floats(0.3, 4))
def test_solved_width_is_the_nearest(blocks: int, resolution: int, ratio: float) -> None:
    """The helper that spaces are made with, against every width in steps of .001 around the
    answer."""
    b = base("b0-s4", 16, 0.25, 4)
    target = ratio * macs(scale(b, num_classes=10))
    width = nearest_width(b, target, blocks / b.blocks, resolution, 10)
    off = abs(macs(scale(b, blocks / b.blocks, width, resolution, num_classes=10)) - target)
    assert off == min(
        abs(every_macs(b, blocks / b.blocks, np.arange(1, 6000) / 1000, resolution, 10) - target)
    )


@pytest.mark.parametrize("of", ["params", "acts", "memory"])
@pytest.mark.parametrize("name", ["b0", "mobilenetv1", "resnet50", "v2-s"])
def test_other_measures(of: str, name: str) -> None:
    """Of params, acts and memory, by every width in steps of .01."""
    b = BASELINES[name]
    budget = dataclasses.replace(Budget.parse("1.7x"), of=of, batch=16)
    solution = fit(b, budget, resolution=b.resolution)

    def measured(width: float) -> int:
        net = scale(b, width=width)
        return training_memory(net, 16) if of == "memory" else getattr(cost(net), of)

    assert solution.cost == measured(solution.value)
    target = 1.7 * measured(1.0)
    assert abs(solution.cost - target) <= min(
        abs(measured(n / 100) - target) for n in range(50, 350)
    )
    assert solution.met == (abs(solution.off) <= 0.02)


def test_solve_as_typed_by_people() -> None:
    net = effnet.solve("b0", budget="2x", depth=1.2, resolution=257)
    assert Budget.parse("2x").met(effnet.cost(net).macs, 385_814_752)
    absolute = effnet.solve("b0", budget="400M", resolution=224)
    assert abs(effnet.cost(absolute).macs / 4e8 - 1) <= 0.02
    compound = effnet.solve("b0", budget="4x", along="paper")
    assert abs(effnet.cost(compound).macs / 385_814_752 / 4 - 1) <= 0.02
    small = effnet.solve("mobilenetv2", budget="2M params", resolution=160)
    assert abs(effnet.cost(small).params / 2e6 - 1) <= 0.02


def test_pixels_that_cost_nothing_are_taken() -> None:
    """A side just below a multiple of the strides costs what the multiple does."""
    for dials, free in (({"width": 1.0}, "resolution"), ({"along": PAPER}, "phi")):
        solution = fit("b0", "1x", **dials)
        assert solution.arch == effnet.arch("b0")
        assert solution.free == free
        assert solution.off == 0
    solution = fit("b0", "2.3x", width=1.0)
    assert macs(effnet.arch("b0", resolution=solution.arch.resolution + 1)) > solution.cost


def test_a_gentle_slope_is_followed_to_the_end() -> None:
    """alpha = 1.01 needs phi far above the paper's: nothing but the dials' reach bounds it."""
    for alpha in (1.01, 1.02):
        solution = fit("b0", "4x", along=Scaling(alpha, 1, 1))
        assert solution.met
        assert solution.value > 60


def test_phi_is_the_papers() -> None:
    """At phi = 1 the paper's coefficients (section 5.2) cost 2.57x: solving for that finds the same
    network."""
    at_one = effnet.arch("b0", alpha=1.2, beta=1.1, gamma=1.15, phi=1)
    solution = fit("b0", Budget(macs(at_one) / 385_814_752, True), along=PAPER)
    assert solution.free == "phi"
    assert solution.arch == at_one
    assert solution.off == 0
    assert solution.value == pytest.approx(1, abs=0.05)
    halved = fit("b0", "0.5x", along="paper")
    assert halved.value < 0
    assert halved.arch.resolution < 224


def test_infeasible_is_an_answer() -> None:
    with pytest.raises(
        InfeasibleError, match="nothing within 0.0001% of 2x; the nearest has width"
    ) as caught:
        solve("b0", Budget.parse("2x", tolerance=1e-6), depth=1.2, resolution=257)
    solution = caught.value.solution
    assert isinstance(solution, Solution)
    assert not solution.met
    assert solution.cost == macs(solution.arch)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(
        caught.value
    )  # what a process pool does to it
    # resolution moves no parameter: the answer is the network as it is, and how far off it is
    solution = fit("b0", "2x params", width=1.0)
    assert not solution.met
    assert solution.cost == 5_288_548
    assert solution.off == pytest.approx(-0.5)
    assert solution.arch == effnet.arch("b0")
    assert "resolution" in str(solution)
    assert "params" in str(solution)
    # nothing so small, nothing so large
    assert fit("b0", "1K", resolution=224).arch.stem_width == 8
    assert not fit("b0", "1K", resolution=224).met
    assert not fit("b0-s4", "1000000G", width=1.0).met


@pytest.mark.parametrize(
    ("dials", "message"),
    [
        ({"width": 1.0, "resolution": 224, "depth": 1.0}, "leave one of them free"),
        ({}, "give resolution .width is solved."),
        ({"depth": 2.0}, "give resolution .width is solved."),
        ({"along": PAPER, "width": 1.0}, "give it alone"),
        ({"along": Scaling(1, 1, 1)}, "at least 1, and one of them 1.001 or more"),
        ({"along": Scaling(1 + 1e-13, 1, 1)}, "at least 1, and one of them 1.001 or more"),
        ({"along": Scaling(1.2, 0.9, 1.1)}, "at least 1, and one of them 1.001 or more"),
        ({"width": math.nan}, "width = nan"),
        ({"depth": -1.0, "resolution": 224}, "depth = -1.0"),
        ({"resolution": 8}, "leaves no pixels"),
        ({"resolution": 224, "num_classes": 0}, "num_classes = 0"),
    ],
)
def test_wrong_settings(dials: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit("b0", "2x", **dials)


def test_along_is_the_papers_or_a_scaling() -> None:
    with pytest.raises(ValueError, match='along = .1.2, 1.1, 1.15.: must be "paper" or a Scaling'):
        fit("b0", "2x", along=(1.2, 1.1, 1.15))  # type: ignore[arg-type]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} at {row[1]} px, width {row[2]}")
def test_cells_of_2x(row: tuple[str, int, float, int, int, int, int]) -> None:
    """The networks of 2.00x ± 2%, counted exhaustively, and those of low waste among them."""
    assert cells(*row[:4]) == row[4:]


@settings(max_examples=40, deadline=None)
@given(st.integers(300, 3000), st.integers(7, 30))
def test_shortest_width_rebuilds_the_network(thousandths: int, blocks: int) -> None:
    b = base("b0-s4", 16, 0.25, 4)
    net = scale(b, blocks / 16, thousandths / 1000, 20, num_classes=10)
    short = shortest_width(b, net, blocks / 16, thousandths / 1000)
    assert scale(b, blocks / 16, short, 20, num_classes=10) == net
    every = [
        n
        for n in range(max(1, thousandths - 400), thousandths + 400)
        if scale(b, blocks / 16, n / 1000, 20, num_classes=10) == net
    ]
    lengths = [len(f"{n / 1000:g}") for n in every]
    of_shortest = [n for n, size in zip(every, lengths, strict=True) if size == min(lengths)]
    middle = (every[0] + every[-1]) / 2
    assert abs(round(1000 * short) - middle) == min(abs(n - middle) for n in of_shortest)


@pytest.mark.parametrize("budget", ["0.5x", "0.9x", "1x", "0.3x params"])
def test_phi_below_zero_is_found(budget: str) -> None:
    """Where the baseline costs more than the budget, phi is negative."""
    solution = fit("b0", budget, along="paper")
    assert solution.value <= 0
    assert abs(solution.off) < 0.1
