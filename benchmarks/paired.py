"""Networks of one study against each other, seed by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from scaling_search import UserError
from scaling_search.results.record import Record
from scaling_search.verdict.chances import half_widths
from scaling_search.verdict.lengths import run_deviation


def accuracies(records: Sequence[Record], epochs: int) -> dict[str, dict[int, float]]:
    """Return {network: {seed: validation accuracy, a fraction}} of the finished runs of one
    length."""
    of_network: dict[str, dict[int, float]] = {}
    for r in records:
        if r.done and r.epochs == epochs:
            of_network.setdefault(r.candidate.key, {})[r.seed] = r.val_acc
    return of_network


def above(
    network: dict[int, float], other: dict[int, float], budget: Sequence[dict[int, float]]
) -> tuple[float, float, int]:
    """Return how far a network lies above another in the seeds that both have, half the width of
    the 95% interval of that, and the number of seeds.

    The deviation of one run is that of all of `budget`, accuracies by seed of the networks that say
    how one run varies, so that the t interval has their degrees of freedom: a few differences alone
    would have next to none. Raises UserError where fewer than two seeds are common to all."""
    paired = sorted(set(network) & set(other))
    common = [seed for seed in paired if all(seed in of_one for of_one in budget)]
    if len(common) < 2:
        raise UserError(f"seeds that all of its budget's networks have: {len(common)}, not two")
    table = np.array([[of_one[seed] for seed in common] for of_one in budget])
    deviation, free = run_deviation(table)
    mean = float(np.mean([network[seed] - other[seed] for seed in paired]))
    error = deviation * math.sqrt(2 / len(paired))
    return mean, half_widths(free) * error, len(paired)
