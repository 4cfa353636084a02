"""The interface between an executor and its driver, and the limits that all executors share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from scaling_search.training.trial import Epoch, Outcome, Trial

# s that an executor waits for its workers before it looks again whether to stop: a signal, or the
# end of the time given, is noticed this late at most.
POLL = 0.2
# s that runs have to write their checkpoints. The step in progress ends first, and on a slow CPU or
# a network file system either takes seconds; Slurm and Kubernetes wait 30 s before they kill.
GRACE = 20.0
# So many workers (or Ray actors) in a row that end before they begin a run are the fault of the
# machine or the cluster, not of a run: training stops.
BOOTS = 10


@dataclass(frozen=True, slots=True)
class Job:
    """A trial under the number that the store knows it by."""

    number: int
    trial: Trial


@dataclass(frozen=True, slots=True)
class WorkerLoss:
    """How a worker ended without an outcome of its run.

    `reason` is for people, and is what the store keeps. `had_begun`: whether the worker had taken
    up the run, which may then be the cause; one that ended while it started is no fault of a run
    that it had not seen."""

    reason: str
    had_begun: bool


class Driver(Protocol):
    """Whoever decides: what runs next, what is recorded, what is tried again (dispatch.py)."""

    def ask(self, device: str = "") -> Job | None:
        """The next job, for this device where there are several; None: nothing now, and nothing
        more once no job is in progress."""

    def epoch(self, job: Job, epoch: Epoch) -> None:
        """An epoch of a job in progress has ended."""

    def outcome(self, job: Job, outcome: Outcome) -> None:
        """A job has ended."""

    def lost(self, job: Job, loss: WorkerLoss) -> None:
        """The worker of a job in progress ended without an outcome."""

    def over(self) -> bool:
        """Whether to stop: what is in progress then writes its checkpoint and has no outcome."""


class Executor(Protocol):
    @property
    def workers(self) -> int:
        """How many jobs are in progress at most."""

    def run(self, driver: Driver) -> None:
        """Run every job that `driver` gives, as many at a time as there are workers; return when it
        gives none and all have ended, or are stopped since it is over. Raises UserError for what
        would fail every run alike: a full disk, vanished data, a lost cluster."""

    def close(self) -> None:
        """Stop everything at once. Runs in progress go on from their last checkpoint another
        time."""
