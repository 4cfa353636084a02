"""What a training needs before its first step: images on the device, a network, its kernels."""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import effnet
from effnet.custom import CustomArch
from effnet.nn.cuda import why_no_triton
from scaling_search import UserError
from scaling_search.data.dataset import Dataset, split
from scaling_search.data.images import Images, Normalise
from scaling_search.training import memory
from scaling_search.training.batches import Batches
from scaling_search.training.step import Step, kernels, why_no_kernels
from scaling_search.training.trial import Metric, Trial
from scaling_search.training.watchdog import alive

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ready:
    """A run's images on its device, its network and its optimizer.

    `labels` and `val_labels` are int64 [n] on the device. `norm_index` [n] are the places of the
    training images that re-estimate the batch norms before each evaluation."""

    images: Images
    labels: Tensor
    val_images: Images
    val_labels: Tensor
    norm_index: Tensor
    batches: Batches
    step: Step
    kernels: str
    metric: Metric


def prepare(trial: Trial, data: Dataset) -> Ready:
    """Make all that a run of this trial needs.

    It sets the process's number of threads, its current CUDA device and torch's random seed.
    Raises ValueError where `data` are not the trial's, UserError where this process does not have
    the kernels that the trial asks for."""
    if data.digest != trial.data_digest:
        raise ValueError(
            f"data {data.folder} has digest {data.digest}, the trial wants {trial.data_digest}"
        )
    device = memory.activate(trial.device)
    kernels_of_trial = _choose_kernels(trial, device)
    torch.set_num_threads(trial.threads)
    memory.keep_freed_pages()

    sides = trial.arch.sides
    train_at, val_at = split(data.train_hashes, trial.seed, trial.train_images, trial.val_images)
    images, labels = on_device(data.train_images, data.train_labels, train_at, sides, device)
    val_images, val_labels = on_device(data.train_images, data.train_labels, val_at, sides, device)
    # drawn at random: files often come sorted by class, so the first ones are no sample
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(trial.seed))

    recipe = trial.recipe
    dropout = None if recipe.dropout else 0.0  # None: the network's own rate
    torch.manual_seed(trial.seed)
    model = effnet.build(trial.arch, dropout=dropout, drop_path=recipe.drop_path)
    normalise = Normalise(data, device, trial.arch.in_channels)
    fused = kernels_of_trial == "triton"
    logger.info(
        "prepared %s on %s: %d training and %d validation images, kernels of %s",
        trial.key,
        device,
        len(labels),
        len(val_labels),
        kernels_of_trial,
    )
    return Ready(
        images=images,
        labels=labels,
        val_images=val_images,
        val_labels=val_labels,
        norm_index=shuffled[: recipe.bn_images],
        batches=Batches(images, labels, recipe, trial.seed, trial.epoch_images),
        step=Step(model, recipe, device, normalise, trial.compile, fused),
        kernels=kernels_of_trial,
        metric=trial.metric,
    )


def on_device(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    at: NDArray[np.int64],
    sides: tuple[int, int],
    device: torch.device,
) -> tuple[Images, Tensor]:
    """Return the images at these places, resized to `sides` (rows, columns [px]), and their labels
    on the device."""
    rows, columns = sides
    return Images(images, at, rows, device, alive, across=columns), torch.from_numpy(labels[at]).to(
        device
    )


def _choose_kernels(trial: Trial, device: torch.device) -> str:
    """Return whose kernels the trial trains through: on CUDA torch's, unless it asks for others.

    Raises UserError where it asks for kernels that this process does not have. Other kernels give
    other bits, which are not to be mixed within a study."""
    on_cuda = device.type == "cuda"
    if isinstance(trial.arch, CustomArch):
        return "torch"  # our kernels know our modules
    available = kernels(device.type)
    usual = "torch" if on_cuda else available
    wanted = trial.kernels or usual
    # torch's can be had on any CUDA device, also beside Triton's
    if wanted == available or (on_cuda and wanted == "torch"):
        return wanted
    reason = why_no_triton() if on_cuda else why_no_kernels()
    in_brackets = f" ({reason})" if reason else ""
    raise UserError(
        f"{platform.node()}: the study trains through kernels of {wanted}, this machine has those "
        f"of {available}{in_brackets}; install the same packages as where the study began"
    )
