"""Where runs happen. An executor pulls jobs and pushes what they report, until none is left."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from scaling_search.trial import Epoch, Outcome, Trial


@dataclass(frozen=True, slots=True)
class Job:
    """A trial under the number that the store knows it by."""

    number: int
    trial: Trial


class Executor(Protocol):
    def run(
        self,
        ask: Callable[[], Job | None],
        on_epoch: Callable[[Job, Epoch], None],
        on_outcome: Callable[[Job, Outcome], None],
        until: float = math.inf,
    ) -> None:
        """Run every job that `ask` gives, as many at a time as there are workers; return when it gives None
        and all have ended, or at `until` (time.monotonic()): what runs then is stopped and has no outcome. A worker
        that dies is an outcome, `crashed`."""

    def close(self) -> None:
        """Stop everything at once. Runs in progress go on from their last checkpoint another time."""


def open_executor(kind: str, workers: int, device: str, threads: int) -> Executor:
    """`local` or `ray`; only the chosen one is imported."""
    if kind == "ray":
        from scaling_search.executors.ray import RayExecutor

        return RayExecutor(workers, device, threads)
    from scaling_search.executors.local import LocalExecutor

    return LocalExecutor(workers)
