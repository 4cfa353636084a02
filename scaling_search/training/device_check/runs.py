"""Whether whole runs work: stopped and resumed, promoted, evaluated, refused a capture, too large,
on every device."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import effnet
from scaling_search.data.dataset import Dataset
from scaling_search.data.images import Normalise
from scaling_search.training import checkpoint, memory, train
from scaling_search.training.device_check.subject import (
    CLASSES,
    NOISE_BOUND,
    REPORT_IT,
    Answer,
    Subject,
)
from scaling_search.training.evaluation import evaluate
from scaling_search.training.preparation import Ready, prepare
from scaling_search.training.recipe import Recipe
from scaling_search.training.step import Step
from scaling_search.training.trial import Epoch, Outcome, Pulse, Trial, inside

_MIB = 2**20


def _train_some(trial: Trial, data: Dataset, steps: int) -> Ready:
    """Return a run after its first steps."""
    ready = prepare(trial, data)
    ready.step.model.train()
    for at in range(steps):
        ready.batches.seek(at)
        ready.step(ready.batches.load, trial.recipe.lr, at)
    return ready


def evaluation_agrees(subject: Subject) -> Iterator[Answer]:
    """Evaluate the same weights on the device and on the CPU."""
    trial = subject.trial("evaluation")
    ready = _train_some(trial, subject.data, steps=12)
    on_device = evaluate(ready)
    ready_on_cpu = prepare(dataclasses.replace(trial, device="cpu"), subject.data)
    ready_on_cpu.step.model.load_state_dict(ready.step.state()["model"])
    on_cpu = evaluate(ready_on_cpu)
    differing = (int(on_device.right, 16) ^ int(on_cpu.right, 16)).bit_count()
    share = differing / len(ready.val_labels)
    yield Answer(
        "evaluation = the CPU's",
        abs(on_device.loss - on_cpu.loss) < 0.05 and share < 0.05,
        f"loss {on_device.loss:.3f}, CPU {on_cpu.loss:.3f}; "
        f"accuracy {on_device.accuracy:.3f}, {on_cpu.accuracy:.3f}; "
        f"{share:.1%} of images judged otherwise",
        REPORT_IT,
    )


# ---- stopped and lengthened


def resume_and_promotion(subject: Subject) -> Iterator[Answer]:
    """Compare a run that is stopped and goes on, and one that is made longer, with runs in one
    piece. What was trained before must not be trained again: a run that begins anew ends the same
    way."""
    yield _state_comes_back(subject)
    trial = subject.trial("whole")
    two_epochs = subject.finish(trial)
    three_epochs = subject.finish(subject.trial("long", epochs=3))
    bound = 0.0  # a CPU's numbers repeat bit for bit
    if subject.cuda:
        again = subject.finish(subject.trial("again"))
        noise = abs(again.epochs[-1].val_loss - two_epochs.epochs[-1].val_loss)
        bound = min(3 * noise, NOISE_BOUND) + 0.03
    stopped = subject.trial("stopped")
    _stop_after_an_epoch(stopped, subject.data)
    yield _continued(subject, "resumed", stopped, two_epochs, [2], bound)
    # goes on from before its decay, which began in the second epoch
    longer = dataclasses.replace(trial, epochs=3)
    yield _continued(subject, "promoted", longer, three_epochs, [2, 3], bound)


def _stop_after_an_epoch(trial: Trial, data: Dataset) -> None:
    events = train.run(trial, data)
    for event in events:
        if isinstance(event, Epoch):
            break
    events.close()


def _continued(
    subject: Subject,
    question: str,
    trial: Trial,
    whole: Outcome,
    epochs_to_train: list[int],
    bound: float,
) -> Answer:
    """Go on with a run and compare its end with that of a `whole` one."""
    events = [event for event in train.run(trial, subject.data) if not isinstance(event, Pulse)]
    outcome = events[-1]
    assert isinstance(outcome, Outcome)
    if outcome.status != "done" or whole.status != "done":
        return Answer(question, False, f"{outcome.status} {outcome.note}", REPORT_IT)
    trained = [event.epoch for event in events if isinstance(event, Epoch)]
    difference = abs(outcome.epochs[-1].val_loss - whole.epochs[-1].val_loss)
    return Answer(
        question,
        difference <= bound and trained == epochs_to_train,
        f"trained epochs {trained} of {trial.epochs}; "
        f"validation loss {difference:.1e} from a run in one piece (bound {bound:.1e})",
        REPORT_IT,
    )


def _state_comes_back(subject: Subject) -> Answer:
    """Weights, optimizer and average that are loaded are those that were saved, bit for bit."""
    recipe = Recipe(lr=3e-3, batch=64, ema=0.9, bn_images=256)
    trial = subject.trial("state", recipe=recipe)
    path = inside(trial.folder, "state.ckpt")
    ready = _train_some(trial, subject.data, steps=6)
    checkpoint.save(path, ready.step.state())
    saved = checkpoint.load(path)
    assert saved is not None
    other = prepare(dataclasses.replace(trial, seed=1), subject.data)
    other.step.load(saved)
    before = _tensors(ready.step.state())
    after = _tensors(other.step.state())
    differing = []
    for name in before:
        if not torch.equal(before[name].cpu(), after[name].cpu()):
            differing.append(name)
    detail = f"{len(before)} tensors saved and loaded; {len(differing)} differ"
    if differing:
        detail += f", {differing[0]} first"
    ok = not differing and before.keys() == after.keys()
    return Answer("state comes back", ok, detail, REPORT_IT)


def _tensors(state: Any, name: str = "") -> dict[str, Tensor]:
    """Return every tensor in nested dictionaries and lists, by its path, but for learning rates."""
    if isinstance(state, Tensor):
        return {name: state}
    tensors: dict[str, Tensor] = {}
    if isinstance(state, dict):
        for key, value in state.items():
            if key != "lr":
                tensors.update(_tensors(value, f"{name}.{key}"))
    elif isinstance(state, list | tuple):
        for index, value in enumerate(state):
            tensors.update(_tensors(value, f"{name}.{index}"))
    return tensors


# ---- refused or too large, on CUDA


def refused_capture(subject: Subject) -> Iterator[Answer]:
    """A step with something in it that cannot be captured runs eagerly; the next run is
    captured."""
    device = subject.device
    normalise = Normalise(subject.data, device)

    def waiting(images: Tensor) -> Tensor:
        if torch.cuda.is_current_stream_capturing():
            images.sum().item()  # a wait for the device, which no capture can hold
        return normalise(images)

    images = torch.zeros(16, 3, 20, 20, dtype=torch.uint8, device=device)
    labels = torch.zeros(16, dtype=torch.int64, device=device)
    step = Step(effnet.build(subject.network()).train(), Recipe(lr=1e-3), device, waiting)
    for at in range(6):
        step(lambda: (images, labels), 1e-3, at)
    eager = bool(step.eager) and not step.captured
    on_default = torch.cuda.current_stream(device) == torch.cuda.default_stream(device)
    del step
    memory.release()
    after = subject.finish(subject.trial("after-refusal", epochs=1))
    detail = (
        f"eager {eager}, back on the default stream {on_default}; "
        f"next run {after.status} {after.note}"
    )
    ok = eager and on_default and after.status == "done" and not after.eager
    yield Answer("refused capture", ok, detail.rstrip(), REPORT_IT)


def out_of_memory(subject: Subject) -> Iterator[Answer]:
    """A network too large is an outcome, and the next run is as good as before."""
    memory.release()
    total = torch.cuda.get_device_properties(subject.device).total_memory
    fraction = (torch.cuda.memory_reserved(subject.device) + 256 * _MIB) / total
    torch.cuda.set_per_process_memory_fraction(min(1.0, fraction), subject.device)
    large = effnet.arch("b0-s4", resolution=64, num_classes=CLASSES)
    recipe = Recipe(lr=1e-3, batch=512)
    try:
        outcome = subject.finish(subject.trial("large", arch=large, recipe=recipe))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, subject.device)
    after = subject.finish(subject.trial("after-large", epochs=1))
    yield Answer(
        "out of memory",
        outcome.status == "out-of-memory" and after.status == "done",
        f"{outcome.status}; next run {after.status} {after.note}".rstrip(),
        REPORT_IT,
    )


def every_device(subject: Subject) -> Iterator[Answer]:
    """A short run on each visible device is captured there, and its loss falls."""
    for index in range(torch.cuda.device_count()):
        outcome = subject.finish(subject.trial(f"device-{index}", device=f"cuda:{index}", epochs=3))
        memory.release()
        losses = [epoch.train_loss for epoch in outcome.epochs]
        falls = len(losses) == 3 and losses[-1] < losses[0]
        shown = ", ".join(f"{loss:.3f}" for loss in losses)
        detail = (
            f"{outcome.status}, captured {not outcome.eager}, losses {shown} {outcome.note}"
        ).rstrip()
        yield Answer(
            f"cuda:{index}",
            outcome.status == "done" and not outcome.eager and falls,
            detail,
            "see that nvidia-smi shows it idle and well, or leave it out: --device of another",
        )
    memory.activate(str(subject.device))
