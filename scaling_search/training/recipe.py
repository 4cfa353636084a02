"""How every network of a study is trained: the numbers, the learning rate over the steps, the
optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

DECAY = 0.2  # of all steps


@dataclass(frozen=True, slots=True)
class Recipe:
    """`lr` is the constant phase's; `shift` and `cutout` are fractions of the side; `bn_images`
    training images re-estimate the batch norms before each evaluation.

    The schedule `linear` stays at lr and falls over the last fifth; `exponential` is TensorFlow's
    for EfficientNet, 0.97 for every 2.4 epochs. Warm-up: `warmup_epochs`, or where that is 0
    `warmup_steps`, half an epoch at most."""

    optimizer: Literal["adamw", "sgd", "rmsprop"] = "adamw"
    schedule: Literal["linear", "exponential"] = "linear"
    lr: float = 4e-3
    batch: int = 32
    weight_decay: float = 0.05
    momentum: float = 0.9
    label_smoothing: float = 0.1
    warmup_steps: int = 32
    warmup_epochs: float = 0.0
    flip: bool = True
    shift: float = 0.1
    cutout: float = 0.0
    randaugment: bool = False
    dropout: bool = False
    drop_path: float = 0.0
    ema: float = 0.0  # the weights' moving average is what is evaluated; 0: the weights themselves
    bn_images: int = 1024

    def warmup(self, per_epoch: int) -> int:
        """Steps. On little data a warm-up of `warmup_steps` takes half of the first epoch; a bound
        by the run's length would forbid continuing it."""
        if self.warmup_epochs:
            return round(self.warmup_epochs * per_epoch)
        return min(self.warmup_steps, per_epoch // 2)

    def decay_start(self, total: int) -> int:
        """The first step whose learning rate depends on the run's length; `total` where none
        does."""
        return total if self.schedule == "exponential" else total - max(1, round(DECAY * total))

    def rate(self, step: int, total: int, per_epoch: int) -> float:
        """The learning rate at `step` (from 0) of `total`."""
        warmup = self.warmup(per_epoch)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        if self.schedule == "exponential":
            return self.lr * 0.97 ** int(step / (2.4 * per_epoch))
        start = self.decay_start(total)
        return self.lr * (total - step) / (total - start + 1) if step >= start else self.lr


# proxy: the best ranking per second. paper: the official recipe (efficientnet's main.py), lr 0.016
# per 256 images; its AutoAugment is RandAugment here, as torchvision has it.
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


class RMSpropTF(torch.optim.Optimizer):
    """TensorFlow's RMSProp: epsilon inside the root, squares that begin at 1, the learning rate
    inside the momentum.

    square ← 0.9 square + 0.1 g², velocity ← momentum · velocity + lr · g / sqrt(square + eps), w ←
    w - velocity."""

    def __init__(
        self, groups: Any, lr: float, momentum: float, alpha: float = 0.9, eps: float = 1e-3
    ) -> None:
        super().__init__(
            groups,
            {"lr": lr, "momentum": momentum, "alpha": alpha, "eps": eps, "weight_decay": 0.0},
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["square"], state["velocity"] = torch.ones_like(p), torch.zeros_like(p)
                square, velocity = state["square"], state["velocity"]
                grad = p.grad.add(p, alpha=group["weight_decay"])
                square.lerp_(grad * grad, 1 - group["alpha"])
                velocity.mul_(group["momentum"]).add_(
                    (grad * group["lr"]).div_((square + group["eps"]).sqrt_())
                )
                p.sub_(velocity)


def flatten(model: nn.Module) -> list[tuple[Tensor, bool]]:
    """The model's parameters moved into two vectors, (kernels and matrices, True) and (norms and
    biases, False), which the parameters and their gradients are views of: an optimizer's step is
    two operators, not hundreds."""
    vectors = []
    for decayed in (True, False):
        parameters = [p for p in model.parameters() if (p.ndim > 1) == decayed]
        vector = torch.cat([p.detach().flatten() for p in parameters])
        vector.grad = torch.zeros_like(vector)
        at = 0
        for p in parameters:
            p.data = vector[at : at + p.numel()].view(p.shape)
            p.grad = vector.grad[at : at + p.numel()].view(p.shape)
            at += p.numel()
        vectors.append((vector, decayed))
    return vectors


def optimizer(vectors: list[tuple[Tensor, bool]], recipe: Recipe) -> torch.optim.Optimizer:
    """Weight decay on kernels and matrices, never on norms and biases. On CUDA the learning rate is
    a tensor on the device, so that a captured step follows it."""
    groups = [
        {"params": [v], "weight_decay": recipe.weight_decay if decayed else 0.0}
        for v, decayed in vectors
    ]
    device = vectors[0][0].device
    made: torch.optim.Optimizer
    if recipe.optimizer == "adamw":
        made = torch.optim.AdamW(groups, lr=recipe.lr, fused=True, capturable=device.type == "cuda")
    elif recipe.optimizer == "sgd":
        made = torch.optim.SGD(
            groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=True, fused=True
        )
    else:
        made = RMSpropTF(groups, recipe.lr, recipe.momentum)
    if device.type == "cuda":
        # not given to the constructor, which compares it with 0: that waits for the device
        for group in made.param_groups:
            group["lr"] = torch.tensor(recipe.lr, device=device)
    return made
