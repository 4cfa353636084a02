"""How the rate of a training is taken, on a clock of the test's own."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from scaling_search.data.dataset import Dataset
from scaling_search.training import throughput
from scaling_search.training.throughput import images_per_second, training_steps, warm_up
from scaling_search.training.trial import Trial

CPU = torch.device("cpu")


class Clock:
    """Time that passes in steps alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.steps = 0
        clock = SimpleNamespace(perf_counter=lambda: self.now)
        monkeypatch.setattr(throughput, "time", clock)

    def training(self, *durations: float) -> Iterator[int]:
        """Steps of 32 images: these many seconds each, the last one for ever."""
        for at in range(10**6):
            self.steps += 1
            self.now += durations[min(at, len(durations) - 1)]
            yield 32


@pytest.mark.parametrize("step", [0.001, 0.03, 0.4])
@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_the_rate_of_even_steps(
    monkeypatch: pytest.MonkeyPatch, step: float, margin: float
) -> None:
    steps = Clock(monkeypatch).training(step)
    assert images_per_second(steps, CPU, 2.0, margin) == pytest.approx(32 / step)


def test_steps_longer_than_the_time_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Clock(monkeypatch).training(5.0)
    assert images_per_second(steps, CPU, 1.5, 0.2) == pytest.approx(32 / 5)


def test_a_margin_keeps_the_device_busy_and_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    # slow ones while neighbours begin, then fast ones
    steps = clock.training(0.1, 0.1, 0.01)
    assert images_per_second(steps, CPU, 1.0, 0.2) == pytest.approx(32 / 0.01)
    assert clock.now >= 100.0 + 1.4


def test_steps_are_a_trainings_and_end_with_it(trial: Trial, data: Dataset) -> None:
    steps = training_steps(trial, data)
    warm_up(steps, CPU)
    assert next(steps) == trial.recipe.batch
    assert images_per_second(steps, CPU, 0.05) > 0
    steps.close()
    assert not list(steps)
