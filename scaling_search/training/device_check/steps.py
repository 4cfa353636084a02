"""Whether a training step's numbers are right: losses and gradients beside plain torch modules'."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effnet.messages import first_line
from scaling_search.training.device_check.subject import (
    CLASSES,
    NOISE_BOUND,
    REPORT_IT,
    Answer,
    Subject,
)
from scaling_search.training.optimizer import RMSpropTF
from scaling_search.training.recipe import Recipe
from scaling_search.training.step import Step, kernels

# so large that a rate is missed where numbers are wrong, so small that ten steps stay finite
LEARNING_RATES = {"adamw": 3e-3, "sgd": 0.05, "rmsprop": 1e-3}
_STEPS = 10  # compared; the fourth is captured
_GUESSING = math.log(CLASSES)  # the cross-entropy of an untrained network
_NEAR_GUESSING = 0.7  # from that, the first loss at most
_FP32_GRADIENTS = 5e-3  # of a parameter's gradient's norm: some thousand times fp32's rounding

# How a step is taken: captured or eager through torch's kernels (numba's on a CPU), captured
# through Triton's, or by plain modules and torch's autograd in fp32.
Way = Literal["captured", "eager", "triton", "plain"]


# ---- losses


def steps_agree(subject: Subject, optimizer: str) -> Iterator[Answer]:
    """Compare the losses of ten steps on one batch, as a study takes them, with plain modules'.

    Losses that agree and mean nothing are no agreement: the first must be that of guessing, and
    they must fall. On CUDA two eager runs, which differ by the order of sums alone, are the
    yardstick."""
    plain = _losses(subject, optimizer, "plain")
    near_guessing = abs(plain[0] - _GUESSING) < _NEAR_GUESSING
    yield Answer(
        f"learns, {optimizer}",
        near_guessing and plain[-1] < plain[0] - 0.02,
        f"loss {plain[0]:.3f} to {plain[-1]:.3f} in {_STEPS} steps",
        "this device computes something else than it should: update driver and torch",
    )
    if not subject.cuda:
        ours = _losses(subject, optimizer, "eager")
        yield _losses_agree(f"{kernels('cpu')} = plain, {optimizer}", ours, plain, 1e-3)
        return
    eager = _losses(subject, optimizer, "eager")
    noise = _largest_difference(eager, _losses(subject, optimizer, "eager"))
    yield Answer(
        f"steps repeat, {optimizer}",
        noise <= NOISE_BOUND,
        f"two eager runs are {noise:.1e} apart (bound {NOISE_BOUND:.1e})",
        "the same steps give other numbers each time: update driver and torch",
    )
    captured = _losses(subject, optimizer, "captured")
    bound = min(4 * noise, NOISE_BOUND) + 0.03
    yield _losses_agree(f"captured = eager, {optimizer}", captured, eager, bound)
    yield _losses_agree(f"bf16 step = plain fp32, {optimizer}", eager, plain, 0.15)
    if kernels("cuda") == "triton":
        yield from _of_triton(_triton_losses(subject, optimizer, captured, bound))


def _triton_losses(
    subject: Subject, optimizer: str, captured: Sequence[float], bound: float
) -> Iterator[Answer]:
    ours = _losses(subject, optimizer, "triton")
    yield _losses_agree(f"triton = torch, {optimizer}", ours, captured, bound + 0.07)


def _losses_agree(
    question: str, ours: Sequence[float], theirs: Sequence[float], bound: float
) -> Answer:
    if abs(ours[0] - _GUESSING) >= _NEAR_GUESSING:
        detail = f"the first loss is {ours[0]:.3f}: nothing was computed"
        return Answer(question, False, detail, REPORT_IT)
    difference = _largest_difference(ours, theirs)
    ok = difference <= bound and math.isfinite(ours[-1])
    detail = f"losses at most {difference:.1e} apart over {_STEPS} steps (bound {bound:.1e})"
    return Answer(question, ok, detail, REPORT_IT)


def _largest_difference(a: Sequence[float], b: Sequence[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def _losses(subject: Subject, optimizer: str, way: Way) -> list[float]:
    """Return the loss of each step. Raises RuntimeError where a step that should be captured is
    not."""
    batch, model = subject.batch(), subject.model()
    learning_rate = LEARNING_RATES[optimizer]
    recipe = Recipe(optimizer=optimizer, lr=learning_rate)  # type: ignore[arg-type]
    if way == "plain":
        x = subject.normalise()(batch.images)
        return _plain_losses(model.to(subject.device), recipe, x, batch.labels)
    step = Step(model, recipe, subject.device, subject.normalise(), fused=way == "triton")
    if way == "eager":
        step.stay_eager()
    losses = []
    for at in range(_STEPS):
        step(lambda: (batch.images, batch.labels), learning_rate, at)
        losses.append(step.loss_sum.item())
        step.loss_sum.zero_()
    if subject.cuda and way != "eager" and not step.captured:
        raise RuntimeError(f"the step was not captured: {step.eager}")
    return losses


def _plain_losses(model: nn.Module, recipe: Recipe, x: Tensor, labels: Tensor) -> list[float]:
    """Take the same steps as anyone would write them: fp32, torch's autograd, a list of
    parameters."""
    parameters = list(model.parameters())
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
    elif recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=True)
    else:
        optimizer = RMSpropTF(groups, recipe.lr, recipe.momentum)
    losses = []
    for _ in range(_STEPS):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels, label_smoothing=recipe.label_smoothing)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# ---- gradients


def gradients_agree(subject: Subject) -> Iterator[Answer]:
    """Compare gradients with plain modules', parameter by parameter. Adam hides a gradient's scale,
    and ten losses a wrong layer."""
    ours = "torch" if subject.cuda else kernels("cpu")
    yield _fp32_gradients_agree(subject, "eager", f"gradients of {ours}")
    if subject.cuda and kernels("cuda") == "triton":
        yield from _of_triton(_triton_gradients(subject))


def _triton_gradients(subject: Subject) -> Iterator[Answer]:
    yield _fp32_gradients_agree(subject, "triton", "triton's gradients")
    yield _triton_bf16_gradients_agree(subject)


def _of_triton(answers: Iterator[Answer]) -> Iterator[Answer]:
    """Yield `answers` about Triton's kernels. Where they do not even run (no compiler for their
    launcher, a card that it does not know), plain modules train, and no other question has failed
    by that."""
    try:
        for answer in answers:
            yield replace(answer, of_triton=True)
    except Exception as error:
        reason = first_line(error, named=True)
        advice = "plain modules train instead"
        yield Answer("triton's kernels", False, reason, advice, of_triton=True)


def _fp32_gradients_agree(subject: Subject, way: Way, question: str) -> Answer:
    """Compare each parameter's gradient of one loss in fp32, whose rounding leaves no room for a
    wrong layer."""
    distances = _gradient_distances(subject, way, torch.float32)
    worst = max(distances, key=lambda name: distances[name])
    distance = distances[worst]
    detail = f"in fp32 {distance:.1e} of their norm apart (bound {_FP32_GRADIENTS:.0e}), {worst}"
    return Answer(question, distance <= _FP32_GRADIENTS, detail, REPORT_IT)


def _triton_bf16_gradients_agree(subject: Subject) -> Answer:
    """In bf16 rounding alone moves these gradients by a third: Triton's kernels may be no farther
    from plain fp32 modules than torch's own are."""
    torchs = statistics.median(_gradient_distances(subject, "eager", torch.bfloat16).values())
    tritons = statistics.median(_gradient_distances(subject, "triton", torch.bfloat16).values())
    ok = 0 < tritons <= 1.5 * torchs + 0.02
    detail = (
        f"in bf16 {tritons:.2f} of their norm from plain fp32, torch's own {torchs:.2f} (median)"
    )
    return Answer("triton's bf16 gradients", ok, detail, REPORT_IT)


def _gradient_distances(subject: Subject, way: Way, dtype: torch.dtype) -> dict[str, float]:
    """Return each parameter's distance from the plain modules' gradient in fp32, relative to that
    one's norm (or to a hundredth of the largest norm, for those that are nearly zero).

    Raises RuntimeError where there is no gradient at all."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        plain = _gradients(subject, "plain", torch.float32)
        ours = _gradients(subject, way, dtype)
    largest = max(float(gradient.norm()) for gradient in plain.values())
    if not 1e-6 < largest < math.inf:
        raise RuntimeError(f"plain modules have gradients of norm {largest}: nothing was computed")
    distances = {}
    for name, gradient in plain.items():
        scale = max(float(gradient.norm()), largest / 100)
        distance = float((ours[name] - gradient).norm()) / scale
        distances[name] = distance if math.isfinite(distance) else math.inf
    return distances


def _gradients(subject: Subject, way: Way, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return each parameter's gradient of one loss, in fp32 on the CPU."""
    batch, model, normalise = subject.batch(), subject.model(), subject.normalise()
    _randomise_norms(model)
    recipe = Recipe()
    if way == "plain":
        logits = model.to(subject.device)(normalise(batch.images))
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=recipe.label_smoothing)
        loss.backward()
        named = model.named_parameters()
        return {name: p.grad.float().cpu() for name, p in named if p.grad is not None}
    step = Step(model, recipe, subject.device, normalise, fused=way == "triton", dtype=dtype)
    step.backward(step.loss(batch.images, batch.labels))
    return step.gradients()


def _randomise_norms(model: nn.Module) -> None:
    """Give batch norms random scales and shifts: the zero with which a residual branch's last one
    begins would hide the branch."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = 0.5 + torch.rand(module.weight.shape, generator=generator)
            module.bias.data = torch.rand(module.bias.shape, generator=generator) - 0.5
