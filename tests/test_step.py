"""A training step: its kernels, its average, its memory, and its capture on a GPU."""

import dataclasses

import numpy as np
import pytest
import torch

import effnet
from scaling_search.data.dataset import Dataset
from scaling_search.data.images import Images, Normalise
from scaling_search.training import memory, step
from scaling_search.training.recipe import Recipe
from scaling_search.training.step import Step
from scaling_search.training.train import run
from scaling_search.training.trial import Outcome, Trial

CPU = torch.device("cpu")


def make(trial: Trial, data: Dataset, recipe: Recipe) -> tuple[Step, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = effnet.build(trial.arch, dropout=0.0, drop_path=0.0)
    made = Step(model.train(), recipe, CPU, Normalise(data, CPU))
    images = Images(data.train_images, np.arange(32), trial.arch.resolution, CPU)[torch.arange(32)]
    return made, images, torch.tensor(data.train_labels[:32])


def test_kernels_and_modules_train_alike(
    trial: Trial, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where numba is missing the plain modules do the same, up to rounding."""
    weights = []
    for kernels in (step.fast, None):
        monkeypatch.setattr(step, "fast", kernels)
        assert step.kernels("cpu") == ("torch" if kernels is None else "numba")
        made, images, labels = make(trial, data, Recipe(optimizer="sgd", lr=0.05))
        for at in range(3):
            made(lambda: (images, labels), 0.05, at)  # noqa: B023
        weights.append(torch.cat([p.detach().flatten() for p in made.model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], atol=1e-4, rtol=1e-3)


def test_average_is_tensorflows(trial: Trial, data: Dataset) -> None:
    """Decay min(ema, (1 + step) / (10 + step)); evaluation sees the average, training the
    weights."""
    made, images, labels = make(trial, data, Recipe(optimizer="sgd", lr=0.05, ema=0.3))
    average = [p.detach().clone() for p in made.model.parameters()]
    for at in range(5):
        made(lambda: (images, labels), 0.05, at)
        decay = min(0.3, (1 + at) / (10 + at))
        for a, p in zip(average, made.model.parameters(), strict=True):
            a.mul_(decay).add_(p.detach(), alpha=1 - decay)
    weights = [p.detach().clone() for p in made.model.parameters()]
    with made.averaged():
        for a, p in zip(average, made.model.parameters(), strict=True):
            torch.testing.assert_close(p.detach(), a, atol=1e-6, rtol=1e-5)
    assert all(torch.equal(w, p) for w, p in zip(weights, made.model.parameters(), strict=True))


def test_memory_comes_back_and_the_peak_is_the_runs_own(trial: Trial, data: Dataset) -> None:
    """A large run, then small ones, in one process: the small ones' peak is not the large one's."""

    def finish(recipe: Recipe, images: int) -> int:
        *_, outcome = run(
            dataclasses.replace(trial, recipe=recipe, train_images=images, epochs=1), data
        )
        assert isinstance(outcome, Outcome)
        assert outcome.status == "done"
        return outcome.peak_memory

    def resident() -> int:
        memory.reset_peak(CPU)
        return memory.peak(CPU)

    finish(trial.recipe, 64)  # the first run loads libraries
    before = resident()
    large = finish(dataclasses.replace(trial.recipe, batch=400, lr=1e-3), 400)
    after_large = resident()
    small = [finish(trial.recipe, 64) for _ in range(4)]
    assert large > before + 30 * 2**20
    assert max(small) < large - 20 * 2**20
    assert after_large < before + 20 * 2**20
    assert resident() < before + 20 * 2**20


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop"])
def test_captured_steps_equal_eager_ones(
    trial: Trial, data: Dataset, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda")
    losses = []
    for eager in (3, 10**6):
        monkeypatch.setattr(step, "_EAGER_STEPS", eager)
        torch.manual_seed(0)
        recipe = Recipe(optimizer=optimizer, lr=0.01, ema=0.9)
        made = Step(
            effnet.build(trial.arch, dropout=0.0).train(), recipe, device, Normalise(data, device)
        )
        images = Images(data.train_images, np.arange(64), trial.arch.resolution, device)[
            torch.arange(64)
        ]
        labels = torch.tensor(data.train_labels[:64], device=device)
        for at in range(12):
            made(lambda: (images, labels), 0.01 / (1 + at), at)  # noqa: B023
        assert made.captured == (eager <= 12)
        losses.append(made.loss_sum.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
