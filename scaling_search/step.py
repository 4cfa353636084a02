"""One training step of one network on one device, as fast as the device takes it.

CPU: effnet's fused kernels where numba is there, else the plain modules. CUDA: bf16 autocast, channels_last, the
whole step captured as a CUDA graph after a few eager ones, so that small networks do not wait for kernel launches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effnet.model import ConvNet
from scaling_search.recipe import Recipe, flatten, optimizer

try:
    from effnet import fast
except ImportError:  # a machine with torch and numpy alone
    fast = None  # type: ignore[assignment]


def kernels() -> str:
    """Whose inner loops a CPU step uses: the last bits of every number depend on it."""
    return "torch" if fast is None else "numba"


_EAGER_STEPS = 3  # before a capture: libraries choose their kernels and allocate their workspaces


class Step:
    """`normalise` makes float images of uint8 ones. `loss_sum` adds up the losses until the caller zeroes it."""

    def __init__(
        self,
        model: ConvNet,
        recipe: Recipe,
        device: torch.device,
        normalise: Callable[[Tensor], Tensor],
        compile: bool = False,
    ) -> None:
        self.model: ConvNet = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device, self._recipe, self._normalise = device, recipe, normalise
        self._vectors = flatten(self.model)
        self._optimizer = optimizer(self._vectors, recipe)
        self._average = [v.clone() for v, _ in self._vectors] if recipe.ema else []
        self._decay = torch.zeros((), device=device)  # of the average, in this step
        self.loss_sum = torch.zeros((), device=device)
        self._forward: Callable[[Tensor], Tensor] = self.model
        if device.type == "cpu" and fast is not None:
            self._forward = lambda x: fast.forward(self.model, x)
        elif compile:
            self._forward = torch.compile(self.model)  # type: ignore[assignment]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._eager_left = _EAGER_STEPS if device.type == "cuda" else -1  # -1: never capture
        self._images = self._labels = torch.empty(0)

    def logits(self, images: Tensor) -> Tensor:
        """[n, classes] float32 of uint8 images, in the model's present mode; no gradient."""
        with torch.no_grad(), self._autocast():
            return self._forward(self._normalise(images)).float()

    def __call__(self, images: Tensor, labels: Tensor, lr: float, step: int) -> None:
        """Forward, backward, optimizer and average; `step` counts from 0 over the whole run."""
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        if self._average:
            self._decay.fill_(min(self._recipe.ema, (1 + step) / (10 + step)))  # as TensorFlow's num_updates does
        if self._graph is not None:
            self._images.copy_(images)
            self._labels.copy_(labels)
            self._graph.replay()
        elif self._eager_left == 0:
            self._capture(images, labels)
        else:
            self._eager_left -= self._eager_left > 0
            self._step(images, labels)

    def _step(self, images: Tensor, labels: Tensor) -> None:
        self.backward(self.loss(images, labels))
        self.update()

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with self._autocast():
            logits = self._forward(self._normalise(images))
            return F.cross_entropy(logits.float(), labels, label_smoothing=self._recipe.label_smoothing)

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        self.loss_sum += loss.detach()

    def update(self) -> None:
        """The optimizer's step and the average's, the gradients zero again."""
        self._optimizer.step()
        with torch.no_grad():
            for vector, _ in self._vectors:
                vector.grad.zero_()  # type: ignore[union-attr]  # not None: the parameters' gradients are views of it
            for average, (vector, _) in zip(self._average, self._vectors, strict=False):
                average.lerp_(vector, 1 - self._decay)

    def _capture(self, images: Tensor, labels: Tensor) -> None:
        """Record this step's kernels once; then replay them, now and for every later batch. Where something in the
        step cannot be captured, everything stays eager."""
        self._eager_left = -1
        self._images, self._labels = images.clone(), labels.clone()
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._step(self._images, self._labels)
        except RuntimeError:  # nothing was executed while recording: the weights are as they were
            torch.cuda.synchronize(self.device)
            for vector, _ in self._vectors:
                vector.grad.zero_()  # type: ignore[union-attr]
            self._step(images, labels)
            return
        self._graph = graph
        graph.replay()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 on CUDA alone: on the CPU it is slower than fp32 (facts.md section 6). Without autocast's cache of
        cast weights, which a captured step would keep from the step it was recorded in."""
        if self.device.type == "cuda":
            return torch.autocast("cuda", torch.bfloat16, cache_enabled=False)
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the weights are their moving average, where the recipe keeps one."""
        kept = [v.clone() for v, _ in self._vectors] if self._average else []
        for average, (vector, _) in zip(self._average, self._vectors, strict=False):
            vector.copy_(average)
        try:
            yield
        finally:
            for weights, (vector, _) in zip(kept, self._vectors, strict=False):
                vector.copy_(weights)

    def norms(self) -> list[nn.BatchNorm2d]:
        return [m for m in self.model.modules() if isinstance(m, nn.BatchNorm2d)]

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": self._average,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        rates = [group["lr"] for group in self._optimizer.param_groups]
        self._optimizer.load_state_dict(state["optimizer"])
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # the tensor on the device, where it is one
        for average, saved in zip(self._average, state["average"], strict=False):
            average.copy_(saved)
