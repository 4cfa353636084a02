"""Whether training works on a device here: questions, each put by doing what a study does.

Needs torch and numpy alone, so that any machine can be asked: `python -m
scaling_search.training.device_check`. Everything that only a real device can say is asked here:
CUDA's rules, its numbers, its memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import effnet
from effnet import atomic
from effnet.messages import first_line
from effnet.nn import cuda
from effnet.nn.model import ConvNet
from scaling_search import UserError, __version__
from scaling_search.data import shapes
from scaling_search.data.dataset import CacheWriter, Dataset, cache_root
from scaling_search.data.images import Normalise, resized
from scaling_search.training import checkpoint, memory, train
from scaling_search.training.evaluation import evaluate
from scaling_search.training.optimizer import RMSpropTF
from scaling_search.training.preparation import prepare
from scaling_search.training.recipe import Recipe
from scaling_search.training.step import Step, kernels, why_no_kernels
from scaling_search.training.throughput import training_steps
from scaling_search.training.trial import Epoch, Outcome, Pulse, Trial, inside

MIB = 2**20
# so large that a rate is missed where numbers are wrong, so small that ten steps stay finite
_RATES = {"adamw": 3e-3, "sgd": 0.05, "rmsprop": 1e-3}
_STEPS = 10  # compared; the fourth is captured
_CLASSES = 10
_TOGETHER = (1, 2, 4)  # trainings beside one another
_MEASURED = 1.5  # s of each rate
_NEAR_GUESSING = 0.7  # of the loss of guessing, the first loss
_REPORT = "report it with this table"
_NOISE = 0.05  # in ten losses of two eager runs, at most
_FP32_GRADIENTS = 5e-3  # of a parameter's gradient's norm: some thousand times fp32's rounding
_SHORT_CHECK = 300.0  # s that the short check has before a study: Triton compiles its kernels in it
_GATE = 60.0  # s that trainings beside one another have, to be ready and to be measured


Way = Literal["captured", "eager", "triton", "plain"]  # how a step is taken


@dataclass(frozen=True, slots=True)
class Answer:
    """`ok` None: a measurement. `advice`: what to do where it is not ok."""

    question: str
    ok: bool | None
    detail: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is asked about: a device, and small data and a network to ask with."""

    device: torch.device
    data: Dataset
    folder: Path  # for checkpoints; deleted with the check

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def network(self) -> effnet.Arch:
        """One with every kind of layer, as small as the device's launches allow."""
        if self.cuda:
            return effnet.arch("b0-s4", width=0.25, resolution=20, num_classes=_CLASSES)
        return effnet.arch("b0-s4", width=0.2, depth=0.5, resolution=12, num_classes=_CLASSES)

    def trial(self, name: str, **changes: Any) -> Trial:
        """A trial of two epochs, whose checkpoints lie under `name`."""
        trial = Trial(
            arch=self.network(),
            data_digest=self.data.digest,
            data_folder=str(self.data.folder),
            recipe=Recipe(lr=3e-3, batch=64, warmup_steps=4, bn_images=256),
            seed=0,
            epochs=2,
            train_images=None,
            val_images=None,
            device=str(self.device),
            threads=1,
            checkpoints=str(self.folder / name),
        )
        return dataclasses.replace(trial, **changes)


def check(device: str, short: bool = False, seconds: float = 110.0) -> Iterator[Answer]:
    """Every answer about `device` ("cpu", "cuda", "cuda:1"), the most important first.

    `short`: only whether a step's numbers are right, by one optimizer. No question is begun after
    `seconds`. A question that raises is one that failed."""
    deadline = time.monotonic() + seconds
    torch.set_num_threads(1)  # as a study's runs have
    with tempfile.TemporaryDirectory(prefix="device-check-") as folder:
        subject = Subject(memory.activate(device), _shapes_data(Path(folder)), Path(folder))
        for name, question in _questions(subject, short):
            if time.monotonic() > deadline:
                # what was not asked is not known to be right; a speed that was not measured is no
                # fault
                fine = None if question in (rates, together) else False
                advice = "ask again when the machine is less busy"
                yield Answer(name, fine, f"not asked: {seconds:.0f} s are over", advice)
                continue
            try:
                yield from question(subject)
            except Exception as error:
                if os.environ.get("DEVICE_CHECK_TRACEBACK"):
                    traceback.print_exc()
                yield Answer(
                    name,
                    False,
                    first_line(error, named=True),
                    "DEVICE_CHECK_TRACEBACK=1 shows where; report it with this table",
                )
            memory.release()


def _questions(
    subject: Subject, short: bool
) -> list[tuple[str, Callable[[Subject], Iterator[Answer]]]]:
    optimizers = ("adamw",) if short else tuple(_RATES)
    questions: list[tuple[str, Callable[[Subject], Iterator[Answer]]]] = [
        ("gradients", gradients_agree)
    ]
    for optimizer in optimizers:
        questions.append(
            (f"steps, {optimizer}", functools.partial(steps_agree, optimizer=optimizer))
        )
    if short:
        return questions
    questions = [
        ("versions", versions_here),
        *questions,
        ("resume and promotion", resume_and_promotion),
    ]
    if subject.cuda:
        questions += [
            ("evaluation", evaluation_agrees),
            ("refused capture", refused_capture),
            ("out of memory", out_of_memory),
            ("every device", every_device),
        ]
    return [*questions, ("rates", rates), ("trainings together", together)]


def _shapes_data(folder: Path) -> Dataset:
    with CacheWriter(folder / "shapes") as writer:
        return writer.commit(
            "shapes", "drawn", shapes.CLASSES, *shapes.generate(1200, 0), shapes.generate(200, 1)
        )


# ---- what is here


def versions_here(subject: Subject) -> Iterator[Answer]:
    """Versions, device and kernels. Kernels that do not load cost time, and are no failure."""
    detail = (
        f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    )
    if subject.cuda:
        card = torch.cuda.get_device_properties(subject.device)
        detail += (
            f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}; {card.name}, "
            f"{card.total_memory / 2**30:.0f} GiB, compute capability {card.major}.{card.minor}"
        )
    else:
        detail += f"; {platform.machine()}, {os.cpu_count()} cores"
    yield Answer("versions", None, detail)
    missing = cuda.why_no_triton() if subject.cuda else why_no_kernels()
    library = "triton" if subject.cuda else "numba"
    detail = kernels(subject.device.type)
    if missing:
        detail += f": {library} cannot be imported ({missing}); plain modules train, more slowly"
    yield Answer("kernels", None, detail)


# ---- the numbers of a step


def steps_agree(subject: Subject, optimizer: str) -> Iterator[Answer]:
    """Losses of ten steps on one batch, as a study takes them, beside those of plain modules.

    Losses that agree and mean nothing are no agreement: the first must be that of guessing, and
    they must fall. On CUDA two eager runs, which differ by the order of sums alone, are the
    yardstick."""
    plain = _losses(subject, optimizer, "plain")
    near_guessing = abs(plain[0] - math.log(_CLASSES)) < _NEAR_GUESSING
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
    noise = _distance(eager, _losses(subject, optimizer, "eager"))
    yield Answer(
        f"steps repeat, {optimizer}",
        noise <= _NOISE,
        f"two eager runs are {noise:.1e} apart (bound {_NOISE:.1e})",
        "the same steps give other numbers each time: update driver and torch",
    )
    captured = _losses(subject, optimizer, "captured")
    bound = min(4 * noise, _NOISE) + 0.03
    yield _losses_agree(f"captured = eager, {optimizer}", captured, eager, bound)
    yield _losses_agree(f"bf16 step = plain fp32, {optimizer}", eager, plain, 0.15)
    if kernels("cuda") == "triton":
        yield from _triton(functools.partial(_triton_losses, subject, optimizer, captured, bound))


def _triton_losses(
    subject: Subject, optimizer: str, captured: Sequence[float], bound: float
) -> Iterator[Answer]:
    ours = _losses(subject, optimizer, "triton")
    yield _losses_agree(f"triton = torch, {optimizer}", ours, captured, bound + 0.07)


def gradients_agree(subject: Subject) -> Iterator[Answer]:
    """Gradients beside those of plain modules, parameter by parameter. Adam hides a gradient's
    scale, and ten losses a wrong layer."""
    ours = kernels("cpu") if not subject.cuda else "torch"
    yield _gradients_near(subject, "eager", f"gradients of {ours}")
    if subject.cuda and kernels("cuda") == "triton":
        yield from _triton(functools.partial(_triton_gradients, subject))


def _triton_gradients(subject: Subject) -> Iterator[Answer]:
    yield _gradients_near(subject, "triton", "triton's gradients")
    yield _bf16_as_near(subject)


def _triton(question: Callable[[], Iterator[Answer]]) -> Iterator[Answer]:
    """Answers about Triton's kernels. Where they do not even run (no compiler for their launcher, a
    card that it does not know), plain modules train, and no other question has failed by that."""
    try:
        yield from question()
    except Exception as error:
        reason = first_line(error, named=True)
        yield Answer("triton's kernels", False, reason, "plain modules train instead")


def _losses_agree(
    question: str, ours: Sequence[float], theirs: Sequence[float], bound: float
) -> Answer:
    if abs(ours[0] - math.log(_CLASSES)) >= _NEAR_GUESSING:
        detail = f"the first loss is {ours[0]:.3f}: nothing was computed"
        return Answer(question, False, detail, _REPORT)
    distance = _distance(ours, theirs)
    fine = distance <= bound and math.isfinite(ours[-1])
    detail = f"losses at most {distance:.1e} apart over {_STEPS} steps (bound {bound:.1e})"
    return Answer(question, fine, detail, _REPORT)


def _gradients_near(subject: Subject, way: Way, question: str) -> Answer:
    """In fp32, whose rounding leaves no room for a wrong layer: each parameter's gradient of one
    loss beside the plain modules'."""
    distances = _gradient_distances(subject, way, torch.float32)
    worst = max(distances, key=lambda name: distances[name])
    fine = distances[worst] <= _FP32_GRADIENTS
    detail = (
        f"in fp32 {distances[worst]:.1e} of their norm apart (bound {_FP32_GRADIENTS:.0e}), {worst}"
    )
    return Answer(question, fine, detail, _REPORT)


def _bf16_as_near(subject: Subject) -> Answer:
    """In bf16 rounding alone moves these gradients by a third: Triton's kernels may be no farther
    from plain fp32 modules than torch's own are."""
    torchs = statistics.median(_gradient_distances(subject, "eager", torch.bfloat16).values())
    tritons = statistics.median(_gradient_distances(subject, "triton", torch.bfloat16).values())
    fine = 0 < tritons <= 1.5 * torchs + 0.02
    detail = (
        f"in bf16 {tritons:.2f} of their norm from plain fp32, torch's own {torchs:.2f} (median)"
    )
    return Answer("triton's bf16 gradients", fine, detail, _REPORT)


def _gradient_distances(subject: Subject, way: Way, dtype: torch.dtype) -> dict[str, float]:
    """From the plain modules' gradients in fp32, by parameter, relative to each one's norm (or to a
    hundredth of the largest norm, for those that are nearly zero). Raises RuntimeError where there
    is no gradient at all."""
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
    """Of one loss, by parameter, in fp32 on the CPU. Norms get random scales and shifts first: the
    zero with which a branch's last one begins would hide the branch."""
    images, labels, model, normalise = _batch_and_model(subject)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = 0.5 + torch.rand(module.weight.shape, generator=generator)
            module.bias.data = torch.rand(module.bias.shape, generator=generator) - 0.5
    recipe = Recipe()
    if way == "plain":
        model = model.to(subject.device)
        logits = model(normalise(images))
        F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing).backward()
        named = model.named_parameters()
        return {name: p.grad.float().cpu() for name, p in named if p.grad is not None}
    step = Step(model, recipe, subject.device, normalise, fused=way == "triton", dtype=dtype)
    step.backward(step.loss(images, labels))
    return step.gradients()


def _distance(a: Sequence[float], b: Sequence[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def _batch_and_model(
    subject: Subject,
) -> tuple[Tensor, Tensor, ConvNet, Normalise]:
    """64 images and their labels on the device, and a new network on the CPU, always the same."""
    count = 64
    pixels = torch.from_numpy(np.array(subject.data.train_images[:count]))
    images = resized(pixels, subject.network().resolution).to(subject.device)
    labels = torch.from_numpy(np.array(subject.data.train_labels[:count])).to(subject.device)
    torch.manual_seed(0)
    model = effnet.build(subject.network(), dropout=0.0, drop_path=0.0).train()
    return images, labels, model, Normalise(subject.data, subject.device)


def _losses(subject: Subject, optimizer: str, way: Way) -> list[float]:
    """Of each step. Raises RuntimeError where a step that should be captured is not."""
    images, labels, model, normalise = _batch_and_model(subject)
    rate = _RATES[optimizer]
    recipe = Recipe(optimizer=optimizer, lr=rate)  # type: ignore[arg-type]
    if way == "plain":
        return _plain_losses(model.to(subject.device), recipe, normalise(images), labels)
    step = Step(model, recipe, subject.device, normalise, fused=way == "triton")
    if way == "eager":
        step.stay_eager()
    losses = []
    for at in range(_STEPS):
        step(lambda: (images, labels), rate, at)
        losses.append(step.loss_sum.item())
        step.loss_sum.zero_()
    if subject.cuda and way != "eager" and not step.captured:
        raise RuntimeError(f"the step was not captured: {step.eager}")
    return losses


def _plain_losses(model: nn.Module, recipe: Recipe, x: Tensor, labels: Tensor) -> list[float]:
    """The same steps as anyone would write them: fp32, torch's autograd, a list of parameters."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    made: torch.optim.Optimizer
    if recipe.optimizer == "adamw":
        made = torch.optim.AdamW(groups, lr=recipe.lr)
    elif recipe.optimizer == "sgd":
        made = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=True)
    else:
        made = RMSpropTF(groups, recipe.lr, recipe.momentum)
    losses = []
    for _ in range(_STEPS):
        made.zero_grad()
        loss = F.cross_entropy(model(x), labels, label_smoothing=recipe.label_smoothing)
        loss.backward()
        made.step()
        losses.append(loss.item())
    return losses


def evaluation_agrees(subject: Subject) -> Iterator[Answer]:
    """The same weights evaluated on the device and on the CPU."""
    trial = subject.trial("evaluation")
    ready = prepare(trial, subject.data)
    ready.step.model.train()
    for at in range(12):
        ready.batches.seek(at)
        ready.step(ready.batches.load, trial.recipe.lr, at)
    ours = evaluate(ready)
    on_cpu = prepare(dataclasses.replace(trial, device="cpu"), subject.data)
    on_cpu.step.model.load_state_dict(ready.step.state()["model"])
    cpus = evaluate(on_cpu)
    differ = bin(int(ours.right, 16) ^ int(cpus.right, 16)).count("1") / len(ready.val_labels)
    fine = abs(ours.loss - cpus.loss) < 0.05 and differ < 0.05
    yield Answer(
        "evaluation = the CPU's",
        fine,
        f"loss {ours.loss:.3f}, CPU {cpus.loss:.3f}; accuracy {ours.accuracy:.3f}, {cpus.accuracy:.3f}; "
        f"{differ:.1%} of images judged otherwise",
        _REPORT,
    )


# ---- runs that are stopped, refused or too large


def _finish(trial: Trial, data: Dataset) -> Outcome:
    *_, outcome = train.run(trial, data)
    assert isinstance(outcome, Outcome)
    return outcome


def resume_and_promotion(subject: Subject) -> Iterator[Answer]:
    """A run that is stopped and goes on, and one that is made longer, against runs in one piece.
    What was trained before must not be trained again: a run that begins anew ends the same way."""
    data = subject.data
    yield _state_comes_back(subject)
    whole = subject.trial("whole")
    two = _finish(whole, data)
    three = _finish(subject.trial("long", epochs=3), data)
    noise = 0.0
    if subject.cuda:
        again = _finish(subject.trial("again"), data)
        noise = min(3 * abs(again.epochs[-1].val_loss - two.epochs[-1].val_loss), _NOISE) + 0.03
    stopped = subject.trial("stopped")
    events = train.run(stopped, data)
    next(event for event in events if isinstance(event, Epoch))
    events.close()  # type: ignore[attr-defined]  # a generator
    longer = dataclasses.replace(
        whole, epochs=3
    )  # goes on from before its decay, in the second epoch
    for name, trial, expected, left in (
        ("resumed", stopped, two, [2]),
        ("promoted", longer, three, [2, 3]),
    ):
        reported = [event for event in train.run(trial, data) if not isinstance(event, Pulse)]
        outcome = reported[-1]
        assert isinstance(outcome, Outcome)
        if outcome.status != "done" or expected.status != "done":
            yield Answer(name, False, f"{outcome.status} {outcome.note}", _REPORT)
            continue
        trained = [event.epoch for event in reported if isinstance(event, Epoch)]
        distance = abs(outcome.epochs[-1].val_loss - expected.epochs[-1].val_loss)
        yield Answer(
            name,
            distance <= noise and trained == left,
            f"trained epochs {trained} of {trial.epochs}; validation loss {distance:.1e} from a run in "
            f"one piece (bound {noise:.1e})",
            _REPORT,
        )


def _state_comes_back(subject: Subject) -> Answer:
    """Weights, optimizer and average that are loaded are those that were saved, bit for bit."""
    recipe = Recipe(lr=3e-3, batch=64, ema=0.9, bn_images=256)
    trial = subject.trial("state", recipe=recipe)
    ready = prepare(trial, subject.data)
    ready.step.model.train()
    for at in range(6):
        ready.batches.seek(at)
        ready.step(ready.batches.load, recipe.lr, at)
    checkpoint.save(inside(trial.folder, "state.ckpt"), ready.step.state())
    other = prepare(dataclasses.replace(trial, seed=1), subject.data)
    saved = checkpoint.load(inside(trial.folder, "state.ckpt"))
    assert saved is not None
    other.step.load(saved)
    before = _tensors(ready.step.state())
    after = _tensors(other.step.state())
    differ = [name for name in before if not torch.equal(before[name].cpu(), after[name].cpu())]
    fine = not differ and before.keys() == after.keys()
    detail = f"{len(before)} tensors saved and loaded; {len(differ)} differ"
    if differ:
        detail += f", {differ[0]} first"
    return Answer("state comes back", fine, detail, _REPORT)


def _tensors(state: Any, name: str = "") -> dict[str, Tensor]:
    """Every tensor in nested dictionaries and lists, by its place, but for learning rates."""
    if isinstance(state, Tensor):
        return {name: state}
    parts: dict[str, Tensor] = {}
    if isinstance(state, dict):
        for key, value in state.items():
            if key != "lr":
                parts.update(_tensors(value, f"{name}.{key}"))
    elif isinstance(state, list | tuple):
        for index, value in enumerate(state):
            parts.update(_tensors(value, f"{name}.{index}"))
    return parts


def refused_capture(subject: Subject) -> Iterator[Answer]:
    """A step with something in it that cannot be captured: it runs eagerly, and the next is
    captured."""
    device = subject.device
    normalise = Normalise(subject.data, device)

    def waiting(images: Tensor) -> Tensor:
        if torch.cuda.is_current_stream_capturing():
            images.sum().item()
        return normalise(images)

    x = torch.zeros(16, 3, 20, 20, dtype=torch.uint8, device=device)
    y = torch.zeros(16, dtype=torch.int64, device=device)
    step = Step(effnet.build(subject.network()).train(), Recipe(lr=1e-3), device, waiting)
    for at in range(6):
        step(lambda: (x, y), 1e-3, at)
    eager = bool(step.eager) and not step.captured
    on_default = torch.cuda.current_stream(device) == torch.cuda.default_stream(device)
    del step
    memory.release()
    after = _finish(subject.trial("after-refusal", epochs=1), subject.data)
    fine = eager and on_default and after.status == "done" and not after.eager
    yield Answer(
        "refused capture",
        fine,
        f"eager {eager}, back on the default stream {on_default}; next run {after.status} "
        f"{after.note}".rstrip(),
        _REPORT,
    )


def out_of_memory(subject: Subject) -> Iterator[Answer]:
    """A network too large is an outcome, and the next run is as good as before."""
    memory.release()
    total = torch.cuda.get_device_properties(subject.device).total_memory
    fraction = (torch.cuda.memory_reserved(subject.device) + 256 * MIB) / total
    torch.cuda.set_per_process_memory_fraction(min(1.0, fraction), subject.device)
    large = effnet.arch("b0-s4", resolution=64, num_classes=_CLASSES)
    recipe = Recipe(lr=1e-3, batch=512)
    try:
        outcome = _finish(subject.trial("large", arch=large, recipe=recipe), subject.data)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, subject.device)
    after = _finish(subject.trial("after-large", epochs=1), subject.data)
    yield Answer(
        "out of memory",
        outcome.status == "out-of-memory" and after.status == "done",
        f"{outcome.status}; next run {after.status} {after.note}".rstrip(),
        _REPORT,
    )


def every_device(subject: Subject) -> Iterator[Answer]:
    """A short run on each visible device: captured there, and its loss falls."""
    for index in range(torch.cuda.device_count()):
        trial = subject.trial(f"device-{index}", device=f"cuda:{index}", epochs=3)
        outcome = _finish(trial, subject.data)
        memory.release()
        losses = [epoch.train_loss for epoch in outcome.epochs]
        falls = len(losses) == 3 and losses[-1] < losses[0]
        fine = outcome.status == "done" and not outcome.eager and falls
        shown = ", ".join(f"{loss:.3f}" for loss in losses)
        yield Answer(
            f"cuda:{index}",
            fine,
            f"{outcome.status}, captured {not outcome.eager}, losses {shown} {outcome.note}".rstrip(),
            "see that nvidia-smi shows it idle and well, or leave it out: --device of another",
        )
    memory.activate(str(subject.device))


# ---- speed


def _rate_trial(subject: Subject, depth: float = 1.0) -> Trial:
    """The standard preset's kind of network on CUDA, the quick one's on a CPU."""
    if subject.cuda:
        net = effnet.arch("b0-s4", width=0.5, depth=depth, resolution=20, num_classes=_CLASSES)
        recipe = Recipe(lr=3e-3, batch=128)
    else:
        net = effnet.arch("b0-s4", width=0.2, depth=depth / 2, resolution=20, num_classes=_CLASSES)
        recipe = Recipe(lr=3e-3, batch=32)
    return subject.trial("rate", arch=net, recipe=recipe)


def _warmed_up(trial: Trial, data: Dataset) -> Iterator[int]:
    """A training's steps, those before its capture and the capture itself being over."""
    steps = training_steps(trial, data)
    for _ in range(6):
        next(steps)
    memory.synchronize(torch.device(trial.device))
    return steps


def _rate(trial: Trial, data: Dataset, seconds: float) -> float:
    """Images a second of a training, after the steps that prepare it."""
    device = torch.device(trial.device)
    steps = _warmed_up(trial, data)
    measured: list[float] = []
    end = time.perf_counter() + seconds
    while len(measured) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        images = sum(next(steps) for _ in range(5))
        memory.synchronize(device)
        measured.append(images / (time.perf_counter() - began))
    steps.close()  # type: ignore[attr-defined]  # a generator
    return statistics.median(measured)


def rates(subject: Subject) -> Iterator[Answer]:
    """Images a second of a baseline and of a network twice as deep."""
    ways = ["torch", "triton"] if kernels(subject.device.type) == "triton" else [""]
    for label, depth in (("baseline", 1.0), ("twice as deep", 2.0)):
        trial = _rate_trial(subject, depth)
        speeds = []
        for way in ways:
            rate = _rate(dataclasses.replace(trial, kernels=way), subject.data, _MEASURED)
            memory.release()
            speeds.append(f"{rate:,.0f} images/s{f' by {way}' if way else ''}")
        yield Answer(f"speed, {label}", None, f"{trial.arch.blocks} blocks: {', '.join(speeds)}")


def together(subject: Subject) -> Iterator[Answer]:
    """Trainings beside one another, each in a process of its own, begun at one moment."""
    alone = 0.0
    for count in _TOGETHER:
        if not subject.cuda and count > (os.cpu_count() or 1):
            break
        with tempfile.TemporaryDirectory(dir=subject.folder) as gate:
            trial = _rate_trial(subject)
            work = json.dumps({"trial": trial.as_dict(), "gate": gate, "count": count})
            workers = [
                subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "scaling_search.training.device_check",
                        "--worker",
                        work,
                    ],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                for _ in range(count)
            ]
            said = _communicate(workers)
        if any(worker.returncode for worker in workers):
            error = next(e for w, (_, e) in zip(workers, said, strict=True) if w.returncode)
            reason = (error.strip().splitlines() or ["no reason given"])[-1][:200]
            yield Answer(f"{count} together", False, reason, "fewer --workers")
            return
        total = sum(float(out.strip().splitlines()[-1]) for out, _ in said)
        alone = alone or total
        yield Answer(
            f"{count} together", None, f"{total:,.0f} images/s, {total / alone:.2f} of one"
        )


def _communicate(workers: Sequence[subprocess.Popen[str]]) -> list[tuple[str, str]]:
    """What each has printed and complained of; one that hangs is ended, its status then not 0."""
    said = []
    patience = time.monotonic() + _GATE
    for worker in workers:
        try:
            said.append(worker.communicate(timeout=max(1.0, patience - time.monotonic())))
        except subprocess.TimeoutExpired:
            worker.kill()
            output, _ = worker.communicate()
            said.append((output, f"no answer within {_GATE:g} s"))
    return said


def _work(spec: dict[str, Any]) -> None:
    """A training of `together`: ready, then through the gate, then measured; prints its
    images/s."""
    trial = Trial.from_dict(spec["trial"])
    data = Dataset.open(Path(trial.data_folder))
    device = memory.activate(trial.device)
    steps = _warmed_up(trial, data)
    gate = Path(spec["gate"])
    (gate / str(os.getpid())).touch()
    patience = time.monotonic() + _GATE
    while len(list(gate.iterdir())) < spec["count"]:
        if time.monotonic() > patience:
            raise TimeoutError(f"the other trainings were not ready after {_GATE:g} s")
        time.sleep(0.01)
    began, images = time.perf_counter(), 0
    while time.perf_counter() - began < 2 * _MEASURED:
        images += next(steps)
    memory.synchronize(device)
    print(images / (time.perf_counter() - began))


# ---- before a study's first run


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of the short check: the kernels to train through, what failed, and why Triton's are not used
    where they are not ("" where they are)."""

    kernels: str
    failures: tuple[str, ...] = ()
    why_no_triton: str = ""
    remembered: bool = False


def verdict_before_study(device: str, name: str) -> Verdict:
    """The short check of the device called `name`, once per machine, driver and torch release.

    It runs in a process of its own, so that the driver of a study takes none of the GPU's memory. A
    verdict is remembered in the cache folder where plain modules compute rightly, whatever Triton's
    kernels do; else it is asked for again."""
    place = cache_root() / "device-checks" / f"{_machine_key(name)}.json"
    try:
        known = json.loads(place.read_text())
        return Verdict(known["kernels"], (), known["why_no_triton"], True)
    except (OSError, ValueError, KeyError):
        pass
    answers, problem = _ask_in_process(device)
    if problem:
        return Verdict("torch", (problem,), problem)
    failures = []
    of_triton = cuda.why_no_triton()
    for answer in answers:
        if answer.ok is False and answer.question.startswith("triton"):
            of_triton = of_triton or f"{answer.question}: {answer.detail}"
        elif answer.ok is False:
            failures.append(f"{answer.question}: {answer.detail}")
    if failures:
        return Verdict("torch", tuple(failures), of_triton or "plain modules failed the check")
    verdict = Verdict("torch" if of_triton else "triton", (), of_triton)
    content = {"kernels": verdict.kernels, "why_no_triton": of_triton, "device": name}
    place.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(place, json.dumps(content).encode())
    return verdict


def _ask_in_process(device: str) -> tuple[list[Answer], str]:
    """The short check's answers, or none and why."""
    command = [sys.executable, "-m", "scaling_search.training.device_check", "--short", "--json"]
    try:
        done = subprocess.run(
            [*command, "--device", device],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SHORT_CHECK,
        )
    except subprocess.TimeoutExpired:
        return [], f"the check did not end within {_SHORT_CHECK:g} s: the device may hang"
    try:
        rows = json.loads(done.stdout.strip().splitlines()[-1])
        return [Answer(**row) for row in rows], ""
    except (IndexError, ValueError, TypeError):
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1][:200]
        return [], f"the check itself ended: {reason}"


def _machine_key(name: str) -> str:
    """Of all that a remembered verdict holds for."""
    facts = [platform.node(), name, torch.__version__, str(torch.version.cuda), __version__]
    facts += [_driver_version(), cuda.triton_version()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _driver_version() -> str:
    """NVIDIA's kernel module's, "" where there is none."""
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 where an answer is FAIL."""
    parser = argparse.ArgumentParser(
        prog="python -m scaling_search.training.device_check", description=__doc__
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--short", action="store_true", help="Only whether a step's numbers are right."
    )
    parser.add_argument("--json", action="store_true", help="Answers as one line of JSON.")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.worker:
        _work(json.loads(args.worker))
        return 0
    answers = []
    for answer in check(args.device, args.short):
        answers.append(answer)
        if not args.json:
            print(line(answer), flush=True)
    if args.json:
        print(json.dumps([dataclasses.asdict(answer) for answer in answers]))
    return int(any(answer.ok is False for answer in answers))


def line(answer: Answer) -> str:
    """The answer for a terminal; a failure says what to do."""
    word = {True: "ok", False: "FAIL", None: "-"}[answer.ok]
    advice = f": {answer.advice}" if answer.ok is False and answer.advice else ""
    return f"{answer.question:<33} {word:<4} {answer.detail}{advice}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
