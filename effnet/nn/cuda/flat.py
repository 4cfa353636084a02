"""A model's parameters as one fp32 vector, and the copy in fewer bits that a training step computes
with.

Autocast casts each weight by itself, and autograd adds each gradient to a view of its own: some
four hundred small launches a step of a small network, whose time is its launches. Here one copy
casts all weights, and one concatenation gathers all gradients.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class FlatParameters:
    """The parameters of `model` become views of `vector` [P] fp32, ordered matrices (and kernels),
    biases, scales and shifts of norms; `vector.grad` is filled by `backward`.

    `leaves` are what a step puts in the parameters' places: the matrices and biases as views of a
    copy in `dtype`, which `refresh` renews, the norms' own in fp32, as batch norm wants them."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        norm_parameters = set()
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                norm_parameters |= {id(p) for p in module.parameters(recurse=False)}
        matrices, biases, norms = [], [], []
        for name, p in model.named_parameters():
            if not p.requires_grad:
                continue  # a function's module may have frozen ones
            if p.ndim > 1:
                matrices.append((name, p))
            elif id(p) in norm_parameters:
                norms.append((name, p))
            else:
                biases.append((name, p))
        self._cast, self._norms = [*matrices, *biases], norms
        self.decayed = _numel(matrices)  # elements from the start that weight decay is for
        self._halved = _numel(self._cast)
        self.vector = torch.cat([_flat(p.detach()).float() for _, p in (*self._cast, *norms)])
        self.vector.grad = torch.zeros_like(self.vector)
        self._copy = self.vector[: self._halved].to(dtype)
        self.leaves: dict[str, Tensor] = {}
        self._places: dict[str, tuple[int, int, torch.Size]] = {}  # begin, end, shape
        ends = itertools.accumulate(p.numel() for _, p in (*self._cast, *norms))
        for (name, p), end in zip((*self._cast, *norms), ends, strict=True):
            begin = end - p.numel()
            self._places[name] = begin, end, p.shape
            p.data = _shaped(self.vector[begin:end], p.shape)
            source = self._copy if end <= self._halved else self.vector
            leaf = _shaped(source[begin:end], p.shape).detach()
            self.leaves[name] = leaf.requires_grad_()

    def parts(self) -> list[tuple[Tensor, bool]]:
        """(matrices, True) and (all else, False): views with gradients, and whether they decay."""
        grad = self.vector.grad
        assert grad is not None
        parts = []
        for decayed, chosen in ((True, slice(0, self.decayed)), (False, slice(self.decayed, None))):
            part = self.vector[chosen]
            part.grad = grad[chosen]
            parts.append((part, decayed))
        return parts

    def refresh(self) -> None:
        """Bring the copy up to date with the vector."""
        self._copy.copy_(self.vector[: self._halved])

    def backward(self, loss: Tensor) -> None:
        """Fill `vector.grad` with the gradient of `loss`, which was computed with `leaves`."""
        grad = self.vector.grad
        assert grad is not None
        leaves = list(self.leaves.values())
        # a function's module may have parameters that its forward pass leaves out
        gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
        cast = len(self._cast)
        grad[: self._halved].copy_(torch.cat([_flat(g) for g in gradients[:cast]]))
        if self._norms:
            grad[self._halved :].copy_(torch.cat([_flat(g) for g in gradients[cast:]]))

    def gradients(self) -> dict[str, Tensor]:
        """The gradients of the last `backward`, by parameter: views of `vector.grad`."""
        grad = self.vector.grad
        assert grad is not None
        return {
            name: _shaped(grad[begin:end], shape)
            for name, (begin, end, shape) in self._places.items()
        }


def _numel(parameters: Iterable[tuple[str, Tensor]]) -> int:
    return sum(p.numel() for _, p in parameters)


def _flat(tensor: Tensor) -> Tensor:
    """[n], a kernel's channels last: the order in which cuDNN reads it and gives its gradient, so
    that neither is copied."""
    if tensor.ndim == 4:
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.reshape(-1)


def _shaped(flat: Tensor, shape: torch.Size) -> Tensor:
    """A view of what `_flat` made of a tensor of this shape."""
    if len(shape) == 4:
        out, c_in, height, width = shape
        return flat.view(out, height, width, c_in).permute(0, 3, 1, 2)
    return flat.view(shape)
