"""Infers each network's expected accuracy at the last rung from every run of a study at once.

A run is seen in several ways: its accuracy, its validation loss and its training loss, at each rung
that it has reached. Each is a *view* v. One Gaussian model holds all networks, views and seeds. In
view v, network k with seed s has the value

    y(k, v, s) = m_v + h_v(k) + e(v, s) + n(k, v, s)
    h_F(k)     = f(x_k) + N(0, t_i²)                f ~ GP(0, t_s² exp(-|x - x'|² / 2 l²))
    h_v(k)     = rho_v h_p(k) + g_v(x_k) + N(0, b_i²)     g_v ~ GP(0, b_s², the same l)

with F the accuracy at the last rung, p the view that v is seen through (F for an accuracy at
another rung and for the first loss, that one for the second: where losses lean towards one
dimension they do so together), x_k the network's shares of depth, width and resolution, m_v the
view's mean (vague), e what a seed does to everyone (its fold), and n one run's noise, whose
correlation between views v and w is lambda_v lambda_w: a long run is the short one continued, and a
loss may repeat the run's luck and say nothing more of the network. f and g_v are Gaussian processes
with a squared-exponential kernel (Rasmussen and Williams 2006, Gaussian Processes for Machine
Learning, section 4.2); a view that is a slope times the last rung's accuracy plus a process of its
own is the model of Kennedy and O'Hagan (2000, Biometrika 87, 1) for cheap and dear versions of one
computation. A view may lean towards one dimension: that is what its own process is for.

The hyper-parameters (l, amplitudes, noises, slopes, lambda) are averaged over rather than fitted:
with some 24 networks a fitted value pretends to be known. Their posterior is sampled by adaptive
importance sampling, from a Gaussian at its mode on (Laplace's approximation; Tierney and Kadane
1986, JASA 81, 82), in a few rounds of draws that are all weighed as one mixture (Cornuet et al.
2012, Scand. J. Stat. 39, 798). Where the draws began from the prior, a few of five hundred had all
the weight once there were twenty hyper-parameters.

A network without shares (the baseline, a reference of another cost) shares m and e with the others
and nothing else. Plain numpy and scipy: arrays in, arrays out; equal input gives equal output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import norm, qmc
from threadpoolctl import threadpool_limits

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

# Standard deviation of a rung's mean around the mean of its runs. Accuracies are fractions, so half
# of the whole range says nothing about it.
_VAGUE = 0.5

# Importance sampling: the first round draws from a Gaussian at the mode, wider than the posterior
# is there; each further one from a Gaussian around the weighted draws so far. Draws are a Sobol
# sequence's, so their number is a power of two.
_FEWEST_ROUNDS, _MOST_ROUNDS = 4, 16
_DRAWS_PER_ROUND = 128
# Draws that carry the weight (effective sample size) when there are enough.
ENOUGH_DRAWS = 150
_WIDER = 1.2

# The way to that mode, in prior standard deviations: differences for its gradients and for the
# curvature at its end, and the slope, in nats, that is flat enough to end on.
_STEP = 1e-4
_WIDTH = 0.1
_FLAT = 0.05
_LEAST_CURVATURE = 0.7

# Draws are solved side by side, as many as keep one array below this many doubles (48 MB).
_MOST_DOUBLES = 6_000_000

# Largest lambda: at 1 the noise's covariance has no inverse.
_HIGHEST_LUCK = 0.985

# Added to a kernel's diagonal, a variance far below any of the prior's, so that its Cholesky factor
# exists where two networks have the same shares.
_JITTER = 1e-12

# What the sample of validation images adds to the noise of one run around its network, in units of
# the binomial deviation: measured between networks that share their images, 0.54 to 0.60. Training
# adds about as much again as the whole unit: 0.9 to 1.2 on photographs, CIFAR-10 and Fashion-MNIST,
# and several times that where runs are cut while they leave a plateau.
_SAMPLE = 0.57

# Hyper-parameters that every study has (length, two amplitudes, fold, noise), those that each view
# but the last adds (slope, two amplitudes, noise), and, with several views, of each of them
# (lambda).
_COMMON = 5
_PER_FURTHER_VIEW = 4
_PER_CORRELATED_VIEW = 1


@dataclass(frozen=True, slots=True)
class Runs:
    """The finished runs of a study, as arrays.

    `shares` [networks, 3] has nan for a network off the surface. `network`, `view`, `seed` and
    `value` [values] hold for each value the index of its network, of its view, of its run's seed,
    and itself. The last `rungs` views are accuracies, as fractions, at one rung each, the last one
    of which counts; those before are on scales of their own, of which the larger is the better. At
    most one value has the same network, view and seed. `unit` is the standard deviation that the
    number of validation images alone gives the accuracy of one run. `luck` [views] is what is
    expected of lambda: how much of a view's noise is the run's own luck, seen in every view.
    """

    shares: Array
    network: Indices
    view: Indices
    seed: Indices
    value: Array
    rungs: int
    unit: float
    luck: Array

    @classmethod
    def of(
        cls,
        shares: Array,
        values: Sequence[tuple[int, int, int, float]],
        *,
        rungs: int,
        unit: float,
        luck: Array,
    ) -> Runs:
        """The runs of `values`, each the (network, view, seed, value) of one."""
        network, view, seed, value = zip(*values, strict=True)
        return cls(
            shares=shares,
            network=np.array(network),
            view=np.array(view),
            seed=np.array(seed),
            value=np.array(value),
            rungs=rungs,
            unit=unit,
            luck=luck,
        )

    @property
    def views(self) -> int:
        return len(self.luck)


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """Draws of the hyper-parameters, [draws] or [draws, views]; standard deviations as fractions.

    In the module's formulas: l, t_s, t_i, the standard deviations of e and n, lambda_v, rho_v, b_s,
    b_i. Of the last view, slope is 1 and both biases are 0. Of one view alone, lambda is 0.
    """

    length: Array
    surface: Array
    own: Array
    fold: Array  # [draws, views]
    noise: Array  # [draws, views]
    luck: Array  # [draws, views]
    slope: Array  # [draws, views]
    bias_surface: Array  # [draws, views]
    bias_own: Array  # [draws, views]


@dataclass(frozen=True, slots=True)
class Posterior:
    """Samples of what is not known.

    `seen` [samples, networks, views] is what a run of the last rung shows of a network on average,
    over seeds: its losses, on scales of the model's own, and last its accuracy. `run` [views,
    views] is the covariance of one run around that. `fields` [samples, rungs, grid points] is each
    rung's smooth surface, empty unless a grid was given.
    """

    seen: Array
    run: Array
    fields: Array

    @property
    def accuracy(self) -> Array:
        """The expected accuracy [samples, networks] at the last rung."""
        return self.seen[:, :, -1]

    @property
    def noise(self) -> float:
        """The standard deviation of one run's accuracy at the last rung."""
        return float(self.run[-1, -1] ** 0.5)


@dataclass(frozen=True, slots=True)
class Fit:
    """Weighted draws of the hyper-parameters given the runs; `sample` turns them into networks."""

    statistics: Statistics
    draws: Hyperparameters
    weights: Array  # [draws], of sum 1
    seed: int

    @property
    def effective_draws(self) -> int:
        """How many draws carry the weight: fewer than ENOUGH_DRAWS leave intervals rough."""
        return int(_carrying(self.weights))

    def sample(self, samples: int = 4096, grid: Array | None = None) -> Posterior:
        """Return about `samples` samples; with `grid` [points, 3], of the surfaces there as well.

        Each call starts the same sequence of random numbers, so it does not depend on others.
        """
        rng = np.random.default_rng(self.seed)
        with _one_thread():
            return self.statistics.sample(self.draws, self.weights, samples, grid, rng)


def fit(runs: Runs, *, seed: int = 0) -> Fit:
    """Weigh draws of the hyper-parameters by how well they explain the runs.

    Raises ValueError without a run.
    """
    if not len(runs.value):
        raise ValueError("a posterior needs at least one run")
    with _one_thread():
        return _importance_sampling(Statistics.of(runs), seed)


def _one_thread() -> threadpool_limits:
    """A context in which BLAS uses one thread.

    These are hundreds of small matrices: threads that wait for each other made the model ten times
    slower on a busy machine, and their number changed the last bits of the result.
    """
    return threadpool_limits(1, user_api="blas")


# ---- importance sampling of the hyper-parameters


def _importance_sampling(statistics: Statistics, seed: int) -> Fit:
    """Draw in rounds, the first from a Gaussian at the mode, each further one from a Gaussian
    around the weighted draws before it.

    Hyper-parameters are standard normals z [draws, dims] under their prior; `Statistics.draws`
    gives them their scales.
    """
    dims = dimensions(statistics.runs)
    mean, root = _gaussian_at_mode(statistics, dims)
    root = _WIDER * root
    widest = root @ root.T
    proposals: list[tuple[Array, Array]] = []
    z: Array = np.zeros((0, dims))
    posterior: Array = np.zeros(0)
    for turn in range(_MOST_ROUNDS):
        proposals.append((mean, root))
        uniform = qmc.Sobol(dims, seed=seed + turn).random(_DRAWS_PER_ROUND)
        normal = norm.ppf(uniform.clip(1e-9, 1 - 1e-9))  # a Sobol point may be 0, which is -inf
        fresh: Array = np.asarray(mean + normal @ root.T, dtype=np.float64)
        z = np.concatenate([z, fresh])
        posterior = np.concatenate([posterior, _log_posterior(statistics, fresh)])
        # All draws so far count as draws from the mixture of all proposals so far: no single
        # proposal's thin tail can give one draw all the weight (Owen and Zhou 2000, JASA 95, 135).
        densities = [_log_density(z, m, r) for m, r in proposals]
        mixture = np.logaddexp.reduce(densities, axis=0)
        log_weights = posterior - mixture
        if turn + 1 >= _FEWEST_ROUNDS and _carrying(_normalized(log_weights)) >= ENOUGH_DRAWS:
            break
        # The next round goes where the weight is. Where a handful of draws have nearly all of it,
        # too few for a covariance in `dims` dimensions, the weights are tempered until three draws
        # a dimension carry them.
        tempered = _temper(log_weights, 3 * dims)
        mean = np.asarray(tempered @ z, dtype=np.float64)
        spread = ((z - mean).T * tempered) @ (z - mean)
        # A little wider than what was seen, and never flat in a direction: a proposal must cover
        # the tails of what it stands for. How wide that is depends on the number of runs: ten
        # thousand leave a hundredth of the prior.
        root = np.asarray(np.linalg.cholesky(1.1 * spread + 0.02 * widest), dtype=np.float64)
    return Fit(statistics, statistics.draws(z), _normalized(log_weights), seed)


def dimensions(runs: Runs) -> int:
    """Return how many hyper-parameters such runs have."""
    correlated = runs.views if runs.views > 1 else 0
    further = _PER_FURTHER_VIEW * (runs.views - 1)
    return _COMMON + further + _PER_CORRELATED_VIEW * correlated


def _log_posterior(statistics: Statistics, z: Array) -> Array:
    """Return the log posterior density [draws] of z [draws, dims], up to a constant."""
    return statistics.evidence(statistics.draws(z)) - 0.5 * (z**2).sum(1)


def _gaussian_at_mode(statistics: Statistics, dims: int) -> tuple[Array, Array]:
    """Return mean [dims] and root [dims, dims] of the Gaussian that the log posterior is like at
    its mode (Laplace's approximation)."""

    def value_and_gradient(z: Array) -> tuple[float, Array]:
        """Of the negative log posterior, by forward differences."""
        around = _log_posterior(statistics, z + np.vstack([np.zeros(dims), _STEP * np.eye(dims)]))
        return -float(around[0]), np.asarray((around[0] - around[1:]) / _STEP)

    # Bounds of standard normals: beyond, a kernel may have no Cholesky factor.
    mode: Array = minimize(
        value_and_gradient,
        np.zeros(dims),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-4, 4)] * dims,
        options={"ftol": 0.0, "gtol": _FLAT},
    ).x

    # The Hessian, by forward differences over a good part of the posterior's own width.
    width = _WIDTH * np.eye(dims)
    i, j = np.triu_indices(dims)
    at = _log_posterior(statistics, np.vstack([mode, mode + width, mode + width[i] + width[j]]))
    one, two = at[1 : dims + 1], at[dims + 1 :]
    curvature = np.zeros((dims, dims))
    curvature[i, j] = curvature[j, i] = (two - one[i] - one[j] + at[0]) / _WIDTH**2
    values, vectors = np.linalg.eigh(-curvature)
    # The prior's curvature is 1; less would be a direction in which the runs argue against it.
    covariance = (vectors / np.maximum(values, _LEAST_CURVATURE)) @ vectors.T
    return mode, np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)


def _temper(log_weights: Array, enough: float) -> Array:
    """Return the weights to the largest power, of 1, 0.8, 0.64, ..., that `enough` draws carry.

    Half of all draws are enough in any case.
    """
    enough = min(enough, 0.5 * len(log_weights))
    power = 1.0
    weights = _normalized(log_weights)
    while _carrying(weights) < enough and power > 1e-3:
        power *= 0.8
        weights = _normalized(power * log_weights)
    return weights


def _carrying(weights: Array) -> float:
    """Return how many draws carry the weight: the effective sample size."""
    return 1 / float((weights**2).sum())


def _log_density(z: Array, mean: Array, root: Array) -> Array:
    """Return the log density [draws] of N(mean, root root'), up to a constant that all share."""
    standard = np.linalg.solve(root, (z - mean).T)
    return np.asarray(-0.5 * (standard**2).sum(0) - np.log(np.diag(root)).sum())


def _normalized(log_weights: Array) -> Array:
    """Return weights of sum 1, without overflow."""
    weights = np.exp(log_weights - log_weights.max())
    return np.asarray(weights / weights.sum())


# ---- the model given hyper-parameters


@dataclass(frozen=True, slots=True)
class _Pattern:
    """The (network, seed) whose runs have values in exactly these views."""

    views: Indices  # [views of the pattern]
    values: Indices  # [(network, seed), views of the pattern]: indices of their values


@dataclass(frozen=True, slots=True)
class Statistics:
    """The runs, summed into what a draw of hyper-parameters needs, whatever their number.

    The values are y = Z latents + E e + noise: a row of Z picks two latents, a row of E the effect
    of one view and seed. With X = [Z y], the likelihood needs X'WX, E'WX and E'WE, where W, the
    noise's inverse covariance, is for each pattern of views the same small matrix, repeated. So the
    products are summed once for each of its entries, the terms.

    Latents in order: h of the last view, h of the other views, m of each view. The seeds' effects e
    are not among them: there may be hundreds, given the rest each seed's are independent of the
    other seeds', and no result needs them, so they are integrated out.
    """

    runs: Runs
    squared: Array  # [networks, networks]: squared distances of shares; inf off the surface
    off: NDArray[np.bool_]  # [networks]: off the surface, since without shares
    scale: Array  # [views]: what values are multiplied by, so that all spread as accuracies do
    means: Array  # [views]: the mean of the scaled values, which are taken off first
    patterns: list[_Pattern]
    # over the pairs of values of a term
    products: Array  # [terms, latents + 1, latents + 1]: X'X
    of_folds: Array  # [terms, seeds, views, latents + 1]: E'X
    between_folds: Array  # [terms, seeds, views, views]: E'E, between the views of each seed
    # standard deviation of accuracy between networks, at the highest rung that has any
    spread: float

    @classmethod
    def of(cls, runs: Runs) -> Statistics:
        networks, views = len(runs.shares), runs.views
        seeds = int(runs.seed.max()) + 1
        off = np.asarray(np.isnan(runs.shares).any(axis=1))
        squared = ((runs.shares[:, None] - runs.shares[None]) ** 2).sum(-1)
        squared[off] = squared[:, off] = np.inf
        np.fill_diagonal(squared, 0.0)

        number = np.bincount(runs.view, minlength=views).astype(float)
        means = np.bincount(runs.view, runs.value, views) / np.maximum(number, 1)
        y = runs.value - means[runs.view]
        accuracies = runs.view[~off[runs.network]]
        highest = max(int(accuracies.max(initial=0)), views - runs.rungs)
        # Fractions spread by no more than 1, whatever a broken device returns.
        spread = min(max(_spread(runs, off, y, highest), 0.5 * runs.unit, 1e-4), 1.0)
        scale = np.ones(views)
        for view in range(views - runs.rungs):
            own = _spread(runs, off, y, view)
            scale[view] = spread / own if own > 0 else 1.0
        y = y * scale[runs.view]

        block = np.array([_block(view, runs) for view in range(views)])[runs.view]
        first_mean = networks * views
        x = np.zeros((len(y), first_mean + views + 1))
        rows = np.arange(len(y))
        x[rows, block * networks + runs.network] = 1
        x[rows, first_mean + runs.view] = 1
        x[:, -1] = y

        patterns = _patterns(runs, seeds)
        products, of_folds, between_folds = [], [], []
        for pattern in patterns:
            for i, j in _entries(len(pattern.views)):
                a, b = pattern.values[:, i], pattern.values[:, j]
                seed = runs.seed[a]  # a pair is of one run
                of_seeds = np.zeros((seeds, views, x.shape[1]))
                between = np.zeros((seeds, views, views))
                for view, other_view, other in (
                    (pattern.views[i], pattern.views[j], b),
                    (pattern.views[j], pattern.views[i], a),
                ):
                    np.add.at(of_seeds[:, view], seed, x[other] / 2)
                    np.add.at(between[:, view, other_view], seed, 0.5)
                products.append((x[a].T @ x[b] + x[b].T @ x[a]) / 2)
                of_folds.append(of_seeds)
                between_folds.append(between)
        return cls(
            runs=runs,
            squared=squared,
            off=off,
            scale=scale,
            means=means * scale,
            patterns=patterns,
            products=np.stack(products),
            of_folds=np.stack(of_folds),
            between_folds=np.stack(between_folds),
            spread=spread,
        )

    def draws(self, z: Array) -> Hyperparameters:
        """Return standard normals z [draws, dims] as hyper-parameters: their prior.

        Effects scale with the networks' own spread, an accuracy's noise with what the number of
        validation images alone gives, so that one prior serves small images and large ones. Both
        are wide: one standard deviation of an amplitude is a factor of e^0.7.
        """
        effect, noise = self.spread, max(self.runs.unit, 1e-4)
        views, further = self.runs.views, self.runs.views - 1
        losses = views - self.runs.rungs
        end = _COMMON + _PER_FURTHER_VIEW * further
        other = z[:, _COMMON:end].reshape(len(z), _PER_FURTHER_VIEW, further)
        one = np.ones((len(z), 1))
        # of one run's losses about half of the variance is noise
        of_losses = 0.65 * effect * np.exp(0.5 * other[:, 3, :losses])
        of_low_rungs = noise * np.hypot(_SAMPLE, 1.2 * _of_training(other[:, 3, losses:]))
        of_last = noise * np.hypot(_SAMPLE, _of_training(z[:, 4:5]))
        noises = np.concatenate([of_losses, of_low_rungs, of_last], axis=1)
        bias_surface = 0.65 * effect * np.exp(0.7 * other[:, 1])
        bias_own = 0.25 * effect * np.exp(0.6 * other[:, 2])
        luck = np.zeros((len(z), views))
        if views > 1:
            centre = norm.ppf(self.runs.luck)
            luck = np.minimum(norm.cdf(centre + 0.5 * z[:, end:]), _HIGHEST_LUCK)
        # losses are scaled to accuracy's spread, and have less noise: their effects are larger
        slopes = np.where(np.arange(further) < losses, 1.0, 0.7) + 0.6 * other[:, 0]
        fold = 0.7 * np.exp(1.5 * z[:, 3])
        of_fold = np.where(np.arange(views) < losses, noises, noise)
        return Hyperparameters(
            length=0.4 * np.exp(0.4 * z[:, 0]),
            surface=0.8 * effect * np.exp(0.7 * z[:, 1]),
            own=0.35 * effect * np.exp(0.7 * z[:, 2]),
            fold=fold[:, None] * of_fold,
            noise=noises,
            luck=luck,
            slope=np.concatenate([slopes, one], axis=1),
            bias_surface=np.concatenate([bias_surface, 0 * one], axis=1),
            bias_own=np.concatenate([bias_own, 0 * one], axis=1),
        )

    def evidence(self, d: Hyperparameters) -> Array:
        """Return the log marginal likelihood [draws] of the runs, up to a constant.

        With V the inverse covariance of noise and seeds' effects together, L L' = R' Z'VZ R + I and
        R the prior's root, the determinant of the runs' covariance is that of V^-1 times that of
        L L', and y' (covariance)^-1 y = y'Vy - |L^-1 R' Z'Vy|².
        """
        parts = []
        for i in self._slices(len(d.length)):
            products, determinant = self._weighted(d, i)
            _, factor, right = self._solve(d, i, products)
            whitened = np.linalg.solve(factor, right[:, :, None])[:, :, 0]
            quadratic = products[:, -1, -1] - (whitened**2).sum(1)
            parts.append(-0.5 * (quadratic + determinant + _log_determinant(factor)))
        return np.concatenate(parts)

    def sample(
        self,
        d: Hyperparameters,
        weights: Array,
        samples: int,
        grid: Array | None,
        rng: np.random.Generator,
    ) -> Posterior:
        """Return samples of the networks, and of the surfaces at `grid`.

        Draws are taken systematically, each as often as its weight says give or take one (Kitagawa
        1996, J. Comput. Graph. Stat. 5, 1); then latents from each draw's own Gaussian.
        """
        networks, rungs = len(self.off), self.runs.rungs
        views = self.runs.views
        cumulated = np.concatenate([[0.0], np.cumsum(weights)])
        times = np.diff(np.floor(cumulated * samples + rng.random())).astype(int)
        shown = [*range(views - rungs), views - 1]  # by a run of the last rung
        seen, fields = [], []
        for n in np.flatnonzero(times).tolist():
            one = slice(n, n + 1)
            products, _ = self._weighted(d, one)
            root, factor, right = (a[0] for a in self._solve(d, one, products))
            mean = np.linalg.solve(factor.T, np.linalg.solve(factor, right))
            normal = rng.standard_normal((len(mean), times[n]))
            latent = root @ (mean[:, None] + np.linalg.solve(factor.T, normal))
            of_views = []
            for view in shown:
                mean_of_view = latent[view - views] + self.means[view]
                of_views.append((latent[self._rows(view)] + mean_of_view).T)
            seen.append(np.stack(of_views, axis=2))
            if grid is not None:
                fields.append(self._fields(d, n, latent[: networks * views], grid, rng))
        # Samples of one draw lie together: shuffled, any part of them stands for all.
        order = rng.permutation(sum(map(len, seen)))
        all_fields = np.concatenate(fields)[order] if fields else np.zeros((0, rungs, 0))
        noise = d.noise[:, shown]
        of_runs = _correlations(d.luck[:, shown]) * noise[:, :, None] * noise[:, None]
        return Posterior(
            seen=np.concatenate(seen)[order],
            run=np.tensordot(weights, of_runs, 1),
            fields=all_fields,
        )

    def _prior_root(self, d: Hyperparameters, i: slice) -> Array:
        """Return [draws, latents, latents]: what turns standard normals into latents."""
        networks, views = len(self.off), self.runs.views
        kernel = np.exp(-0.5 * self.squared / d.length[i, None, None] ** 2)
        eye = np.eye(networks)
        on = ~self.off
        both = on[:, None] & on[None]
        # Off the surface a network may be anywhere: twenty times the spread of the others.
        anywhere = np.where(self.off, 20 * self.spread, 0.0)
        latents = networks * views + views
        root = np.zeros((len(kernel), latents, latents))

        def covariance(surface: Array, own: Array) -> Array:
            smooth = np.where(both, surface[:, None, None] ** 2 * kernel, 0.0)
            alone = np.where(on, own[:, None] ** 2, anywhere**2)[:, None] + _JITTER
            return np.asarray(smooth + eye * alone)

        last = np.linalg.cholesky(covariance(d.surface[i], d.own[i]))
        root[:, :networks, :networks] = last
        for v in range(views - 1):
            rows, through = self._rows(v), self._rows(_through(v, self.runs))
            seen = np.where(on[:, None], root[:, through], 0.0)
            root[:, rows] = d.slope[i, v, None, None] * seen
            bias = covariance(d.bias_surface[i, v], d.bias_own[i, v])
            root[:, rows, rows] = np.linalg.cholesky(bias)
        means = np.arange(networks * views, latents)
        root[:, means, means] = _VAGUE
        return root

    def _weights(self, d: Hyperparameters, i: slice) -> tuple[Array, Array]:
        """Return [draws, terms], the number that each term of the noise's inverse covariance is
        multiplied by, and [draws], the log determinant of that covariance.

        Of one run it is D C D, with D the views' standard deviations and C the correlations.
        """
        columns, determinant = [], np.zeros(len(d.length[i]))
        for pattern in self.patterns:
            s = d.noise[i][:, pattern.views]
            correlations = _correlations(d.luck[i][:, pattern.views])
            inverse = np.linalg.inv(correlations) / (s[:, :, None] * s[:, None])
            one = np.linalg.slogdet(correlations)[1] + 2 * np.log(s).sum(1)
            determinant += len(pattern.values) * one
            for a, b in _entries(len(pattern.views)):
                times = 1 if a == b else 2  # the matrix has both (a, b) and (b, a)
                columns.append(times * inverse[:, a, b])
        return np.stack(columns, axis=1), determinant

    def _weighted(self, d: Hyperparameters, i: slice) -> tuple[Array, Array]:
        """Return X'VX [draws, latents + 1, latents + 1] and the log determinant [draws] of V^-1,
        with V the inverse covariance of noise and seeds' effects together.

        With F the effects' standard deviations and B = F E'WE F + I, one block a seed, it is
        V = W - W E F B^-1 F E'W (Woodbury), and the determinant of V^-1 is that of W^-1 times that
        of B. So, with L L' = B and C = L^-1 F E'WX, X'VX is X'WX - C'C.
        """
        weights, determinant = self._weights(d, i)
        deviation = d.fold[i][:, None]  # [draws, 1, views]

        def sums(terms: Array) -> Array:
            """Weigh [terms, ...], and sum to [draws, ...]."""
            flat = weights @ terms.reshape(len(terms), -1)
            return np.asarray(flat.reshape(len(weights), *terms.shape[1:]))

        scaled = deviation[..., None] * sums(self.between_folds) * deviation[:, :, None]
        factor = np.asarray(np.linalg.cholesky(scaled + np.eye(self.runs.views)), dtype=np.float64)
        # hundreds of matrices of two or three rows: their inverses take a tenth of solving's time
        coupling = np.linalg.inv(factor) * deviation[:, :, None] @ sums(self.of_folds)
        coupling = coupling.reshape(len(weights), -1, self.products.shape[1])
        products = sums(self.products) - coupling.transpose(0, 2, 1) @ coupling
        return products, determinant + _log_determinant(factor).sum(1)

    def _solve(self, d: Hyperparameters, i: slice, products: Array) -> tuple[Array, Array, Array]:
        """Return for each draw, from its X'VX, the prior's root R, the Cholesky factor of the
        posterior's precision R' Z'VZ R + I in standard normals, and the right-hand side R' Z'Vy."""
        root = self._prior_root(d, i)
        transposed = root.transpose(0, 2, 1)
        inner = transposed @ products[:, :-1, :-1] @ root
        # What was taken off may leave it below 0 by rounding, where values are far from fractions.
        rounding = 1e-14 * np.trace(inner, axis1=1, axis2=2)
        inner += (1 + rounding)[:, None, None] * np.eye(root.shape[1])
        right = (transposed @ products[:, :-1, -1:])[:, :, 0]
        return root, np.asarray(np.linalg.cholesky(inner), dtype=np.float64), right

    def _rows(self, view: int) -> slice:
        """Return the latents that are h of a view."""
        networks, block = len(self.off), _block(view, self.runs)
        return slice(networks * block, networks * (block + 1))

    def _slices(self, draws: int) -> list[slice]:
        """Return the draws in parts whose matrices fit into memory together."""
        largest = max(self.products[0].size, self.of_folds[0].size)
        step = max(1, _MOST_DOUBLES // largest)
        return [slice(a, min(a + step, draws)) for a in range(0, draws, step)]

    def _fields(
        self, d: Hyperparameters, n: int, latent: Array, grid: Array, rng: np.random.Generator
    ) -> Array:
        """Return [samples, rungs, grid points]: each rung's surface, given the networks' effects
        `latent` [networks x views, samples] in draw `n`."""
        networks, on = len(self.off), ~self.off
        rungs, losses = self.runs.rungs, self.runs.views - self.runs.rungs
        shares, scale = self.runs.shares[on], -0.5 / d.length[n] ** 2
        to_networks = np.exp(scale * ((grid[:, None] - shares[None]) ** 2).sum(-1))
        of_networks = np.exp(scale * self.squared[np.ix_(on, on)])
        of_grid = np.exp(scale * ((grid[:, None] - grid[None]) ** 2).sum(-1))

        def sampled(effects: Array, surface: float, own: float) -> Array:
            """A process at the grid, given its noisy values at the networks (Rasmussen and Williams
            2006, equations 2.23 and 2.24)."""
            covariance = surface**2 * of_networks + (own**2 + _JITTER) * np.eye(len(shares))
            gain = np.linalg.solve(covariance, surface**2 * to_networks.T).T
            remaining = surface**2 * of_grid - gain @ (surface**2 * to_networks.T)
            root = np.linalg.cholesky(remaining + 1e-6 * surface**2 * np.eye(len(grid)))
            normal = rng.standard_normal((len(grid), effects.shape[1]))
            return np.asarray(gain @ effects + root @ normal)

        last_effects = latent[:networks][on]
        final = sampled(last_effects, d.surface[n], d.own[n])
        fields = np.empty((latent.shape[1], rungs, len(grid)))
        fields[:, rungs - 1] = final.T
        for r in range(rungs - 1):
            v = losses + r
            rung_effects = latent[self._rows(v)][on]
            bias = rung_effects - d.slope[n, v] * last_effects
            low = sampled(bias, d.bias_surface[n, v], d.bias_own[n, v])
            fields[:, r] = (d.slope[n, v] * final + low).T
        return fields


def _correlations(luck: Array) -> Array:
    """Return the correlations [draws, views, views] of one run's noise; `luck` is lambda [draws,
    views]."""
    correlations = luck[:, :, None] * luck[:, None]
    diagonal = np.arange(luck.shape[1])
    correlations[:, diagonal, diagonal] = 1.0
    return np.asarray(correlations)


def _log_determinant(factor: Array) -> Array:
    """Return the log determinants of matrices from their Cholesky factors [..., n, n]."""
    return np.asarray(2 * np.log(np.diagonal(factor, axis1=-2, axis2=-1)).sum(-1))


def _of_training(z: Array) -> Array:
    """Return what training adds to the noise of a run, in units of the binomial deviation."""
    return np.exp(np.where(z < 0, 0.3, 0.7) * z)


def _block(view: int, runs: Runs) -> int:
    """Return the place of a view's h among those of all: the last view comes first."""
    return (view + 1) % runs.views


def _through(view: int, runs: Runs) -> int:
    """Return the view through which another is seen: for a loss the one before it, for all others
    the last."""
    losses = runs.views - runs.rungs
    return view - 1 if 0 < view < losses else runs.views - 1


def _spread(runs: Runs, off: NDArray[np.bool_], y: Array, view: int) -> float:
    """Return the standard deviation of the networks' means in a view; 0 with fewer than two."""
    selected = (runs.view == view) & ~off[runs.network]
    network = runs.network[selected]
    number = np.bincount(network, minlength=len(off))
    total = np.bincount(network, y[selected], len(off))
    means = total[number > 0] / number[number > 0]
    return float(means.std(ddof=1)) if len(means) > 1 else 0.0


def _patterns(runs: Runs, seeds: int) -> list[_Pattern]:
    """Return the patterns of views that the (network, seed) of these runs have."""
    pair = runs.network * seeds + runs.seed
    value_of = np.full((int(pair.max()) + 1, runs.views), -1)  # [pairs, views]; -1: none
    value_of[pair, runs.view] = np.arange(len(pair))
    has = value_of >= 0
    patterns = []
    for row in np.unique(has[has.any(1)], axis=0):
        views = np.flatnonzero(row)
        pairs = np.flatnonzero((has == row).all(1))
        patterns.append(_Pattern(views, value_of[np.ix_(pairs, views)]))
    return patterns


def _entries(size: int) -> list[tuple[int, int]]:
    """Return the places in one triangle of a square matrix of so many rows."""
    return [(i, j) for i in range(size) for j in range(i, size)]
