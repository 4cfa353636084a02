"""Warm worker processes on this machine: imports, data and device stay from run to run."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from scaling_search import UserError
from scaling_search.data import Dataset
from scaling_search.executors import Job
from scaling_search.train import run
from scaling_search.trial import Epoch, Outcome, Trial


class _Worker:
    """A process that trains what it is sent, one trial at a time."""

    def __init__(self) -> None:
        # spawn: a forked child would inherit torch's thread pools and CUDA's state in pieces
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_work, args=(theirs,), daemon=True)
        # Ctrl-C reaches the whole group and the driver decides; ignored from the child's first moment
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.process.start()
        signal.signal(signal.SIGINT, before)
        theirs.close()
        self.job: Job | None = None

    def send(self, job: Job) -> None:
        self.job = job
        self.connection.send(job.trial)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _work(connection: Connection) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        parent.join()
        os._exit(1)  # a driver that was killed cannot stop its workers

    threading.Thread(target=leave_with_parent, daemon=True).start()
    open_data: dict[str, Dataset] = {}
    while True:
        try:
            trial: Trial = connection.recv()
        except EOFError:
            return
        try:
            if trial.data_folder not in open_data:
                open_data[trial.data_folder] = Dataset.open(Path(trial.data_folder))
            for event in run(trial, open_data[trial.data_folder]):
                connection.send(event)
        except (UserError, OSError) as error:  # a full disk, vanished data: every run would fail alike
            connection.send(UserError(f"training stopped: {error}; mend it, and the same command goes on"))


class LocalExecutor:
    def __init__(self, workers: int) -> None:
        self._size = workers
        self._workers: list[_Worker] = []

    def run(
        self,
        ask: Callable[[], Job | None],
        on_epoch: Callable[[Job, Epoch], None],
        on_outcome: Callable[[Job, Outcome], None],
        until: float = math.inf,
    ) -> None:
        asked_out = False
        while True:
            while not asked_out and (worker := self._idle()) is not None:
                job = ask()
                if job is None:
                    asked_out = True
                else:
                    self._send(worker, job)
            busy = {w.connection: w for w in self._workers if w.job}
            if not busy:
                return
            left = None if until == math.inf else max(0.0, until - time.monotonic())
            ready = wait(list(busy), left)
            if not ready:
                for worker in list(busy.values()):
                    self._drop(worker)
                return
            for connection in ready:
                worker = busy[connection]  # type: ignore[index]
                job = worker.job
                assert job is not None
                try:
                    event = worker.connection.recv()
                except (EOFError, OSError):  # the process is gone, and its end of the pipe with it
                    worker.process.join()
                    self._workers.remove(worker)
                    event = Outcome("crashed", note=f"worker process ended with status {worker.process.exitcode}")
                if isinstance(event, UserError):
                    raise event
                if isinstance(event, Outcome):
                    worker.job = None
                    if event.status == "crashed" and worker in self._workers:
                        self._drop(worker)  # what broke a run may have broken the process, a CUDA context above all
                    on_outcome(job, event)
                else:
                    on_epoch(job, event)

    def _send(self, worker: _Worker, job: Job) -> None:
        """Hand over a job; a worker that died while it was idle is replaced."""
        while True:
            try:
                worker.send(job)
                return
            except OSError:
                self._drop(worker)
                worker = _Worker()
                self._workers.append(worker)

    def _drop(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.stop()

    def _idle(self) -> _Worker | None:
        for worker in self._workers:
            if worker.job is None:
                return worker
        if len(self._workers) < self._size:
            self._workers.append(_Worker())
            return self._workers[-1]
        return None

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers = []
