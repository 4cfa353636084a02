"""Runs that were trained before, answered from a table of curves: the whole study in seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

from scaling_search.curves import Curves
from scaling_search.executors import Job
from scaling_search.trial import Epoch, Outcome


class ReplayExecutor:
    def __init__(self, curves: Curves) -> None:
        self._runs = curves.by_key()

    def run(
        self,
        ask: Callable[[], Job | None],
        on_epoch: Callable[[Job, Epoch], None],
        on_outcome: Callable[[Job, Outcome], None],
        until: float = math.inf,
    ) -> None:
        """A job that is not in the table is a KeyError: the driver asks for what the table has."""
        while time.monotonic() < until and (job := ask()) is not None:
            record = self._runs[job.trial.arch.key, job.trial.seed, job.trial.epochs]
            assert record.outcome is not None
            if job.trial.test:
                on_outcome(job, replace(record.outcome, test_acc=record.test_acc))
                continue
            for epoch in record.outcome.epochs:
                on_epoch(job, epoch)
            on_outcome(job, record.outcome)

    def close(self) -> None:
        """Nothing runs."""
