"""Where the next runs go. Pure functions of what is known: the same records give the same next
runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from effnet.budget import Budget
from scaling_search.results.record import Record
from scaling_search.study.candidate import Candidate
from scaling_search.study.settings import Study
from scaling_search.verdict.posterior import Array
from scaling_search.verdict.verdict import model


def half(count: int) -> int:
    """How many of `count` go on to the next rung: never fewer than half."""
    return math.ceil(count / 2)


def promoted(
    records: Sequence[Record], active: Sequence[Candidate], study: Study
) -> list[Candidate]:
    """The better half of each budget (rounded up) by their expected accuracy at the last rung;
    networks that failed do not go on."""
    # by budget: networks of unequal cost are not to compete with one another
    better: list[Candidate] = []
    for budget in dict.fromkeys(c.budget for c in active):
        group = [c for c in active if c.budget == budget]
        mean = expected(records, study, budget)
        able = [c for c in group if c.key in mean]
        able.sort(key=lambda c: (-mean[c.key], c.key))
        better += able[: half(len(group))]
    return better


def expected(records: Sequence[Record], study: Study, budget: Budget) -> dict[str, float]:
    """Posterior mean of the accuracy at the last rung, by network key, of every network that has
    not failed."""
    fitted = model(records, study, budget)
    if fitted is None:
        return {}
    means = fitted.sample().accuracy.mean(0).tolist()
    return dict(zip(fitted.keys, means, strict=True))


def top_two(accuracy: Array, rng: np.random.Generator) -> int:
    """Top-two Thompson sampling (Russo, "Simple Bayesian Algorithms for Best-Arm Identification",
    2020): one sample's best, another sample's best that differs, one of the two.

    `accuracy` [samples, networks]. Returns the index of a network."""
    leader, *others = accuracy[rng.permutation(len(accuracy))].argmax(1).tolist()
    rival = next((k for k in others if k != leader), leader)
    return int(rng.choice([leader, rival]))


def next_runs(
    records: Sequence[Record],
    study: Study,
    budget: Budget,
    open_seeds: dict[str, list[int]],
    count: int,
) -> list[tuple[str, int]]:
    """Up to `count` further (network, seed) at the last rung for `budget`. `open_seeds`: per
    network the seeds it may still take, the next first; used up in place. Networks that have
    failed, or have no seed left, get none."""
    fitted = model(records, study, budget)
    if fitted is None:
        return []
    accuracy = fitted.sample().accuracy
    # seeded by what is known, so that a study that goes on draws what an undisturbed one would
    rng = np.random.default_rng([study.seed, len(records)])
    chosen: list[tuple[str, int]] = []
    for _ in range(count):
        able = [i for i, key in enumerate(fitted.keys) if open_seeds.get(key)]
        if not able:
            break
        key = fitted.keys[able[top_two(accuracy[:, able], rng)]]
        chosen.append((key, open_seeds[key].pop(0)))
    return chosen
