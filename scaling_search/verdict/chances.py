"""What samples of the networks' accuracies say: the pick, P(best), the loss bound, the tied set."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from scipy.stats import t as student

from scaling_search.verdict.posterior import Array

# Two networks within half a point are as good as each other. Fixed before any study was run.
MARGIN = 0.005

# What intervals, the loss bound, the tied set and the surface's region hold.
CONFIDENCE = 0.95

# Half the width of a 95% interval, in standard deviations that are known. Whatever stands after a ±
# is this wide.
HALF_WIDTH = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


def chances(accuracy: Array) -> tuple[int, Array, float]:
    """Return from samples [samples, networks] the pick (largest mean), P(best) of each network, and
    the loss bound: in 95% of samples, the best lies no more than this above the pick."""
    pick = int(accuracy.mean(0).argmax())
    best = np.bincount(accuracy.argmax(1), minlength=accuracy.shape[1]) / len(accuracy)
    return pick, best, float(np.quantile(accuracy.max(1) - accuracy[:, pick], CONFIDENCE))


def half_widths(free: int) -> float:
    """Half the width of a 95% interval, in standard errors that were estimated with so many degrees
    of freedom: Student's t."""
    return float(student.ppf((1 + CONFIDENCE) / 2, free))


def tied_set(best: Array) -> list[int]:
    """Return the smallest set whose P(best) sums to 0.95, likeliest first."""
    order = np.argsort(-best, kind="stable")
    # the sum of ten times 0.095 is a little below 0.95
    enough = int(np.searchsorted(np.cumsum(best[order]), CONFIDENCE - 1e-9)) + 1
    return [int(k) for k in order[:enough]]
