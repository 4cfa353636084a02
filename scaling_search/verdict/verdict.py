"""What the runs say: the pick, what it may lose, what cannot be told apart from it. One joint model
(posterior.py).

*Best* is the highest expected validation accuracy at the last rung under this recipe, over seeds
and held-out images. All networks and all rungs are in the model, those left behind at a lower rung
included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from effnet.budget import Budget
from scaling_search.results.record import Record, by_network_key
from scaling_search.study.candidate import Candidate
from scaling_search.study.directions import SINGLE, simplex
from scaling_search.study.settings import Study
from scaling_search.verdict.posterior import Array, Posterior, Runs, posterior

MARGIN = 0.005  # equivalence: half a point, fixed beforehand
FRESH = 500  # seeds from study.seed + this on confirm: they are no part of the verdict
_SURE = 0.95
_GRID = np.array(simplex(12))
_REACH = 0.25  # in shares: the surface says nothing farther than this from every network


@dataclass(frozen=True, slots=True)
class Row:
    """One network. `mean` is its expected accuracy (a fraction) at the last rung, `error` its
    standard deviation; `behind` is the pick minus this network, from `low` to `high` in 95% of
    cases."""

    candidate: Candidate
    mean: float
    error: float
    behind: float
    low: float
    high: float
    best: float  # P(best); 0 outside the budget
    tied: bool
    seeds: int  # runs at the last rung
    speed: float | None  # training images/s, median of its runs
    test: float | None  # mean over its tested runs

    @property
    def standing(self) -> str:
        """Against the pick, with the equivalence margin: 'as good', 'worse', 'better' or 'cannot
        tell'."""
        if self.low >= -MARGIN and self.high <= MARGIN:
            return "as good"
        return "worse" if self.low > 0 else "better" if self.high < 0 else "cannot tell"


@dataclass(frozen=True, slots=True)
class Surface:
    """The smooth part over the shares. `optimum` per rung (shares), the last one final; `region`:
    the points that hold 95% of the probability of being the final optimum; `moved`: what share of
    the extra cost the optimum moved between dimensions from the first rung to the last, in 95% of
    cases from `moved_low` to `moved_high`."""

    optimum: tuple[tuple[float, float, float], ...]
    moved: float
    moved_low: float
    moved_high: float
    region: tuple[tuple[float, float, float], ...]
    points: tuple[tuple[float, float, float], ...]  # within reach of the networks
    height: tuple[float, ...]  # of the final surface at `points`, relative to its highest


@dataclass(frozen=True, slots=True)
class Verdict:
    """For one budget: the pick, everything else of that cost, the baseline. Best first."""

    budget: Budget
    pick: Row
    rows: tuple[
        Row, ...
    ]  # the candidates of this budget with a finished run at any rung, the pick among them
    baseline: Row | None
    references: tuple[Row, ...]
    bound: float  # the most that the pick may lie below the best, 95%
    settle: (
        int | None
    )  # runs more that would bring the bound to the margin; None: more than anyone would make
    noise: float  # standard deviation of one run at the last rung around its network
    surface: Surface | None  # None: fewer than four networks have shares
    failed: tuple[Candidate, ...]
    left_out: int  # failed runs of networks that finished others

    @property
    def equal_cost(self) -> bool:
        """Whether these networks may be compared without saying what each costs."""
        ratios = [row.candidate.ratio for row in self.rows]
        return max(ratios) <= 1.1 * min(ratios)

    @property
    def tied(self) -> tuple[Row, ...]:
        """The smallest set whose P(best) sums to 0.95."""
        return tuple(row for row in self.rows if row.tied)

    @property
    def fastest(self) -> Row | None:
        """The one of the tied set that trains most images a second; None where one of them has no
        speed on record, as runs that shared their GPU have none: it might be that one."""
        if not all(row.speed for row in self.tied):
            return None
        return max(self.tied, key=lambda row: row.speed or 0.0)

    def named(self, name: str) -> Row | None:
        """The network that stands for a direction, exactly or nearest."""
        for row in self.rows:
            if any(d in (name, f"nearest to {name}") for d in row.candidate.directions):
                return row
        return None

    @property
    def best_single(self) -> tuple[str, Row] | None:
        """The best of depth only, width only, resolution only."""
        reached = [(name, row) for name in SINGLE if (row := self.named(name)) is not None]
        return max(reached, key=lambda pair: pair[1].mean) if reached else None

    @property
    def finalists(self) -> tuple[Row, ...]:
        """What is confirmed on the test split: the pick, the paper's direction, the best single
        one, the baseline."""
        single = self.best_single
        rows = [self.pick, self.named("paper"), single[1] if single else None, self.baseline]
        return tuple({row.candidate.key: row for row in rows if row is not None}.values())


def searched(records: Sequence[Record], study: Study) -> list[Record]:
    """The runs that the verdict may use: those of fresh seeds only confirm it."""
    return [r for r in records if r.seed < study.seed + FRESH]


def verdicts(records: Sequence[Record], study: Study) -> list[Verdict]:
    """One for each budget with a finished network. The order of the records changes nothing."""
    runs = sorted(searched(records, study), key=lambda r: (r.epochs, r.seed, r.candidate.key))
    candidates = {r.candidate.key: r.candidate for r in records if r.candidate.role == "candidate"}
    budgets = dict.fromkeys(
        b for b in study.budgets if any(c.budget == b for c in candidates.values())
    )
    found = [_verdict(b, runs, records, study) for b in budgets]
    return [v for v in found if v is not None]


def model(
    runs: Sequence[Record],
    study: Study,
    budget: Budget,
    *,
    grid: Array | None = None,
    samples: int = 4096,
) -> tuple[list[str], Posterior] | None:
    """The posterior over this budget's networks, the baseline and the references; None without a
    finished candidate.

    Runs of fresh seeds are no part of it, and a network whose longest attempt failed is left out
    altogether."""
    runs = searched(runs, study)
    done = [
        r
        for r in runs
        if r.done
        and (r.candidate.role != "candidate" or r.candidate.budget == budget)
        and r.epochs in study.rungs
    ]
    lost = _lost(runs)
    done = [r for r in done if r.candidate.key not in lost]
    if not any(r.candidate.role == "candidate" for r in done):
        return None
    network_of = [r.candidate.key for r in done]
    networks = dict(zip(network_of, (r.candidate for r in done), strict=True))
    keys = sorted(networks, key=lambda key: (networks[key].role != "candidate", key))
    rungs = [e for e in study.rungs if any(r.epochs == e for r in done)]
    if rungs[-1] != study.rungs[-1]:
        rungs.append(study.rungs[-1])
    seeds = sorted({r.seed for r in done})
    row_of, seed_of = {k: i for i, k in enumerate(keys)}, {s: i for i, s in enumerate(seeds)}
    nowhere = (math.nan,) * 3
    accuracy = np.array([r.val_acc for r in done])
    images = max(
        4 * max(len(r.outcome.right) if r.outcome else 0 for r in done), 100
    )  # bits, as hex digits
    p = float(np.clip(accuracy.mean(), 0.01, 0.99))
    data = Runs(
        np.array(
            [
                c.shares if (c := networks[k]).role == "candidate" and c.shares else nowhere
                for k in keys
            ]
        ),
        np.array([row_of[key] for key in network_of]),
        np.array([rungs.index(r.epochs) for r in done]),
        np.array([seed_of[r.seed] for r in done]),
        accuracy,
        len(rungs),
        math.sqrt(p * (1 - p) / images),
    )
    return keys, posterior(data, grid=grid, samples=samples)


def _lost(runs: Sequence[Record]) -> set[str]:
    """Networks with a failed run and none that finished at as many epochs."""
    longest: dict[str, int] = {}
    for r in runs:
        if r.done:
            longest[r.candidate.key] = max(longest.get(r.candidate.key, 0), r.epochs)
    failed = [r for r in runs if r.outcome is not None and not r.done]
    return {r.candidate.key for r in failed if longest.get(r.candidate.key, 0) < r.epochs}


def tied_set(best: Array) -> list[int]:
    """The smallest set whose P(best) sums to 0.95, likeliest first."""
    order = np.argsort(-best, kind="stable")
    enough = int(np.searchsorted(np.cumsum(best[order]), _SURE - 1e-9)) + 1
    return [int(k) for k in order[:enough]]


def chances(accuracy: Array) -> tuple[int, Array, float]:
    """From samples [samples, networks]: the pick (largest mean), P(best) of each, the loss bound
    (95%)."""
    pick = int(accuracy.mean(0).argmax())
    best = np.bincount(accuracy.argmax(1), minlength=accuracy.shape[1]) / len(accuracy)
    return pick, best, float(np.quantile(accuracy.max(1) - accuracy[:, pick], _SURE))


def settle(accuracy: Array, noise: float, margin: float = MARGIN) -> int | None:
    """How many runs more, shared equally among the tied networks, would bring the loss bound to
    `margin` on average: futures are drawn from the posterior, each of them answered by runs with
    this noise. None: over 4,096 each."""
    rng = np.random.default_rng(0)
    mean, covariance = accuracy.mean(0), np.atleast_2d(np.cov(accuracy.T))
    tied = tied_set(chances(accuracy)[1])
    truths = accuracy[:: max(1, len(accuracy) // 24), tied][:24]
    if chances(accuracy)[2] <= margin:
        return 0
    for runs in (2**n for n in range(13)):
        gain = covariance[:, tied] @ np.linalg.inv(
            covariance[np.ix_(tied, tied)] + noise**2 / runs * np.eye(len(tied))
        )
        left = covariance - gain @ covariance[tied]
        root = np.linalg.cholesky(left + (1e-9 + 1e-9 * np.trace(left)) * np.eye(len(left)))
        spread = rng.standard_normal((512, len(left))) @ root.T
        seen = truths + rng.standard_normal(truths.shape) * noise / math.sqrt(runs)
        bounds = [chances(mean + gain @ (y - mean[tied]) + spread)[2] for y in seen]
        if np.mean(bounds) <= margin:
            return runs * len(tied)
    return None


def _verdict(
    budget: Budget, runs: list[Record], records: Sequence[Record], study: Study
) -> Verdict | None:
    answer = model(runs, study, budget)
    if answer is None:
        return None
    keys, post = answer
    by_network, tests = (
        by_network_key(runs),
        by_network_key([r for r in records if r.test_acc is not None]),
    )
    networks = {key: group[0].candidate for key, group in by_network.items()}
    inside = [i for i, key in enumerate(keys) if networks[key].role == "candidate"]
    accuracy = post.accuracy[:, inside]
    pick, best, bound = chances(accuracy)
    tied = {inside[i] for i in (*tied_set(best), pick)}
    chance = dict(zip(inside, best.tolist(), strict=True))
    first = post.accuracy[:, inside[pick]]

    def row(i: int) -> Row:
        mine = [r for r in by_network[keys[i]] if r.done]
        tested = [r.test_acc for r in tests.get(keys[i], ())]
        speeds = [r.outcome.images_per_s for r in mine if r.outcome and r.outcome.images_per_s]
        behind = first - post.accuracy[:, i]
        low, high = np.quantile(behind, [(1 - _SURE) / 2, (1 + _SURE) / 2])
        return Row(
            candidate=networks[keys[i]],
            mean=float(post.accuracy[:, i].mean()),
            error=float(post.accuracy[:, i].std()),
            behind=float(behind.mean()),
            low=float(low),
            high=float(high),
            best=chance.get(i, 0.0),
            tied=i in tied,
            seeds=sum(r.epochs == study.rungs[-1] for r in mine),
            speed=float(np.median(speeds)) if speeds else None,
            test=float(np.mean([a for a in tested if a is not None])) if tested else None,
        )

    rows = [row(i) for i in range(len(keys))]
    ended = {
        k: c
        for k, c in networks.items()
        if c.budget == budget and any(r.outcome for r in by_network[k])
    }
    gone = {key for key, c in ended.items() if c.role == "candidate" and key not in keys}
    return Verdict(
        budget=budget,
        pick=rows[inside[pick]],
        rows=tuple(sorted((rows[i] for i in inside), key=lambda r: (-r.mean, r.candidate.key))),
        baseline=next((r for r in rows if r.candidate.role == "baseline"), None),
        references=tuple(r for r in rows if r.candidate.role == "reference"),
        bound=bound,
        settle=settle(accuracy, post.noise),
        noise=post.noise,
        surface=_surface([networks[keys[i]] for i in inside], runs, study, budget),
        failed=tuple(c for key, c in ended.items() if key in gone),
        left_out=sum(r.outcome is not None and not r.done for key in keys for r in by_network[key]),
    )


def _surface(
    inside: list[Candidate], runs: list[Record], study: Study, budget: Budget
) -> Surface | None:
    places = np.array([c.shares for c in inside if c.shares])
    if len(places) < 4:
        return None
    near = np.linalg.norm(_GRID[:, None] - places[None], axis=2).min(1) <= _REACH
    grid = _GRID[near]
    answer = model(runs, study, budget, grid=grid, samples=1024)
    assert answer is not None
    fields = answer[1].fields
    means = fields.mean(0)
    top = np.bincount(fields[:, -1].argmax(1), minlength=len(grid)) / len(fields)

    first, last = grid[fields[:, 0].argmax(1)], grid[fields[:, -1].argmax(1)]
    moved = np.abs(first - last).sum(1) / 2
    low, high = np.quantile(moved, [(1 - _SURE) / 2, (1 + _SURE) / 2])
    best = [int(m.argmax()) for m in means]

    def at(i: int) -> tuple[float, float, float]:
        depth, width, resolution = grid[i].tolist()
        return depth, width, resolution

    return Surface(
        optimum=tuple(at(i) for i in best),
        moved=float(np.abs(grid[best[0]] - grid[best[-1]]).sum() / 2),
        moved_low=float(low),
        moved_high=float(high),
        region=tuple(at(i) for i in tied_set(top)),
        points=tuple(at(i) for i in range(len(grid))),
        height=tuple((means[-1] - means[-1].max()).tolist()),
    )
