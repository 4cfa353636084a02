"""What further runs are expected to bring, by drawing their results before they happen.

A preposterior analysis (Raiffa and Schlaifer 1961, Applied Statistical Decision Theory): what is
not known is taken for the Gaussian with the samples' mean and covariance, results are drawn from
it, and it is conditioned on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scaling_search.verdict.chances import MARGIN, chances, tied_set
from scaling_search.verdict.posterior import Array

# Futures that are drawn, and samples around each.
_FUTURES, _SAMPLES_EACH = 24, 512


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is expected of `runs` further runs, shared equally among the tied: a loss bound of
    `bound`, a fraction."""

    runs: int
    bound: float


def conditioned(covariance: Array, observed: Sequence[int], noise: Array) -> tuple[Array, Array]:
    """Return what observing does to a Gaussian of this covariance [n, n]: the root [n, observed]
    by which standard normals, the results that are not known yet, move its mean, and its
    covariance after it. `noise` [observed, observed] is that of the observations."""
    of_results = covariance[np.ix_(observed, observed)] + noise
    root = np.linalg.solve(np.linalg.cholesky(of_results), covariance[observed]).T
    return root, covariance - root @ root.T


def mean_bound(means: Array, covariance: Array, normal: Array) -> float:
    """Return the mean loss bound of the Gaussians around each of `means` [results, networks];
    `normal` [samples, networks] are standard normals."""
    # rounding may leave it a little below positive definite
    ridge = (1e-12 + 1e-9 * np.trace(covariance)) * np.eye(len(covariance))
    around = normal @ np.linalg.cholesky(covariance + ridge).T
    return float(np.mean([chances(mean + around)[2] for mean in means]))


def outlook(seen: Array, noise: Array, margin: float = MARGIN) -> tuple[Outlook, ...]:
    """Return the loss bounds that are expected of more and more runs, twice as many each time, up
    to those that bring it to `margin` on average; none where it is there already.

    `seen` [samples, networks, views] is what runs of each network show on average, the accuracy
    last, and `noise` [views, views] the covariance of one run around it (see
    `posterior.Posterior`). It ends with 4,096 runs each.
    """
    accuracy, views = seen[:, :, -1], seen.shape[2]
    _, best, bound = chances(accuracy)
    if bound <= margin:
        return ()
    rng = np.random.default_rng(0)
    flat = seen.reshape(len(seen), -1)
    mean, covariance = flat.mean(0), np.cov(flat.T)
    accuracies = np.arange(views - 1, flat.shape[1], views)
    tied = np.array(tied_set(best))
    of_tied = (tied[:, None] * views + np.arange(views)).ravel()
    truths = flat[:: max(1, len(flat) // _FUTURES), of_tied][:_FUTURES]
    noise_of_tied = np.kron(np.eye(len(tied)), noise)
    root_of_noise = np.linalg.cholesky(noise_of_tied)
    expected = []
    for runs in (2**n for n in range(13)):
        of_results = covariance[np.ix_(of_tied, of_tied)] + noise_of_tied / runs
        gain = covariance[np.ix_(accuracies, of_tied)] @ np.linalg.inv(of_results)
        remaining = covariance[np.ix_(accuracies, accuracies)]
        remaining = remaining - gain @ covariance[np.ix_(of_tied, accuracies)]
        normal = rng.standard_normal((_SAMPLES_EACH, len(accuracies)))
        noises = rng.standard_normal(truths.shape) @ root_of_noise.T / math.sqrt(runs)
        updated = mean[accuracies] + (truths + noises - mean[of_tied]) @ gain.T
        expected.append(Outlook(runs * len(tied), mean_bound(updated, remaining, normal)))
        if expected[-1].bound <= margin:
            break
    return tuple(expected)
