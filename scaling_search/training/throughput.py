"""How fast a training runs: images a second, measured on the steps that a run takes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterator

import torch

from scaling_search.data.dataset import Dataset
from scaling_search.training import memory
from scaling_search.training.preparation import prepare
from scaling_search.training.schedule import warmup_steps
from scaling_search.training.trial import Trial
from scaling_search.training.watchdog import alive

FIRST_STEPS = 8  # before a training is measured: eager ones, the capture, and some more
MARGIN = 0.2  # s before and after a rate is taken: neighbours may not train yet, or no longer
_CHUNK = 0.05  # s between two waits for the device, of which a training has none


def training_steps(trial: Trial, data: Dataset) -> Generator[int, None, None]:
    """Train without end, one step at each `next`, as a run does; yield the number of its images.

    Nothing is evaluated and nothing is written."""
    ready = prepare(trial, data)
    ready.step.model.train()
    batches = ready.batches
    warmup = max(warmup_steps(trial.recipe, batches.per_epoch), 1)
    try:
        for at in itertools.count():
            rate = trial.recipe.lr * min(1.0, (at + 1) / warmup)
            batches.seek(at)
            ready.step(batches.load, rate, at)
            yield batches.size
    finally:
        batches.close()


def warm_up(steps: Iterator[int], device: torch.device) -> None:
    """Take the first steps of a training, which are slower than all others, and wait for them."""
    for _ in range(FIRST_STEPS):
        next(steps)
    memory.synchronize(device)


def images_per_second(
    steps: Iterator[int], device: torch.device, seconds: float, margin: float = 0.0
) -> float:
    """Return the rate over `seconds` of steps.

    With a `margin` [s] it goes on for as long before and after, in which it keeps the device busy
    for trainings beside it, whose clocks may start and stop at other moments."""
    began = time.perf_counter()
    measured: list[tuple[float, int]] = []  # (seconds since then, images since then)
    images = 0
    steps_in_chunk = 1
    now = 0.0
    while now < seconds + 2 * margin:
        for _ in range(steps_in_chunk):
            images += next(steps)
        memory.synchronize(device)
        alive()
        before = now
        now = time.perf_counter() - began
        if now - before < _CHUNK:
            steps_in_chunk *= 2
        measured.append((now, images))
    between_margins = [
        (moment, count) for moment, count in measured if margin <= moment <= margin + seconds
    ]
    if len(between_margins) < 2:  # each step takes about a second: count them all
        between_margins = [(0.0, 0), measured[-1]]
    first_moment, first_count = between_margins[0]
    last_moment, last_count = between_margins[-1]
    return (last_count - first_count) / (last_moment - first_moment)
