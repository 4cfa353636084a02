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
from scaling_search.training.trial import Metric
from scaling_search.training.watchdog import alive

# images at a time: more would take more memory on CUDA than a training step does
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`loss` is the mean cross-entropy, without label smoothing; `accuracy` lies in 0 to 1; `right`
    has one bit for each image, in their order, as hex: whether it was classified rightly.

    `effective_images` is how many images an accuracy that counts them alike would need to be as
    certain as one that is balanced over classes; 0 where it does count them alike."""

    loss: float
    accuracy: float
    right: str
    effective_images: int


def evaluate(ready: Ready) -> Evaluation:
    """Measure on the validation images, after re-estimating every batch norm on training images.

    The weights are their moving average where the recipe keeps one. Running averages of batch norms
    lag behind weights that still move fast: without new ones, short runs of deep networks look far
    worse than they are."""
    with ready.step.averaged():
        reestimate_norms(ready)
        return measure(ready.step, ready.val_images, ready.val_labels, ready.metric)


def reestimate_norms(ready: Ready) -> None:
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


def measure(step: Step, images: Images, labels: Tensor, metric: Metric) -> Evaluation:
    """Measure on these images, with the weights and the batch norms as they are.

    The accuracy `balanced` is the mean, over the classes that occur, of the part of each that is
    right (recall): that of a network which says the largest class always is 1 / classes."""
    step.model.eval()
    parts = []
    for batch in images.batches(_BATCH):
        alive()
        parts.append(step.logits(batch))
    logits = torch.cat(parts)
    is_right = logits.argmax(1) == labels
    accuracy, effective_images = is_right.float().mean().item(), 0
    if metric == "balanced":
        accuracy, effective_images = _balanced(is_right.cpu(), labels.cpu())
    return Evaluation(
        loss=F.cross_entropy(logits, labels).item(),
        accuracy=accuracy,
        right=np.packbits(is_right.cpu().numpy()).tobytes().hex(),
        effective_images=effective_images,
    )


def _balanced(is_right: Tensor, labels: Tensor) -> tuple[float, int]:
    """Return the mean recall of the classes that occur, and how many images, were they counted
    alike, would tell an accuracy as closely: classes² / Σ 1 / images of a class, as each image's
    weight is 1 / (classes × images of its class)."""
    images = torch.bincount(labels)
    right = torch.bincount(labels[is_right], minlength=len(images))
    occurs = images > 0
    recalls = right[occurs].double() / images[occurs]
    effective = len(recalls) ** 2 / (1 / images[occurs].double()).sum().item()
    return recalls.mean().item(), round(effective)
