"""Whether two orders of the same networks agree: shorter runs, other budgets, validation against
test."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from effnet.budget import Budget
from scaling_search.results.record import Record
from scaling_search.study.directions import apart
from scaling_search.study.settings import Study
from scaling_search.verdict.verdict import searched


@dataclass(frozen=True, slots=True)
class Rank:
    """Kendall's tau-b of two orders of `n` networks, with its 95% interval (Fieller, Hartley and
    Pearson 1957: the variance of artanh tau is 0.437 / (n - 4)); the whole range where n is below
    5."""

    tau: float
    low: float
    high: float
    n: int

    @property
    def words(self) -> str:
        if self.n < 5:
            return f"Kendall's tau {self.tau:.2f} over {self.n} networks: too few to say"
        says = "agree" if self.low > 0 else "disagree" if self.high < 0 else "may agree or not"
        return f"Kendall's tau {self.tau:.2f} (95%: {self.low:.2f} to {self.high:.2f}, {self.n} networks): they {says}"


def rank(first: Sequence[float], second: Sequence[float]) -> Rank:
    """Raises ValueError for fewer than two networks."""
    n = len(first)
    if n < 2:
        raise ValueError(f"an order needs at least two networks, not {n}")
    tau = float(kendalltau(first, second).statistic)
    if math.isnan(tau):  # one of them is constant: no order at all
        tau = 0.0
    if n < 5:
        return Rank(tau, -1.0, 1.0, n)
    middle, half = math.atanh(max(-0.999, min(0.999, tau))), 1.96 * math.sqrt(0.437 / (n - 4))
    return Rank(tau, min(tau, math.tanh(middle - half)), max(tau, math.tanh(middle + half)), n)


def holds(records: Sequence[Record], study: Study, budget: Budget) -> list[str]:
    """Does a shorter, smaller or validated answer hold? Each a sentence, from the study's own
    runs."""
    done = [r for r in searched(records, study) if r.done and r.candidate.role == "candidate"]
    mine = [r for r in done if r.candidate.budget == budget]
    found = []
    last = study.rungs[-1]
    for short in study.rungs[:-1]:
        pair = _short_long(mine, short, last)
        if pair:
            found.append(f"{short} against {last} epochs, {pair[1]}: {pair[0].words}")
    # both of the same runs: fresh seeds, where there are some
    mine_too = [
        r for r in records if r.candidate.role == "candidate" and r.candidate.budget == budget
    ]
    both = [r for r in mine_too if r.done and r.epochs == last and r.test_acc is not None]
    tested = _means(both, lambda r: r.test_acc or 0.0)
    validated = _means(both, lambda r: r.val_acc)
    if len(tested) > 1:
        order = rank([validated[k] for k in tested], list(tested.values()))
        found.append(f"validation against test: {order.words}")
    for other in (
        study.budgets[study.budgets.index(budget) + 1 :] if budget in study.budgets else ()
    ):
        if r := _across(mine, [r for r in done if r.candidate.budget == other], last):
            found.append(f"{budget} against {other}, nearest shares: {r.words}")
    return found


def _means(records: Sequence[Record], value: Callable[[Record], float]) -> dict[str, float]:
    """Per network, by least squares of network + seed: seeds that only some have would tilt a plain
    mean."""
    keys, seeds = (
        list(dict.fromkeys(r.candidate.key for r in records)),
        sorted({r.seed for r in records}),
    )
    design = np.zeros((len(records), len(keys) + len(seeds)))
    for row, r in zip(design, records, strict=True):
        row[keys.index(r.candidate.key)] = row[len(keys) + seeds.index(r.seed)] = 1
    effects = np.linalg.lstsq(design, np.array([value(r) for r in records]), rcond=None)[0]
    return dict(zip(keys, effects[: len(keys)].tolist(), strict=True))


def _short_long(records: Sequence[Record], short: int, last: int) -> tuple[Rank, str] | None:
    """Short runs of some seeds against long runs of the others, and the other way round: a run of
    the same seed is the short one continued, and would agree with its own luck."""
    seeds = sorted(
        {r.seed for r in records if r.epochs == short}
        & {r.seed for r in records if r.epochs == last}
    )
    groups = (
        [(seeds[::2], seeds[1::2]), (seeds[1::2], seeds[::2])]
        if len(seeds) > 1
        else [(seeds, seeds)]
    )
    ranks = []
    for a, b in groups:
        x = _means([r for r in records if r.epochs == short and r.seed in a], lambda r: r.val_acc)
        y = _means([r for r in records if r.epochs == last and r.seed in b], lambda r: r.val_acc)
        keys = [k for k in x if k in y]
        if len(keys) < 2:
            return None
        ranks.append(rank([x[k] for k in keys], [y[k] for k in keys]))
    tau, low, high = (
        sum(getattr(r, f) for r in ranks) / len(ranks) for f in ("tau", "low", "high")
    )
    return Rank(tau, low, high, ranks[0].n), "different seeds" if len(
        seeds
    ) > 1 else "the same seed, so they share its luck"


def _across(small: Sequence[Record], large: Sequence[Record], last: int) -> Rank | None:
    """Each network of the smaller budget with the one of the larger that is nearest in shares."""
    x, y = (
        _means([r for r in part if r.epochs == last], lambda r: r.val_acc)
        for part in (small, large)
    )
    at = {r.candidate.key: r.candidate.shares for r in (*small, *large)}
    pairs = []
    for key in x:
        near = min(y, key=lambda other: apart(at[key], at[other]), default=None)
        if near is not None and apart(at[key], at[near]) <= 0.15:
            pairs.append((x[key], y[near]))
    return rank(*zip(*pairs, strict=True)) if len(pairs) > 1 else None
