"""Does the verdict keep its word? Simulated studies whose truth is known, in five worlds.

    python benchmarks/calibration.py [--studies 500] [--check] [--workers 2]

Each study: 24 networks on the map; one short run each, half of them promoted to a long one, the
five best with three seeds (rungs); or every network long with one seed, then twelve more runs where
the posterior says (flat); or every network three times, short and long (grid, as
studies/imagenette-24px-2x). The noise is what that study shows: one long run varies by 1.45 points,
a short one by 1.6, the two of one seed correlate by 0.5, a seed moves all by 0.75. The model knows
none of this; it is given what every study has, the noise of 1,930 validation images. Beside it, on
the same runs, the usual verdict: the finalists' means and their standard errors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from scaling_search.driver.allocation import half, top_two
from scaling_search.verdict.posterior import Array, Runs, posterior
from scaling_search.verdict.verdict import chances, tied_set

NETWORKS, FINALISTS, SEEDS, EXTRA = 24, 5, 3, 12
UNIT = 0.0113  # 1,930 images at 53%
NOISE, LOW_NOISE, SHARED, ALIKE = 0.0145, 0.016, 0.0075, 0.5
WORLDS = ("matched", "rough surface", "unequal noise", "strong bias", "large effects")


@dataclass(frozen=True)
class Truth:
    """`final` [networks] and `short` [networks]: expected accuracies; `noisy` [networks]: factor on
    the noise."""

    x: Array
    final: Array
    short: Array
    noisy: Array
    seeds: Array  # [2, seeds]: what a seed does to everyone
    noise: tuple[float, float]


def truth(world: str, rng: np.random.Generator) -> Truth:
    x = np.concatenate([np.eye(3), rng.dirichlet((1, 1, 1), NETWORKS - 3)])
    z = rng.standard_normal(12)
    gap = ((x[:, None] - x[None]) ** 2).sum(-1)
    length = 0.08 if world == "rough surface" else 0.5 * np.exp(0.4 * z[0])
    large = 4.0 if world == "large effects" else 1.0
    smooth = np.linalg.cholesky(np.exp(-0.5 * gap / length**2) + 1e-9 * np.eye(NETWORKS))

    def effects(surface: float, own: float) -> Array:
        found = surface * smooth @ rng.standard_normal(NETWORKS) + own * rng.standard_normal(
            NETWORKS
        )
        return np.asarray(found)

    final = effects(large * 0.012 * np.exp(0.5 * z[1]), large * 0.003 * np.exp(0.5 * z[2]))
    biased = world == "strong bias"
    slope = 0.3 if biased else 0.9 + 0.3 * z[3]
    own = (
        effects(0.013, 0.006)
        if biased
        else effects(0.0065 * np.exp(0.5 * z[4]), 0.0025 * np.exp(0.5 * z[5]))
    )
    noisy = (
        np.exp(0.4 * rng.standard_normal(NETWORKS))
        if world == "unequal noise"
        else np.ones(NETWORKS)
    )
    seeds = SHARED * np.exp(0.4 * z[6]) * rng.standard_normal((2, 64))
    scale = np.exp(0.2 * z[7])
    return Truth(
        x,
        0.55 + final,
        0.45 + slope * final + own,
        noisy,
        seeds,
        (LOW_NOISE * scale, NOISE * scale),
    )


class Study:
    """Runs of one truth so far."""

    def __init__(self, known: Truth, rng: np.random.Generator) -> None:
        self._known, self._rng = known, rng
        self.rows: list[tuple[int, int, int, float]] = []
        self._luck: dict[
            tuple[int, int], float
        ] = {}  # of a network and seed, at the rung that came first

    def run(self, network: int, rung: int) -> None:
        seed = sum(r[0] == network and r[1] == rung for r in self.rows)
        t = self._known
        mean = (t.short, t.final)[rung][network] + t.seeds[rung, seed]
        z = self._rng.standard_normal()
        if (network, seed) in self._luck:
            z = ALIKE * self._luck[network, seed] + np.sqrt(1 - ALIKE**2) * z
        self._luck.setdefault((network, seed), z)
        self.rows.append((network, rung, seed, mean + t.noise[rung] * t.noisy[network] * z))

    def means(self, rung: int) -> dict[int, float]:
        networks = {r[0] for r in self.rows if r[1] == rung}
        return {
            k: float(np.mean([r[3] for r in self.rows if r[:2] == (k, rung)])) for k in networks
        }

    def accuracy(self, rungs: int) -> Array:
        rows = [r for r in self.rows if rungs == 2 or r[1] == 1]
        network, rung, seed = (np.array([r[i] for r in rows]) for i in range(3))
        y = np.array([r[3] for r in rows])
        return posterior(
            Runs(self._known.x, network, rung - (2 - rungs), seed, y, rungs, UNIT)
        ).accuracy


def rungs(study: Study, rng: np.random.Generator) -> Array:
    for k in range(NETWORKS):
        study.run(k, 0)
    short = study.means(0)
    for k in sorted(short, key=lambda k: -short[k])[: half(NETWORKS)]:
        study.run(k, 1)
    long = study.means(1)
    for k in sorted(long, key=lambda k: -long[k])[:FINALISTS]:
        for _ in range(SEEDS - 1):
            study.run(k, 1)
    return study.accuracy(2)


def flat(study: Study, rng: np.random.Generator) -> Array:
    for k in range(NETWORKS):
        study.run(k, 1)
    for _ in range(EXTRA // 4):
        accuracy = study.accuracy(1)
        for k in [top_two(accuracy, rng) for _ in range(4)]:
            study.run(k, 1)
    return study.accuracy(1)


def grid(study: Study, rng: np.random.Generator) -> Array:
    for _ in range(SEEDS):
        for rung in (0, 1):
            for k in range(NETWORKS):
                study.run(k, rung)
    return study.accuracy(2)


def usual(study: Study, rng: np.random.Generator) -> tuple[int, set[int], float]:
    """The finalists' means and standard errors: the best, those within two errors of the
    difference, its P(best)."""
    by = {k: [r[3] for r in study.rows if r[:2] == (k, 1)] for k in study.means(1)}
    finalists = {k: v for k, v in by.items() if len(v) > 1}
    mean = {k: np.mean(v) for k, v in finalists.items()}
    error = {k: np.std(v, ddof=1) / np.sqrt(len(v)) for k, v in finalists.items()}
    best = max(mean, key=lambda k: mean[k])
    tied = {k for k in mean if mean[best] - mean[k] <= 2 * np.hypot(error[best], error[k])}
    draws = np.array([mean[k] + error[k] * rng.standard_normal(2000) for k in mean])
    return best, tied, float((draws.argmax(0) == list(mean).index(best)).mean())


KINDS: dict[str, Callable[[Study, np.random.Generator], Array]] = {
    "rungs": rungs,
    "flat": flat,
    "grid": grid,
}


@dataclass(frozen=True)
class Result:
    covered: bool  # the tied set holds the true best
    bounded: bool  # the pick lies within the bound
    size: int
    stated: float  # P(best) of the pick
    right: bool  # it is the best
    chance: tuple[float, ...]  # P(best) of each network
    best: int
    usual: tuple[bool, float, bool] | None  # covered, stated, right


def one(job: tuple[str, str, int]) -> Result:
    world, kind, number = job
    rng = np.random.default_rng([WORLDS.index(world), list(KINDS).index(kind), number])
    known = truth(world, rng)
    study = Study(known, rng)
    accuracy = KINDS[kind](study, rng)
    pick, best, bound = chances(accuracy)
    top = int(known.final.argmax())
    other = None
    if kind == "rungs":
        choice, tied, stated = usual(study, rng)
        other = (top in tied, stated, choice == top)
    tied_now = {*tied_set(best), pick}
    loss = known.final[top] - known.final[pick]
    return Result(
        top in tied_now,
        bool(loss <= bound),
        len(tied_now),
        float(best[pick]),
        pick == top,
        tuple(best),
        top,
        other,
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--studies", type=int, default=500, help="per world and allocation")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    jobs = [(w, kind, n) for w in WORLDS for kind in KINDS for n in range(args.studies)]
    with ProcessPoolExecutor(args.workers) as pool:
        results = dict(zip(jobs, pool.map(one, jobs, chunksize=10), strict=True))
    misses = []
    print(f"{args.studies} studies per world and allocation, {NETWORKS} networks")
    print("world          runs   tied set  bound  size  stated  true   usual: tied stated true")
    for world in WORLDS:
        for kind in KINDS:
            mine = [r for (w, k, _), r in results.items() if (w, k) == (world, kind)]
            covered, bounded, size, stated, right = (
                float(np.mean([getattr(r, name) for r in mine]))
                for name in ("covered", "bounded", "size", "stated", "right")
            )
            other = [r.usual for r in mine if r.usual]
            beside = (
                " ".join(f"{np.mean([o[i] for o in other]):6.3f}" for i in range(3))
                if other
                else ""
            )
            line = f"{world:14} {kind:6} {covered:8.3f} {bounded:6.3f} {size:5.1f} {stated:7.2f} {right:5.2f}"
            print(f"{line}          {beside}")
            hard = world == "strong bias"
            for name, value, least in (
                ("tied", covered, 0.88 if hard else 0.93),
                ("bound", bounded, 0.88 if hard else 0.92),
            ):
                if value < least:
                    misses.append(f"{world}, {kind}: {name} {value:.3f} below {least}")
            if abs(stated - right) > (0.05 if world == "matched" else 0.15):
                misses.append(f"{world}, {kind}: stated {stated:.2f}, true {right:.2f}")
    chance = np.concatenate([r.chance for r in results.values()])
    true = np.concatenate([np.arange(NETWORKS) == r.best for r in results.values()])
    error = 0.0
    print(f"\nP(best) over {len(results):,} posteriors: stated, true, networks")
    for a in np.arange(0, 1, 0.1):
        inside = (chance >= a) & (chance < a + 0.1 if a < 0.89 else chance <= 1)
        if inside.any():
            stated, right = float(chance[inside].mean()), float(true[inside].mean())
            error += abs(stated - right) * inside.mean()
            print(f"{stated:6.3f} {right:6.3f} {inside.sum():7,}")
            if inside.sum() >= 400 and abs(stated - right) > 0.07:
                misses.append(f"bin {a:.1f}: stated {stated:.3f}, true {right:.3f}")
    if error > 0.03:
        misses.append(f"calibration error {error:.4f} above 0.03")
    print(*misses, sep="\n")
    print(f"calibration error of P(best) {error:.4f}; {len(misses)} targets missed")
    return int(args.check and bool(misses))


if __name__ == "__main__":
    sys.exit(main())
