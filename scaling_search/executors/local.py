"""Warm worker processes on this machine: imports, data and device stay from run to run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from scaling_search import UserError
from scaling_search.data import Dataset
from scaling_search.executors import Driver, Job
from scaling_search.packing import MOST
from scaling_search.train import run
from scaling_search.trial import Epoch, Outcome, Pulse, Trial
from scaling_search.watchdog import HUNG, STALL, watched

Train = Callable[[Trial, Dataset], Iterator[Epoch | Outcome | Pulse]]
_POLL = 0.2  # s: how late a signal or the end of the time given is noticed
_GRACE = 20.0  # s that a run has to write its checkpoint
_BROKEN = 70  # exit status of a worker whose own code failed
_BEGUN, _STOPPED = "begun", "stopped"  # a worker's words: its imports are done, it has been told to stop
_BOOTS = 10  # workers in a row that end before they begin: then it is the machine


class _Worker:
    """A process that trains what it is sent, one trial at a time."""

    def __init__(self, device: str, train: Train, stall: float) -> None:
        # spawn: a forked child would inherit torch's thread pools and CUDA's state in pieces
        context = multiprocessing.get_context("spawn")
        self.device = device
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_work, args=(theirs, train, stall), daemon=True)
        # Ctrl-C, and a batch system's SIGTERM, reach the whole group, and the driver decides: ignored from the start
        # (blocked, not ignored, so that one that comes now reaches the driver; the tracker would unblock them)
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
        self.connection.send(replace(job.trial, device=self.device) if self.device else job.trial)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _work(connection: Connection, train: Train, stall: float) -> None:
    for s in (signal.SIGINT, signal.SIGTERM):
        signal.signal(s, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        parent.join()
        os._exit(_BROKEN)  # a driver that was killed cannot stop its workers

    threading.Thread(target=leave_with_parent, daemon=True).start()
    open_data: dict[str, Dataset] = {}
    try:
        while True:
            trial: Trial | None = connection.recv()
            if trial is None:  # told to stop just after the run had ended
                continue
            with watched(stall):
                _train(connection, trial, open_data, train)
    except (EOFError, BrokenPipeError):
        return
    except BaseException:
        traceback.print_exc()
        os._exit(_BROKEN)


def _train(connection: Connection, trial: Trial, open_data: dict[str, Dataset], train: Train) -> None:
    connection.send(_BEGUN)
    try:
        if trial.data_folder not in open_data:
            open_data[trial.data_folder] = Dataset.open(Path(trial.data_folder))
        events = train(trial, open_data[trial.data_folder])
        for event in events:
            if not isinstance(event, Pulse):
                connection.send(event)
            elif connection.poll():  # the driver wants something else: to stop, or it is gone
                connection.recv()
                events.close()  # type: ignore[attr-defined]  # a generator: it writes its checkpoint
                connection.send(_STOPPED)
                return
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        # a full disk, vanished data: every run would fail alike
        connection.send(UserError(f"training stopped: {error}; mend it, and the same command goes on"))


class LocalExecutor:
    """`devices`: one a worker, in turn; empty where the trial's own is meant. `train` is what a worker does."""

    def __init__(
        self, workers: int, devices: tuple[str, ...] = ("",), *, train: Train = run, stall: float = STALL
    ) -> None:
        self.workers = workers
        self._slots = [devices[i % len(devices)] for i in range(workers)]
        self._workers: list[_Worker] = []
        self._train, self._stall = train, stall
        self._boots = 0

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
            if event.status == "crashed":
                self._drop(worker)  # what broke a run may have broken the process, a CUDA context above all
            driver.outcome(job, event)

    def _lost(self, worker: _Worker, driver: Driver, job: Job) -> None:
        how = _how(worker.process.exitcode, self._stall)
        if worker.begun:
            driver.lost(job, f"worker {how}")
            return
        self._boots += 1
        if self._boots >= _BOOTS:
            raise UserError(f"training stopped: {_BOOTS} workers in a row ended before they began, the last {how}")
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
        self._workers.append(_Worker(device, self._train, self._stall))
        self._workers[-1].send(job)

    def _drop(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.stop()

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers = []


def _how(status: int | None, stall: float) -> str:
    if status == HUNG:
        return f"hung, no step in {stall:g} s"
    if status is not None and status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def open_local(workers: int | None, device: str, threads: int) -> LocalExecutor:
    """As many workers as cores have room for, or up to `MOST` for each CUDA device, of which the driver's packing uses
    what pays."""
    if device == "cuda":
        devices = tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
        return LocalExecutor(workers or MOST * len(devices), devices)
    return LocalExecutor(workers or max(1, cores() // threads))


def cores() -> int:
    """Those that this process may use; macOS does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
