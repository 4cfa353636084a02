"""Which images each step sees, wherever they lie and in whatever order steps are sought."""

import dataclasses

import numpy as np
import pytest
import torch

from scaling_search.data.dataset import Dataset
from scaling_search.data.images import Images
from scaling_search.training.batches import Batches
from scaling_search.training.recipe import Recipe

CPU = torch.device("cpu")
RECIPE = Recipe(batch=16, cutout=0.3)


def batches(data: Dataset, recipe: Recipe = RECIPE) -> Batches:
    at = np.arange(100)
    labels = torch.from_numpy(np.array(data.train_labels[at]))
    return Batches(Images(data.train_images, at, 12, CPU), labels, recipe, seed=3)


def test_images_read_ahead_are_those_that_lie_in_memory(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward, over an epoch's end, back to the first step and to one in the middle."""
    resident = batches(data)
    monkeypatch.setattr("scaling_search.data.images.free_memory", lambda device: 1000)
    streamed = batches(data)
    assert streamed.per_epoch == 6
    for step in (0, 1, 5, 6, 7, 0, 1, 4, 2):
        resident.seek(step)
        streamed.seek(step)
        for ours, theirs in zip(resident.load(), streamed.load(), strict=True):
            assert torch.equal(ours, theirs), step
    streamed.close()
    streamed.close()


def test_a_step_is_drawn_from_its_number_alone(data: Dataset) -> None:
    straight, jumping = batches(data), batches(data)
    for step in range(8):
        straight.seek(step)
    jumping.seek(7)
    assert all(torch.equal(a, b) for a, b in zip(straight.load(), jumping.load(), strict=True))
    assert torch.initial_seed() == (3 << 32) + 8
    other = Batches(straight._images, straight._labels, RECIPE, seed=4)
    other.seek(7)
    assert not torch.equal(other.load()[0], straight.load()[0])


def test_an_epoch_shows_each_image_once(data: Dataset) -> None:
    plain = batches(data, dataclasses.replace(RECIPE, flip=False, shift=0.0, cutout=0.0))
    images = Images(data.train_images, np.arange(100), 12, CPU)[torch.arange(100)]
    seen = []
    for step in range(plain.per_epoch):
        plain.seek(step)
        shown, labels = plain.load()
        assert len(shown) == len(labels) == 16
        for image in shown:
            seen.append(int((images - image).abs().flatten(1).sum(1).argmin()))
    assert len(set(seen)) == 96
