"""How fast a device trains: one network at a time, and several trainings beside one another."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import effnet
from effnet.messages import last_line
from scaling_search.data.dataset import Dataset
from scaling_search.training import memory
from scaling_search.training.device_check.subject import CLASSES, Answer, Subject
from scaling_search.training.recipe import Recipe
from scaling_search.training.step import kernels
from scaling_search.training.throughput import MARGIN, images_per_second, training_steps, warm_up
from scaling_search.training.trial import Trial

_TOGETHER = (1, 2, 4)  # trainings beside one another
_SECONDS = 1.5  # s of each rate
_SECONDS_TOGETHER = 3.0  # longer: the trainings disturb one another
_GATE = 60.0  # s that trainings beside one another have, to be ready and to be measured


def rates(subject: Subject) -> Iterator[Answer]:
    """Measure images a second of a baseline and of a network twice as deep."""
    ways = [""]
    if kernels(subject.device.type) == "triton":
        ways = ["torch", "triton"]
    for label, depth in (("baseline", 1.0), ("twice as deep", 2.0)):
        trial = _trial(subject, depth)
        speeds = []
        for way in ways:
            rate = _rate(dataclasses.replace(trial, kernels=way), subject.data)
            memory.release()
            by = f" by {way}" if way else ""
            speeds.append(f"{rate:,.0f} images/s{by}")
        yield Answer(f"speed, {label}", None, f"{trial.arch.blocks} blocks: {', '.join(speeds)}")


def _trial(subject: Subject, depth: float = 1.0) -> Trial:
    """Return the standard preset's kind of network on CUDA, the quick one's on a CPU."""
    if subject.cuda:
        arch = effnet.arch("b0-s4", width=0.5, depth=depth, resolution=20, num_classes=CLASSES)
        recipe = Recipe(lr=3e-3, batch=128)
    else:
        arch = effnet.arch("b0-s4", width=0.2, depth=depth / 2, resolution=20, num_classes=CLASSES)
        recipe = Recipe(lr=3e-3, batch=32)
    return subject.trial("rate", arch=arch, recipe=recipe)


def _rate(trial: Trial, data: Dataset) -> float:
    device = torch.device(trial.device)
    steps = training_steps(trial, data)
    warm_up(steps, device)
    rate = images_per_second(steps, device, _SECONDS)
    steps.close()
    return rate


def together(subject: Subject) -> Iterator[Answer]:
    """Measure trainings beside one another, each in a process of its own, begun at one moment."""
    alone = 0.0  # images/s of one
    for count in _TOGETHER:
        if not subject.cuda and count > (os.cpu_count() or 1):
            break
        workers, outputs = _train_together(subject, count)
        for worker, (_, errors) in zip(workers, outputs, strict=True):
            if worker.returncode:
                reason = last_line(errors, "no reason given")[:200]
                yield Answer(f"{count} together", False, reason, "fewer --workers")
                return
        total = sum(float(last_line(output)) for output, _ in outputs)
        alone = alone or total
        detail = f"{total:,.0f} images/s, {total / alone:.2f} of one"
        yield Answer(f"{count} together", None, detail)


def _train_together(
    subject: Subject, count: int
) -> tuple[list[subprocess.Popen[str]], list[tuple[str, str]]]:
    """Return the processes, which have ended, and what each wrote to stdout and stderr."""
    command = [sys.executable, "-m", "scaling_search.training.device_check", "--worker"]
    with tempfile.TemporaryDirectory(dir=subject.folder) as gate:
        order = {"trial": _trial(subject).as_dict(), "gate": gate, "count": count}
        workers = []
        for _ in range(count):
            worker = subprocess.Popen(
                [*command, json.dumps(order)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            workers.append(worker)
        return workers, _communicate(workers)


def _communicate(workers: Sequence[subprocess.Popen[str]]) -> list[tuple[str, str]]:
    """Wait for the processes. One that hangs is ended, its status then not 0."""
    outputs = []
    deadline = time.monotonic() + _GATE
    for worker in workers:
        try:
            timeout = max(1.0, deadline - time.monotonic())
            outputs.append(worker.communicate(timeout=timeout))
        except subprocess.TimeoutExpired:
            worker.kill()
            output, _ = worker.communicate()
            outputs.append((output, f"no answer within {_GATE:g} s"))
    return outputs


def train_beside_others(order: dict[str, Any]) -> None:
    """Train in a process of `together`: get ready, pass the gate with the others, print the rate.

    Raises TimeoutError where the others do not get ready."""
    trial = Trial.from_dict(order["trial"])
    data = Dataset.open(Path(trial.data_folder))
    device = memory.activate(trial.device)
    steps = training_steps(trial, data)
    warm_up(steps, device)
    gate = Path(order["gate"])
    (gate / str(os.getpid())).touch()
    deadline = time.monotonic() + _GATE
    while len(list(gate.iterdir())) < order["count"]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the other trainings were not ready after {_GATE:g} s")
        time.sleep(0.01)
    print(images_per_second(steps, device, _SECONDS_TOGETHER, MARGIN))
