"""The model against the same Gaussian written out densely, and against truths that it did not
see."""

import itertools

import numpy as np
import pytest
from scipy import stats

from scaling_search.verdict.posterior import (
    _VAGUE,
    Array,
    Runs,
    Statistics,
    dimensions,
    fit,
)

RNG = np.random.default_rng(4)
SHARES = RNG.dirichlet((1, 1, 1), 7)


def runs(rungs: int = 2, seeds: int = 2, off: int = 1) -> Runs:
    """Every network at every rung with every seed, but for a few; the last networks have no
    shares."""
    x = np.vstack([SHARES, np.full((off, 3), np.nan)])
    every = itertools.product(range(len(x)), range(rungs), range(seeds))
    some = [(k, r, s) for k, r, s in every if (k + 2 * r + s) % 5]
    network, rung, seed = np.array(some).T
    y = (
        0.5
        + 0.1 * rung
        + 0.02 * RNG.standard_normal(len(x))[network]
        + 0.01 * RNG.standard_normal(len(network))
    )
    return Runs(x, network, rung, seed, y, rungs, 0.01)


def dense(data: Statistics, z: Array) -> tuple[Array, Array, Array]:
    """For one draw: covariance of all runs, of the last rung's effects with all runs, and of these
    effects."""
    d, r, last = data.draws(z), data.runs, data.runs.rungs - 1
    k = len(r.shares)
    on = ~np.isnan(r.shares).any(1)

    def kernel(a: int, b: int, surface: float, own: float) -> float:
        if not (on[a] and on[b]):
            return float(a == b) * (20 * data.spread) ** 2
        gap = float(((r.shares[a] - r.shares[b]) ** 2).sum())
        return surface**2 * np.exp(-gap / 2 / d.length[0] ** 2) + own**2 * float(a == b)

    def effect(a: int, ra: int, b: int, rb: int) -> float:
        if not (on[a] and on[b]):
            return kernel(a, b, 0, 0) if ra == rb else 0.0
        value = d.slope[0, ra] * d.slope[0, rb] * kernel(a, b, d.surface[0], d.own[0])
        if ra == rb != last:
            value += kernel(a, b, d.bias_surface[0, ra], d.bias_own[0, ra])
        return float(value)

    def covariance(i: int, j: int) -> float:
        """The prior covariance of the accuracies of runs `i` and `j`."""
        value = effect(r.network[i], r.rung[i], r.network[j], r.rung[j])
        if r.rung[i] == r.rung[j]:
            value += _VAGUE**2
            if r.seed[i] == r.seed[j]:
                value += d.fold[0] ** 2
        if (r.network[i], r.seed[i]) == (r.network[j], r.seed[j]):
            noise = d.noise[0, r.rung[i]] * d.noise[0, r.rung[j]]
            value += noise if i == j else d.correlation[0] * noise
        return float(value)

    n = len(r.accuracy)
    whole, cross, prior = np.empty((n, n)), np.empty((k, n)), np.empty((k, k))
    for i, j in itertools.product(range(n), repeat=2):
        whole[i, j] = covariance(i, j)
    # what is inferred: m_F + h_F
    for a, j in itertools.product(range(k), range(n)):
        cross[a, j] = effect(a, last, r.network[j], r.rung[j])
        cross[a, j] += (r.rung[j] == last) * _VAGUE**2
    for a, b in itertools.product(range(k), repeat=2):
        prior[a, b] = effect(a, last, b, last) + _VAGUE**2
    return whole, cross, prior


@pytest.mark.parametrize("rungs", [1, 2, 3])
def test_evidence_is_the_dense_gaussians(rungs: int) -> None:
    data = Statistics.of(runs(rungs))
    z = np.random.default_rng(1).standard_normal((4, dimensions(rungs)))
    ours = data.evidence(data.draws(z))
    y = data.runs.accuracy - data.means[data.runs.rung]
    theirs = [
        stats.multivariate_normal.logpdf(y, np.zeros(len(y)), dense(data, row[None])[0])
        for row in z
    ]
    assert np.diff(ours) == pytest.approx(np.diff(theirs), abs=1e-5)


@pytest.mark.parametrize("rungs", [1, 2])
def test_samples_have_the_dense_gaussians_mean_and_covariance(rungs: int) -> None:
    data = Statistics.of(runs(rungs))
    z = np.random.default_rng(2).standard_normal((1, dimensions(rungs)))
    whole, cross, prior = dense(data, z)
    y = data.runs.accuracy - data.means[data.runs.rung]
    mean = cross @ np.linalg.solve(whole, y) + data.means[-1]
    covariance = prior - cross @ np.linalg.solve(whole, cross.T)
    rng = np.random.default_rng(0)
    samples = data.sample(data.draws(z), np.ones(1), 40_000, None, rng).accuracy
    deviation = np.sqrt(np.diag(covariance))
    assert np.abs(samples.mean(0) - mean).max() < 0.03 * deviation.min()
    assert np.abs(np.cov(samples.T) - covariance).max() < 0.05 * deviation.max() ** 2


def test_same_input_same_output_and_another_seed_about_the_same() -> None:
    data = runs()
    fitted = fit(data)
    one, again, other = fitted.sample(), fit(data).sample(), fit(data, seed=9).sample()
    assert np.array_equal(one.accuracy, again.accuracy)
    assert 1 / (fitted.weights**2).sum() > 20, "draws that carry the weight"
    deviation = one.accuracy.std(0)[:7]
    assert (np.abs(one.accuracy.mean(0) - other.accuracy.mean(0))[:7] < 0.25 * deviation).all()


def test_one_fit_gives_the_same_samples_whatever_else_was_asked_of_it() -> None:
    data, grid = runs(), SHARES[:3]
    once = fit(data)
    networks, surface = once.sample(), once.sample(1024, grid)
    assert np.array_equal(networks.accuracy, fit(data).sample().accuracy)
    alone = fit(data).sample(1024, grid)
    assert np.array_equal(surface.fields, alone.fields)
    assert np.array_equal(surface.accuracy, alone.accuracy)


def test_a_network_off_the_surface_moves_no_other() -> None:
    """It shares the rung's mean and the seeds with them, nothing else: ten points less change
    nothing."""
    data = runs(rungs=1)
    low = Runs(
        data.shares,
        data.network,
        data.rung,
        data.seed,
        data.accuracy - 0.1 * (data.network == 7),
        1,
        data.unit,
    )
    a, b = (fit(d).sample().accuracy for d in (data, low))
    assert a[:, :7].mean(0) - a[:, 0].mean() == pytest.approx(
        b[:, :7].mean(0) - b[:, 0].mean(), abs=2e-3
    )
    assert a[:, 7].mean() - b[:, 7].mean() == pytest.approx(0.1, abs=0.02)


def test_more_runs_leave_less_doubt() -> None:
    x = SHARES
    rng = np.random.default_rng(0)
    truth = 0.7 + 0.02 * rng.standard_normal(7)

    def error(seeds: int) -> float:
        network, seed = np.tile(np.arange(7), seeds), np.repeat(np.arange(seeds), 7)
        y = truth[network] + 0.01 * np.random.default_rng(1).standard_normal(7 * seeds)
        data = Runs(x, network, np.zeros(7 * seeds, dtype=np.int64), seed, y, 1, 0.01)
        samples = fit(data).sample().accuracy
        return float((samples - samples.mean(1, keepdims=True)).std(0).mean())

    assert error(16) < 0.6 * error(2)


def test_surface_is_found() -> None:
    """A smooth hill over the shares: the field's highest point lies near its top."""
    x = np.random.default_rng(3).dirichlet((1, 1, 1), 24)
    top = np.array([0.6, 0.2, 0.2])
    y = 0.8 - 0.1 * ((x - top) ** 2).sum(1) + 0.002 * np.random.default_rng(4).standard_normal(24)
    grid = np.array([(i / 10, j / 10, (10 - i - j) / 10) for i in range(11) for j in range(11 - i)])
    n = np.arange(24)
    fields = fit(Runs(x, n, 0 * n, 0 * n, y, 1, 0.002)).sample(400, grid).fields
    assert fields.shape == (400, 1, len(grid))
    assert np.linalg.norm(grid[fields[:, 0].mean(0).argmax()] - top) <= 0.25


def test_extremes_give_numbers() -> None:
    one = Runs(
        SHARES[:1], np.zeros(1, int), np.zeros(1, int), np.zeros(1, int), np.array([0.5]), 1, 0.01
    )
    assert fit(one).sample().accuracy.shape == (4096, 1)
    n = np.arange(7)
    equal = Runs(SHARES, n, 0 * n, 0 * n, np.full(7, 0.4), 1, 0.0)
    assert np.isfinite(fit(equal).sample().accuracy).all()
    with pytest.raises(ValueError, match="at least one run"):
        fit(Runs(SHARES, n[:0], n[:0], n[:0], np.zeros(0), 1, 0.01))
