"""Where the time of a training goes, and how much of the device it uses."""

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
from scaling_search.training.preparation import Ready, prepare
from scaling_search.training.train import flushed_denormals
from scaling_search.training.trial import Trial

_WARM = 5  # steps before the clock runs; on CUDA enough for the capture


@dataclass(frozen=True, slots=True)
class Profile:
    """Times in seconds, rates in floating-point operations per second."""

    seconds: dict[str, float]  # of each part over one epoch, each part waited for
    steps: int  # of that epoch
    step: float  # median of a whole step with its data as training runs it, on CUDA captured
    achieved: float  # rate of such a step
    peak: float  # rate of a large matrix product on this device
    kernels: str  # that it was trained through
    eager: str  # why steps on CUDA were not captured


@flushed_denormals()
def profile(trial: Trial, data: Dataset) -> Profile:
    """Measure an epoch of `trial`. Raises what a training raises."""
    ready = prepare(trial, data)
    step, batches = ready.step, ready.batches
    step.model.train()
    median_step = _median_step(ready, trial.recipe.lr)
    seconds = _seconds_of_parts(ready)
    # a multiply-add is two operations; backward costs twice forward
    operations = 2 * 3 * cost(trial.arch).macs * batches.size
    return Profile(
        seconds=seconds,
        steps=batches.per_epoch,
        step=median_step,
        achieved=operations / median_step,
        peak=peak_rate(ready.images.device),
        kernels=ready.kernels,
        eager=step.eager,
    )


def _median_step(ready: Ready, learning_rate: float) -> float:
    """Return the seconds of a whole step with its data, each waited for."""
    device, batches = ready.images.device, ready.batches
    seconds = []
    for at in range(_WARM + min(20, batches.per_epoch)):
        memory.synchronize(device)
        began = time.perf_counter()
        batches.seek(at % batches.per_epoch)
        ready.step(batches.load, learning_rate, at)
        memory.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[_WARM:])


def _seconds_of_parts(ready: Ready) -> dict[str, float]:
    """Return the seconds of each part of an epoch: data, forward, backward, optimizer and
    evaluation."""
    step, batches, device = ready.step, ready.batches, ready.images.device
    spent: dict[str, float] = {}

    @contextmanager
    def clocked(part: str) -> Iterator[None]:
        memory.synchronize(device)
        began = time.perf_counter()
        yield
        memory.synchronize(device)
        spent[part] = spent.get(part, 0.0) + time.perf_counter() - began

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
    return spent


def peak_rate(device: torch.device) -> float:
    """Return the operations per second of a matrix product: fp32 on a CPU with the threads that
    torch has, bf16 on CUDA."""
    size, dtype = 1024, torch.float32
    if device.type == "cuda":
        size, dtype = 8192, torch.bfloat16
    a = torch.randn(size, size, device=device, dtype=dtype)
    times = []
    for _ in range(20):
        memory.synchronize(device)
        began = time.perf_counter()
        a @ a
        memory.synchronize(device)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(times)
