"""What runs of each length conclude on their own, and what a shorter length's answer costs.

A study whose networks all ran at several lengths (rungs) can be asked again as if it had ended
after each: does the direction that short trainings favour hold for long ones?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from effnet.budget import Budget
from scaling_search.results.record import Record
from scaling_search.study.settings import Study
from scaling_search.verdict.chances import CONFIDENCE, HALF_WIDTH
from scaling_search.verdict.posterior import Array
from scaling_search.verdict.verdict import Verdict, model, searched, verdicts


@dataclass(frozen=True, slots=True)
class Length:
    """The answer from the runs of one length alone, whose verdict sees none of the others.

    `regret` is how far its pick is expected to lie below the best at the longest length, and
    `regret_bound` what that does not exceed in 95% of cases; fractions, by the posterior of the
    longest length alone. (Differences of plain means would be too large: the best of noisy means is
    better than the best network.)"""

    epochs: int
    verdict: Verdict
    regret: float
    regret_bound: float


def at_length(records: Sequence[Record], study: Study, epochs: int) -> tuple[list[Record], Study]:
    """Return the runs of one length, and the study as if that were its only one."""
    runs = [record for record in records if record.epochs == epochs]
    return runs, study.model_copy(update={"rungs": (epochs,)})


def answers(records: Sequence[Record], study: Study, budget: Budget) -> list[Length]:
    """Return the answer of each length of a budget, the shortest first; none without a finished
    network at the longest."""
    longest = model(*at_length(records, study, study.rungs[-1]), budget)
    if longest is None:
        return []
    accuracies = longest.sample().accuracy
    column = {candidate.key: place for place, candidate in enumerate(longest.networks)}
    inside = [column[c.key] for c in longest.networks if c.role == "candidate"]
    best = accuracies[:, inside].max(1)
    found = []
    for epochs in study.rungs:
        for verdict in verdicts(*at_length(records, study, epochs)):
            pick = verdict.pick.candidate.key
            if verdict.budget != budget or pick not in column:
                continue
            behind = best - accuracies[:, column[pick]]
            bound = float(np.quantile(behind, CONFIDENCE))
            found.append(Length(epochs, verdict, float(behind.mean()), bound))
    return found


@dataclass(frozen=True, slots=True)
class Means:
    """Mean accuracies of a budget's networks after runs of one length, by key; `half` is half the
    width of the 95% interval of one, alike for all of them. Fractions."""

    epochs: int
    means: dict[str, float]
    half: float


def means_by_length(records: Sequence[Record], study: Study, budget: Budget) -> list[Means]:
    """Return the means of the networks that have a finished run at every length with every seed
    that any of them has; an empty list where fewer than two have.

    `half` is that of a network's mean around the mean of all: each seed's common part is no
    difference between networks. It is 0 where networks have one seed, which says nothing of it."""
    accuracies: dict[str, dict[tuple[int, int], float]] = {}
    for r in searched(records, study):
        if r.done and r.candidate.role == "candidate" and r.candidate.budget == budget:
            accuracies.setdefault(r.candidate.key, {})[r.epochs, r.seed] = r.val_acc
    every = {run for of_network in accuracies.values() for run in of_network}
    keys = [key for key, of_network in accuracies.items() if len(of_network) == len(every)]
    if len(keys) < 2:
        return []
    means = []
    for epochs in study.rungs:
        seeds = sorted(seed for length, seed in every if length == epochs)
        if not seeds:
            return []
        table = np.array([[accuracies[key][epochs, seed] for seed in seeds] for key in keys])
        by_network = dict(zip(keys, table.mean(1).tolist(), strict=True))
        means.append(Means(epochs, by_network, _half_width(table)))
    return means


def _half_width(table: Array) -> float:
    """Return half the 95% interval of a mean over seeds, from what is left of accuracies [networks,
    seeds] once the effects of both are taken off."""
    networks, seeds = table.shape
    if seeds < 2:
        return 0.0
    rest = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    variance = (rest**2).sum() / ((networks - 1) * (seeds - 1))
    return float(HALF_WIDTH * (variance / seeds) ** 0.5)
