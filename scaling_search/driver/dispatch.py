"""The runs of one step of a study: handed to an executor, recorded, tried again where that is
right."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from scaling_search.driver.crashes import Crashes
from scaling_search.driver.executors.protocol import Job, WorkerLoss
from scaling_search.driver.packing import Packing
from scaling_search.results.record import Deaths, Record, Run
from scaling_search.results.store import Store
from scaling_search.study.candidate import Candidate
from scaling_search.training.trial import Epoch, Outcome, Trial

DEATHS = 5  # of workers that had taken up a run, within one epoch of it: then the run is at fault

logger = logging.getLogger(__name__)


class Watcher(Protocol):
    """Who is told as a study goes on."""

    def phase(self, name: str, jobs: int, testing: bool = False) -> None:
        """A step of the study begins, with so many jobs; `testing`: they train nothing, and
        measure runs that are done on the test split."""

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
    """`runs`, each made a trial by `trial`, in their order, until `over`.

    A longer run of a network and a seed goes on from the checkpoint of a shorter one, so that it
    waits until that has ended; the runs after it do not.

    A worker that ends without an outcome (killed, hung, its node lost) is no verdict on the
    network: the run goes on from its checkpoint, unless it has happened `DEATHS` times within one
    epoch. A run out of memory that was not alone is tried once more, alone; so is one that crashed
    beside others on its GPU. Each reason is recorded before the run starts again.

    `packing`: where several trainings may share a GPU. A run that shared its GPU has no speed on
    record: it would be its neighbours' as much as its network's. `crashes`: those of the whole
    session; once they have a common cause, this step is over. None: each crash is its network's.
    `log_name`: the file that keeps the tracebacks of crashed runs, for their notes."""

    def __init__(
        self,
        store: Store,
        watcher: Watcher,
        runs: Sequence[Run],
        trial: Callable[[Run], Trial],
        over: Callable[[], bool],
        *,
        packing: Packing | None = None,
        crashes: Crashes | None = None,
        log_name: str = "",
    ) -> None:
        self._store, self._watcher, self._trial, self._over = store, watcher, trial, over
        self._packing, self._crashes, self._log_name = packing, crashes, log_name
        self._waiting = deque(sorted(runs, key=self._urgency))
        self._next: tuple[Run, Trial] | None = None  # the first that can start
        # epochs of the runs of a (network, seed) that have not ended
        self._open: dict[tuple[str, int], set[int]] = {}
        for run in runs:
            self._open.setdefault((run.candidate.key, run.seed), set()).add(run.epochs)
        self._once_more: deque[Job] = deque()
        self._alone: deque[Job] = deque()
        self._was_alone: set[int] = set()
        self._candidates: dict[int, Candidate] = {}
        self._running: dict[int, _InProgress] = {}
        # epochs of the shortest run of a (network, seed) that ended without a speed
        self._without_speed: dict[tuple[str, int], int] = {}
        for record in store.records() if packing else ():
            if record.outcome:
                self._note_speed(record.key, record.outcome)

    def _urgency(self, run: Run) -> int:
        """What a driver before this one left running goes on first. What crashed like other
        networks comes last, so that the others show whether the machine can train."""
        if self._store.recorded(run.key):
            return 0
        set_free = self._crashes is not None and self._crashes.was_set_free(run.candidate.key)
        return 2 if set_free else 1

    def over(self) -> bool:
        return self._over() or (self._crashes is not None and bool(self._crashes.common))

    # ---- handing out

    def ask(self, device: str = "") -> Job | None:
        if self.over() or any(number in self._was_alone for number in self._running):
            return None
        if self._once_more:
            return self._hand_out_once_more(device)
        ready = next((run for run in self._waiting if self._is_ready(run)), None)
        if ready is not None:
            return self._hand_out_new(ready, device)
        if self._alone and not self._running:
            job = self._alone.popleft()
            self._was_alone.add(job.number)
            return self._begin(job, device)
        return None

    def _is_ready(self, run: Run) -> bool:
        """Whether the run from whose checkpoint it goes on, if there is one, has ended."""
        return run.epochs == min(self._open[run.candidate.key, run.seed])

    # Only the first of those that are ready is looked at: to pass over a run that does not fit
    # would let small networks overtake a large one for ever.

    def _hand_out_once_more(self, device: str) -> Job | None:
        if not self._fits(self._once_more[0].trial, device):
            return None
        return self._begin(self._once_more.popleft(), device)

    def _hand_out_new(self, run: Run, device: str) -> Job | None:
        # kept: a full device is asked for again and again
        if self._next is None or self._next[0] is not run:
            self._next = run, self._trial(run)
        trial = self._next[1]
        if not self._fits(trial, device):
            return None
        self._waiting.remove(run)
        self._next = None
        number = self._store.start(run.candidate, run.seed, run.epochs)
        self._candidates[number] = run.candidate
        if self._packing:
            trial = self._packing.extend_deadline(trial)
        return self._begin(Job(number, trial), device)

    def _fits(self, trial: Trial, device: str) -> bool:
        """Whether `device` has room for one more training, beside those in progress on it."""
        if self._packing is None:
            return True
        neighbours = [run.job.trial for run in self._running.values() if run.device == device]
        return self._packing.allows(neighbours, trial)

    def _begin(self, job: Job, device: str) -> Job:
        # beginning beside others makes both sides neighbours, however short their time together
        beside_others, shared = bool(self._running), False
        for number, run in self._running.items():
            neighbour = run.device == device
            shared = shared or neighbour
            self._running[number] = replace(run, beside_others=True, shared=run.shared or neighbour)
        level = self._packing.level if self._packing else 1
        self._running[job.number] = _InProgress(job, device, level, beside_others, shared)
        candidate = self._candidates[job.number]
        logger.info("run %d starts: %s", job.number, _description(job, candidate, device))
        self._watcher.started(job, candidate)
        return job

    # ---- what becomes of a run

    def epoch(self, job: Job, epoch: Epoch) -> None:
        self._store.epoch(job.number, epoch)
        self._watcher.epoch(job, epoch)

    def outcome(self, job: Job, outcome: Outcome) -> None:
        run = self._running.pop(job.number)
        if outcome.traceback:
            logger.error("run %d: %s\n%s", job.number, outcome.status, outcome.traceback.rstrip())
        if outcome.status == "out-of-memory" and self._packing:
            self._lower_level(self._packing, run.level)
        if outcome.status == "done" and self._packing:
            self._packing.record_peak(job.trial, outcome.peak_memory)
        why = self._why_alone(run, outcome)
        if why:
            self._start_again(job, f"{why}, now alone; {outcome.note}", self._alone)
            return
        if self._packing and not self._speed_is_its_own(run):
            outcome = replace(outcome, images_per_s=0.0)
        self._finish(job, outcome)

    def _why_alone(self, run: _InProgress, outcome: Outcome) -> str:
        """Why a run that failed is tried once more with nothing beside it; "" where its outcome
        stands."""
        if run.job.number in self._was_alone:
            return ""
        if outcome.status == "out-of-memory" and run.beside_others:
            return "out of memory beside other runs"
        if outcome.status == "crashed" and self._packing and run.shared:
            # under MPS a fault of one training ends all on its GPU (NVIDIA's MPS guide, "Memory
            # Protection and Error Containment"): whose it was shows alone
            return "crashed beside other runs on its GPU"
        return ""

    def lost(self, job: Job, loss: WorkerLoss) -> None:
        del self._running[job.number]
        deaths = self._store.deaths_of(job.number)
        if loss.had_begun:
            deaths = Deaths(deaths.epoch, deaths.count + 1)
            self._store.set_deaths(job.number, deaths)
        if deaths.count < DEATHS:
            self._start_again(job, loss.reason, self._once_more)
            return
        note = f"{loss.reason}, {deaths.count} times after epoch {deaths.epoch}"
        self._finish(job, Outcome("crashed", note=note))

    def _lower_level(self, packing: Packing, started_at: int) -> None:
        """What memory does not hold now it will not hold in a later session either, which takes the
        measured level from the store."""
        before = packing.level
        packing.out_of_memory(started_at)
        measured = self._store.fact("packing")
        if measured and packing.level < min(before, measured["level"]):
            self._store.set_fact("packing", {**measured, "level": packing.level})

    def _start_again(self, job: Job, why: str, queue: deque[Job]) -> None:
        logger.warning("run %d is started again: %s", job.number, why)
        # recorded first: a driver killed here leaves a run that goes on, and says why
        self._store.again(job.number, why)
        self._watcher.again(job, self._candidates[job.number], why)
        queue.append(job)

    def _finish(self, job: Job, outcome: Outcome) -> None:
        message = outcome.note
        notes = [message] if message else []
        if self._log_name and (outcome.traceback or outcome.status == "crashed"):
            kept = "traceback" if outcome.traceback else "what its workers wrote"
            notes.append(f"{kept} in {self._log_name}")
        again = self._again(job)
        if again:
            notes.append(f"started again {', '.join(again)}")
        outcome = replace(outcome, note="; ".join(notes))
        # nothing is said of an outcome before it is safe on disk
        self._store.finish(job.number, outcome)
        network, seed, epochs = key = self._key(job)
        self._open[network, seed].remove(epochs)
        self._note_speed(key, outcome)
        logger.info("run %d ends: %s", job.number, "; ".join([_result(outcome), *notes]))
        self._watcher.finished(job, self._candidates[job.number], outcome)
        if self._crashes is not None and outcome.status == "crashed":
            record = self._store.recorded(key)
            assert record is not None
            self._crashes.record_crash(record, message)

    def _again(self, job: Job) -> tuple[str, ...]:
        record = self._store.recorded(self._key(job))
        return record.again if record else ()

    def _key(self, job: Job) -> tuple[str, int, int]:
        # the candidate keeps its key; the trial's network would be hashed anew
        return self._candidates[job.number].key, job.trial.seed, job.trial.epochs

    # ---- whose speed was measured

    def _speed_is_its_own(self, run: _InProgress) -> bool:
        """Whether no part of the run was trained beside others on its GPU, as far as is known: of
        what came before it was started again it is not."""
        return not (run.shared or self._again(run.job) or self._shorter_has_no_speed(run.job))

    def _shorter_has_no_speed(self, job: Job) -> bool:
        """Whether a shorter run of the same network and seed has no speed: a longer one goes on
        from its checkpoint, and from its clock."""
        network, seed, epochs = self._key(job)
        return self._without_speed.get((network, seed), epochs) < epochs

    def _note_speed(self, key: tuple[str, int, int], outcome: Outcome) -> None:
        network, seed, epochs = key
        if not outcome.images_per_s:
            shortest = self._without_speed.get((network, seed), epochs)
            self._without_speed[network, seed] = min(shortest, epochs)


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
        self._running: dict[int, tuple[Trial, str]] = {}  # and its device
        self._waiting = deque(runs)
        self._next_trial: Trial | None = None  # of the first that waits
        self._records = {r.number: r for r in runs}
        self._lost: set[int] = set()
        self._trained: set[int] = set()

    def ask(self, device: str = "") -> Job | None:
        if self.over() or not self._waiting:
            return None
        record = self._waiting[0]
        if self._next_trial is None:  # kept: a full device is asked for again and again
            self._next_trial = self._trial(record)
        trial = self._next_trial
        if self._packing:
            neighbours = [trial for trial, at in self._running.values() if at == device]
            if not self._packing.allows(neighbours, trial):
                return None
            trial = self._packing.extend_deadline(trial)
        self._waiting.popleft()
        self._next_trial = None
        job = Job(record.number, trial)
        self._running[job.number] = trial, device
        logger.info("test of run %d: %s", job.number, _description(job, record.candidate, device))
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
        if outcome.traceback:
            logger.error("test of run %d: %s", job.number, outcome.traceback.rstrip())
        if outcome.test_acc is not None:
            self._store.set_test(job.number, outcome.test_acc)
        self._watcher.finished(job, self._records[job.number].candidate, outcome)

    def lost(self, job: Job, loss: WorkerLoss) -> None:
        record = self._records[job.number]
        self._running.pop(job.number, None)
        logger.warning("test of run %d: %s", job.number, loss.reason)
        if job.number in self._lost:
            self._watcher.finished(job, record.candidate, Outcome("crashed", note=loss.reason))
            return
        self._lost.add(job.number)
        self._watcher.again(job, record.candidate, loss.reason)
        self._waiting.append(record)


def _result(outcome: Outcome) -> str:
    if outcome.status != "done":
        return outcome.status
    return f"done, val {outcome.epochs[-1].val_acc:.4f}, {outcome.seconds:.0f} s"


def _description(job: Job, candidate: Candidate, device: str) -> str:
    place = f" on {device}" if device else ""
    return f"{candidate.label}, seed {job.trial.seed}, {job.trial.epochs} epochs{place}"
