"""Warm worker processes on this machine: imports, data and device stay from run to run.

Where several trainings may share a GPU, the same workers measure first how many of them pay."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from effnet.nn import cuda
from scaling_search import UserError
from scaling_search.data.dataset import Dataset
from scaling_search.driver import mps
from scaling_search.driver.executors.protocol import Driver, Job
from scaling_search.driver.packing import MOST, Measured, choose_level
from scaling_search.training import memory
from scaling_search.training.train import run, training_steps
from scaling_search.training.trial import Epoch, Outcome, Pulse, Trial
from scaling_search.training.watchdog import HUNG, STALL, alive, watched

Train = Callable[[Trial, Dataset], Iterator[Epoch | Outcome | Pulse]]
Steps = Callable[[Trial, Dataset], Iterator[int]]  # images of one training step at each next()
_POLL = 0.2  # s: how late a signal or the end of the time given is noticed
_GRACE = 20.0  # s that a run has to write its checkpoint
_BROKEN = 70  # exit status of a worker whose own code failed
_BEGUN, _STOPPED = "begun", "stopped"  # a worker's words: imports are done, it was told to stop
_BOOTS = 10  # workers in a row that end before they begin: then it is the machine

# Of the measurement of how many trainings pay on a device.
SECONDS = 1.5  # of each level
MARGIN = 0.2  # s before and after: neighbours may not train yet, or no longer
_FIRST_STEPS = 8  # eager ones, the capture, and some more
_CHUNK = 0.05  # s between two waits for the device, of which a training has none
_PREPARED = 300.0  # s until the first worker is prepared: torch.compile takes minutes
_LAG = 20.0  # s, and as long again as the first took, that its neighbours have


@dataclass(frozen=True, slots=True)
class _Rehearsal:
    """What a worker is sent before a measurement: the training to prepare."""

    trial: Trial


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A worker's answer: its training runs, and takes `peak` bytes."""

    peak: int


@dataclass(frozen=True, slots=True)
class _Unprepared:
    """A worker's answer: it cannot train beside the others, and why."""

    reason: str


class _Worker:
    """A process that trains what it is sent, one trial at a time."""

    def __init__(
        self, device: str, train: Train, steps: Steps, stall: float, environment: Mapping[str, str]
    ) -> None:
        # spawn: a forked child would inherit torch's thread pools and CUDA's state in pieces
        context = multiprocessing.get_context("spawn")
        self.device = device
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=_work, args=(theirs, train, steps, stall, dict(environment)), daemon=True
        )
        # Ctrl-C, and a batch system's SIGTERM, reach the whole group, and the driver decides:
        # ignored from the start (blocked, not ignored, so that one that comes now reaches the
        # driver; the tracker would unblock them)
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self.job: Job | None = None
        self.begun = False  # whether it has taken up its job

    def send(self, job: Job) -> None:
        self.job, self.begun = job, False
        self.connection.send(self.placed(job.trial))

    def placed(self, trial: Trial) -> Trial:
        """`trial` on this worker's own device."""
        return replace(trial, device=self.device) if self.device else trial

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _work(
    connection: Connection, train: Train, steps: Steps, stall: float, environment: dict[str, str]
) -> None:
    for s in (signal.SIGINT, signal.SIGTERM):
        signal.signal(s, signal.SIG_IGN)
    os.environ.update(environment)  # CUDA reads it when it starts, with the first trial
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        parent.join()
        os._exit(_BROKEN)  # a driver that was killed cannot stop its workers

    threading.Thread(target=leave_with_parent, daemon=True).start()
    open_data: dict[str, Dataset] = {}
    try:
        while True:
            message: Trial | _Rehearsal | None = connection.recv()
            if message is None:  # told to stop just after the run had ended
                continue
            with watched(stall):
                if isinstance(message, _Rehearsal):
                    _rehearse(connection, message.trial, open_data, steps)
                else:
                    _train(connection, message, open_data, train)
    except (EOFError, BrokenPipeError):
        return
    except BaseException:
        traceback.print_exc()
        os._exit(_BROKEN)


def _opened(trial: Trial, open_data: dict[str, Dataset]) -> Dataset:
    if trial.data_folder not in open_data:
        open_data[trial.data_folder] = Dataset.open(Path(trial.data_folder))
    return open_data[trial.data_folder]


def _train(
    connection: Connection, trial: Trial, open_data: dict[str, Dataset], train: Train
) -> None:
    connection.send(_BEGUN)
    try:
        events = train(trial, _opened(trial, open_data))
        for event in events:
            if not isinstance(event, Pulse):
                connection.send(event)
            elif connection.poll():  # the driver wants something else: to stop, or it is gone
                connection.recv()
                # a generator: it writes its checkpoint
                events.close()  # type: ignore[attr-defined]
                connection.send(_STOPPED)
                return
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        # a full disk, vanished data: every run would fail alike
        connection.send(
            UserError(f"training stopped: {error}; mend it, and the same command goes on")
        )


def _rehearse(
    connection: Connection, trial: Trial, open_data: dict[str, Dataset], steps: Steps
) -> None:
    """Prepare a training and tell the driver; then train for a while whenever it asks, and answer
    with the images a second, until it says None."""
    device = torch.device(trial.device)
    try:
        training = steps(trial, _opened(trial, open_data))
        for _ in range(_FIRST_STEPS):
            next(training)
        memory.synchronize(device)
        if cuda.process_is_spoiled():  # its rate is that of eager steps, and no run should follow
            connection.send(_Unprepared("its step was not captured"))
        else:
            connection.send(_Prepared(memory.peak(device)))
            while (seconds := connection.recv()) is not None:
                connection.send(_images_per_second(training, device, seconds))
        if isinstance(training, Generator):
            training.close()
    except (EOFError, BrokenPipeError):
        raise
    except Exception as error:  # whatever it is, a run that meets it has the same as its outcome
        connection.send(_Unprepared(_reason(error)))
    finally:
        training = None  # type: ignore[assignment]  # it holds the device's memory
        memory.release()


def _reason(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "out of memory"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _images_per_second(training: Iterator[int], device: torch.device, seconds: float) -> float:
    """The rate over `seconds`, with a margin before and after in which the device is as busy."""
    began = time.perf_counter()
    moments: list[tuple[float, int]] = []  # seconds since then, images
    images, steps, now = 0, 1, 0.0
    while now < seconds + 2 * MARGIN:
        for _ in range(steps):
            images += next(training)
        memory.synchronize(device)
        alive()
        before, now = now, time.perf_counter() - began
        if now - before < _CHUNK:
            steps *= 2
        moments.append((now, images))
    inside = [m for m in moments if MARGIN <= m[0] <= seconds + MARGIN]
    if len(inside) < 2:  # steps of a second
        inside = [(0.0, 0), moments[-1]]
    (first, images_before), (last, images_after) = inside[0], inside[-1]
    return (images_after - images_before) / (last - first)


class LocalExecutor:
    """`devices`: one a worker, in turn; empty where the trial's own is meant. `train` is what a
    worker does, `steps` what it does while trainings beside one another are measured."""

    def __init__(
        self,
        workers: int,
        devices: tuple[str, ...] = ("",),
        *,
        train: Train = run,
        steps: Steps = training_steps,
        stall: float = STALL,
    ) -> None:
        self.workers, self.devices = workers, devices
        self._slots = [devices[i % len(devices)] for i in range(workers)]
        self._workers: list[_Worker] = []
        self._train, self._steps, self._stall = train, steps, stall
        self._mps: mps.Server | None = None
        self._boots = 0

    def use_mps(self, server: mps.Server) -> None:
        """Workers that start from now on are clients of `server`, which ends with this executor."""
        self._mps = server

    # ---- before the first run

    def measure(self, trial: Trial, most: int, over: Callable[[], bool]) -> Measured | None:
        """How many trainings such as `trial` to run on each device: at most `most`, and as many as
        get ready beside one another. Their workers stay, warm; the others end.

        A worker that dies or hangs costs its place, not the study. None once `over`."""
        places = [device for device in self.devices for _ in range(most)]
        workers = [self._start(device) for device in places]
        for worker in workers:
            with suppress(OSError):  # it has died: no answer will come
                worker.connection.send(_Rehearsal(worker.placed(trial)))
        prepared, why = self._prepared(workers, over)
        ready = {d: [w for w in prepared if w.device == d] for d in self.devices}
        room = min(len(here) for here in ready.values())
        measured = choose_level(room, lambda level: self._rate(ready, level, over))
        if over():  # some are in the middle of it
            for worker in list(self._workers):
                self._drop(worker)
            return None
        for device in self.devices:
            for i, worker in enumerate(w for w in ready[device] if w in self._workers):
                if i >= measured.level:
                    self._drop(worker)
                else:
                    self._end_rehearsal(worker)
        note = f"{room} of {most} got ready beside one another: {why}" if room < most else ""
        return replace(measured, peak=max(prepared.values(), default=0), note=note)

    def _prepared(
        self, workers: Sequence[_Worker], over: Callable[[], bool]
    ) -> tuple[dict[_Worker, int], str]:
        """Bytes at the peak of each worker that is ready, and why another is not; that one ends."""
        peaks: dict[_Worker, int] = {}
        why = ""
        for worker, answer in self._answers(workers, _PREPARED, over).items():
            if isinstance(answer, _Prepared):
                peaks[worker] = answer.peak
            elif isinstance(answer, _Unprepared):
                why = why or answer.reason
                self._drop(worker)
        return peaks, why or "a worker ended or hung"

    def _rate(
        self, ready: Mapping[str, Sequence[_Worker]], level: int, over: Callable[[], bool]
    ) -> float | None:
        """Images a second of one device, the mean of all, with `level` trainings on each; None
        where they cannot be had."""
        chosen: list[_Worker] = []
        for workers in ready.values():
            here = [w for w in workers if w in self._workers][:level]
            if len(here) < level or over():
                return None
            chosen += here
        for worker in chosen:
            with suppress(OSError):
                worker.connection.send(SECONDS)
        answers = self._answers(chosen, SECONDS + _LAG, over)
        rates = [answer for answer in answers.values() if isinstance(answer, float)]
        if len(rates) < len(chosen):
            for worker in chosen:
                if worker in self._workers and not isinstance(answers.get(worker), float):
                    self._drop(worker)
            return None
        return sum(rates) / len(ready)

    def _answers(
        self, workers: Sequence[_Worker], limit: float, over: Callable[[], bool]
    ) -> dict[_Worker, object]:
        """One message of each worker that sends one: the first within `limit` seconds, the others
        soon after it. Workers that do not are ended."""
        began, answers = time.monotonic(), dict[_Worker, object]()
        until = began + limit
        waiting = {w.connection: w for w in workers}
        while waiting and not over() and time.monotonic() < until:
            for connection in wait(list(waiting), _POLL):
                worker = waiting.pop(connection)  # type: ignore[call-overload]
                with suppress(EOFError, OSError):
                    answers[worker] = worker.connection.recv()
            if answers:
                until = min(until, 2 * time.monotonic() - began + _LAG)
        for worker in workers:
            if worker not in answers and not over():
                self._drop(worker)
        return answers

    def _end_rehearsal(self, worker: _Worker) -> None:
        try:
            worker.connection.send(None)
        except OSError:
            self._drop(worker)

    # ---- runs

    def run(self, driver: Driver) -> None:
        stopped: float | None = None
        while True:
            if stopped is None and driver.over():
                stopped = time.monotonic()
                self._tell_to_stop()
            if stopped is None:
                self._hand_out(driver)
            elif time.monotonic() - stopped > _GRACE:
                for worker in [w for w in self._workers if w.job]:
                    self._drop(worker)
            busy = {w.connection: w for w in self._workers if w.job}
            if not busy:
                return
            for connection in wait(list(busy), _POLL):
                self._hear(busy[connection], driver, stopped is not None)  # type: ignore[index]

    def _hand_out(self, driver: Driver) -> None:
        for device in self._free():
            if (job := driver.ask(device)) is not None:
                self._send(job, device)

    def _free(self) -> list[str]:
        """The devices of the slots in which nothing runs, warm workers' first."""
        idle = [w.device for w in self._workers if w.job is None]
        unborn = list(self._slots)
        for worker in self._workers:
            unborn.remove(worker.device)
        return idle + unborn

    def _hear(self, worker: _Worker, driver: Driver, stopped: bool) -> None:
        job = worker.job
        assert job is not None
        try:
            event = worker.connection.recv()
        except (EOFError, OSError):  # the process is gone, and its end of the pipe with it
            worker.process.join()
            self._workers.remove(worker)
            if not stopped:
                self._lost(worker, driver, job)
            return
        if isinstance(event, UserError):
            raise event
        if event == _BEGUN:
            worker.begun, self._boots = True, 0
            return
        if isinstance(event, Epoch):
            driver.epoch(job, event)
            return
        worker.job = None
        if isinstance(event, Outcome):
            if event.spoils_its_process:
                self._drop(worker)
            driver.outcome(job, event)

    def _lost(self, worker: _Worker, driver: Driver, job: Job) -> None:
        how = _how(worker.process.exitcode, self._stall)
        if worker.begun:
            driver.lost(job, f"worker {how}")
            return
        self._boots += 1
        if self._boots >= _BOOTS:
            raise UserError(
                f"training stopped: {_BOOTS} workers in a row ended before they began, the last {how}"
            )
        driver.lost(job, f"new worker {how}")  # not the run's doing, which it had not seen

    def _tell_to_stop(self) -> None:
        for worker in [w for w in self._workers if w.job]:
            try:
                worker.connection.send(None)
            except OSError:
                self._drop(worker)

    def _send(self, job: Job, device: str) -> None:
        """Hand over a job; a worker that died while it was idle is replaced."""
        for worker in [w for w in self._workers if w.job is None and w.device == device]:
            try:
                worker.send(job)
                return
            except OSError:
                self._drop(worker)
        self._start(device).send(job)

    def _start(self, device: str) -> _Worker:
        environment = self._mps.environment if self._mps else {}
        worker = _Worker(device, self._train, self._steps, self._stall, environment)
        self._workers.append(worker)
        return worker

    def _drop(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.stop()

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers = []
        if self._mps:
            self._mps.close()


def _how(status: int | None, stall: float) -> str:
    if status == HUNG:
        return f"hung, no step in {stall:g} s"
    if status is not None and status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def open_local(
    workers: int | None, device: str, threads: int, indices: tuple[int, ...] | None = None
) -> LocalExecutor:
    """As many workers as cores have room for, or up to `MOST` for each CUDA device (of `indices`,
    or all), of which the driver's packing uses what pays."""
    if device == "cuda":
        devices = tuple(f"cuda:{i}" for i in indices or range(torch.cuda.device_count()))
        return LocalExecutor(workers or MOST * len(devices), devices)
    return LocalExecutor(workers or max(1, cores() // threads))


def cores() -> int:
    """Those that this process may use; macOS does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
