"""Infers each network's expected accuracy at the last rung from every run of a study at once.

One Gaussian model holds all networks, rungs and seeds. The accuracy of network k at rung r with
seed s is

    y(k, r, s) = m_r + h_r(k) + e(r, s) + n(k, r, s)
    h_F(k)     = f(x_k) + N(0, t_i²)                f ~ GP(0, t_s² exp(-|x - x'|² / 2 l²))
    h_r(k)     = rho_r h_F(k) + g_r(x_k) + N(0, b_i²)     g_r ~ GP(0, b_s², the same l)

with F the last rung, x_k the network's shares of depth, width and resolution, m_r the rung's mean
(vague), e ~ N(0, c²) what a seed does to everyone (its fold), and n ~ N(0, s_r²) one run's noise. n
of one network and seed correlates between rungs, by q: a long run is the short one continued, on
the same fold. f and g_r are Gaussian processes with a squared-exponential kernel (Rasmussen and
Williams 2006, Gaussian Processes for Machine Learning, section 4.2); a lower rung that is a slope
times the last one plus a process of its own is the model of Kennedy and O'Hagan (2000, Biometrika
87, 1) for cheap and dear versions of one computation.

The hyper-parameters (l, amplitudes, noises, slopes) are averaged over rather than fitted: with some
24 networks a fitted value pretends to be known. Their posterior is sampled by adaptive importance
sampling, a few rounds of draws that are all weighed as one mixture (Cornuet et al. 2012, Scand. J.
Stat. 39, 798).

A network without shares (the baseline, a reference of another cost) shares m and e with the others
and nothing else. Plain numpy and scipy: arrays in, arrays out; equal input gives equal output.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, qmc
from threadpoolctl import threadpool_limits

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

# Standard deviation of a rung's mean around the mean of its runs. Accuracies are fractions, so half
# of the whole range says nothing about it.
_VAGUE = 0.5

# Importance sampling: the first round draws from the prior, each further one from a Gaussian around
# the weighted draws so far. Draws are a Sobol sequence's, so their number is a power of two.
_ROUNDS = 4
_DRAWS_PER_ROUND = 128

# Draws are solved side by side, as many as keep one array below this many doubles (48 MB).
_MOST_DOUBLES = 6_000_000

# Largest correlation of one run's noise between rungs: at 1 the noise's covariance has no inverse.
_HIGHEST_CORRELATION = 0.9

# Added to a kernel's diagonal, a variance far below any of the prior's, so that its Cholesky factor
# exists where two networks have the same shares.
_JITTER = 1e-12

# Hyper-parameters that every study has (length, two amplitudes, fold, noise), and those that each
# rung below the last adds (slope, two amplitudes, noise).
_COMMON = 5
_PER_LOWER_RUNG = 4


@dataclass(frozen=True, slots=True)
class Runs:
    """The finished runs of a study, as arrays.

    `shares` [networks, 3] has nan for a network off the surface. `network`, `rung`, `seed` and
    `accuracy` [runs] hold for each run the index of its network, of its rung (of `rungs`, the last
    one counts), of its seed, and its accuracy as a fraction. At most one run has the same network,
    rung and seed. `unit` is the standard deviation that the number of validation images alone gives
    the accuracy of one run.
    """

    shares: Array
    network: Indices
    rung: Indices
    seed: Indices
    accuracy: Array
    rungs: int
    unit: float


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """Draws of the hyper-parameters, [draws] or [draws, rungs]; standard deviations as fractions.

    In the module's formulas: l, t_s, t_i, c, s_r, q, rho_r, b_s, b_i. At the last rung, slope is 1
    and both biases are 0.
    """

    length: Array
    surface: Array
    own: Array
    fold: Array
    noise: Array  # [draws, rungs]
    correlation: Array
    slope: Array  # [draws, rungs]
    bias_surface: Array  # [draws, rungs]
    bias_own: Array  # [draws, rungs]


@dataclass(frozen=True, slots=True)
class Posterior:
    """Samples of what is not known.

    `accuracy` [samples, networks] is the expected accuracy at the last rung, over seeds. `fields`
    [samples, rungs, grid points] is each rung's smooth surface, empty unless a grid was given.
    `noise` is the standard deviation of one run at the last rung.
    """

    accuracy: Array
    fields: Array
    noise: float


@dataclass(frozen=True, slots=True)
class Fit:
    """Weighted draws of the hyper-parameters given the runs; `sample` turns them into networks."""

    statistics: Statistics
    draws: Hyperparameters
    weights: Array  # [draws], of sum 1
    seed: int

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
    if not len(runs.accuracy):
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
    """Draw in rounds, each from a Gaussian around the weighted draws before it.

    Hyper-parameters are standard normals z [draws, dims] under their prior; `Statistics.draws`
    gives them their scales.
    """
    rungs = statistics.runs.rungs
    dims = dimensions(rungs)
    mean: Array = np.zeros(dims)
    root: Array = np.eye(dims)
    proposals: list[tuple[Array, Array]] = []
    z: Array = np.zeros((0, dims))
    evidence: Array = np.zeros(0)
    for turn in range(_ROUNDS):
        proposals.append((mean, root))
        uniform = qmc.Sobol(dims, seed=seed + turn).random(_DRAWS_PER_ROUND)
        normal = norm.ppf(uniform.clip(1e-9, 1 - 1e-9))  # a Sobol point may be 0, which is -inf
        fresh: Array = np.asarray(mean + normal @ root.T, dtype=np.float64)
        z = np.concatenate([z, fresh])
        evidence = np.concatenate([evidence, statistics.evidence(statistics.draws(fresh))])
        # All draws so far count as draws from the mixture of all proposals so far: no single
        # proposal's thin tail can give one draw all the weight (Owen and Zhou 2000, JASA 95, 135).
        densities = [_log_density(z, m, r) for m, r in proposals]
        mixture = np.logaddexp.reduce(densities, axis=0)
        log_weights = evidence + _log_density(z, np.zeros(dims), np.eye(dims)) - mixture
        # The next round goes where the weight is. In the first rounds a handful of draws have
        # nearly all of it, too few for a covariance in `dims` dimensions: the weights are tempered
        # until three draws a dimension carry them.
        tempered = _temper(log_weights, 3 * dims)
        mean = np.asarray(tempered @ z, dtype=np.float64)
        spread = ((z - mean).T * tempered) @ (z - mean)
        # A little wider than what was seen, and never flat in a direction: a proposal must cover
        # the tails of what it stands for.
        root = np.asarray(np.linalg.cholesky(1.1 * spread + 0.02 * np.eye(dims)), dtype=np.float64)
    return Fit(statistics, statistics.draws(z), _normalized(log_weights), seed)


def dimensions(rungs: int) -> int:
    """Return how many hyper-parameters a study of so many rungs has."""
    correlation = 1 if rungs > 1 else 0
    return _COMMON + _PER_LOWER_RUNG * (rungs - 1) + correlation


def _temper(log_weights: Array, enough: float) -> Array:
    """Return the weights to the largest power, of 1, 0.8, 0.64, ..., that `enough` draws carry.

    Carrying is counted as the effective sample size, 1 / sum of squared weights; half of all draws
    are enough in any case.
    """
    enough = min(enough, 0.5 * len(log_weights))
    power = 1.0
    weights = _normalized(log_weights)
    while 1 / float((weights**2).sum()) < enough and power > 1e-3:
        power *= 0.8
        weights = _normalized(power * log_weights)
    return weights


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
class _Term:
    """One term of the noise's inverse covariance, and the pairs of runs that it multiplies.

    It concerns rungs `a` and `b` of every (network, seed) that has runs at `together` rungs; 0
    stands for the part that does not depend on that number, a run with itself.
    """

    a: int
    b: int
    together: int
    left: Indices  # runs at rung a
    right: Indices  # the runs at rung b of the same networks and seeds


@dataclass(frozen=True, slots=True)
class Statistics:
    """The runs, summed into what a draw of hyper-parameters needs, whatever their number.

    A run is y = Z latent + noise, its row of Z picking four latents. The likelihood needs Z' W Z,
    Z' W y and y' W y, where W, the noise's inverse covariance, is a sum of terms that are each a
    number times fixed pairs of runs. So the products are summed once for each term.

    Latents in order: h of the last rung, h of the other rungs, e of each (rung, seed), m of each
    rung.
    """

    runs: Runs
    squared: Array  # [networks, networks]: squared distances of shares; inf off the surface
    off: NDArray[np.bool_]  # [networks]: off the surface, since without shares
    seeds: int
    means: Array  # [rungs]: the runs' mean accuracies, which are taken off first
    terms: list[_Term]
    counts: Array  # [terms, latents, latents]: Z'Z over the term's pairs
    sums: Array  # [terms, latents]: Z'y
    squares: Array  # [terms]: y'y
    number: Array  # [rungs]: how many runs
    together: Array  # [rungs + 1]: how many (network, seed) have runs at so many rungs
    spread: float  # standard deviation between networks, at the highest rung that has them

    @classmethod
    def of(cls, runs: Runs) -> Statistics:
        networks, rungs = len(runs.shares), runs.rungs
        seeds = int(runs.seed.max()) + 1
        off = np.asarray(np.isnan(runs.shares).any(axis=1))
        squared = ((runs.shares[:, None] - runs.shares[None]) ** 2).sum(-1)
        squared[off] = squared[:, off] = np.inf
        np.fill_diagonal(squared, 0.0)

        number = np.bincount(runs.rung, minlength=rungs).astype(float)
        means = np.bincount(runs.rung, runs.accuracy, rungs) / np.maximum(number, 1)
        y = runs.accuracy - means[runs.rung]

        block = np.where(runs.rung == rungs - 1, 0, runs.rung + 1)  # the last rung comes first
        first_fold = networks * rungs
        first_mean = first_fold + rungs * seeds
        z = np.zeros((len(y), first_mean + rungs))
        rows = np.arange(len(y))
        z[rows, block * networks + runs.network] = 1
        z[rows, first_fold + runs.rung * seeds + runs.seed] = 1
        z[rows, first_mean + runs.rung] = 1

        terms = _terms(runs, seeds)
        counts, sums, squares = [], [], []
        for term in terms:
            a, b = term.left, term.right
            counts.append((z[a].T @ z[b] + z[b].T @ z[a]) / 2)
            sums.append((z[a].T @ y[b] + z[b].T @ y[a]) / 2)
            squares.append(y[a] @ y[b])
        rungs_of_pair = np.bincount(runs.network * seeds + runs.seed)
        return cls(
            runs=runs,
            squared=squared,
            off=off,
            seeds=seeds,
            means=means,
            terms=terms,
            counts=np.stack(counts),
            sums=np.stack(sums),
            squares=np.array(squares),
            number=number,
            together=np.bincount(rungs_of_pair, minlength=rungs + 1).astype(float),
            spread=_spread(runs, off, y),
        )

    def draws(self, z: Array) -> Hyperparameters:
        """Return standard normals z [draws, dims] as hyper-parameters: their prior.

        Effects scale with the networks' own spread, noise with what the number of validation images
        alone gives, so that one prior serves small images and large ones. Both are wide: one
        standard deviation of an amplitude is a factor of e^0.7.
        """
        effect, noise, lower = self.spread, max(self.runs.unit, 1e-4), self.runs.rungs - 1
        end = _COMMON + _PER_LOWER_RUNG * lower
        low = z[:, _COMMON:end].reshape(len(z), _PER_LOWER_RUNG, lower)
        one = np.ones((len(z), 1))
        low_noise = 1.2 * noise * np.exp(0.45 * low[:, 3])
        last_noise = noise * np.exp(0.45 * z[:, 4:5])
        bias_surface = 0.65 * effect * np.exp(0.7 * low[:, 1])
        bias_own = 0.25 * effect * np.exp(0.6 * low[:, 2])
        correlation = np.zeros(len(z))
        if lower:
            correlation = _HIGHEST_CORRELATION * norm.cdf(z[:, -1])
        return Hyperparameters(
            length=0.4 * np.exp(0.4 * z[:, 0]),
            surface=0.8 * effect * np.exp(0.7 * z[:, 1]),
            own=0.35 * effect * np.exp(0.7 * z[:, 2]),
            fold=0.7 * noise * np.exp(1.5 * z[:, 3]),
            noise=np.concatenate([low_noise, last_noise], axis=1),
            correlation=correlation,
            slope=np.concatenate([0.7 + 0.6 * low[:, 0], one], axis=1),
            bias_surface=np.concatenate([bias_surface, 0 * one], axis=1),
            bias_own=np.concatenate([bias_own, 0 * one], axis=1),
        )

    def evidence(self, d: Hyperparameters) -> Array:
        """Return the log marginal likelihood [draws] of the runs, up to a constant.

        With L L' = R' Z'WZ R + I and R the prior's root, the determinant of the runs' covariance is
        that of the noise times that of L L', and y' (covariance)^-1 y = y'Wy - |L^-1 R' Z'Wy|².
        """
        parts = []
        together = np.arange(len(self.together))
        for i in self._slices(len(d.length)):
            _, factor, right = self._solve(d, i)
            whitened = np.linalg.solve(factor, right[:, :, None])[:, :, 0]
            quadratic = self._weights(d, i) @ self.squares - (whitened**2).sum(1)
            determinant = 2 * np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(1)
            # Of n equal correlations q, the matrix (1 - q) I + q 11' has the determinant
            # (1 - q)^(n - 1) (1 - q + q n).
            q = d.correlation[i, None]
            one_pair = np.maximum(together - 1, 0) * np.log(1 - q)
            one_pair = one_pair + np.log(1 - q + q * np.maximum(together, 1))
            pairs = one_pair @ self.together
            alone = 2 * np.log(d.noise[i]) @ self.number
            parts.append(-0.5 * (quadratic + determinant + pairs + alone))
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
        cumulated = np.concatenate([[0.0], np.cumsum(weights)])
        times = np.diff(np.floor(cumulated * samples + rng.random())).astype(int)
        accuracy, fields = [], []
        for n in np.flatnonzero(times).tolist():
            root, factor, right = (a[0] for a in self._solve(d, slice(n, n + 1)))
            mean = np.linalg.solve(factor.T, np.linalg.solve(factor, right))
            normal = rng.standard_normal((len(mean), times[n]))
            latent = root @ (mean[:, None] + np.linalg.solve(factor.T, normal))
            accuracy.append((latent[:networks] + latent[-1] + self.means[-1]).T)
            if grid is not None:
                fields.append(self._fields(d, n, latent[: networks * rungs], grid, rng))
        # Samples of one draw lie together: shuffled, any part of them stands for all.
        order = rng.permutation(sum(map(len, accuracy)))
        all_fields = np.concatenate(fields)[order] if fields else np.zeros((0, rungs, 0))
        return Posterior(
            accuracy=np.concatenate(accuracy)[order],
            fields=all_fields,
            noise=float(weights @ d.noise[:, -1]),
        )

    def _prior_root(self, d: Hyperparameters, i: slice) -> Array:
        """Return [draws, latents, latents]: what turns standard normals into latents."""
        networks, rungs = len(self.off), self.runs.rungs
        kernel = np.exp(-0.5 * self.squared / d.length[i, None, None] ** 2)
        eye = np.eye(networks)
        on = ~self.off
        both = on[:, None] & on[None]
        # Off the surface a network may be anywhere: twenty times the spread of the others.
        anywhere = np.where(self.off, 20 * self.spread, 0.0)
        root = np.zeros((len(kernel), *self.counts.shape[1:]))

        def covariance(surface: Array, own: Array) -> Array:
            smooth = np.where(both, surface[:, None, None] ** 2 * kernel, 0.0)
            alone = np.where(on, own[:, None] ** 2, anywhere**2)[:, None] + _JITTER
            return np.asarray(smooth + eye * alone)

        last = np.linalg.cholesky(covariance(d.surface[i], d.own[i]))
        root[:, :networks, :networks] = last
        for r in range(rungs - 1):
            rows = slice(networks * (r + 1), networks * (r + 2))
            bias = covariance(d.bias_surface[i, r], d.bias_own[i, r])
            root[:, rows, rows] = np.linalg.cholesky(bias)
            root[:, rows, :networks] = d.slope[i, r, None, None] * np.where(both, last, 0.0)
        first_mean = networks * rungs + rungs * self.seeds
        folds = np.arange(networks * rungs, first_mean)
        root[:, folds, folds] = d.fold[i, None]
        means = np.arange(first_mean, root.shape[1])
        root[:, means, means] = _VAGUE
        return root

    def _weights(self, d: Hyperparameters, i: slice) -> Array:
        """Return [draws, terms]: the number that each term of the noise's inverse is multiplied by.

        With D the noises' standard deviations, the covariance of n runs of one (network, seed) is
        D ((1-q) I + q 11') D, and its inverse D^-1 (I - q / (1 - q + q n) 11') D^-1 / (1-q).
        """
        q, s = d.correlation[i], d.noise[i]
        columns = []
        for term in self.terms:
            factor = -q / (1 - q + q * term.together) if term.together else np.ones_like(q)
            times = 1 if term.a == term.b else 2  # 11' holds both (a, b) and (b, a)
            columns.append(times * factor / (1 - q) / (s[:, term.a] * s[:, term.b]))
        return np.stack(columns, axis=1)

    def _solve(self, d: Hyperparameters, i: slice) -> tuple[Array, Array, Array]:
        """Return for each draw the prior's root R, the Cholesky factor of the posterior's precision
        R' Z'WZ R + I in standard normals, and the right-hand side R' Z'Wy."""
        root, weights = self._prior_root(d, i), self._weights(d, i)
        precision = np.einsum("dj,jpq->dpq", weights, self.counts)
        inner = root.transpose(0, 2, 1) @ precision @ root + np.eye(root.shape[1])
        right = (root.transpose(0, 2, 1) @ (weights @ self.sums)[:, :, None])[:, :, 0]
        return root, np.linalg.cholesky(inner), right

    def _slices(self, draws: int) -> list[slice]:
        """Return the draws in parts whose matrices fit into memory together."""
        step = max(1, _MOST_DOUBLES // self.counts.shape[1] ** 2)
        return [slice(a, min(a + step, draws)) for a in range(0, draws, step)]

    def _fields(
        self, d: Hyperparameters, n: int, latent: Array, grid: Array, rng: np.random.Generator
    ) -> Array:
        """Return [samples, rungs, grid points]: each rung's surface, given the networks' effects
        `latent` [networks x rungs, samples] in draw `n`."""
        networks, rungs, on = len(self.off), self.runs.rungs, ~self.off
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
            rung_effects = latent[networks * (r + 1) : networks * (r + 2)][on]
            bias = rung_effects - d.slope[n, r] * last_effects
            low = sampled(bias, d.bias_surface[n, r], d.bias_own[n, r])
            fields[:, r] = (d.slope[n, r] * final + low).T
        return fields


def _spread(runs: Runs, off: NDArray[np.bool_], y: Array) -> float:
    """Return the standard deviation of the networks' means at the highest rung that has any.

    It is never so small that the networks would be equal by assumption: half of what the number of
    validation images gives one run is the least.
    """
    highest = int(runs.rung[~off[runs.network]].max(initial=0))
    selected = (runs.rung == highest) & ~off[runs.network]
    network = runs.network[selected]
    number = np.bincount(network, minlength=len(off))
    total = np.bincount(network, y[selected], len(off))
    means = total[number > 0] / number[number > 0]
    spread = float(means.std(ddof=1)) if len(means) > 1 else 0.0
    return max(spread, 0.5 * runs.unit, 1e-4)


def _terms(runs: Runs, seeds: int) -> list[_Term]:
    """Return the terms of the noise's inverse covariance that these runs need.

    Every run with itself, by rung; and every two rungs (equal ones too) of one (network, seed), by
    how many rungs that pair has.
    """
    pair = runs.network * seeds + runs.seed
    run_of = np.full((int(pair.max()) + 1, runs.rungs), -1)  # [pairs, rungs]; -1: none
    run_of[pair, runs.rung] = np.arange(len(pair))
    has = run_of >= 0
    number = has.sum(1)
    terms = []
    for a in range(runs.rungs):
        own = run_of[has[:, a], a]
        if len(own):
            terms.append(_Term(a, a, 0, own, own))
        if runs.rungs == 1:
            continue  # a run is its pair's only one: nothing to correlate with
        for b in range(a, runs.rungs):
            for n in range(1, runs.rungs + 1):
                both = has[:, a] & has[:, b] & (number == n)
                if both.any():
                    terms.append(_Term(a, b, n, run_of[both, a], run_of[both, b]))
    return terms
