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
from scaling_search.verdict.chances import CONFIDENCE, half_widths
from scaling_search.verdict.posterior import Array
from scaling_search.verdict.verdict import Model, Verdict, model, searched, verdicts


@dataclass(frozen=True, slots=True)
class Regret:
    """How far a network is expected to lie below the best, and what that does not exceed in 95% of
    cases; fractions."""

    expected: float
    bound: float


@dataclass(frozen=True, slots=True)
class Length:
    """The answer from the runs of one length alone, whose verdict sees none of the others.

    `regret` is that of its pick after the longest length, by the posterior of the longest length
    alone; `joint_regret` by that of all lengths together. (Differences of plain means would be too
    large: the best of noisy means is better than the best network.) The first is a little too small
    where lengths share their first steps: the pick was chosen for luck that its longer runs of the
    same seeds share. The second knows of that, and believes the short runs more. Both are None for
    a pick without a finished run of the longest length."""

    epochs: int
    verdict: Verdict
    regret: Regret | None
    joint_regret: Regret | None


def at_length(
    records: Sequence[Record], study: Study, epochs: int, budget: Budget | None = None
) -> tuple[list[Record], Study]:
    """Return the runs of one length, and the study as if that were its only one; with `budget`, as
    if that were its only one too."""
    runs = [record for record in records if record.epochs == epochs]
    changes: dict[str, object] = {"rungs": (epochs,)}
    if budget is not None:
        runs = [r for r in runs if r.candidate.role != "candidate" or r.candidate.budget == budget]
        changes["budgets"] = (budget,)
    return runs, study.model_copy(update=changes)


def as_far_as_run(records: Sequence[Record], study: Study) -> Study:
    """Return the study as if the longest length that a network of a budget has finished were its
    last: of a longer one, of which no run has ended, the model knows nothing but its prior."""
    done = [r for r in searched(records, study) if r.done and r.candidate.role == "candidate"]
    longest = max((r.epochs for r in done), default=study.rungs[-1])
    rungs = tuple(epochs for epochs in study.rungs if epochs <= longest)
    return study.model_copy(update={"rungs": rungs}) if rungs else study


def answers(records: Sequence[Record], study: Study, budget: Budget) -> list[Length]:
    """Return the answer of each length of a budget that has one, the shortest first."""
    longest = regrets(model(*at_length(records, study, study.rungs[-1], budget), budget))
    joint = regrets(model(records, study, budget))
    lengths = []
    for epochs in study.rungs:
        for verdict in verdicts(*at_length(records, study, epochs, budget)):
            pick = verdict.pick.candidate.key
            lengths.append(Length(epochs, verdict, longest.get(pick), joint.get(pick)))
    return lengths


def regrets(fitted: Model | None) -> dict[str, Regret]:
    """Return how far each network of the model's budget lies below the best of them, by key; of no
    model nothing."""
    if fitted is None:
        return {}
    inside = [place for place, c in enumerate(fitted.networks) if c.role == "candidate"]
    accuracies = fitted.sample().accuracy[:, inside]
    behind = accuracies.max(1, keepdims=True) - accuracies
    bounds = np.quantile(behind, CONFIDENCE, axis=0)
    of_network = {}
    for place, mean, bound in zip(inside, behind.mean(0), bounds, strict=True):
        of_network[fitted.networks[place].key] = Regret(float(mean), float(bound))
    return of_network


@dataclass(frozen=True, slots=True)
class Means:
    """Mean accuracies of a budget's networks after runs of one length, by key, over `seeds` seeds
    that all of them have. `run` is the standard deviation of one run around its network, `half`
    half the width of the 95% interval of a network's mean against the mean of all, both alike for
    every network; 0 where there is one seed, which says nothing of them. Fractions."""

    epochs: int
    seeds: int
    means: dict[str, float]
    run: float
    half: float

    @property
    def reliability(self) -> float:
        """The part of the variance of one run's accuracy that is its network's: 1 where runs do not
        vary, 0 where networks do not differ. Not known of one seed."""
        values = np.array(list(self.means.values()))
        between = max(0.0, float(values.var(ddof=1)) - self.run**2 / self.seeds)
        return between / (between + self.run**2) if between + self.run**2 > 0 else 0.0

    @property
    def against_all(self) -> dict[str, float]:
        """Each network's mean minus the mean of all networks."""
        middle = sum(self.means.values()) / len(self.means)
        return {key: mean - middle for key, mean in self.means.items()}


def means_by_length(records: Sequence[Record], study: Study, budget: Budget) -> list[Means]:
    """Return the networks' means at each length, of the networks that have finished runs at every
    length; an empty list where fewer than two have, or no seed is common to them.

    Only the seeds that every network was given count: extra runs are of networks that looked good.
    """
    seeds = range(study.seed, study.seed + study.seeds)
    accuracies: dict[str, dict[tuple[int, int], float]] = {}
    for r in records:
        of_budget = r.candidate.role == "candidate" and r.candidate.budget == budget
        if r.done and of_budget and r.seed in seeds:
            accuracies.setdefault(r.candidate.key, {})[r.epochs, r.seed] = r.val_acc
    keys = []
    for key, of_network in accuracies.items():
        if {epochs for epochs, _ in of_network} == set(study.rungs):
            keys.append(key)
    means = []
    for epochs in study.rungs:
        common = [s for s in seeds if all((epochs, s) in accuracies[key] for key in keys)]
        if len(keys) < 2 or not common:
            return []
        table = np.array([[accuracies[key][epochs, seed] for seed in common] for key in keys])
        by_network = dict(zip(keys, table.mean(1).tolist(), strict=True))
        means.append(Means(epochs, len(common), by_network, *_noise(table)))
    return means


def run_deviation(table: Array) -> tuple[float, int]:
    """Return the standard deviation of one run around its network, from values [networks, seeds]
    once the effects of both are taken off, and its degrees of freedom."""
    networks, seeds = table.shape
    free = (networks - 1) * (seeds - 1)
    rest = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    return float(((rest**2).sum() / free) ** 0.5), free


def _noise(table: Array) -> tuple[float, float]:
    """Return `run` and `half` of `Means`."""
    networks, seeds = table.shape
    if seeds < 2:
        return 0.0, 0.0
    deviation, free = run_deviation(table)
    error = deviation * (1 / seeds * (1 - 1 / networks)) ** 0.5
    return deviation, half_widths(free) * error
