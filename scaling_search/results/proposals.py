"""Where a search looks next, proposed by Optuna's TPE (Bergstra et al., 2011, "Algorithms for
Hyper-Parameter Optimization")."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution

Point = tuple[float, float]  # of the unit square

_SQUARE: dict[str, BaseDistribution] = {
    "u": FloatDistribution(0.0, 1.0),
    "v": FloatDistribution(0.0, 1.0),
}
_RANDOM_FIRST = 4  # points before TPE has enough to model; Optuna's own default is 10


def suggest(finished: Sequence[tuple[Point, float]], count: int, seed: int) -> list[Point]:
    """`count` points of the unit square, from the (point, accuracy) of what has finished.

    The same arguments give the same points: the sampler and its study are made anew each time."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # As a constant liar it takes a proposed point for a bad one until its accuracy is known, so
    # that the points of one call lie apart.
    sampler = optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=_RANDOM_FIRST, constant_liar=True
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for (u, v), accuracy in finished:
        # rounding may carry a point out of the square by its last bits
        params = {"u": min(max(u, 0.0), 1.0), "v": min(max(v, 0.0), 1.0)}
        trial = optuna.trial.create_trial(params=params, distributions=_SQUARE, value=accuracy)
        study.add_trial(trial)
    trials = [study.ask(_SQUARE) for _ in range(count)]
    return [(trial.params["u"], trial.params["v"]) for trial in trials]
