"""How many trainings share one GPU: measured before the first run, bounded by memory after it.

Small networks leave a GPU idle between their kernels, so several trainings beside one another do
more work a second than one alone; how many of them pay depends on the card, the networks and
whether MPS runs (mps.py). A typical network is therefore trained by several workers at once for a
few seconds (executors/local.py), and the number that this module chooses holds for the study.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from effnet import Network
from effnet.cost import Precision, training_memory
from scaling_search.training.recipe import Recipe
from scaling_search.training.trial import Trial

MOST = 8  # trainings on a device: small networks fill a GPU with fewer
CONTEXT = 700 * 2**20  # bytes that a process takes before its first tensor: context and libraries
_ROOM = 0.9  # of a device's memory that may be promised
_ALIKE = 1.05  # a level this many times slower than the best one is as good, and takes less memory

# Whether to measure at all. A measurement takes about ten seconds: the typical network is prepared
# and two to four levels are measured, each for less than two. Where sharing pays at all it saves a
# third of the time or more, so thirty seconds of training on each device pay for it. A training
# step takes two milliseconds at least: it launches about a thousand kernels.
_MEASURING = 10.0  # s
_SAVED = 1 / 3
_SHORTEST_STEP = 0.002  # s


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of measuring trainings beside one another on a device.

    `level`: the number to run on each device; `rates`: images a second of one device, by the
    number of trainings on it; `peak`: bytes that one training of the typical network takes;
    `note`: what kept more trainings from being measured."""

    level: int
    rates: dict[int, float]
    peak: int = 0
    note: str = ""

    def words(self, mps: bool) -> str:
        """One line for people: the choice, then every rate that led to it, fewest trainings first.
        `mps`: whether they ran under MPS."""
        rates: list[str] = []
        for level, rate in sorted(self.rates.items()):
            beside = "alone" if level == 1 else f"with {level}"
            unit = "" if rates else " images/s"  # said once
            rates.append(f"{rate:,.0f}{unit} {beside}")
        reason = "nothing could be measured"
        if rates:
            how = "measured under MPS" if mps else "measured"
            reason = f"{', '.join(rates)} ({how})"
        note = f"; {self.note}" if self.note else ""
        return f"{at_a_time(self.level)}: {reason}{note}"


def at_a_time(level: int) -> str:
    trainings = "1 training" if level == 1 else f"{level} trainings"
    return f"{trainings} at a time on each device"


def choose_level(most: int, measure: Callable[[int], float | None]) -> Measured:
    """The fewest trainings on a device, at most `most`, that do as well as any number measured.

    `measure` returns the images a second of one device with so many trainings, or None where they
    could not be had. From the top down, each level half of the one before, until one is clearly
    slower than the best. From the bottom up a device that eight trainings fill, on which a study
    is shortest, would cost four measurements; so it costs two. Comparing with the best, not with
    the level before, keeps small losses from adding up. Rates are empty where none was to be had;
    the level is 1 then."""
    rates: dict[int, float] = {}
    chosen, level = 1, most
    while level >= 1:
        rate = measure(level)
        if rate is not None:
            rates[level] = rate
            if rate * _ALIKE < max(rates.values()):
                break
            chosen = level
        level //= 2
    return Measured(chosen, rates)


def measuring_pays(runs: int, steps: int, devices: int) -> bool:
    """Whether a measurement saves more time than it takes before `runs` of `steps` steps each.

    Where it does not, one training at a time runs on each device: what that can cost is less than
    the measurement, and every run's speed is on record. With one run a device nothing could ever
    be beside it."""
    seconds = runs * steps * _SHORTEST_STEP / devices
    return runs >= 2 * devices and _SAVED * seconds >= _MEASURING


@lru_cache(4096)  # a millisecond each, asked again and again while a device is full
def predicted_peak(arch: Network, recipe: Recipe, images: int, precision: Precision) -> int:
    """Bytes that one training is predicted to take from its device, its process's `CONTEXT` not
    counted: those of a step (effnet.cost) and of `images` that lie there as uint8."""
    step = training_memory(arch, recipe.batch, precision, recipe.optimizer_states)
    return step + images * arch.in_channels * math.prod(arch.sides)


def room(memory: int, each: float) -> int:
    """How many trainings of `each` bytes, `CONTEXT` counted, a device of `memory` bytes holds; at
    least 1, which may try."""
    return max(1, int(_ROOM * memory / each))


class Packing:
    """Which trainings may run beside one another: at most `level` on a device of `memory` bytes.

    Steps compute in `precision`. Predictions of memory grow with the peaks that are measured, and a
    run out of memory lowers the level for good."""

    def __init__(self, memory: int, level: int, precision: Precision = "fp32") -> None:
        self._memory, self._precision = memory, precision
        self.level = level
        self._memory_error_ratio = 1.0  # measured over predicted memory, at worst

    def room(self, trial: Trial) -> int:
        """How many trainings such as `trial` a device's memory holds; at least 1, which may try."""
        return room(self._memory, self._promise(trial))

    def allows(self, running: Sequence[Trial], trial: Trial) -> bool:
        """Whether `trial` may start on a device where `running` are in progress."""
        if not running:
            return True
        if len(running) >= self.level:
            return False
        promised = sum(self._promise(t) for t in (*running, trial))
        return promised <= _ROOM * self._memory

    def extend_deadline(self, trial: Trial) -> Trial:
        """`trial` with its deadline as long as it takes where `level` trainings share a device.

        A deadline is of the run's own time, and each of k trainings has a k-th of the device at
        worst."""
        if trial.deadline is None:
            return trial
        return replace(trial, deadline=trial.deadline * self.level)

    def record_peak(self, trial: Trial, peak: int) -> None:
        """A run's peak memory, in bytes: predictions are never below what was measured."""
        self._memory_error_ratio = max(self._memory_error_ratio, peak / self._predicted(trial))

    def out_of_memory(self, level: int) -> None:
        """A run that started at `level` had too little; several of one level count once."""
        if level <= self.level:
            self.level = max(1, level - 1)

    def _promise(self, trial: Trial) -> float:
        return CONTEXT + self._memory_error_ratio * self._predicted(trial)

    def _predicted(self, trial: Trial) -> int:
        images = (trial.train_images or 0) + (trial.val_images or 0)
        return predicted_peak(trial.arch, trial.recipe, images, self._precision)
