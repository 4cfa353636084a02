"""The learning rate over the steps, beside the formulas it stands for."""

import dataclasses
import math

import numpy as np
import pytest

from scaling_search.training.recipe import Recipe
from scaling_search.training.schedule import decay_start, learning_rate, warmup_steps


def test_linear_schedule() -> None:
    recipe = Recipe(lr=1.0, warmup_steps=10)
    rates = [learning_rate(recipe, s, 100, 50) for s in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert set(rates[10:80]) == {1.0}
    assert decay_start(recipe, 100) == 80
    assert np.diff(rates[79:]) == pytest.approx([-1 / 21] * 20)
    assert rates[-1] > 0
    # what makes continuing possible: before the decay the length does not matter
    assert rates[:80] == [learning_rate(recipe, s, 1000, 50) for s in range(80)]
    half = dataclasses.replace(recipe, decay=0.5)
    assert decay_start(half, 100) == 50
    assert [learning_rate(half, s, 100, 50) for s in (49, 99)] == pytest.approx([1, 1 / 51])
    assert warmup_steps(Recipe(warmup_steps=32), 20) == 10
    assert warmup_steps(Recipe(warmup_epochs=0.5), 20) == 10


def test_exponential_schedule_is_tensorflows() -> None:
    """0.97 for every whole 2.4 epochs, no matter how long the run is: every checkpoint can be
    continued."""
    recipe = Recipe(lr=0.016, schedule="exponential", warmup_epochs=5)
    assert learning_rate(recipe, 0, 1000, 10) == pytest.approx(0.016 / 50)
    assert [learning_rate(recipe, s, 3500, 10) for s in (71, 72, 3499)] == pytest.approx(
        [0.016 * 0.97**2, 0.016 * 0.97**3, 0.016 * 0.97 ** math.floor(349.9 / 2.4)]
    )
    assert decay_start(recipe, 3500) == 3500
