"""How many trainings share one GPU: as many as their predicted memory allows, for as long as one more pays."""

from __future__ import annotations

from collections.abc import Sequence

from effnet.cost import training_memory
from scaling_search.trial import Trial

MOST = 8  # a device; small networks fill a GPU with fewer
_CONTEXT = 700 * 2**20  # bytes that a process takes before its first tensor: CUDA's context and libraries
_ROOM = 0.9  # of a device's memory that may be promised
_PAYS = 1.05  # how much more work a second one more training must bring
_EPOCHS = 3  # measured for each training in progress, before a level is judged


def predicted(trial: Trial) -> int:
    """Bytes of a step (effnet.cost) and of the images that lie on the device."""
    states = 1 if trial.recipe.optimizer == "sgd" else 2
    step = training_memory(
        trial.arch, trial.recipe.batch, "bf16" if trial.device.startswith("cuda") else "fp32", states
    )
    images = (trial.train_images or 0) + (trial.val_images or 0)
    return step + 3 * images * trial.arch.resolution**2


class Packing:
    """`memory`: bytes of one device (the smallest), of `devices`; `most`: trainings a device at most.

    Starts with one training a device and adds another as long as measured work a second grows; predictions grow with
    the peaks that are measured, and a run out of memory lowers the number for good."""

    def __init__(self, memory: int, devices: int, most: int = MOST) -> None:
        self._memory, self._devices, self._most = memory, devices, most
        self.level = 1
        self._wrong = 1.0  # measured over predicted memory, at worst
        self._rates: dict[int, float] = {}  # level → work a second
        self._work, self._time, self._epochs = 0.0, 0.0, 0
        self._last: float | None = None

    def allows(self, running: Sequence[Trial], trial: Trial) -> bool:
        """Whether `trial` may start on a device where `running` are in progress."""
        if not running:
            return True
        promised = sum(_CONTEXT + self._wrong * predicted(t) for t in (*running, trial))
        return len(running) < self.level and promised <= _ROOM * self._memory

    def worked(self, macs: float, in_progress: int, now: float) -> None:
        """An epoch of `macs` multiply-adds ended at `now` [s] while `in_progress` trainings ran on all devices."""
        full = in_progress == self.level * self._devices
        if full and self._last is not None:
            self._work, self._time, self._epochs = self._work + macs, self._time + now - self._last, self._epochs + 1
        self._last = now if full else None
        if self._epochs < _EPOCHS * self.level * self._devices or self._time <= 0:
            return
        rate = self._rates[self.level] = self._work / self._time
        self._work, self._time, self._epochs, self._last = 0.0, 0.0, 0, None
        if self.level > 1 and rate < _PAYS * self._rates.get(self.level - 1, 0.0):
            self._most = self.level = self.level - 1
        elif self.level < self._most:
            self.level += 1

    def measured(self, trial: Trial, peak: int) -> None:
        """A run's peak memory, in bytes."""
        self._wrong = max(self._wrong, peak / predicted(trial))

    def out_of_memory(self, level: int) -> None:
        """A run that started at this level had too little; several of one level count once."""
        if level <= self.level:
            self._most = self.level = max(1, level - 1)
            self._work, self._time, self._epochs, self._last = 0.0, 0.0, 0, None
