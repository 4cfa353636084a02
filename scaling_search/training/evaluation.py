"""Loss and accuracy of a network in training, its batch norms re-estimated first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scaling_search.data.images import Images
from scaling_search.training.preparation import Ready
from scaling_search.training.step import Step
from scaling_search.training.watchdog import alive

# images at a time: more would take more memory on CUDA than a training step does
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`loss` is the mean cross-entropy, without label smoothing; `accuracy` lies in 0 to 1; `right`
    has one bit for each image, in their order, as hex: whether it was classified rightly."""

    loss: float
    accuracy: float
    right: str


def evaluate(ready: Ready) -> Evaluation:
    """Measure on the validation images, after re-estimating every batch norm on training images.

    The weights are their moving average where the recipe keeps one. Running averages of batch norms
    lag behind weights that still move fast: without new ones, short runs of deep networks look far
    worse than they are."""
    with ready.step.averaged():
        _reestimate_norms(ready)
        return measure(ready.step, ready.val_images, ready.val_labels)


def _reestimate_norms(ready: Ready) -> None:
    """Make each running mean and variance the plain average over batches of training images, which
    are not augmented."""
    step = ready.step
    step.model.eval()
    norms = step.norms()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    # the average counts every batch alike: a short last one would weigh too much
    size = min(_BATCH, len(ready.norm_index))
    whole_batches = ready.norm_index[: len(ready.norm_index) // size * size]
    for number, images in enumerate(ready.images.batches(_BATCH, whole_batches), start=1):
        alive()
        for norm in norms:
            # torch's own plain average (momentum None) asks the device for its count: a wait
            norm.momentum = 1 / number
        step.logits(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def measure(step: Step, images: Images, labels: Tensor) -> Evaluation:
    """Measure on these images, with the weights and the batch norms as they are."""
    step.model.eval()
    parts = []
    for batch in images.batches(_BATCH):
        alive()
        parts.append(step.logits(batch))
    logits = torch.cat(parts)
    is_right = logits.argmax(1) == labels
    return Evaluation(
        loss=F.cross_entropy(logits, labels).item(),
        accuracy=is_right.float().mean().item(),
        right=np.packbits(is_right.cpu().numpy()).tobytes().hex(),
    )
