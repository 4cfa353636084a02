"""One Gaussian model of every run: networks, rungs, seeds; its hyper-parameters averaged, not
fitted.

    y(k, r, s) = m_r + h_r(k) + e(r, s) + n(k, r, s)        n ~ N(0, s_r²), e ~ N(0, c²), m_r vague
    h_F(k)     = f(x_k) + N(0, t_i²)                        f ~ GP(0, t_s² exp(-|x - x'|² / 2 l²)), x the shares
    h_r(k)     = rho_r h_F(k) + g_r(x_k) + N(0, b_i²)       g_r ~ GP(0, b_s², the same l)

F is the last rung. n of one network and seed correlates between rungs, by q: a long run is the
short one continued, on the same fold. A network without shares (the baseline, a reference of
another cost) shares m and e with the others and nothing else. Plain numpy and scipy; arrays in,
arrays out; the same input gives the same output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, qmc
from threadpoolctl import threadpool_limits

Array = NDArray[np.float64]
_VAGUE = 0.5  # standard deviation of a rung's mean, accuracies being fractions
# Of the hyper-parameters: the first round from their prior, each further one from a Gaussian around
# the weighted draws.
_ROUNDS, _DRAWS = 4, 128
_CHUNK = 6_000_000  # doubles held at once
_MOST_ALIKE = 0.9


@dataclass(frozen=True, slots=True)
class Runs:
    """`x` [networks, 3]: shares, nan for a network off the surface; per run [runs]: index of the
    network, of the rung (`rungs` of them, the last one counts), of the seed; accuracy `y` as a
    fraction. `unit`: the standard deviation that the number of validation images alone gives one
    run."""

    x: Array
    network: NDArray[np.int64]
    rung: NDArray[np.int64]
    seed: NDArray[np.int64]
    y: Array
    rungs: int
    unit: float


@dataclass(frozen=True, slots=True)
class _Draws:
    """Hyper-parameters, [draws] or [draws, rungs]; standard deviations as fractions."""

    length: Array
    surface: Array  # t_s
    own: Array  # t_i
    shared: Array  # c
    noise: Array  # s_r
    alike: Array  # q: correlation of one run's noise at two rungs
    slope: Array  # rho_r; 1 at the last rung
    low_surface: Array  # b_s; 0 at the last rung
    low_own: Array  # b_i


@dataclass(frozen=True, slots=True)
class Posterior:
    """`accuracy` [samples, networks]: expected accuracy at the last rung, over seeds. `fields`
    [samples, rungs, grid points]: each rung's smooth surface, where a grid was asked for. `noise`:
    of one run at the last rung."""

    accuracy: Array
    fields: Array
    noise: float
    slope: Array  # [rungs]
    effective: float  # draws that carry the weight


def posterior(
    runs: Runs, *, samples: int = 4096, grid: Array | None = None, seed: int = 0
) -> Posterior:
    """The model's answer. Raises ValueError without a run."""
    if not len(runs.y):
        raise ValueError("a posterior needs at least one run")
    # hundreds of small matrices: threads that wait for each other made it ten times slower, and
    # their number the result
    with threadpool_limits(1, user_api="blas"):
        return _posterior(runs, samples, grid, seed)


def _posterior(runs: Runs, samples: int, grid: Array | None, seed: int) -> Posterior:
    data = _Data.of(runs)
    dims = 5 + 4 * (runs.rungs - 1) + (runs.rungs > 1)
    mean: Array = np.zeros(dims)
    root: Array = np.eye(dims)
    proposals: list[tuple[Array, Array]] = []
    z: Array = np.zeros((0, dims))
    log: Array = np.zeros(0)
    for turn in range(_ROUNDS):
        proposals.append((mean, root))
        normal = norm.ppf(qmc.Sobol(dims, seed=seed + turn).random(_DRAWS).clip(1e-9, 1 - 1e-9))
        fresh: Array = np.asarray(mean + normal @ root.T, dtype=np.float64)
        z, log = np.concatenate([z, fresh]), np.concatenate([log, data.evidence(data.draws(fresh))])
        # all draws so far as draws from the mixture of all proposals so far
        mixture = np.logaddexp.reduce([_density(z, m, r) for m, r in proposals], axis=0)
        ratio = log + _density(z, np.zeros(dims), np.eye(dims)) - mixture
        # the next round goes where the weight is; tempered, so that enough draws carry it to say
        # where
        w = _tempered(ratio, 3 * dims)
        mean = np.asarray(w @ z, dtype=np.float64)
        spread = ((z - mean).T * w) @ (z - mean)
        root = np.asarray(np.linalg.cholesky(1.1 * spread + 0.02 * np.eye(dims)), dtype=np.float64)
    return data.sample(data.draws(z), _weights(ratio), samples, grid, np.random.default_rng(seed))


def _tempered(log: Array, enough: float) -> Array:
    """Weights with the largest power of at most 1 (in steps of 0.8) for which `enough` draws carry
    them."""
    power = 1.0
    while (
        1 / float(((w := _weights(power * log)) ** 2).sum()) < min(enough, 0.5 * len(log))
        and power > 1e-3
    ):
        power *= 0.8
    return w


def _density(z: Array, mean: Array, root: Array) -> Array:
    """Log of a Gaussian, up to a constant that all share."""
    near = np.linalg.solve(root, (z - mean).T)
    return np.asarray(-0.5 * (near**2).sum(0) - np.log(np.diag(root)).sum())


def _weights(log: Array) -> Array:
    w = np.exp(log - log.max())
    return np.asarray(w / w.sum())


def _terms(
    runs: Runs, seeds: int
) -> tuple[list[tuple[int, int, int]], list[tuple[NDArray[Any], NDArray[Any]]]]:
    """The terms of the noise's inverse covariance, and the rows that each multiplies: every run
    with itself, and every two rungs of one (network, seed), by how many rungs that has. At most one
    run of a (network, rung, seed)."""
    pair = runs.network * seeds + runs.seed
    row = np.full((int(pair.max()) + 1, runs.rungs), -1)
    row[pair, runs.rung] = np.arange(len(pair))
    have = (row >= 0).sum(1)
    terms, parts = [], []
    for a in range(runs.rungs):
        own = row[row[:, a] >= 0, a]
        if len(own):
            terms.append((a, a, 0))
            parts.append((own, own))
        for b in range(a, runs.rungs):
            for n in range(1, runs.rungs + 1):
                both = (row[:, a] >= 0) & (row[:, b] >= 0) & (have == n)
                if runs.rungs > 1 and both.any():
                    left, right = row[both, a], row[both, b]
                    terms.append((a, b, n))
                    parts.append((left, right))
    return terms, parts


@dataclass(frozen=True, slots=True)
class _Data:
    """The runs as counts: what a draw of hyper-parameters needs, whatever the number of runs.

    Latent order: h of the last rung, h of the other rungs, e per (rung, seed), m per rung."""

    runs: Runs
    squared: Array  # [networks, networks] squared distances; off the surface: without end
    off: NDArray[np.bool_]
    seeds: int
    means: Array  # [rungs], taken off y
    terms: list[
        tuple[int, int, int]
    ]  # of the noise's inverse covariance: rung, rung, rungs of that pair (0: its own)
    counts: Array  # [terms, latents, latents]: Z'Z
    sums: Array  # [terms, latents]: Z'y
    squares: Array  # [terms]: y'y
    number: Array  # [rungs]: runs
    pairs: Array  # [rungs + 1]: (network, seed) with so many rungs
    spread: float  # of the networks at the last rung that has them

    @classmethod
    def of(cls, runs: Runs) -> _Data:
        k, rungs = len(runs.x), runs.rungs
        seeds = int(runs.seed.max()) + 1
        off = np.asarray(np.isnan(runs.x).any(axis=1))
        squared = ((runs.x[:, None] - runs.x[None]) ** 2).sum(-1)
        squared[off] = squared[:, off] = np.inf
        np.fill_diagonal(squared, 0.0)
        number = np.bincount(runs.rung, minlength=rungs).astype(float)
        means = np.bincount(runs.rung, runs.y, rungs) / np.maximum(number, 1)
        y = runs.y - means[runs.rung]
        place = np.where(runs.rung == rungs - 1, 0, runs.rung + 1) * k + runs.network
        z = np.zeros((len(y), k * rungs + rungs * seeds + rungs))
        rows = np.arange(len(y))
        z[rows, place] = 1
        z[rows, k * rungs + runs.rung * seeds + runs.seed] = 1
        z[rows, k * rungs + rungs * seeds + runs.rung] = 1
        terms, parts = _terms(runs, seeds)
        highest = int(runs.rung[~off[runs.network]].max(initial=0))
        here = (runs.rung == highest) & ~off[runs.network]
        seen = np.bincount(runs.network[here], minlength=k)
        each = np.bincount(runs.network[here], y[here], k)[seen > 0] / seen[seen > 0]
        return cls(
            runs,
            squared,
            off,
            seeds,
            means,
            terms,
            np.stack([(z[a].T @ z[b] + z[b].T @ z[a]) / 2 for a, b in parts]),
            np.stack([(z[a].T @ y[b] + z[b].T @ y[a]) / 2 for a, b in parts]),
            np.array([y[a] @ y[b] for a, b in parts]),
            number,
            np.bincount(np.bincount(runs.network * seeds + runs.seed), minlength=rungs + 1).astype(
                float
            ),
            # never so small that the networks would be equal by assumption
            max(float(each.std(ddof=1)) if len(each) > 1 else 0.0, 0.5 * runs.unit, 1e-4),
        )

    def draws(self, z: Array) -> _Draws:
        """Standard normals [draws, dims] as hyper-parameters. Effects scale with the networks' own
        spread, noise with what the number of validation images alone gives; both are wide."""
        effect, noise, rungs = self.spread, max(self.runs.unit, 1e-4), self.runs.rungs
        low = z[:, 5 : 5 + 4 * (rungs - 1)].reshape(len(z), 4, rungs - 1)
        last = np.ones((len(z), 1))
        return _Draws(
            length=0.4 * np.exp(0.4 * z[:, 0]),
            surface=0.8 * effect * np.exp(0.7 * z[:, 1]),
            own=0.35 * effect * np.exp(0.7 * z[:, 2]),
            shared=0.7 * noise * np.exp(1.5 * z[:, 3]),
            noise=np.concatenate(
                [1.2 * noise * np.exp(0.45 * low[:, 3]), noise * np.exp(0.45 * z[:, 4:5])], axis=1
            ),
            alike=_MOST_ALIKE * norm.cdf(z[:, -1]) if rungs > 1 else np.zeros(len(z)),
            slope=np.concatenate([0.7 + 0.6 * low[:, 0], last], axis=1),
            low_surface=np.concatenate([0.65 * effect * np.exp(0.7 * low[:, 1]), 0 * last], axis=1),
            low_own=np.concatenate([0.25 * effect * np.exp(0.6 * low[:, 2]), 0 * last], axis=1),
        )

    def root(self, d: _Draws, i: slice) -> Array:
        """[draws, latents, latents]: standard normals to latents."""
        k, rungs = len(self.off), self.runs.rungs
        alike = np.exp(-0.5 * self.squared / d.length[i, None, None] ** 2)
        eye = np.eye(k)
        loose = np.where(self.off, 20 * self.spread, 0.0)  # off the surface: anywhere
        on = ~self.off
        both = on[:, None] & on[None]
        found = np.zeros((len(alike), *self.counts.shape[1:]))

        def covariance(surface: Array, own: Array) -> Array:
            smooth = np.where(both, surface[:, None, None] ** 2 * alike, 0.0)
            return np.asarray(
                smooth + eye * (np.where(on, own[:, None] ** 2, loose**2)[:, None] + 1e-12)
            )

        last = np.linalg.cholesky(covariance(d.surface[i], d.own[i]))
        found[:, :k, :k] = last
        for r in range(rungs - 1):
            rows = slice(k * (r + 1), k * (r + 2))
            found[:, rows, rows] = np.linalg.cholesky(
                covariance(d.low_surface[i, r], d.low_own[i, r])
            )
            found[:, rows, :k] = d.slope[i, r, None, None] * np.where(both, last, 0.0)
        e = np.arange(k * rungs, k * rungs + rungs * self.seeds)
        found[:, e, e] = d.shared[i, None]
        m = np.arange(k * rungs + rungs * self.seeds, found.shape[1])
        found[:, m, m] = _VAGUE
        return found

    def weights(self, d: _Draws, i: slice) -> Array:
        """[draws, terms]: of a (network, seed) with n rungs, the inverse of D ((1-q) I + q 11') D
        is D^-1 (I - q / (1-q+qn) 11') D^-1 / (1-q), D its noise's standard deviations."""
        q, s = d.alike[i], d.noise[i]
        found = []
        for a, b, n in self.terms:
            shared = np.ones_like(q) if n == 0 else -q / (1 - q + q * n)
            found.append(
                (1 if a == b else 2) * shared / (1 - q) / (s[:, a] * s[:, b])
            )  # 11' holds a, b and b, a
        return np.stack(found, axis=1)

    def solve(self, d: _Draws, i: slice) -> tuple[Array, Array, Array]:
        """For each draw: root, the Cholesky factor of the posterior's precision, and its right-hand
        side."""
        root, w = self.root(d, i), self.weights(d, i)
        precision = np.einsum("dj,jpq->dpq", w, self.counts)
        inner = root.transpose(0, 2, 1) @ precision @ root + np.eye(root.shape[1])
        right = (root.transpose(0, 2, 1) @ (w @ self.sums)[:, :, None])[:, :, 0]
        return root, np.linalg.cholesky(inner), right

    def slices(self, number: int) -> list[slice]:
        step = max(1, _CHUNK // self.counts.shape[1] ** 2)
        return [slice(a, min(a + step, number)) for a in range(0, number, step)]

    def evidence(self, d: _Draws) -> Array:
        """Log marginal likelihood of each draw, up to a constant."""
        found = []
        for i in self.slices(len(d.length)):
            _, factor, right = self.solve(d, i)
            half = np.linalg.solve(factor, right[:, :, None])[:, :, 0]
            quadratic = self.weights(d, i) @ self.squares - (half**2).sum(1)
            determinant = 2 * np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(1)
            n, q = np.arange(len(self.pairs)), d.alike[i, None]
            spread = (
                np.maximum(n - 1, 0) * np.log(1 - q) + np.log(1 - q + q * np.maximum(n, 1))
            ) @ self.pairs
            found.append(
                -0.5 * (quadratic + determinant + spread + 2 * np.log(d.noise[i]) @ self.number)
            )
        return np.concatenate(found)

    def sample(
        self, d: _Draws, w: Array, samples: int, grid: Array | None, rng: np.random.Generator
    ) -> Posterior:
        """Systematic draws by weight, then latents from each one's Gaussian."""
        k, rungs = len(self.off), self.runs.rungs
        count = np.diff(
            np.floor(np.concatenate([[0.0], np.cumsum(w)]) * samples + rng.random())
        ).astype(int)
        accuracy, fields = [], []
        for n in np.flatnonzero(count).tolist():
            root, factor, right = (a[0] for a in self.solve(d, slice(n, n + 1)))
            middle = np.linalg.solve(factor.T, np.linalg.solve(factor, right))
            z = middle[:, None] + np.linalg.solve(
                factor.T, rng.standard_normal((len(middle), count[n]))
            )
            latent = root @ z
            accuracy.append((latent[:k] + latent[-1] + self.means[-1]).T)
            if grid is not None:
                fields.append(self._fields(d, n, latent[: k * rungs], grid, rng))
        order = rng.permutation(sum(map(len, accuracy)))
        return Posterior(
            np.concatenate(accuracy)[order],
            np.concatenate(fields)[order] if fields else np.zeros((0, rungs, 0)),
            float(w @ d.noise[:, -1]),
            np.asarray(w @ d.slope),
            1 / float((w**2).sum()),
        )

    def _fields(
        self, d: _Draws, n: int, latent: Array, grid: Array, rng: np.random.Generator
    ) -> Array:
        """[samples, rungs, grid points]: the surfaces given the networks' effects."""
        k, rungs, on = len(self.off), self.runs.rungs, ~self.off
        x, scale = self.runs.x[on], -0.5 / d.length[n] ** 2
        near = np.exp(scale * ((grid[:, None] - x[None]) ** 2).sum(-1))
        among = np.exp(scale * self.squared[np.ix_(on, on)])
        itself = np.exp(scale * ((grid[:, None] - grid[None]) ** 2).sum(-1))

        def given(effects: Array, surface: float, own: float) -> Array:
            gain = np.linalg.solve(
                surface**2 * among + (own**2 + 1e-12) * np.eye(len(x)), surface**2 * near.T
            ).T
            rest = surface**2 * itself - gain @ (surface**2 * near.T)
            root = np.linalg.cholesky(rest + 1e-6 * surface**2 * np.eye(len(grid)))
            return np.asarray(
                gain @ effects + root @ rng.standard_normal((len(grid), effects.shape[1]))
            )

        final = given(latent[:k][on], d.surface[n], d.own[n])
        found = np.empty((latent.shape[1], rungs, len(grid)))
        found[:, rungs - 1] = final.T
        for r in range(rungs - 1):
            own = latent[k * (r + 1) : k * (r + 2)][on] - d.slope[n, r] * latent[:k][on]
            low = given(own, d.low_surface[n, r], d.low_own[n, r])
            found[:, r] = (d.slope[n, r] * final + low).T
        return found
