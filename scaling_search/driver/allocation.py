"""Where the next runs go. Pure functions of what is known: the same records give the same next
runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import ndtri
from scipy.stats.qmc import Sobol

from effnet.budget import Budget
from scaling_search.results.record import Record
from scaling_search.study.candidate import Candidate
from scaling_search.study.settings import Study
from scaling_search.verdict.foresight import Gaussian, mean_bound
from scaling_search.verdict.posterior import Array
from scaling_search.verdict.verdict import model

# Of a run that is only thought of: results that it may have (a Sobol sequence: a power of two), and
# samples around each.
_RESULTS, _SAMPLES_EACH = 16, 512


def half(count: int) -> int:
    """How many of `count` go on to the next rung: never fewer than half."""
    return math.ceil(count / 2)


def promoted(
    records: Sequence[Record], active: Sequence[Candidate], study: Study
) -> list[Candidate]:
    """The better half of each budget (rounded up) by their expected accuracy at the last rung;
    networks that failed do not go on."""
    # by budget: networks of unequal cost are not to compete with one another
    better: list[Candidate] = []
    for budget in dict.fromkeys(c.budget for c in active):
        group = [c for c in active if c.budget == budget]
        mean = expected(records, study, budget)
        able = [c for c in group if c.key in mean]
        able.sort(key=lambda c: (-mean[c.key], c.key))
        better += able[: half(len(group))]
    return better


def expected(records: Sequence[Record], study: Study, budget: Budget) -> dict[str, float]:
    """Posterior mean of the accuracy at the last rung, by network key, of every network that has
    not failed."""
    fitted = model(records, study, budget)
    if fitted is None:
        return {}
    means = fitted.sample().accuracy.mean(0).tolist()
    return dict(zip(fitted.keys, means, strict=True))


def most_telling(
    seen: Array, noise: Array, costs: Array, left: Mapping[int, int], count: int
) -> list[int]:
    """Return the networks of the next `count` runs: each time the one from whose run the loss bound
    is expected to fall most per unit of cost. `left` says how many further runs each may take.

    A knowledge gradient (Frazier, Powell and Dayanik 2009, INFORMS J. Comput. 21, 599), of the
    bound in place of the mean: a run's result is drawn before it happens, the Gaussian with the
    samples' mean and covariance is conditioned on it, and its loss bound taken. The runs of one
    batch do not know each other's results, so from one to the next the covariance shrinks and the
    mean stays. Where no run is expected to narrow it, as where it is 0, the run goes where its
    result is likeliest to change the pick.

    `seen` [samples, networks, views] is what runs of each network show on average, the accuracy
    last; `noise` [views, views] is the covariance of one run around it, `costs` [networks] are what
    it takes.
    """
    now = Gaussian.of(seen)
    mean, _ = now.of_accuracies()
    around = np.random.default_rng(0).standard_normal((_SAMPLES_EACH, len(mean)))
    results = ndtri(Sobol(now.views, seed=0).random(_RESULTS))  # of a run, in standard deviations
    left = dict(left)
    chosen: list[int] = []
    for _ in range(count):
        able = [k for k, runs in left.items() if runs > 0]
        if not able:
            break
        _, covariance = now.of_accuracies()
        bound = mean_bound(mean[None], covariance, around)
        after = {}
        gains = {}
        changes = {}
        for k in able:
            _, root, after[k] = now.conditioned(now.shown([k]), noise)
            moves = root[now.accuracies]
            _, remaining = after[k].of_accuracies()
            expected_bound = mean_bound(mean + results @ moves.T, remaining, around)
            gains[k] = (bound - expected_bound) / costs[k]
            changes[k] = _likeliest_change(mean, moves)
        telling = max(able, key=lambda k: gains[k])
        if gains[telling] <= 0:
            telling = max(able, key=lambda k: changes[k])
        chosen.append(telling)
        left[telling] -= 1
        now = after[telling]
    return chosen


def _likeliest_change(mean: Array, moves: Array) -> float:
    """How likely a run's result is to let another network overtake the pick: minus the standard
    deviations of its effect that separate the pick from the nearest one.

    `mean` [networks] is expected now, and the result moves it by `moves` [networks, normals] times
    standard normals.
    """
    pick = int(mean.argmax())
    gaps = mean[pick] - mean
    deviations = np.linalg.norm(moves - moves[pick], axis=1)
    others = np.arange(len(mean)) != pick
    if not others.any():
        return 0.0
    return -float(np.min(gaps[others] / np.maximum(deviations[others], np.finfo(float).tiny)))


def next_runs(
    records: Sequence[Record],
    study: Study,
    budget: Budget,
    open_seeds: dict[str, list[int]],
    count: int,
) -> list[tuple[str, int]]:
    """Up to `count` further (network, seed) at the last rung for `budget`. `open_seeds`: per
    network the seeds it may still take, the next first; used up in place. Networks that have
    failed, or have no seed left, get none."""
    fitted = model(records, study, budget)
    if fitted is None:
        return []
    samples = fitted.sample()
    # the bound is about the budget's networks, which are the first
    networks = [network for network in fitted.networks if network.role == "candidate"]
    seen = samples.seen[:, : len(networks)]
    # Multiply-adds stand for seconds: those of a clock would make a study that goes on, or is
    # repeated elsewhere, decide otherwise.
    costs = np.array([network.cost.macs for network in networks], dtype=np.float64)
    if study.equal == "training":
        costs = np.ones(len(networks))
    left = {row: len(open_seeds.get(network.key, ())) for row, network in enumerate(networks)}
    chosen = []
    for row in most_telling(seen, samples.run, costs, left, count):
        key = networks[row].key
        chosen.append((key, open_seeds[key].pop(0)))
    return chosen
