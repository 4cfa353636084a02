"""TPE's proposals: the same for the same runs, within the square, near to what was good."""

import math

import numpy as np
import pytest

from scaling_search.results.proposals import suggest

CORNER = (0.9, 0.1)


def accuracy(u: float, v: float) -> float:
    """Best in one corner."""
    return 1 - (u - CORNER[0]) ** 2 - (v - CORNER[1]) ** 2


def test_the_same_runs_give_the_same_points() -> None:
    finished = [((0.25, 0.5), 0.5), ((0.5, 0.25), 0.75)]
    points = suggest(finished, 4, seed=3)
    assert points == suggest(finished, 4, seed=3)
    assert points != suggest(finished, 4, seed=4)
    assert len(set(points)) == 4
    assert all(0 <= value <= 1 for point in points for value in point)


def test_points_on_the_edge_may_lie_outside_by_rounding() -> None:
    assert len(suggest([((math.nextafter(1, 2), -1e-17), 0.5)] * 5, 1, seed=0)) == 1


@pytest.mark.parametrize("seed", range(3))
def test_proposals_move_to_where_accuracy_is_high(seed: int) -> None:
    grid = np.random.default_rng(seed).random((40, 2)).tolist()
    finished = [((u, v), accuracy(u, v)) for u, v in grid]
    proposed = [accuracy(u, v) for u, v in suggest(finished, 8, seed)]
    at_random = [value for _, value in finished]
    assert np.mean(proposed) > np.mean(at_random) + np.std(at_random) / 2
