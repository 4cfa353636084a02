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


def batches(data: Dataset, recipe: Recipe = RECIPE, epoch_images: int | None = None) -> Batches:
    at = np.arange(100)
    labels = torch.from_numpy(np.array(data.train_labels[at]))
    images = Images(data.train_images, at, 12, CPU)
    return Batches(images, labels, recipe, seed=3, epoch_images=epoch_images)


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


def test_an_epochs_length_changes_no_step(data: Dataset) -> None:
    """An epoch of 160 images, of 100 there are: the steps go on into the next pass."""
    by_pass, by_images = batches(data), batches(data, epoch_images=160)
    assert by_pass.per_epoch == 6
    assert by_images.per_epoch == 10
    for step in (0, 5, 6, 9, 10, 3):
        by_pass.seek(step)
        by_images.seek(step)
        for ours, theirs in zip(by_pass.load(), by_images.load(), strict=True):
            assert torch.equal(ours, theirs), step
    assert batches(data, epoch_images=3).per_epoch == 1


def test_first_passes_show_images_as_they_are(data: Dataset) -> None:
    recipe = dataclasses.replace(RECIPE, plain_passes=2, randaugment=True)
    images = Images(data.train_images, np.arange(100), 12, CPU)[torch.arange(100)]
    shown = batches(data, recipe)

    def unaltered(step: int) -> int:
        """How many images of this step's batch are originals."""
        shown.seek(step)
        batch, _ = shown.load()
        return sum(bool((images == image).flatten(1).all(1).any()) for image in batch)

    assert [unaltered(step) for step in (0, 6, 11)] == [16, 16, 16]
    assert unaltered(12) < 16
    always = batches(data, dataclasses.replace(recipe, plain_passes=0))
    shown.seek(13)
    always.seek(13)
    assert torch.equal(shown.load()[0], always.load()[0])


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
