"""The model against the same Gaussian written out densely, and against truths that it did not
see."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from scaling_search.verdict import posterior
from scaling_search.verdict.posterior import (
    _VAGUE,
    ENOUGH_DRAWS,
    Array,
    Runs,
    Statistics,
    dimensions,
    fit,
)

RNG = np.random.default_rng(4)
SHARES = RNG.dirichlet((1, 1, 1), 7)


def runs(rungs: int = 2, losses: int = 0, seeds: int = 2, off: int = 1) -> Runs:
    """Every network in every view with every seed, but for a few; the last networks have no
    shares. Losses are on scales of their own."""
    x = np.vstack([SHARES, np.full((off, 3), np.nan)])
    views = losses + rungs
    every = itertools.product(range(len(x)), range(views), range(seeds))
    some = [(k, v, s) for k, v, s in every if (k + 2 * v + s) % 5]
    network, view, seed = np.array(some).T
    y = (
        0.5
        + 0.1 * view
        + 0.02 * RNG.standard_normal(len(x))[network]
        + 0.01 * RNG.standard_normal(len(network))
    )
    y = np.where(view < losses, 7 * y, y)
    luck = np.full(views, 0.8)
    return Runs(x, network, view, seed, y, rungs, 0.01, luck)


def accuracies(x: Array, network: Array, seed: Array, y: Array, unit: float) -> Runs:
    """One run at one rung for each of `network` and `seed`."""
    return Runs(x, network, np.zeros(len(y), int), seed, y, 1, unit, np.full(1, 0.8))


def scaled(data: Statistics) -> Array:
    """The values as the model takes them, their means taken off."""
    return data.runs.value * data.scale[data.runs.view] - data.means[data.runs.view]


def dense(data: Statistics, z: Array) -> tuple[Array, Array, Array]:
    """For one draw: covariance of all values, of the last view's effects with all values, and of
    these effects."""
    d, r, last = data.draws(z), data.runs, data.runs.views - 1
    losses = r.views - r.rungs
    k = len(r.shares)
    on = ~np.isnan(r.shares).any(1)

    def kernel(a: int, b: int, surface: float, own: float) -> float:
        if not (on[a] and on[b]):
            return float(a == b) * (20 * data.spread) ** 2
        gap = float(((r.shares[a] - r.shares[b]) ** 2).sum())
        return surface**2 * np.exp(-gap / 2 / d.length[0] ** 2) + own**2 * float(a == b)

    def effect(a: int, va: int, b: int, vb: int) -> float:
        """The covariance of two networks' effects in two views; the second loss is seen through the
        first."""
        if not (on[a] and on[b]):
            return kernel(a, b, 0, 0) if va == vb else 0.0
        if va == last and vb == last:
            return kernel(a, b, d.surface[0], d.own[0])
        if va == last or (vb != last and vb > va):
            return effect(b, vb, a, va)
        through = 0 if va == 1 and losses == 2 else last
        value = d.slope[0, va] * effect(a, through, b, vb)
        if va == vb:
            value += kernel(a, b, d.bias_surface[0, va], d.bias_own[0, va])
        return float(value)

    def covariance(i: int, j: int) -> float:
        """The prior covariance of the values `i` and `j`."""
        vi, vj = r.view[i], r.view[j]
        value = effect(r.network[i], vi, r.network[j], vj)
        if vi == vj:
            value += _VAGUE**2
            if r.seed[i] == r.seed[j]:
                value += d.fold[0, vi] ** 2
        if (r.network[i], r.seed[i]) == (r.network[j], r.seed[j]):
            noise = d.noise[0, vi] * d.noise[0, vj]
            value += noise if i == j else d.luck[0, vi] * d.luck[0, vj] * noise
        return float(value)

    n = len(r.value)
    whole, cross, prior = np.empty((n, n)), np.empty((k, n)), np.empty((k, k))
    for i, j in itertools.product(range(n), repeat=2):
        whole[i, j] = covariance(i, j)
    # what is inferred: m_F + h_F
    for a, j in itertools.product(range(k), range(n)):
        cross[a, j] = effect(a, last, r.network[j], r.view[j])
        cross[a, j] += (r.view[j] == last) * _VAGUE**2
    for a, b in itertools.product(range(k), repeat=2):
        prior[a, b] = effect(a, last, b, last) + _VAGUE**2
    return whole, cross, prior


def dense_evidence(data: Statistics, z: Array) -> list[float]:
    """The log density of the values in each draw."""
    y = scaled(data)
    mean = np.zeros(len(y))
    return [stats.multivariate_normal.logpdf(y, mean, dense(data, row[None])[0]) for row in z]


@pytest.mark.parametrize(
    ("rungs", "losses"), [(1, 0), (2, 0), (3, 0), (1, 2), (2, 1), (2, 2), (3, 2)]
)
def test_evidence_is_the_dense_gaussians(rungs: int, losses: int) -> None:
    data = Statistics.of(runs(rungs, losses))
    z = np.random.default_rng(1).standard_normal((4, dimensions(data.runs)))
    ours = data.evidence(data.draws(z))
    assert np.diff(ours) == pytest.approx(np.diff(dense_evidence(data, z)), abs=1e-5)


@pytest.mark.parametrize(("rungs", "losses"), [(1, 0), (2, 0), (1, 2)])
def test_samples_have_the_dense_gaussians_mean_and_covariance(rungs: int, losses: int) -> None:
    data = Statistics.of(runs(rungs, losses))
    z = np.random.default_rng(2).standard_normal((1, dimensions(data.runs)))
    whole, cross, prior = dense(data, z)
    mean = cross @ np.linalg.solve(whole, scaled(data)) + data.means[-1]
    covariance = prior - cross @ np.linalg.solve(whole, cross.T)
    rng = np.random.default_rng(0)
    samples = data.sample(data.draws(z), np.ones(1), 40_000, None, rng).accuracy
    deviation = np.sqrt(np.diag(covariance))
    assert np.abs(samples.mean(0) - mean).max() < 0.03 * deviation.min()
    assert np.abs(np.cov(samples.T) - covariance).max() < 0.05 * deviation.max() ** 2


@pytest.mark.parametrize("losses", [0, 1, 2])
@pytest.mark.parametrize("rungs", [1, 2])
def test_draws_carry_the_weight(rungs: int, losses: int) -> None:
    """With twenty hyper-parameters and proposals from their prior, two to nine of 512 did."""
    assert fit(runs(rungs, losses)).effective_draws >= ENOUGH_DRAWS


def test_many_seeds_are_solved_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the sums of seeds are the largest array."""
    data = Statistics.of(runs(1, 2, seeds=12))
    assert data.of_folds[0].size > data.products[0].size
    z = np.random.default_rng(1).standard_normal((5, dimensions(data.runs)))
    whole = data.evidence(data.draws(z))
    monkeypatch.setattr(posterior, "_MOST_DOUBLES", 2 * data.of_folds[0].size)
    assert data.evidence(data.draws(z)) == pytest.approx(whole, rel=1e-12)
    assert np.diff(whole[:2]) == pytest.approx(np.diff(dense_evidence(data, z[:2])), abs=1e-5)


@pytest.mark.parametrize(("rungs", "losses"), [(1, 0), (2, 0), (2, 2)])
def test_what_a_run_shows_is_its_losses_and_last_its_accuracy(rungs: int, losses: int) -> None:
    fitted = fit(runs(rungs, losses)).sample()
    assert fitted.seen.shape == (len(fitted.accuracy), 8, losses + 1)
    assert np.array_equal(fitted.seen[:, :, -1], fitted.accuracy)
    assert fitted.run.shape == (losses + 1, losses + 1)
    assert np.linalg.eigvalsh(fitted.run).min() > 0
    assert 0.003 < fitted.noise < 0.03


def test_same_input_same_output_and_another_seed_about_the_same() -> None:
    data = runs()
    fitted = fit(data)
    one, again, other = fitted.sample(), fit(data).sample(), fit(data, seed=9).sample()
    assert np.array_equal(one.accuracy, again.accuracy)
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
    low = replace(data, value=data.value - 0.1 * (data.network == 7))
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
        samples = fit(accuracies(x, network, seed, y, 0.01)).sample().accuracy
        return float((samples - samples.mean(1, keepdims=True)).std(0).mean())

    assert error(16) < 0.6 * error(2)


def test_surface_is_found() -> None:
    """A smooth hill over the shares: the field's highest point lies near its top."""
    x = np.random.default_rng(3).dirichlet((1, 1, 1), 24)
    top = np.array([0.6, 0.2, 0.2])
    y = 0.8 - 0.1 * ((x - top) ** 2).sum(1) + 0.002 * np.random.default_rng(4).standard_normal(24)
    grid = np.array([(i / 10, j / 10, (10 - i - j) / 10) for i in range(11) for j in range(11 - i)])
    n = np.arange(24)
    fields = fit(accuracies(x, n, 0 * n, y, 0.002)).sample(400, grid).fields
    assert fields.shape == (400, 1, len(grid))
    assert np.linalg.norm(grid[fields[:, 0].mean(0).argmax()] - top) <= 0.25


def test_a_broken_devices_values_give_numbers() -> None:
    """As one that returned an accuracy of 4143: what it says is nonsense, and no traceback."""
    data = runs(1, 2)
    value = data.value.copy()
    value[np.flatnonzero(data.view == 2)[0]] = 4143.0
    assert np.isfinite(fit(replace(data, value=value)).sample(100).accuracy).all()


def test_extremes_give_numbers() -> None:
    one = accuracies(SHARES[:1], np.zeros(1, int), np.zeros(1, int), np.array([0.5]), 0.01)
    assert fit(one).sample().accuracy.shape == (4096, 1)
    n = np.arange(7)
    equal = accuracies(SHARES, n, 0 * n, np.full(7, 0.4), 0.0)
    assert np.isfinite(fit(equal).sample().accuracy).all()
    with pytest.raises(ValueError, match="at least one run"):
        fit(accuracies(SHARES, n[:0], n[:0], np.zeros(0), 0.01))


def test_a_loss_that_tells_helps_and_one_of_the_runs_luck_alone_does_not_mislead() -> None:
    """Twelve networks, three runs each. A loss with a tenth of accuracy's noise, and one whose
    noise is accuracy's own and whose networks are all equal: only repeated runs tell it."""
    rng = np.random.default_rng(5)
    x, runs_each = rng.dirichlet((1, 1, 1), 12), 3
    network, seed = np.repeat(np.arange(12), runs_each), np.tile(np.arange(runs_each), 12)

    def right(losses: list[Array], accuracy: Array, truth: Array) -> float:
        """The correlation of what is inferred with the truth."""
        views = len(losses) + 1
        data = Runs(
            shares=x,
            network=np.tile(network, views),
            view=np.repeat(np.arange(views), len(network)),
            seed=np.tile(seed, views),
            value=np.concatenate([*losses, accuracy]),
            rungs=1,
            unit=0.01,
            luck=np.full(views, 0.8),
        )
        return float(np.corrcoef(fit(data).sample().accuracy.mean(0), truth)[0, 1])

    alone, telling, lucky = [], [], []
    for _ in range(20):
        truth = 0.6 + 0.01 * rng.standard_normal(12)
        luck, other = 0.015 * rng.standard_normal((2, len(network)))
        accuracy = truth[network] + luck
        alone.append(right([], accuracy, truth))
        telling.append(right([truth[network] + 0.1 * other], accuracy, truth))
        lucky.append(right([0.7 * luck + 0.7 * other], accuracy, truth))
    assert np.mean(telling) > np.mean(alone) + 0.1
    assert np.mean(lucky) > np.mean(alone) - 0.03
