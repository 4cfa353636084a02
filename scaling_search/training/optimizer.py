"""The optimizer of a recipe, over two flat vectors of parameters."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from scaling_search.training.recipe import Recipe

_Kind = TypeVar("_Kind", bound=type[torch.optim.Optimizer])


def _without_dynamo(kind: _Kind) -> _Kind:
    """A subclass of `kind` whose methods lack torch's wrappers for torch.compile.

    Each of those wrappers imports torch._dynamo when it is first called: 2.7 s of CPU time and
    150 MB in every process that trains (torch 2.14), and no optimizer is compiled here.
    """
    wrapped = ("add_param_group", "state_dict", "load_state_dict", "zero_grad")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in wrapped}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return cast(_Kind, type(kind.__name__, (kind,), methods))


AdamW = _without_dynamo(torch.optim.AdamW)
SGD = _without_dynamo(torch.optim.SGD)


@_without_dynamo
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
    """Move the model's parameters into two vectors, which the parameters and their gradients become
    views of, and return them: (kernels and matrices, True), (norms and biases, False).

    An optimizer's step is then two operators, not hundreds."""
    vectors = []
    for decayed in (True, False):
        trained = [p for p in model.parameters() if p.requires_grad]
        parameters = [p for p in trained if (p.ndim > 1) == decayed]
        # torch.cat takes no empty list: a model may have no norm and no bias
        vector = torch.cat([torch.empty(0), *(p.detach().flatten() for p in parameters)])
        vector.grad = torch.zeros_like(vector)
        at = 0
        for p in parameters:
            p.data = vector[at : at + p.numel()].view(p.shape)
            p.grad = vector.grad[at : at + p.numel()].view(p.shape)
            at += p.numel()
        vectors.append((vector, decayed))
    return vectors


def optimizer(vectors: list[tuple[Tensor, bool]], recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer, with weight decay on kernels and matrices, never on norms and
    biases. On CUDA its learning rate is a tensor on the device, so that a captured step follows
    it."""
    groups = []
    for vector, decayed in vectors:
        decay = recipe.weight_decay if decayed else 0.0
        groups.append({"params": [vector], "weight_decay": decay})
    device = vectors[0][0].device
    chosen: torch.optim.Optimizer
    if recipe.optimizer == "adamw":
        chosen = AdamW(groups, lr=recipe.lr, fused=True, capturable=device.type == "cuda")
    elif recipe.optimizer == "sgd":
        chosen = SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=True, fused=True)
    else:
        chosen = RMSpropTF(groups, recipe.lr, recipe.momentum)
    if device.type == "cuda":
        # not given to the constructor, which compares it with 0: a wait for the device
        for group in chosen.param_groups:
            group["lr"] = torch.tensor(recipe.lr, device=device)
    return chosen
