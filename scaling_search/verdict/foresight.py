"""What further runs are expected to bring, by drawing their results before they happen.

A preposterior analysis (Raiffa and Schlaifer 1961, Applied Statistical Decision Theory): what is
not known is taken for the Gaussian with the samples' mean and covariance, results are drawn from
it, and it is conditioned on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from scaling_search.verdict.chances import MARGIN, chances, tied_set
from scaling_search.verdict.posterior import Array, Indices

# Futures that are drawn, and samples around each.
_FUTURES, _SAMPLES_EACH = 24, 512


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is expected of `runs` further runs, shared equally among the tied: a loss bound of
    `bound`, a fraction."""

    runs: int
    bound: float


@dataclass(frozen=True, slots=True)
class Gaussian:
    """What is not known: `mean` and `covariance` of what runs of each network show on average, all
    views of the first network, then of the second, each network's accuracy last."""

    mean: Array  # [networks x views]
    covariance: Array
    views: int

    @classmethod
    def of(cls, seen: Array) -> Gaussian:
        """That of samples [samples, networks, views]."""
        flat = seen.reshape(len(seen), -1)
        return cls(flat.mean(0), np.atleast_2d(np.cov(flat.T)), seen.shape[2])

    @property
    def accuracies(self) -> Indices:
        """The places of the networks' accuracies."""
        return np.arange(self.views - 1, len(self.mean), self.views)

    def shown(self, networks: Sequence[int]) -> Indices:
        """The places of what a run of each of these networks shows."""
        return (np.array(networks)[:, None] * self.views + np.arange(self.views)).ravel()

    def of_accuracies(self) -> tuple[Array, Array]:
        """Mean and covariance of the accuracies."""
        return self.mean[self.accuracies], self.covariance[np.ix_(self.accuracies, self.accuracies)]

    def conditioned(self, observed: Indices, noise: Array) -> tuple[Array, Array, Gaussian]:
        """What observing these places does, with noise of this covariance [observed, observed].

        Results that are not known yet are standard normals, times a factor [observed, observed],
        around their mean. The same normals, times a root [places, observed], are what moves the
        mean. Returned are factor, root, and the Gaussian after it, its mean not moved yet."""
        of_results = self.covariance[np.ix_(observed, observed)] + noise
        factor = np.asarray(np.linalg.cholesky(of_results), dtype=np.float64)
        root = np.asarray(np.linalg.solve(factor, self.covariance[observed]).T, dtype=np.float64)
        return factor, root, replace(self, covariance=self.covariance - root @ root.T)


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
    _, best, bound = chances(seen[:, :, -1])
    if bound <= margin:
        return ()
    rng = np.random.default_rng(0)
    now, tied = Gaussian.of(seen), tied_set(best)
    of_tied = now.shown(tied)
    mean, _ = now.of_accuracies()
    truths = seen[:: max(1, len(seen) // _FUTURES), tied].reshape(-1, len(of_tied))[:_FUTURES]
    noise_of_tied = np.kron(np.eye(len(tied)), noise)
    root_of_noise = np.linalg.cholesky(noise_of_tied)
    expected = []
    for runs in (2**n for n in range(13)):
        factor, root, after = now.conditioned(of_tied, noise_of_tied / runs)
        normal = rng.standard_normal((_SAMPLES_EACH, len(mean)))
        noises = rng.standard_normal(truths.shape) @ root_of_noise.T / math.sqrt(runs)
        results = np.linalg.solve(factor, (truths + noises - now.mean[of_tied]).T).T
        means = mean + results @ root[now.accuracies].T
        _, remaining = after.of_accuracies()
        expected.append(Outlook(runs * len(tied), mean_bound(means, remaining, normal)))
        if expected[-1].bound <= margin:
            break
    return tuple(expected)
