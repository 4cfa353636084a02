"""Trainings for programs that run on the stand-in: data of random pixels, networks and trials of
it."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import effnet
from scaling_search.data.dataset import CacheWriter, Dataset
from scaling_search.training import train
from scaling_search.training.recipe import Recipe
from scaling_search.training.trial import Outcome, Trial

STANDARD = effnet.arch("b0-s4", width=0.5, resolution=20, num_classes=10)
SMALL = effnet.arch("b0-s4", width=0.1, depth=0.5, resolution=12, num_classes=10)


@functools.cache
def _scratch() -> Path:
    """A folder that lasts as long as the program."""
    folder = tempfile.mkdtemp(prefix="cuda-stub-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def random_data(count: int = 700, side: int = 32) -> Dataset:
    """`count` training images and 100 test images of noise, in a temporary folder."""
    rng = np.random.default_rng(0)

    def draw(n: int) -> tuple[Any, Any]:
        pixels = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
        return pixels, rng.integers(0, 10, n)

    classes = tuple(map(str, range(10)))
    with CacheWriter(Path(tempfile.mkdtemp(dir=_scratch())) / "random") as writer:
        return writer.commit("random", "drawn", classes, *draw(count), draw(100))


def make_trial(
    data: Dataset, net: effnet.Arch = SMALL, device: str = "cuda:0", **changes: Any
) -> Trial:
    """A trial of two epochs; `recipe` among the changes is a dictionary of a Recipe's fields."""
    recipe = {"lr": 3e-3, "batch": 32, "warmup_steps": 4, "bn_images": 128}
    recipe.update(changes.pop("recipe", {}))
    trial = Trial(
        arch=net,
        data_digest=data.digest,
        data_folder=str(data.folder),
        recipe=Recipe(**recipe),
        seed=0,
        epochs=2,
        train_images=None,
        val_images=None,
        device=device,
        threads=1,
        checkpoints=tempfile.mkdtemp(dir=_scratch()),
    )
    return dataclasses.replace(trial, **changes)


def finish(trial: Trial, data: Dataset) -> Outcome:
    """Train to the end."""
    *_, outcome = train.run(trial, data)
    assert isinstance(outcome, Outcome)
    return outcome
