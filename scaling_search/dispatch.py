"""The runs of one step of a study: handed to an executor, recorded, tried again where that is right."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from effnet.cost import macs
from scaling_search.candidate import Candidate
from scaling_search.executors import Job
from scaling_search.packing import Packing
from scaling_search.record import Record
from scaling_search.store import Store
from scaling_search.trial import Epoch, Outcome, Trial

DEATHS = 5  # of workers that had taken up a run, within one epoch of it: then the run is at fault


class Watcher(Protocol):
    """Who is told as a study goes on. `jobs` counts the runs still known to be needed."""

    def phase(self, name: str, jobs: int) -> None: ...
    def started(self, job: Job, candidate: Candidate) -> None: ...
    def epoch(self, job: Job, epoch: Epoch) -> None: ...
    def again(self, job: Job, candidate: Candidate, why: str) -> None: ...
    def finished(self, job: Job, candidate: Candidate, outcome: Outcome) -> None: ...


class Training:
    """`runs` (network, seed) for `epochs`, each made a trial by `trial`, until `over`.

    A worker that ends without an outcome (killed, hung, its node lost) is no verdict on the network: the run goes on
    from its checkpoint, unless it has happened `DEATHS` times within one epoch. A run out of memory that was not alone
    is tried once more, alone. Each reason is recorded before the run starts again."""

    def __init__(
        self,
        store: Store,
        watcher: Watcher,
        runs: Sequence[tuple[Candidate, int]],
        epochs: int,
        trial: Callable[[Candidate, int], Trial],
        over: Callable[[], bool],
        packing: Packing | None = None,
    ) -> None:
        self._store, self._watcher, self._epochs, self._trial = store, watcher, epochs, trial
        self.over, self._packing = over, packing
        # what a driver before this one left running goes on first
        interrupted = {key for c, s in runs if store.recorded(key := (c.key, s, epochs))}
        self._waiting = deque(sorted(runs, key=lambda run: (run[0].key, run[1], epochs) not in interrupted))
        self._once_more: deque[Job] = deque()
        self._alone: deque[Job] = deque()
        self._was_alone: set[int] = set()
        self._candidates: dict[int, Candidate] = {}
        # where, whether others ran at any time beside it, and packing's level when it started
        self._running: dict[int, tuple[Job, str, bool, int]] = {}

    # ---- asked by an executor

    def ask(self, device: str = "") -> Job | None:
        if self.over() or any(number in self._was_alone for number in self._running):
            return None
        there = [job.trial for job, at, _, _ in self._running.values() if at == device]
        if self._once_more:
            job = self._once_more[0]
        elif self._waiting:
            candidate, seed = self._waiting[0]
            job = Job(-1, self._trial(candidate, seed))
        elif self._alone and not self._running:
            job = self._alone.popleft()
            self._was_alone.add(job.number)
            return self._begin(job, device)
        else:
            return None
        if self._packing and not self._packing.allows(there, job.trial):
            return None
        if self._once_more:
            return self._begin(self._once_more.popleft(), device)
        self._waiting.popleft()
        number = self._store.start(candidate, seed, self._epochs)
        self._candidates[number] = candidate
        return self._begin(Job(number, job.trial), device)

    def _begin(self, job: Job, device: str) -> Job:
        beside = bool(self._running)
        self._running = {n: (j, at, True, level) for n, (j, at, _, level) in self._running.items()}
        self._running[job.number] = job, device, beside, self._packing.level if self._packing else 1
        self._watcher.started(job, self._candidates[job.number])
        return job

    def epoch(self, job: Job, epoch: Epoch) -> None:
        self._store.epoch(job.number, epoch)
        self._watcher.epoch(job, epoch)
        if self._packing:
            images = job.trial.train_images or 1
            self._packing.worked(images * macs(job.trial.arch), len(self._running), time.monotonic())

    def outcome(self, job: Job, outcome: Outcome) -> None:
        _, _, beside, level = self._running.pop(job.number)
        if outcome.status == "out-of-memory":
            if self._packing:
                self._packing.out_of_memory(level)
            if beside and job.number not in self._was_alone:
                self._start_again(job, f"out of memory beside other runs, now alone; {outcome.note}", self._alone)
                return
        elif outcome.status == "done" and self._packing:
            self._packing.measured(job.trial, outcome.peak_memory)
        self._finish(job, outcome)

    def lost(self, job: Job, why: str) -> None:
        del self._running[job.number]
        at = self._store.epochs_of(job.number)
        deaths = why.startswith("worker") + sum(a.startswith(f"after epoch {at}: worker") for a in self._again(job))
        if deaths < DEATHS:
            self._start_again(job, why, self._once_more)
        else:
            self._finish(job, Outcome("crashed", note=f"{why}, {deaths} times after epoch {at}"))

    def _start_again(self, job: Job, why: str, queue: deque[Job]) -> None:
        self._store.again(job.number, why)
        self._watcher.again(job, self._candidates[job.number], why)
        queue.append(job)

    def _finish(self, job: Job, outcome: Outcome) -> None:
        again = self._again(job)
        if again:
            outcome = replace(
                outcome, note="; ".join(filter(None, [outcome.note, f"started again {', '.join(again)}"]))
            )
        self._store.finish(job.number, outcome)
        self._watcher.finished(job, self._candidates[job.number], outcome)

    def _again(self, job: Job) -> tuple[str, ...]:
        record = self._store.recorded((job.trial.arch.key, job.trial.seed, self._epochs))
        return record.again if record else ()


class Measuring:
    """Finished `runs` measured on the test split; one whose worker ends without an outcome is measured once more."""

    def __init__(
        self,
        store: Store,
        watcher: Watcher,
        runs: Sequence[Record],
        trial: Callable[[Record], Trial],
        over: Callable[[], bool],
        packing: Packing | None = None,
    ) -> None:
        self._store, self._watcher, self._trial, self.over = store, watcher, trial, over
        self._packing = packing
        self._running: dict[int, tuple[Trial, str]] = {}
        self._waiting = deque(runs)
        self._records = {r.number: r for r in runs}
        self._lost: set[int] = set()
        self._trained: set[int] = set()

    def ask(self, device: str = "") -> Job | None:
        if self.over() or not self._waiting:
            return None
        record = self._waiting[0]
        job = Job(record.number, self._trial(record))
        there = [trial for trial, at in self._running.values() if at == device]
        if self._packing and not self._packing.allows(there, job.trial):
            return None
        self._waiting.popleft()
        self._running[job.number] = job.trial, device
        self._watcher.started(job, record.candidate)
        return job

    def epoch(self, job: Job, epoch: Epoch) -> None:
        """Its checkpoint is gone and is made again: its epochs are known, that it is trained again is not."""
        if job.number not in self._trained:
            self._trained.add(job.number)
            self._store.again(job.number, "its checkpoint was gone")

    def outcome(self, job: Job, outcome: Outcome) -> None:
        self._running.pop(job.number, None)
        if outcome.test_acc is not None:
            self._store.set_test(job.number, outcome.test_acc)
        self._watcher.finished(job, self._records[job.number].candidate, outcome)

    def lost(self, job: Job, why: str) -> None:
        record = self._records[job.number]
        self._running.pop(job.number, None)
        if job.number in self._lost:
            self._watcher.finished(job, record.candidate, Outcome("crashed", note=why))
            return
        self._lost.add(job.number)
        self._watcher.again(job, record.candidate, why)
        self._waiting.append(record)
