"""Where runs happen. An executor pulls jobs from a driver and pushes what they report, until there is none left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from scaling_search.data import Facts
from scaling_search.trial import Epoch, Outcome, Trial


@dataclass(frozen=True, slots=True)
class Job:
    """A trial under the number that the store knows it by."""

    number: int
    trial: Trial


class Driver(Protocol):
    """Whoever decides: what runs next, what is recorded, what is tried again (dispatch.py)."""

    def ask(self, device: str = "") -> Job | None:
        """The next job, for this device where there are several; None: nothing now, and nothing more once no job is in
        progress."""

    def epoch(self, job: Job, epoch: Epoch) -> None: ...

    def outcome(self, job: Job, outcome: Outcome) -> None: ...

    def lost(self, job: Job, why: str) -> None:
        """The worker ended without an outcome. `why` begins with "worker" where the run itself may be the cause."""

    def over(self) -> bool:
        """Whether to stop: what is in progress then writes its checkpoint and has no outcome."""


class Executor(Protocol):
    @property
    def workers(self) -> int:
        """How many jobs are in progress at most."""

    def run(self, driver: Driver) -> None:
        """Run every job that `driver` gives, as many at a time as there are workers; return when it gives none and all
        have ended, or are stopped since it is over. Raises UserError for what would fail every run alike: a full disk,
        vanished data, a lost cluster."""

    def close(self) -> None:
        """Stop everything at once. Runs in progress go on from their last checkpoint another time."""


def open_executor(
    kind: str,
    workers: int | None,
    device: str,
    threads: int,
    data: Facts,
    checkpoints: str,
    address: str | None = None,
    *,
    devices: tuple[int, ...] | None = None,
    per_gpu: int = 1,
) -> Executor:
    """`local` or `ray`; only the chosen one is imported.

    `workers`: None for as many as the machine or the cluster has cores (or GPUs) for; `address`: of
    a running Ray; `devices`: of this machine's GPUs, these alone; `per_gpu`: how many trainings
    share a GPU under Ray where `workers` does not say. Raises UserError."""
    if kind == "ray":
        from scaling_search.executors.ray import RayExecutor

        return RayExecutor(
            workers,
            device,
            threads,
            Path(data.folder),
            data.digest,
            checkpoints,
            address,
            devices=devices,
            per_gpu=per_gpu,
        )
    from scaling_search.executors.local import open_local

    return open_local(workers, device, threads, devices)
