"""Where the time of a training goes, and how much of the device it uses. Needs torch and numpy alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from effnet.cost import cost
from scaling_search.data import Dataset, epoch_order
from scaling_search.train import evaluate, flushed_denormals, prepare
from scaling_search.trial import Trial

_WARM = 5  # steps before the clock runs; on CUDA enough for the capture


@dataclass(frozen=True, slots=True)
class Profile:
    """`seconds` of each part over one epoch of `steps` steps, each part waited for; `step`: median seconds of a
    whole step as training runs it, on CUDA captured; floating-point operations per second in it, and in a large matrix
    product on this device."""

    seconds: dict[str, float]
    steps: int
    step: float
    achieved: float
    peak: float


@flushed_denormals()
def profile(trial: Trial, data: Dataset) -> Profile:
    """Measure an epoch of `trial`. Raises what a training raises."""
    device, recipe = torch.device(trial.device), trial.recipe
    ready = prepare(trial, data)
    step = ready.step
    spent: dict[str, float] = {}
    step.model.train()

    @contextmanager
    def clocked(part: str) -> Iterator[None]:
        _wait(device)
        began = time.perf_counter()
        yield
        _wait(device)
        spent[part] = spent.get(part, 0.0) + time.perf_counter() - began

    order = list(epoch_order(len(ready.labels), ready.batch, trial.seed, 0))
    whole = []
    for i in range(_WARM + min(20, len(order))):
        index = order[i % len(order)]
        x, labels = ready.augment(ready.images[index], index, 0), ready.labels[index.to(device)]
        _wait(device)
        began = time.perf_counter()
        step(x, labels, recipe.lr, i)
        _wait(device)
        whole.append(time.perf_counter() - began)
    for index in order:
        with clocked("data"):
            x, labels = ready.augment(ready.images[index], index, 0), ready.labels[index.to(device)]
        with clocked("forward"):
            loss = step.loss(x, labels)
        with clocked("backward"):
            step.backward(loss)
        with clocked("optimizer"):
            step.update()
    with clocked("evaluation"):
        evaluate(ready)
    seconds = statistics.median(whole[_WARM:])
    operations = 2 * 3 * cost(trial.arch).macs * ready.batch  # a multiply-add is two; backward costs twice forward
    return Profile(spent, len(order), seconds, operations / seconds, peak_rate(device))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_rate(device: torch.device) -> float:
    """Operations per second of a matrix product: fp32 on a CPU with the threads torch has, bf16 on CUDA."""
    cuda = device.type == "cuda"
    size = 8192 if cuda else 1024
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if cuda else torch.float32)
    times = []
    for _ in range(20):
        _wait(device)
        began = time.perf_counter()
        a @ a
        _wait(device)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(times)
