"""Measures whether two orders of the same networks agree.

Asked of shorter runs against longer ones, of a smaller budget against a larger one, and of
validation against test: what a study found cheaply is worth something only if it holds there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from effnet.budget import Budget
from scaling_search.results.record import Record
from scaling_search.study.directions import distance
from scaling_search.study.settings import Study
from scaling_search.verdict.verdict import searched

# Below this many networks the variance 0.437 / (n - 4) is not defined.
_FEWEST = 5

# Networks of two budgets are taken for the same direction within this distance of shares.
SAME_DIRECTION = 0.15


@dataclass(frozen=True, slots=True)
class Rank:
    """Kendall's tau-b of two orders of `n` networks, with its 95% interval.

    1 is the same order, -1 the reverse. The variance of artanh tau is 0.437 / (n - 4) (Fieller,
    Hartley and Pearson 1957, Biometrika 44, 470); for n below 5 the interval is the whole range.
    """

    tau: float
    low: float
    high: float
    n: int

    @property
    def few(self) -> bool:
        """Whether these are too few networks to say anything."""
        return self.n < _FEWEST


@dataclass(frozen=True, slots=True)
class Agreement:
    """What was compared, in words ('1 against 2 epochs, different seeds'), and how it agrees."""

    compared: str
    rank: Rank


def rank(first: Sequence[float], second: Sequence[float]) -> Rank:
    """Compare two lists of values of the same networks. Raises ValueError for fewer than two."""
    n = len(first)
    if n < 2:
        raise ValueError(f"an order needs at least two networks, not {n}")
    tau = float(kendalltau(first, second).statistic)
    if math.isnan(tau):  # one of them is constant: no order at all
        tau = 0.0
    if n < _FEWEST:
        return Rank(tau, -1.0, 1.0, n)
    middle = math.atanh(max(-0.999, min(0.999, tau)))  # finite where the orders are the same
    half = 1.96 * math.sqrt(0.437 / (n - 4))
    return Rank(tau, min(tau, math.tanh(middle - half)), max(tau, math.tanh(middle + half)), n)


def agreements(records: Sequence[Record], study: Study, budget: Budget) -> list[Agreement]:
    """Return how the budget's order of networks agrees with others, from the study's own runs.

    Short runs against long ones, validation against test, this budget against each that comes after
    it in the study; whatever has at least two networks to compare.
    """
    candidates = _finished_candidates(records)
    done = searched(candidates, study)
    mine = _of_budget(done, budget)
    last = study.rungs[-1]
    compared = []
    for short in study.rungs[:-1]:
        agreement = _short_against_long(mine, short, last)
        if agreement is not None:
            compared.append(agreement)
    test = _validation_against_test(_of_budget(candidates, budget), last)
    if test is not None:
        compared.append(test)
    if budget in study.budgets:
        for other in study.budgets[study.budgets.index(budget) + 1 :]:
            across = _across_budgets(mine, _of_budget(done, other), last)
            if across is not None:
                compared.append(Agreement(f"{budget} against {other}, nearest shares", across))
    return compared


def between_lengths(
    records: Sequence[Record], study: Study, budget: Budget, short: int, long: int
) -> Agreement | None:
    """Return how the budget's order after `short` epochs agrees with that after `long`, over
    different seeds where there are several; None with fewer than two networks at both.

    The two may be one length: that is how far its own noise lets any order agree with it."""
    done = searched(_finished_candidates(records), study)
    return _short_against_long(_of_budget(done, budget), short, long)


def _finished_candidates(records: Iterable[Record]) -> list[Record]:
    return [r for r in records if r.done and r.candidate.role == "candidate"]


def _of_budget(records: Iterable[Record], budget: Budget) -> list[Record]:
    return [r for r in records if r.candidate.budget == budget]


def _short_against_long(records: Sequence[Record], short: int, last: int) -> Agreement | None:
    """Compare the order after `short` epochs with that after `last`.

    Short runs of half the seeds against long runs of the others, and the other way round, averaged:
    a long run is the short one of its seed continued, and would agree with its own luck.
    """
    short_runs = [r for r in records if r.epochs == short]
    long_runs = [r for r in records if r.epochs == last]
    seeds = sorted({r.seed for r in short_runs} & {r.seed for r in long_runs})
    halves = [(seeds, seeds)]
    which = "the same seed, so they share its luck"
    if len(seeds) > 1:
        halves = [(seeds[::2], seeds[1::2]), (seeds[1::2], seeds[::2])]
        which = "different seeds"
    ranks = []
    for short_seeds, long_seeds in halves:
        x = network_means([r for r in short_runs if r.seed in short_seeds], _val_acc)
        y = network_means([r for r in long_runs if r.seed in long_seeds], _val_acc)
        keys = [key for key in x if key in y]
        if len(keys) < 2:
            return None
        ranks.append(rank([x[key] for key in keys], [y[key] for key in keys]))
    mean = Rank(
        tau=sum(r.tau for r in ranks) / len(ranks),
        low=sum(r.low for r in ranks) / len(ranks),
        high=sum(r.high for r in ranks) / len(ranks),
        n=ranks[0].n,
    )
    return Agreement(f"{short} against {last} epochs, {which}", mean)


def _validation_against_test(records: Sequence[Record], last: int) -> Agreement | None:
    """Compare both accuracies of the same runs at the last rung, fresh seeds among them."""
    tested: list[Record] = []
    for record in records:
        if record.epochs == last and record.test_acc is not None:
            tested.append(record)
    test = network_means(tested, lambda r: r.test_acc or 0.0)
    if len(test) < 2:
        return None
    validation = network_means(tested, _val_acc)
    values = list(validation.values()), list(test.values())
    return Agreement("validation against test", rank(*values))


def _across_budgets(small: Sequence[Record], large: Sequence[Record], last: int) -> Rank | None:
    """Compare each network of the smaller budget with the nearest in shares of the larger."""
    x = network_means([r for r in small if r.epochs == last], _val_acc)
    y = network_means([r for r in large if r.epochs == last], _val_acc)
    shares = {r.candidate.key: r.candidate.shares for r in (*small, *large)}
    first, second = [], []
    for key, value in x.items():
        distances = {other: distance(shares[key], shares[other]) for other in y}
        nearest = min(distances, key=lambda other: distances[other], default=None)
        if nearest is not None and distances[nearest] <= SAME_DIRECTION:
            first.append(value)
            second.append(y[nearest])
    return rank(first, second) if len(first) > 1 else None


def network_means(records: Sequence[Record], value: Callable[[Record], float]) -> dict[str, float]:
    """Return {network: its mean value}, as if every network had every seed.

    By least squares of network + seed: a plain mean would tilt towards the networks that happen to
    have the easier seeds.
    """
    keys = list(dict.fromkeys(r.candidate.key for r in records))
    seeds = sorted({r.seed for r in records})
    design = np.zeros((len(records), len(keys) + len(seeds)))
    for row, r in zip(design, records, strict=True):
        row[keys.index(r.candidate.key)] = 1
        row[len(keys) + seeds.index(r.seed)] = 1
    effects = np.linalg.lstsq(design, np.array([value(r) for r in records]), rcond=None)[0]
    return dict(zip(keys, effects[: len(keys)].tolist(), strict=True))


def _val_acc(r: Record) -> float:
    return r.val_acc
