"""What runs in a worker process of this machine: one training after another, as the driver's side
(local.py) sends them, or one training beside others while their rates are measured.

The process ends itself where nobody could end it: when its driver is gone, when its own code fails
(status `BROKEN`), and when a training makes no step for long (training/watchdog.py).
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from effnet.nn import cuda
from effnet.processes import end_with_parent
from scaling_search import UserError
from scaling_search.data.dataset import Dataset
from scaling_search.driver.log import log_to_stderr, stderr_into
from scaling_search.training import memory
from scaling_search.training.throughput import (
    MARGIN,
    images_per_second,
    training_steps,
    warm_up,
)
from scaling_search.training.train import run
from scaling_search.training.trial import Epoch, Outcome, Pulse, Trial
from scaling_search.training.watchdog import STALL, watched

logger = logging.getLogger(__name__)

Train = Callable[[Trial, Dataset], Iterator[Epoch | Outcome | Pulse]]
Steps = Callable[[Trial, Dataset], Iterator[int]]  # images of one training step at each next()

BROKEN = 70  # exit status of a worker whose own code failed, or whose driver is gone
BEGUN, STOPPED = "begun", "stopped"  # a worker's words: it has taken up a run, it has stopped one


@dataclass(frozen=True, slots=True)
class Orders:
    """The orders under which a worker process starts. `train` is its work, `steps` what it does
    while trainings beside one another are measured; without a step in `stall` seconds it ends.
    `environment`: all its variables, of which the process that it was forked from may have others.
    `log_file`: where it writes its stderr, from `log_level` on its loggers too; None: to its
    parent's own."""

    train: Train = run
    steps: Steps = training_steps
    stall: float = STALL
    environment: dict[str, str] = field(default_factory=os.environ.copy)
    log_file: Path | None = None
    log_level: int = logging.WARNING


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The message to a worker before a measurement: the training to prepare."""

    trial: Trial


@dataclass(frozen=True, slots=True)
class Prepared:
    """A worker's answer: its training runs, and takes `peak` bytes."""

    peak: int


@dataclass(frozen=True, slots=True)
class Unprepared:
    """A worker's answer: it cannot train beside the others, and why."""

    reason: str


def work(connection: Connection, orders: Orders) -> None:
    """Answer what comes through `connection` until its other end closes: a Trial with `BEGUN`, its
    Epochs and its Outcome (or `STOPPED`), a Rehearsal with Prepared and then rates.

    A UserError is sent where every run would fail alike: a full disk, vanished data."""
    for s in (signal.SIGINT, signal.SIGTERM):
        signal.signal(s, signal.SIG_IGN)
    if orders.log_file is not None:
        stderr_into(orders.log_file)
        log_to_stderr(orders.log_level)
    os.environ.clear()
    os.environ.update(orders.environment)  # CUDA reads it when it starts, with the first trial
    # the collection after each run leaves out what was imported, some 0.15 s of it
    gc.freeze()
    end_with_parent(BROKEN)
    open_data: dict[str, Dataset] = {}
    try:
        while True:
            message: Trial | Rehearsal | None = connection.recv()
            if message is None:  # told to stop just after the run had ended
                continue
            with watched(orders.stall):
                if isinstance(message, Rehearsal):
                    rehearse(connection, message.trial, open_data, orders.steps)
                else:
                    _train(connection, message, open_data, orders.train)
    except (EOFError, BrokenPipeError):
        return
    except BaseException:
        with suppress(OSError):  # stderr is a file, whose disk may be full
            traceback.print_exc()
        os._exit(BROKEN)


def _opened(trial: Trial, open_data: dict[str, Dataset]) -> Dataset:
    if trial.data_folder not in open_data:
        open_data[trial.data_folder] = Dataset.open(Path(trial.data_folder))
    return open_data[trial.data_folder]


def _train(
    connection: Connection, trial: Trial, open_data: dict[str, Dataset], train: Train
) -> None:
    connection.send(BEGUN)
    try:
        events = train(trial, _opened(trial, open_data))
        for event in events:
            if not isinstance(event, Pulse):
                connection.send(event)
            elif connection.poll():  # the driver wants something else: to stop, or it is gone
                connection.recv()
                # a generator: it writes its checkpoint
                events.close()  # type: ignore[attr-defined]
                connection.send(STOPPED)
                return
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        # a full disk, vanished data: every run would fail alike
        logger.error("run %s stops the study", trial.key, exc_info=True)
        connection.send(
            UserError(f"training stopped: {error}; mend it, and the same command goes on")
        )


def rehearse(
    connection: Connection, trial: Trial, open_data: dict[str, Dataset], steps: Steps
) -> None:
    """Prepare a training and tell the driver; then train for a while whenever it asks, and answer
    with the images a second, until it says None."""
    device = torch.device(trial.device)
    try:
        training = steps(trial, _opened(trial, open_data))
        warm_up(training, device)
        if cuda.process_is_spoiled():  # its rate is that of eager steps, and no run should follow
            connection.send(Unprepared("its step was not captured"))
        else:
            connection.send(Prepared(memory.peak(device)))
            for seconds in iter(connection.recv, None):
                connection.send(images_per_second(training, device, seconds, MARGIN))
        if isinstance(training, Generator):
            training.close()
    except (EOFError, BrokenPipeError):
        raise
    except Exception as error:  # whatever it is, a run that meets it has the same as its outcome
        connection.send(Unprepared(_reason(error)))
    finally:
        training = None  # type: ignore[assignment]  # it holds the device's memory
        memory.release()


def _reason(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "out of memory"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
