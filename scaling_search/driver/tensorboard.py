"""A log of a study's runs for TensorBoard: a folder with one event file for each run.

The driver writes it from what the store has recorded, so it is the same whatever the executor.
While a run is in progress its file grows by an epoch at a time. Once it has ended, the file is
written again, whole: a run that was interrupted, or started again, has every epoch in it once.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling_search import UserError
from scaling_search.results.record import Record
from scaling_search.training.recipe import Recipe
from scaling_search.training.schedule import learning_rate
from scaling_search.training.trial import Epoch

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"  # in a run folder
_IN_PROGRESS = ".running"  # how the name of an unfinished file ends
# Steps of an epoch for the learning rate at its end, which depends on their number in its last
# digits alone.
_STEPS = 1000

logger = logging.getLogger(__name__)


def check_installed() -> None:
    """Raise UserError where TensorBoard cannot be written for: before anything is trained."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError("--log tensorboard: tensorboard is not installed; pip install tensorboard")


class TensorBoardLog:
    """Writes what a Store tells it (store.Listener). To be closed.

    A log that cannot be written ends nothing: it stops, and the study's log says why."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self._folder, self._recipe = folder / FOLDER, recipe
        self._writers: dict[tuple[str, int, int], SummaryWriter] = {}  # of runs in progress
        self._stopped = False

    def catch_up(self, records: Iterable[Record]) -> None:
        """Write the runs that have ended and are not in the log: of sessions without one, or whose
        driver was killed in between."""
        for record in records:
            if record.outcome is not None and not _is_whole(self._folder / _name(record)):
                self.ended(record)

    def epoch(self, record: Record, epoch: Epoch) -> None:
        """A run in progress has reported an epoch."""
        self._unless_stopped(lambda: self._add_to_running(record, epoch))

    def ended(self, record: Record) -> None:
        """A run has ended, and its outcome is recorded."""
        self._unless_stopped(lambda: self._write_whole(record))

    def close(self) -> None:
        """Close the files of runs in progress."""
        for writer in self._writers.values():
            self._unless_stopped(writer.close)
        self._writers.clear()

    def _unless_stopped(self, write: Callable[[], None]) -> None:
        if self._stopped:
            return
        try:
            write()
        except OSError as error:
            self._stopped = True
            logger.error("the log for TensorBoard ends here: %s", error)

    def _add_to_running(self, record: Record, epoch: Epoch) -> None:
        writer = self._writers.get(record.key)
        if writer is None:
            folder = self._folder / _name(record)
            if _is_whole(folder):  # of an attempt that failed
                shutil.rmtree(folder)
            writer = _open(folder, record, filename_suffix=_IN_PROGRESS)
            self._writers[record.key] = writer
        self._add(writer, record, epoch, time.time())
        writer.flush()

    def _write_whole(self, record: Record) -> None:
        assert record.outcome is not None
        running = self._writers.pop(record.key, None)
        if running is not None:
            running.close()
        folder = self._folder / _name(record)
        shutil.rmtree(folder, ignore_errors=True)
        # step 0 again: a TensorBoard that is open drops what it has read of the run
        writer = _open(folder, record, purge_step=0)
        moment = time.time() - sum(epoch.seconds for epoch in record.outcome.epochs)
        for epoch in record.outcome.epochs:
            moment += epoch.seconds
            self._add(writer, record, epoch, moment)
        writer.close()

    def _add(self, writer: SummaryWriter, record: Record, epoch: Epoch, moment: float) -> None:
        """Add an epoch's scalars. `moment`: seconds since 1970 at which it ended."""
        last_step = epoch.epoch * _STEPS - 1
        values = {
            "loss/train": epoch.train_loss,
            "loss/val": epoch.val_loss,
            "accuracy/val": epoch.val_acc,
            "lr": learning_rate(self._recipe, last_step, record.epochs * _STEPS, _STEPS),
        }
        for name, value in values.items():
            writer.add_scalar(name, value, epoch.epoch, walltime=moment)


def _name(record: Record) -> str:
    """The name of a run's folder: no two runs have the same."""
    label = re.sub(r"[^\w.]+", "-", record.candidate.label).strip(".-")
    network, seed, epochs = record.key
    return f"{label}-{network}-seed{seed}-epochs{epochs}"


def _is_whole(folder: Path) -> bool:
    """Whether the file of a run that has ended is there, and nothing else."""
    files = list(folder.glob("events.out.tfevents.*"))
    return len(files) == 1 and not files[0].name.endswith(_IN_PROGRESS)


def _open(folder: Path, record: Record, **options: Any) -> SummaryWriter:
    """A new event file, which says what is trained: TensorBoard's page HPARAMS compares by that."""
    # not before it is wanted: takes a second, and tensorboard may not be installed
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    candidate = record.candidate
    settings: dict[str, Any] = {
        "network": candidate.label,
        "role": candidate.role,
        "alpha": candidate.alpha,
        "beta": candidate.beta,
        "gamma": candidate.gamma,
        "resolution": candidate.arch.resolution,
        "macs": candidate.cost.macs,
        "params": candidate.cost.params,
        "seed": record.seed,
        "epochs": record.epochs,
    }
    writer = SummaryWriter(str(folder), **options)
    assert writer.file_writer is not None  # until it is closed
    for summary in hparams(settings, {"accuracy/val": 0.0}):
        writer.file_writer.add_summary(summary)
    return writer
