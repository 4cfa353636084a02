"""A list of trials as an executor's driver: the shortest one there is."""

from __future__ import annotations

import time
from collections.abc import Sequence

from scaling_search.driver.executors.protocol import Job, WorkerLoss
from scaling_search.training.trial import Epoch, Outcome, Trial


class Jobs:
    """It keeps each job's outcome, by number; a worker that is lost makes its job a crashed one."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._waiting = [Job(i, trial) for i, trial in enumerate(trials)]
        self.outcomes: dict[int, Outcome] = {}
        self.ends: list[float] = []  # time.perf_counter() of each outcome
        self.losses: list[WorkerLoss] = []

    def ask(self, device: str = "") -> Job | None:
        return self._waiting.pop(0) if self._waiting else None

    def epoch(self, job: Job, epoch: Epoch) -> None: ...

    def outcome(self, job: Job, outcome: Outcome) -> None:
        self.outcomes[job.number] = outcome
        self.ends.append(time.perf_counter())

    def lost(self, job: Job, loss: WorkerLoss) -> None:
        self.losses.append(loss)
        self.outcome(job, Outcome("crashed", note=loss.reason))

    def over(self) -> bool:
        return False
