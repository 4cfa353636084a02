"""Where the time of a training goes, and how much of the device it uses. Needs torch and numpy
alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from effnet.cost import cost
from scaling_search.data.dataset import Dataset
from scaling_search.training import memory
from scaling_search.training.evaluation import evaluate
from scaling_search.training.preparation import prepare
from scaling_search.training.train import flushed_denormals
from scaling_search.training.trial import Trial

_WARM = 5  # steps before the clock runs; on CUDA enough for the capture


@dataclass(frozen=True, slots=True)
class Profile:
    """`seconds` of each part over one epoch of `steps` steps, each part waited for; `step`: median
    seconds of a whole step with its data as training runs it, on CUDA captured; floating-point
    operations per second in it, and in a large matrix product on this device."""

    seconds: dict[str, float]
    steps: int
    step: float
    achieved: float
    peak: float
    kernels: str  # that it was trained through
    eager: str  # why steps on CUDA were not captured


@flushed_denormals()
def profile(trial: Trial, data: Dataset) -> Profile:
    """Measure an epoch of `trial`. Raises what a training raises."""
    device = memory.activate(trial.device)
    ready = prepare(trial, data)
    step, batches = ready.step, ready.batches
    spent: dict[str, float] = {}
    step.model.train()

    @contextmanager
    def clocked(part: str) -> Iterator[None]:
        memory.synchronize(device)
        began = time.perf_counter()
        yield
        memory.synchronize(device)
        spent[part] = spent.get(part, 0.0) + time.perf_counter() - began

    whole = []
    for at in range(_WARM + min(20, batches.per_epoch)):
        memory.synchronize(device)
        began = time.perf_counter()
        batches.seek(at % batches.per_epoch)
        step(batches.load, trial.recipe.lr, at)
        memory.synchronize(device)
        whole.append(time.perf_counter() - began)
    for at in range(batches.per_epoch):
        with clocked("data"):
            batches.seek(at)
            images, labels = batches.load()
        with clocked("forward"):
            loss = step.loss(images, labels)
        with clocked("backward"):
            step.backward(loss)
        with clocked("optimizer"):
            step.update()
    batches.close()
    with clocked("evaluation"):
        evaluate(ready)
    seconds = statistics.median(whole[_WARM:])
    # a multiply-add is two operations; backward costs twice forward
    operations = 2 * 3 * cost(trial.arch).macs * batches.size
    return Profile(
        seconds=spent,
        steps=batches.per_epoch,
        step=seconds,
        achieved=operations / seconds,
        peak=peak_rate(device),
        kernels=ready.kernels,
        eager=step.eager,
    )


def peak_rate(device: torch.device) -> float:
    """Operations per second of a matrix product: fp32 on a CPU with the threads torch has, bf16 on
    CUDA."""
    cuda = device.type == "cuda"
    size = 8192 if cuda else 1024
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if cuda else torch.float32)
    times = []
    for _ in range(20):
        memory.synchronize(device)
        began = time.perf_counter()
        a @ a
        memory.synchronize(device)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(times)
