"""Warm worker processes on this machine: imports, data and device stay from run to run.

How a worker (worker.py) may end, and what that means for its run:

- killed or crashed (a signal, the kernel's lack of memory, a fault in a C library): its end of the
  pipe closes; the run is lost, and goes on from its checkpoint in another worker;
- hung (no training step for long): its own watchdog ends it, and the rest is the same;
- ended before it took up the run: the run is not to blame; several in a row are the machine's
  fault, and stop the study;
- its run crashed, or was not captured on CUDA: the outcome counts, and the process, which may be
  broken too, is replaced;
- idle and dead: it is replaced when the next run is sent.

Where several trainings may share a GPU, the same workers measure first how many of them pay.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from scaling_search import UserError
from scaling_search.driver import log, mps
from scaling_search.driver.devices import cores
from scaling_search.driver.executors.protocol import BOOTS, GRACE, POLL, Driver, Job, WorkerLoss
from scaling_search.driver.executors.worker import (
    BEGUN,
    Orders,
    Prepared,
    Rehearsal,
    Steps,
    Train,
    Unprepared,
    work,
)
from scaling_search.driver.packing import MOST, Measured, choose_level
from scaling_search.training.throughput import training_steps
from scaling_search.training.train import run
from scaling_search.training.trial import Epoch, Outcome, Trial
from scaling_search.training.watchdog import HUNG, STALL

# Of the measurement of how many trainings pay on a device.
SECONDS = 1.5  # of each level
_PREPARED = 300.0  # s until the first worker is prepared: torch.compile takes minutes
_LAG = 20.0  # s, and as long again as the first took, that its neighbours have

logger = logging.getLogger(__name__)


# How worker processes come about. Not forked from this process: a child would inherit torch's
# thread pools and CUDA's state in pieces. On Linux they are forked from a process that has imported
# torch, which takes three seconds, and has done nothing else; elsewhere, where libraries do not
# withstand that, each imports it itself.
if sys.platform == "linux":
    _PROCESSES = multiprocessing.get_context("forkserver")
    _PROCESSES.set_forkserver_preload([work.__module__])
else:
    _PROCESSES = multiprocessing.get_context("spawn")


# ---- a worker's process


@contextmanager
def _unsignalled() -> Iterator[None]:
    """Processes that start within this block have SIGINT and SIGTERM blocked.

    Ctrl-C, and a batch system's SIGTERM, reach the whole group, and the driver decides. They are
    blocked here and not ignored, so that one that comes now reaches the driver afterwards."""
    resource_tracker.ensure_running()  # which would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _same_imports() -> Iterator[None]:
    """A Python that starts within this block finds modules where this one does.

    The fork server of Python 3.11 does not take over `sys.path` (CPython issue 117378), and would
    import another scaling_search, such as an installed one beside a checkout."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


class _Worker:
    """The driver's handle of a process that trains what it is sent, one trial at a time."""

    def __init__(self, device: str, orders: Orders) -> None:
        self.device = device
        # one pipe a worker, not a queue for all: a queue's lock dies with whoever holds it, while
        # a pipe whose other end is gone says so
        self.connection, theirs = _PROCESSES.Pipe()
        self.process: BaseProcess = _PROCESSES.Process(
            target=work, args=(theirs, orders), daemon=True
        )
        with _unsignalled(), _same_imports():
            self.process.start()
        theirs.close()  # else the pipe would stay open here when the worker ends
        self.job: Job | None = None
        self.has_begun = False  # whether it has taken up its job

    def send(self, job: Job) -> None:
        self.job, self.has_begun = job, False
        self.connection.send(self.placed(job.trial))

    def placed(self, trial: Trial) -> Trial:
        """`trial` on this worker's own device."""
        return replace(trial, device=self.device) if self.device else trial

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class LocalExecutor:
    """`devices`: one a worker, in turn; empty where the trial's own is meant. `train` is what a
    worker does, `steps` what it does while trainings beside one another are measured. `log_file`:
    where workers write their stderr."""

    def __init__(
        self,
        workers: int,
        devices: tuple[str, ...] = ("",),
        *,
        train: Train = run,
        steps: Steps = training_steps,
        stall: float = STALL,
        log_file: Path | None = None,
    ) -> None:
        self.workers, self.devices = workers, devices
        self._slots = [devices[i % len(devices)] for i in range(workers)]
        self._workers: list[_Worker] = []
        self._log_file = log_file
        self._orders = Orders(train, steps, stall)
        self._mps: mps.Server | None = None
        self._boots = 0  # workers in a row that ended before they began

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
                worker.connection.send(Rehearsal(worker.placed(trial)))
        peaks, why_fewer = self._prepared(workers, over)
        ready = {device: [w for w in peaks if w.device == device] for device in self.devices}
        room = min(len(on_device) for on_device in ready.values())
        measured = choose_level(room, lambda level: self._rate(ready, level, over))
        if over():  # some are in the middle of it
            for worker in list(self._workers):
                self._drop(worker)
            return None
        for on_device in ready.values():
            self._keep(on_device, measured.level)
        note = f"{room} of {most} got ready beside one another: {why_fewer}" if room < most else ""
        return replace(measured, peak=max(peaks.values(), default=0), note=note)

    def time_steps(
        self, trials: Sequence[Trial], at_once: int, over: Callable[[], bool]
    ) -> list[float]:
        """Images a second of each of `trials` while `at_once` trainings run; 0 where it cannot be
        had. Their workers stay, warm, for the runs."""
        rates: list[list[float]] = [[] for _ in trials]
        slots = self._slots[:at_once]
        for first in range(0, len(trials), len(slots)):
            if over():
                break
            # never fewer than `at_once` beside one another: each is as slow as a run will be
            chosen = [(first + i) % len(trials) for i in range(len(slots))]
            workers = self._warm(slots)
            for worker, i in zip(workers, chosen, strict=True):
                with suppress(OSError):  # it has died: no answer will come
                    worker.connection.send(Rehearsal(worker.placed(trials[i])))
            ready, _ = self._prepared(workers, over)
            for worker in ready:
                with suppress(OSError):
                    worker.connection.send(SECONDS)
            answers = self._answers(list(ready), SECONDS + _LAG, over)
            for worker, i in zip(workers, chosen, strict=True):
                answer = answers.get(worker)
                if isinstance(answer, float):
                    rates[i].append(answer)
                    self._send_stop(worker)
                elif worker in self._workers:
                    self._drop(worker)
        return [sum(timed) / len(timed) if timed else 0.0 for timed in rates]

    def _warm(self, slots: Sequence[str]) -> list[_Worker]:
        """An idle worker for each of these slots: those that are there, and new ones."""
        idle = [worker for worker in self._workers if worker.job is None]
        workers: list[_Worker] = []
        for device in slots:
            worker = next((w for w in idle if w.device == device), None)
            if worker is None:
                worker = self._start(device)
            else:
                idle.remove(worker)
            workers.append(worker)
        return workers

    def _prepared(
        self, workers: Sequence[_Worker], over: Callable[[], bool]
    ) -> tuple[dict[_Worker, int], str]:
        """Bytes at the peak of each worker that is ready, and why another is not; that one ends."""
        peaks: dict[_Worker, int] = {}
        why = ""
        for worker, answer in self._answers(workers, _PREPARED, over).items():
            if isinstance(answer, Prepared):
                peaks[worker] = answer.peak
            elif isinstance(answer, Unprepared):
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
            alive = [w for w in workers if w in self._workers][:level]
            if len(alive) < level or over():
                return None
            chosen += alive
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
        began = time.monotonic()
        until = began + limit
        answers: dict[_Worker, object] = {}
        waiting = {w.connection: w for w in workers}
        while waiting and not over() and time.monotonic() < until:
            for connection in wait(list(waiting), POLL):
                worker = waiting.pop(connection)  # type: ignore[call-overload]
                with suppress(EOFError, OSError):
                    answers[worker] = worker.connection.recv()
            if answers:
                until = min(until, 2 * time.monotonic() - began + _LAG)
        for worker in workers:
            if worker not in answers and not over():
                self._drop(worker)
        return answers

    def _keep(self, workers: Sequence[_Worker], count: int) -> None:
        """End the rehearsal of `count` of a device's live workers; the others end."""
        alive = [w for w in workers if w in self._workers]
        for worker in alive[:count]:
            self._send_stop(worker)
        for worker in alive[count:]:
            self._drop(worker)

    # ---- runs

    def run(self, driver: Driver) -> None:
        stopped: float | None = None  # time.monotonic() at which the workers were told to stop
        while True:
            if stopped is None and driver.over():
                stopped = time.monotonic()
                self._tell_to_stop()
            if stopped is None:
                self._hand_out(driver)
            elif time.monotonic() - stopped > GRACE:
                for worker in self._busy():
                    self._drop(worker)
            busy = {w.connection: w for w in self._busy()}
            if not busy:
                return
            for connection in wait(list(busy), POLL):
                worker = busy[connection]  # type: ignore[index]
                self._receive(worker, driver, is_stopping=stopped is not None)

    def _busy(self) -> list[_Worker]:
        return [w for w in self._workers if w.job is not None]

    def _hand_out(self, driver: Driver) -> None:
        for device in self._free_slots():
            job = driver.ask(device)
            if job is not None:
                self._send(job, device)

    def _free_slots(self) -> list[str]:
        """The devices of the slots in which nothing runs, warm workers' first."""
        # a new worker may have to import torch, and has no data and no device open
        idle = [w.device for w in self._workers if w.job is None]
        without_worker = list(self._slots)
        for worker in self._workers:
            without_worker.remove(worker.device)
        return idle + without_worker

    def _receive(self, worker: _Worker, driver: Driver, is_stopping: bool) -> None:
        job = worker.job
        assert job is not None
        try:
            event = worker.connection.recv()
        except (EOFError, OSError):  # the process is gone, and its end of the pipe with it
            worker.process.join()
            self._workers.remove(worker)
            if not is_stopping:
                self._report_loss(worker, driver, job)
            return
        if isinstance(event, UserError):
            raise event
        if event == BEGUN:
            worker.has_begun, self._boots = True, 0
            return
        if isinstance(event, Epoch):
            driver.epoch(job, event)
            return
        worker.job = None
        if isinstance(event, Outcome):
            if event.spoils_its_process:
                self._drop(worker)
            driver.outcome(job, event)

    def _report_loss(self, worker: _Worker, driver: Driver, job: Job) -> None:
        how = _how_ended(worker.process.exitcode, self._orders.stall)
        if worker.has_begun:
            driver.lost(job, WorkerLoss(f"worker {how}", had_begun=True))
            return
        self._boots += 1
        if self._boots >= BOOTS:
            where = f"; what they wrote is in {self._log_file}" if self._log_file else ""
            raise UserError(
                f"training stopped: {BOOTS} workers in a row ended before they began, the last "
                f"{how}{where}"
            )
        driver.lost(job, WorkerLoss(f"new worker {how}", had_begun=False))

    def _tell_to_stop(self) -> None:
        for worker in self._busy():
            self._send_stop(worker)

    def _send_stop(self, worker: _Worker) -> None:
        """End what a worker is doing; one that died meanwhile is dropped."""
        try:
            worker.connection.send(None)
        except OSError:
            self._drop(worker)

    def _send(self, job: Job, device: str) -> None:
        """Hand over a job; a worker that died while it was idle is replaced."""
        for worker in self._idle(device):
            try:
                worker.send(job)
                return
            except OSError:
                self._drop(worker)
        self._start(device).send(job)

    def _idle(self, device: str) -> list[_Worker]:
        workers = [w for w in self._workers if w.device == device]
        return [w for w in workers if w.job is None]

    def _start(self, device: str) -> _Worker:
        environment = {**os.environ, **(self._mps.environment if self._mps else {})}
        orders = replace(self._orders, environment=environment)
        if self._log_file:
            orders = replace(orders, log_file=self._log_file, log_level=log.level())
        worker = _Worker(device, orders)
        logger.debug("worker %s starts%s", worker.process.pid, f" on {device}" if device else "")
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


def _how_ended(status: int | None, stall: float) -> str:
    if status == HUNG:
        return f"hung, no step in {stall:g} s"
    if status is not None and status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def open_local(
    workers: int | None,
    device: str,
    threads: int,
    indices: tuple[int, ...] | None = None,
    log_file: Path | None = None,
) -> LocalExecutor:
    """Return an executor with `workers` workers; without a number, with as many as the cores have
    room for, or `MOST` for each CUDA device (of `indices`, or all). Of those the driver's packing
    uses as many as pay."""
    if device == "cuda":
        devices = tuple(f"cuda:{i}" for i in indices or range(torch.cuda.device_count()))
        return LocalExecutor(workers or MOST * len(devices), devices, log_file=log_file)
    return LocalExecutor(workers or max(1, cores() // threads), log_file=log_file)
