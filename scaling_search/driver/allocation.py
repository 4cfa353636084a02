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

BATCH = 4  # runs decided at once, whatever the number of workers: it must not change the study


def half(count: int) -> int:
    """How many of `count` go on to the next rung: never fewer than half."""
    return math.ceil(count / 2)


def promoted(
    records: Sequence[Record], active: Sequence[Candidate], study: Study
) -> list[Candidate]:
    """The better half of each budget (rounded up) by their expected accuracy at the last rung;
    networks that failed do not go on."""
    found: list[Candidate] = []
    for budget in dict.fromkeys(c.budget for c in active):
        group = [c for c in active if c.budget == budget]
        mean = dict(zip(*expected(records, study, budget), strict=True))
        ranked = sorted((c for c in group if c.key in mean), key=lambda c: (-mean[c.key], c.key))
        found += ranked[: half(len(group))]
    return found


def expected(
    records: Sequence[Record], study: Study, budget: Budget
) -> tuple[list[str], list[float]]:
    """Keys, and posterior means of the accuracy at the last rung, of every network that has not
    failed."""
    answer = model(records, study, budget)
    return (answer[0], answer[1].accuracy.mean(0).tolist()) if answer else ([], [])


def top_two(accuracy: Array, rng: np.random.Generator) -> int:
    """Top-two Thompson sampling (Russo 2020): one sample's best, another sample's best that
    differs, one of the two.

    `accuracy` [samples, networks]."""
    leader, *others = accuracy[rng.permutation(len(accuracy))].argmax(1).tolist()
    rival = next((k for k in others if k != leader), leader)
    return int(rng.choice([leader, rival]))


def next_runs(
    records: Sequence[Record],
    study: Study,
    budget: Budget,
    open_seeds: dict[str, list[int]],
    count: int = BATCH,
) -> list[tuple[str, int]]:
    """Up to `count` further (network, seed) at the last rung for `budget`. `open_seeds`: per
    network the seeds it may still take, the next first; used up in place. Networks that have
    failed, or have no seed left, get none."""
    answer = model(records, study, budget)
    if answer is None:
        return []
    keys, post = answer
    rng = np.random.default_rng([study.seed, len(records)])
    chosen: list[tuple[str, int]] = []
    for _ in range(count):
        able = [i for i, key in enumerate(keys) if open_seeds.get(key)]
        if not able:
            break
        key = keys[able[top_two(post.accuracy[:, able], rng)]]
        chosen.append((key, open_seeds[key].pop(0)))
    return chosen
