import numpy as np
import pytest

from scaling_search.verdict.chances import MARGIN, chances
from scaling_search.verdict.foresight import Gaussian, mean_bound, outlook


def variance(deviation: float) -> np.ndarray:
    """The covariance of one run that shows its accuracy alone."""
    return np.full((1, 1), deviation**2)


def test_conditioning_is_the_textbooks() -> None:
    """Rasmussen and Williams 2006, equations A.5 and A.6: the mean moves as the results vary, and
    what is known and what is still open sum to what was open."""
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((5, 5))
    covariance, noise = factor @ factor.T, np.diag([0.5, 2.0])
    observed = np.array([1, 3])
    factor, root, after = Gaussian(np.zeros(5), covariance, 1).conditioned(observed, noise)
    gain = covariance[:, [1, 3]] @ np.linalg.inv(covariance[np.ix_([1, 3], [1, 3])] + noise)
    assert after.covariance == pytest.approx(covariance - gain @ covariance[[1, 3]])
    assert root @ root.T == pytest.approx(gain @ covariance[[1, 3]])
    assert root == pytest.approx(gain @ factor)


def test_the_mean_bound_is_that_of_samples() -> None:
    rng = np.random.default_rng(0)
    mean, normal = np.array([0.6, 0.61, 0.55]), rng.standard_normal((4096, 3))
    covariance = np.diag([0.02, 0.01, 0.03]) ** 2
    samples = mean + normal @ np.sqrt(covariance)
    assert mean_bound(mean[None], covariance, normal) == pytest.approx(
        chances(samples)[2], rel=1e-3
    )


def test_the_outlook_asks_for_more_where_more_is_unknown() -> None:
    rng = np.random.default_rng(0)
    close = 0.7 + rng.normal(0, 0.006, (4000, 6, 1))
    quiet, loud = outlook(close, variance(0.01)), outlook(close, variance(0.03))
    for steps in (quiet, loud):
        assert [step.runs for step in steps] == [6 * 2**n for n in range(len(steps))]
        assert steps[0].bound > MARGIN >= steps[-1].bound
    assert quiet[-1].runs < loud[-1].runs
    apart = 0.7 + 0.1 * np.eye(6)[:1] + rng.normal(0, 0.001, (4000, 6))
    assert outlook(apart[:, :, None], variance(0.01)) == ()


def test_a_loss_of_little_noise_makes_few_runs_enough() -> None:
    """The same accuracies and noise, and a loss that shows each network's accuracy more clearly."""
    rng = np.random.default_rng(0)
    accuracy = 0.7 + rng.normal(0, 0.006, (4000, 6))
    alone = outlook(accuracy[:, :, None], variance(0.03))
    both = outlook(np.stack([accuracy, accuracy], axis=2), np.diag([0.005, 0.03]) ** 2)
    assert both[-1].runs < alone[-1].runs / 4
    # one of the accuracy's luck alone, the same of every network, tells as much as nothing
    same = np.stack([np.full_like(accuracy, 0.7), accuracy], axis=2)
    unrelated = outlook(same + rng.normal(0, 1e-9, same.shape), np.diag([0.005, 0.03]) ** 2)
    assert unrelated[-1].runs == alone[-1].runs
