"""How every network of a study is trained: the numbers. schedule.py has the
learning rate that they make.

It imports no torch, so that the command line, which lists these settings, answers at once. The
optimizer that they describe is in optimizer.py.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that a setting may be: finite, and at least (or above) `low`, and below
    `below`."""

    low: float = 0
    below: float = math.inf
    low_included: bool = True

    def __contains__(self, value: float) -> bool:
        at_least = self.low <= value if self.low_included else self.low < value
        return at_least and value < self.below

    def __str__(self) -> str:
        if self.below < math.inf and self.low_included:
            return f"from {self.low:g} to below {self.below:g}"
        if self.below < math.inf:
            return f"above {self.low:g} and below {self.below:g}"
        return f"{'at least' if self.low_included else 'above'} {self.low:g}"


def setting(default: Any, description: str, valid: Range | None = None, flag: str = "") -> Any:
    """A field of `Recipe`, with what the command line and the reference say of it.

    `description` is one sentence; `flag` is the option that sets it, where there is one. pydantic,
    which study/settings.py reads recipes with, takes the description from here too."""
    metadata = {"description": description, "valid": valid, "flag": flag}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Recipe:
    """The numbers of a training. The defaults are those of the recipe `proxy`."""

    optimizer: Literal["adamw", "sgd", "rmsprop"] = setting(
        "adamw", "The optimizer: AdamW, SGD with Nesterov momentum, or TensorFlow's RMSProp."
    )
    schedule: Literal["linear", "exponential"] = setting(
        "linear",
        "The learning rate: linear stays, then falls to 0; exponential is TensorFlow's for "
        "EfficientNet, 0.97 for every 2.4 epochs.",
    )
    # A longer decay leaves less to continue from when a run is promoted: the checkpoint it goes on
    # from is the one before the decay.
    decay: float = setting(
        0.2,
        "Share of the steps over which the schedule linear falls.",
        Range(0, below=1, low_included=False),
    )
    lr: float = setting(
        4e-3, "Learning rate of the constant phase.", Range(0, low_included=False), flag="--lr"
    )
    # two at least: a batch norm over one image of one pixel has no variance
    batch: int = setting(32, "Images per step.", Range(2), flag="--batch")
    weight_decay: float = setting(
        0.05, "Weight decay of kernels and matrices; norms and biases have none.", Range(0)
    )
    momentum: float = setting(0.9, "Momentum of sgd and rmsprop.", Range(0, below=1))
    label_smoothing: float = setting(
        0.1, "Share of the target that is spread over all classes.", Range(0, below=1)
    )
    warmup_steps: int = setting(
        32, "Steps of warm-up, half an epoch at most; not used with warmup_epochs.", Range(0)
    )
    warmup_epochs: float = setting(
        0.0, "Epochs of warm-up; at 0, warmup_steps says how long it is.", Range(0)
    )
    flip: bool = setting(True, "Mirror half of the training images.")
    shift: float = setting(
        0.1,
        "Largest random shift of a training image, as a fraction of its side.",
        Range(0, below=0.5),
    )
    cutout: float = setting(
        0.0, "Side of the square cut out of a training image, as a fraction.", Range(0, below=1)
    )
    randaugment: bool = setting(False, "RandAugment on the training images.")
    plain_passes: int = setting(
        0,
        "Passes over the training images in which none is altered: an image that was seen once or "
        "twice can still be learned from as it is.",
        Range(0),
    )
    dropout: bool = setting(False, "Dropout before the classifier, at the network's own rate.")
    drop_path: float = setting(
        0.0, "Rate of stochastic depth at the last block; it grows from 0.", Range(0, below=1)
    )
    ema: float = setting(
        0.0,
        "Decay of the weights' moving average, which is then what is evaluated; at 0, the weights "
        "themselves are.",
        Range(0, below=1),
    )
    bn_images: int = setting(
        1024,
        "Training images that re-estimate the batch norms before each evaluation.",
        Range(2),
    )

    @property
    def optimizer_states(self) -> int:
        """Tensors that the optimizer keeps per parameter: sgd its momentum, the others two."""
        return 1 if self.optimizer == "sgd" else 2


# proxy: the best ranking per second. paper: the official recipe (efficientnet's main.py), lr 0.016
# per 256 images; its AutoAugment is RandAugment here (ours, data/randaugment.py).
RECIPES = {
    "proxy": Recipe(),
    "paper": Recipe(
        optimizer="rmsprop",
        schedule="exponential",
        lr=0.016,
        batch=256,
        weight_decay=1e-5,
        warmup_epochs=5.0,
        randaugment=True,
        dropout=True,
        drop_path=0.2,
        ema=0.9999,
        bn_images=8192,
    ),
}
