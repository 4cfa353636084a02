import numpy as np
import pytest

from scaling_search.verdict.chances import chances, tied_set


def test_chances_tied_set_and_bound_by_hand() -> None:
    accuracy = np.array([[0.5, 0.4, 0.3]] * 60 + [[0.3, 0.4, 0.2]] * 37 + [[0.1, 0.2, 0.3]] * 3)
    pick, best, bound = chances(accuracy)
    assert pick == 0
    assert best.tolist() == [0.6, 0.37, 0.03]
    assert tied_set(best) == [0, 1]
    assert bound == pytest.approx(0.1)
    assert tied_set(np.array([0.96, 0.04])) == [0]
    assert tied_set(np.array([0.5, 0.45, 0.05])) == [0, 1]
