"""One training step of one network on one device, as fast as the device takes it.

CPU: effnet's fused kernels where numba is, else (and for modules that are not effnet's) the plain
modules, in fp32. CUDA: bf16 (fp32 on cards without it), channels_last, the whole step with its
batch captured as a CUDA graph after a few eager ones, so that small networks do not wait for kernel
launches.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from effnet.cost import Precision
from effnet.messages import first_line
from effnet.nn import cuda
from effnet.nn.model import ConvNet
from scaling_search.training.optimizer import flatten, optimizer
from scaling_search.training.recipe import Recipe

try:
    from effnet.nn.cpu import fast

    _NO_NUMBA = ""
except ImportError as error:
    # a machine with torch and numpy alone, or a numba that does not load
    fast = None  # type: ignore[assignment]
    _NO_NUMBA = first_line(error, named=True)

logger = logging.getLogger(__name__)

Load = Callable[[], tuple[Tensor, Tensor]]  # uint8 images [n, c, s, s] and labels [n] on the device
_EAGER_STEPS = 3  # before a capture: libraries choose their kernels and allocate their workspaces


def kernels(device_type: str) -> str:
    """Return whose inner loops a step can use on cpu or cuda: the last bits of every number depend
    on them."""
    if device_type == "cuda":
        return "torch" if cuda.why_no_triton() else "triton"
    return "torch" if fast is None else "numba"


def why_no_kernels() -> str:
    """Return the error with which numba's kernels failed to load; "" where they did not."""
    return _NO_NUMBA


class Step:
    """A network with its optimizer and the moving average of its weights, on its device.

    `normalise` makes float images of uint8 ones. `compile` is for torch.compile; on CUDA `fused`
    trains through Triton's kernels, in `dtype` (None: bf16 where the card has it). `loss_sum` adds
    up the losses until the caller zeroes it."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        device: torch.device,
        normalise: Callable[[Tensor], Tensor],
        compile: bool = False,
        fused: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device, self._recipe, self._normalise = device, recipe, normalise
        self._flat: cuda.FlatParameters | None = None  # on CUDA alone
        self._dtype = torch.float32
        if device.type == "cuda":
            self._dtype = dtype or _dtype_on(device)
            self._flat = cuda.FlatParameters(self.model, self._dtype)
            self._vectors = self._flat.parts()
        else:
            self._vectors = flatten(self.model)
        self._optimizer = optimizer(self._vectors, recipe)
        self._average = [v.clone() for v, _ in self._vectors] if recipe.ema else []
        self._decay = torch.zeros((), device=device)  # of the average, in this step
        self.loss_sum = torch.zeros((), device=device)
        self._train_forward: Callable[[Tensor], Tensor] = self.model
        if self._flat is not None:
            module, leaves = self.model, self._flat.leaves
            if isinstance(module, ConvNet):
                module = cuda.TrainingForward(module, fused)
                leaves = {f"net.{name}": leaf for name, leaf in leaves.items()}
            self._train_forward = _with_parameters(module, leaves, compile)
        elif fast is not None and isinstance(self.model, ConvNet):
            self._train_forward = functools.partial(fast.forward, self.model)
        elif compile:
            self._train_forward = torch.compile(self.model)  # type: ignore[assignment]
        self._graph: torch.cuda.CUDAGraph | None = None  # the captured step
        self._may_capture = device.type == "cuda"
        self._eager_steps = 0
        self.eager = ""  # why a step on CUDA is not captured

    @property
    def captured(self) -> bool:
        """Whether steps are replays of a captured one."""
        return self._graph is not None

    @property
    def settled(self) -> bool:
        """Whether the next step takes as long as every later one: no capture is still to come."""
        return not self._may_capture

    def stay_eager(self) -> None:
        """Never capture a step."""
        self._may_capture = False

    def logits(self, images: Tensor) -> Tensor:
        """Return float32 [n, classes] of uint8 images, in the model's present mode, without a
        gradient."""
        with torch.no_grad():
            x = self._normalise(images)
            if self._flat is not None:
                self._flat.refresh()
                x = x.to(self._dtype)
                return torch.func.functional_call(self.model, self._flat.leaves, (x,)).float()
            return self._train_forward(x).float()

    def __call__(self, load: Load, lr: float, step: int) -> None:
        """Take a step on the batch that `load` returns: forward, backward, optimizer and average.

        `step` counts from 0 over the whole run. On CUDA `load` is captured too: each call must read
        the same memory."""
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        if self._average:
            # as TensorFlow's num_updates does
            self._decay.fill_(min(self._recipe.ema, (1 + step) / (10 + step)))
        if self._may_capture and self._eager_steps == _EAGER_STEPS:
            self._may_capture = False
            self._graph, self.eager = cuda.capture(self.device, lambda: self._step(load))
            if self.eager:
                logger.info("steps run eagerly, they cannot be captured: %s", self.eager)
        if self._graph is not None:
            self._graph.replay()
        else:
            self._eager_steps += 1
            self._step(load)

    def _step(self, load: Load) -> None:
        self.backward(self.loss(*load()))
        self.update()

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch, to be differentiated by `backward`."""
        x = self._normalise(images)
        if self._flat is not None:
            with torch.no_grad():
                self._flat.refresh()
            x = x.to(self._dtype)
        logits = self._train_forward(x).float()
        return F.cross_entropy(logits, labels, label_smoothing=self._recipe.label_smoothing)

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients, and add the loss to `loss_sum`."""
        if self._flat is not None:
            self._flat.backward(loss)
        else:
            loss.backward()
        self.loss_sum += loss.detach()

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradients of the last `backward` by parameter, in fp32 on the CPU."""
        if self._flat is not None:
            return {name: gradient.cpu() for name, gradient in self._flat.gradients().items()}
        named = self.model.named_parameters()
        return {name: p.grad.clone() for name, p in named if p.grad is not None}

    def update(self) -> None:
        """Take the optimizer's step and the average's, and zero the gradients that add up."""
        self._optimizer.step()
        with torch.no_grad():
            if self._flat is None:
                for vector, _ in self._vectors:
                    # not None: the parameters' gradients are views of it
                    vector.grad.zero_()  # type: ignore[union-attr]
            for average, (vector, _) in zip(self._average, self._vectors, strict=False):
                average.lerp_(vector, 1 - self._decay)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the weights are their moving average, where the recipe keeps one."""
        if not self._average:
            yield
            return
        vectors = [vector for vector, _ in self._vectors]
        kept = [vector.clone() for vector in vectors]
        for vector, average in zip(vectors, self._average, strict=True):
            vector.copy_(average)
        try:
            yield
        finally:
            for vector, weights in zip(vectors, kept, strict=True):
                vector.copy_(weights)

    def norms(self) -> list[_BatchNorm]:
        """Return the model's batch norms, those that keep running averages."""
        norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm)]
        return [norm for norm in norms if norm.track_running_stats]

    def state(self) -> dict[str, Any]:
        """Return weights, optimizer and average, tensors and plain data; `load` takes them back."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": self._average,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore a `state`. Raises KeyError, ValueError or RuntimeError for another network's."""
        self.model.load_state_dict(state["model"])
        rates = [group["lr"] for group in self._optimizer.param_groups]
        self._optimizer.load_state_dict(state["optimizer"])
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # a captured step reads the tensor that it was captured with
        for average, saved in zip(self._average, state["average"], strict=False):
            average.copy_(saved)


def precision_on(device: torch.device) -> Precision:
    """Return what a step computes in: on CUDA bf16 where the card does (compute capability 8.0 on),
    else fp32. cuDNN has no bf16 convolutions for older cards, and fp16 would need its loss
    scaled."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8:
        return "bf16"
    return "fp32"


def _dtype_on(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if precision_on(device) == "bf16" else torch.float32


def _with_parameters(
    module: nn.Module, parameters: dict[str, Tensor], compile: bool
) -> Callable[[Tensor], Tensor]:
    """Return `module` as a function that computes with `parameters` in place of its own."""

    def forward(x: Tensor) -> Tensor:
        return torch.func.functional_call(module, parameters, (x,))  # type: ignore[no-any-return]

    return torch.compile(forward) if compile else forward
