"""The runs of one step of a study: handed to an executor, recorded, tried again where that is
right."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from scaling_search.driver.executors.protocol import Job
from scaling_search.driver.packing import Packing
from scaling_search.results.record import Record
from scaling_search.results.store import Store
from scaling_search.study.candidate import Candidate
from scaling_search.training.trial import Epoch, Outcome, Trial

DEATHS = 5  # of workers that had taken up a run, within one epoch of it: then the run is at fault


class Watcher(Protocol):
    """Who is told as a study goes on. `jobs` counts the runs still known to be needed."""

    def phase(self, name: str, jobs: int) -> None: ...
    def started(self, job: Job, candidate: Candidate) -> None: ...
    def epoch(self, job: Job, epoch: Epoch) -> None: ...
    def again(self, job: Job, candidate: Candidate, why: str) -> None: ...
    def finished(self, job: Job, candidate: Candidate, outcome: Outcome) -> None: ...


@dataclass(frozen=True, slots=True)
class _InProgress:
    """A run in progress. `level`: packing's when it started; `beside_others`: whether another run
    was in progress at any time since then, anywhere; `shared`: the same, on its own device."""

    job: Job
    device: str
    level: int
    beside_others: bool
    shared: bool


class Training:
    """`runs` (network, seed) for `epochs`, each made a trial by `trial`, until `over`.

    A worker that ends without an outcome (killed, hung, its node lost) is no verdict on the
    network: the run goes on from its checkpoint, unless it has happened `DEATHS` times within one
    epoch. A run out of memory that was not alone is tried once more, alone; so is one that crashed
    beside others on its GPU. Each reason is recorded before the run starts again.

    `packing`: where several trainings may share a GPU. A run that shared its GPU has no speed on
    record: it would be its neighbours' as much as its network's."""

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
        self._waiting = deque(
            sorted(runs, key=lambda run: (run[0].key, run[1], epochs) not in interrupted)
        )
        self._once_more: deque[Job] = deque()
        self._alone: deque[Job] = deque()
        self._was_alone: set[int] = set()
        self._candidates: dict[int, Candidate] = {}
        self._running: dict[int, _InProgress] = {}
        self._shorter_without_speed = self._find_shorter_without_speed() if packing else set()

    # ---- asked by an executor

    def ask(self, device: str = "") -> Job | None:
        if self.over() or any(number in self._was_alone for number in self._running):
            return None
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
        if self._packing:
            neighbours = [run.job.trial for run in self._running.values() if run.device == device]
            if not self._packing.allows(neighbours, job.trial):
                return None
        if self._once_more:
            return self._begin(self._once_more.popleft(), device)
        self._waiting.popleft()
        number = self._store.start(candidate, seed, self._epochs)
        self._candidates[number] = candidate
        trial = self._packing.shared(job.trial) if self._packing else job.trial
        return self._begin(Job(number, trial), device)

    def _begin(self, job: Job, device: str) -> Job:
        beside_others, shared = bool(self._running), False
        for number, run in self._running.items():
            neighbour = run.device == device
            shared = shared or neighbour
            self._running[number] = replace(run, beside_others=True, shared=run.shared or neighbour)
        level = self._packing.level if self._packing else 1
        self._running[job.number] = _InProgress(job, device, level, beside_others, shared)
        self._watcher.started(job, self._candidates[job.number])
        return job

    def epoch(self, job: Job, epoch: Epoch) -> None:
        self._store.epoch(job.number, epoch)
        self._watcher.epoch(job, epoch)

    def outcome(self, job: Job, outcome: Outcome) -> None:
        run = self._running.pop(job.number)
        why = None
        if outcome.status == "out-of-memory":
            if self._packing:
                self._lower_level(self._packing, run.level)
            if run.beside_others:
                why = "out of memory beside other runs"
        elif outcome.status == "crashed" and self._packing and run.shared:
            # under MPS a fault of one training ends all on its GPU (NVIDIA's MPS guide, "Memory
            # Protection and Error Containment"): whose it was shows alone
            why = "crashed beside other runs on its GPU"
        elif outcome.status == "done" and self._packing:
            self._packing.record_peak(job.trial, outcome.peak_memory)
        if why and job.number not in self._was_alone:
            self._start_again(job, f"{why}, now alone; {outcome.note}", self._alone)
        elif self._packing and not self._speed_is_its_own(run):
            self._finish(job, replace(outcome, images_per_s=0.0))
        else:
            self._finish(job, outcome)

    def lost(self, job: Job, why: str) -> None:
        del self._running[job.number]
        at = self._store.epochs_of(job.number)
        before = f"after epoch {at}: worker"
        deaths = why.startswith("worker") + sum(a.startswith(before) for a in self._again(job))
        if deaths < DEATHS:
            self._start_again(job, why, self._once_more)
        else:
            self._finish(job, Outcome("crashed", note=f"{why}, {deaths} times after epoch {at}"))

    def _lower_level(self, packing: Packing, started_at: int) -> None:
        """What memory does not hold now it will not hold in a later sitting either, which takes the
        measured level from the store."""
        before = packing.level
        packing.out_of_memory(started_at)
        measured = self._store.fact("packing")
        if measured and packing.level < min(before, measured["level"]):
            self._store.set_fact("packing", {**measured, "level": packing.level})

    def _start_again(self, job: Job, why: str, queue: deque[Job]) -> None:
        self._store.again(job.number, why)
        self._watcher.again(job, self._candidates[job.number], why)
        queue.append(job)

    def _finish(self, job: Job, outcome: Outcome) -> None:
        again = self._again(job)
        if again:
            note = "; ".join(filter(None, [outcome.note, f"started again {', '.join(again)}"]))
            outcome = replace(outcome, note=note)
        self._store.finish(job.number, outcome)
        self._watcher.finished(job, self._candidates[job.number], outcome)

    def _again(self, job: Job) -> tuple[str, ...]:
        record = self._store.recorded((job.trial.arch.key, job.trial.seed, self._epochs))
        return record.again if record else ()

    # ---- whose speed was measured

    def _speed_is_its_own(self, run: _InProgress) -> bool:
        """Whether no part of the run was trained beside others on its GPU, as far as is known: of
        what came before it was started again it is not."""
        network = self._candidates[run.job.number].key
        return not (
            run.shared
            or self._again(run.job)
            or (network, run.job.trial.seed) in self._shorter_without_speed
        )

    def _find_shorter_without_speed(self) -> set[tuple[str, int]]:
        """(network, seed) of shorter runs without a speed: a longer one goes on from their
        checkpoints, and from their clocks."""
        return {
            (r.candidate.key, r.seed)
            for r in self._store.records()
            if r.epochs < self._epochs and r.outcome and not r.outcome.images_per_s
        }


class Measuring:
    """Finished `runs` measured on the test split; one whose worker ends without an outcome is
    measured once more."""

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
        if self._packing:
            neighbours = [trial for trial, at in self._running.values() if at == device]
            if not self._packing.allows(neighbours, job.trial):
                return None
            job = replace(job, trial=self._packing.shared(job.trial))
        self._waiting.popleft()
        self._running[job.number] = job.trial, device
        self._watcher.started(job, record.candidate)
        return job

    def epoch(self, job: Job, epoch: Epoch) -> None:
        """Its checkpoint is gone and is made again: its epochs are known, that it is trained again
        is not."""
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
