"""What a device check asks about, and what it answers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import effnet
from effnet.arch import scale
from effnet.families import BASELINES
from effnet.nn.model import ConvNet
from scaling_search.data import shapes
from scaling_search.data.dataset import CacheWriter, Dataset
from scaling_search.data.images import Normalise, resized
from scaling_search.training import train
from scaling_search.training.recipe import Recipe
from scaling_search.training.trial import Outcome, Trial

CLASSES = len(shapes.CLASSES)
REPORT_IT = "report it with this table"
# the most that ten losses of two eager runs may differ by
NOISE_BOUND = 0.05


@dataclass(frozen=True, slots=True)
class Answer:
    """`ok` is None for a measurement; `advice` says what to do where `ok` is False. `of_triton`: it
    is about Triton's kernels alone, without which plain modules train."""

    question: str
    ok: bool | None
    detail: str
    advice: str = ""
    of_triton: bool = False


def line(answer: Answer) -> str:
    """Return the answer for a terminal; a failure says what to do."""
    word = {True: "ok", False: "FAIL", None: "-"}[answer.ok]
    text = f"{answer.question:<33} {word:<4} {answer.detail}"
    if answer.ok is False and answer.advice:
        text += f": {answer.advice}"
    return text


@dataclass(frozen=True, slots=True)
class Batch:
    """64 images, uint8 [64, 3, s, s], and their labels, int64 [64], on the subject's device."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class Subject:
    """A device that is asked about, and small data and a network to ask with."""

    device: torch.device
    data: Dataset
    folder: Path  # for checkpoints; deleted with the check

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def network(self) -> effnet.Arch:
        """Return a network with every kind of layer, as small as the device's launches allow."""
        if self.cuda:
            return scale(BASELINES["b0-s4"], 1, 0.25, 20, num_classes=CLASSES)
        return scale(BASELINES["b0-s4"], 0.5, 0.2, 12, num_classes=CLASSES)

    def model(self) -> ConvNet:
        """Return the network's modules on the CPU, in training mode, their weights always the
        same."""
        torch.manual_seed(0)
        return effnet.build(self.network(), dropout=0.0, drop_path=0.0).train()

    def batch(self) -> Batch:
        """Return the first images of the data, at the network's resolution."""
        count = 64
        pixels = torch.from_numpy(np.array(self.data.train_images[:count]))
        labels = torch.from_numpy(np.array(self.data.train_labels[:count]))
        images = resized(pixels, self.network().resolution)
        return Batch(images.to(self.device), labels.to(self.device))

    def normalise(self) -> Normalise:
        return Normalise(self.data, self.device)

    def trial(self, name: str, **changes: Any) -> Trial:
        """Return a trial of two epochs, whose checkpoints lie under `name`."""
        trial = Trial(
            arch=self.network(),
            data_digest=self.data.digest,
            data_folder=str(self.data.folder),
            recipe=Recipe(lr=3e-3, batch=64, warmup_steps=4, bn_images=256),
            seed=0,
            epochs=2,
            train_images=None,
            val_images=None,
            device=str(self.device),
            threads=1,
            checkpoints=str(self.folder / name),
        )
        return dataclasses.replace(trial, **changes)

    def finish(self, trial: Trial) -> Outcome:
        """Train to the end and return how the run ended."""
        *_, outcome = train.run(trial, self.data)
        assert isinstance(outcome, Outcome)
        return outcome


def draw_data(folder: Path) -> Dataset:
    """Draw 1,200 training and 200 test images of shapes into a folder below this one."""
    with CacheWriter(folder / "shapes") as writer:
        training, test = shapes.generate(1200, 0), shapes.generate(200, 1)
        return writer.commit("shapes", "drawn", shapes.CLASSES, *training, test)
