"""One run: (network, recipe, seed, epochs) → metrics of each epoch, and how it ended.

A run of the recipe's linear schedule can be continued: its learning rate warms up, stays constant
and falls to zero at the end, so that a longer run goes on from the checkpoint before the decay as
if it had been that long from the start, bit for bit on the CPU. All randomness is drawn from (seed,
pass over the images) or (seed, step), so no checkpoint has to hold the state of a generator.
"""

from __future__ import annotations

import logging
import math
import platform
import time
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from effnet.cost import training_memory
from effnet.messages import first_line
from scaling_search import UserError
from scaling_search.data.dataset import Dataset
from scaling_search.training import checkpoint, memory
from scaling_search.training.evaluation import Evaluation, evaluate, measure
from scaling_search.training.preparation import Ready, on_device, prepare
from scaling_search.training.schedule import decay_start, learning_rate
from scaling_search.training.step import Step, precision_on
from scaling_search.training.trial import Epoch, Outcome, Pulse, Status, Trial, inside
from scaling_search.training.watchdog import alive

logger = logging.getLogger(__name__)

_PULSE = 0.5  # s between two moments at which a run can be stopped
_DENSE = 32  # steps between two of an epoch's recorded training losses


@dataclass
class _Totals:
    """Running totals of one training. Its clocks go on from where a stopped run left off."""

    device: torch.device
    epochs: list[Epoch] = field(default_factory=list)
    trained_seconds: float = 0.0  # of the steps that are timed, evaluation not counted
    trained_images: int = 0  # in them
    eager: str = ""  # why steps on CUDA were not captured
    kernels: str = ""
    _seconds_before: float = 0.0  # of the run's earlier sessions
    _began: float = field(default_factory=time.perf_counter)
    _epoch_began: float = 0.0
    _timed_since: float = 0.0
    _timed_images: int = 0  # since then

    def seconds(self) -> float:
        """The seconds of training and evaluation, interruptions not counted."""
        return self._seconds_before + time.perf_counter() - self._began

    def exceed(self, deadline: float | None) -> bool:
        """Whether the run has had the seconds of its deadline, those before a stop included."""
        if deadline is None:
            return False
        seconds = self.seconds()
        if self._seconds_before >= deadline:
            # It had timed out and was set free on purpose (--retry-failed), by whoever expects this
            # attempt to be faster: counted from its first second, it would time out at once.
            seconds -= self._seconds_before
        return seconds > deadline

    def begin_epoch(self) -> None:
        """An epoch, or what a stopped run has left of one, begins now."""
        self._epoch_began = time.perf_counter()
        self.restart_timing()

    def restart_timing(self) -> None:
        """Do not count the epoch's steps until now in the rate."""
        self._timed_since = time.perf_counter()
        self._timed_images = 0

    def count(self, images: int) -> None:
        """A step on so many images was taken."""
        self._timed_images += images

    def end_steps(self) -> None:
        """The epoch's steps are done, and waited for; its evaluation comes next."""
        self.trained_seconds, self.trained_images = self._trained()
        self._timed_images = 0

    def end_epoch(
        self, train_loss: float, losses: tuple[float, ...], evaluation: Evaluation
    ) -> Epoch:
        """Return the epoch, after its evaluation, and keep it."""
        epoch = Epoch(
            epoch=len(self.epochs) + 1,
            train_loss=train_loss,
            val_loss=evaluation.loss,
            val_acc=evaluation.accuracy,
            seconds=time.perf_counter() - self._epoch_began,
            losses=losses,
        )
        self.epochs.append(epoch)
        return epoch

    def _trained(self) -> tuple[float, int]:
        """`trained_seconds` and `trained_images`, with those of the epoch in progress."""
        if not self._timed_images:
            return self.trained_seconds, self.trained_images
        seconds = self.trained_seconds + time.perf_counter() - self._timed_since
        return seconds, self.trained_images + self._timed_images

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        trained_seconds, trained_images = self._trained()
        return {
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "seconds": self.seconds(),
            "trained_seconds": trained_seconds,
            "trained_images": trained_images,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.epochs = [Epoch.from_dict(epoch) for epoch in state["epochs"]]
        self._seconds_before = state["seconds"]
        self.trained_seconds = state["trained_seconds"]
        self.trained_images = state["trained_images"]

    def outcome(
        self,
        status: Status,
        note: str = "",
        evaluation: Evaluation | None = None,
        test_acc: float | None = None,
        error: BaseException | None = None,
    ) -> Outcome:
        """Return how the run ended; `error` is what ended it, where something was raised."""
        notes = [note] if note else []
        if self.eager:
            notes.append(f"steps ran eagerly, not captured: {self.eager}")
        rate = 0.0
        if self.trained_seconds:
            rate = self.trained_images / self.trained_seconds
        return Outcome(
            status=status,
            epochs=tuple(self.epochs),
            right=evaluation.right if evaluation else "",
            effective_images=evaluation.effective_images if evaluation else 0,
            test_acc=test_acc,
            seconds=self.seconds(),
            images_per_s=rate,
            peak_memory=memory.peak(self.device),
            versions=versions(self.kernels),
            note="; ".join(notes),
            eager=self.eager,
            traceback="".join(traceback.format_exception(error)) if error is not None else "",
        )


def run(trial: Trial, data: Dataset) -> Generator[Epoch | Outcome | Pulse, None, None]:
    """Train, yielding each Epoch as it ends and the Outcome last; goes on from the newest
    checkpoint that fits.

    In between it yields Pulses, twice a second: closed at one of them, it writes a checkpoint of
    the step that it has come to.

    Divergence, lack of memory, a deadline and crashes are outcomes, not exceptions; nothing of the
    run stays in memory. Raises OSError when a checkpoint cannot be written or the data cannot be
    read: that is the machine's failure, and no network's. Raises UserError where this process lacks
    the trial's kernels, or the run's checkpoint is of another release."""
    totals = _Totals(memory.activate(trial.device))
    try:
        memory.reset_peak(totals.device)
        with flushed_denormals():
            yield from _prepare_and_train(trial, data, totals)
    except (OSError, UserError):
        raise
    except Exception as error:  # a worker must outlive any one network
        if _is_lack_of_memory(error):
            yield totals.outcome("out-of-memory", _memory_note(trial, error), error=error)
        else:
            logger.info("run %s crashed: %s", trial.key, first_line(error, named=True))
            yield totals.outcome("crashed", first_line(error, named=True), error=error)
    finally:
        memory.release()


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Within, denormals count as zero; the caller's setting comes back. They slow a CPU many times
    over and change nothing in a training, but other code in the process may need them."""
    flushed_before = (torch.tensor(1e-39) * 1).item() == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed_before)


def _is_lack_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # torch's CPU allocator raises a plain RuntimeError: only its message tells
    return "can't allocate memory" in str(error)


def _memory_note(trial: Trial, error: Exception) -> str:
    recipe, precision = trial.recipe, precision_on(torch.device(trial.device))
    size = training_memory(trial.arch, recipe.batch, precision, recipe.optimizer_states)
    return f"a step at batch {recipe.batch} needs about {size / 2**30:.1f} GiB; {first_line(error)}"


def versions(kernels: str) -> dict[str, str]:
    """Return the versions that a run's numbers depend on; `kernels` as step.kernels names them."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "kernels": kernels,
    }


def _prepare_and_train(
    trial: Trial, data: Dataset, totals: _Totals
) -> Iterator[Epoch | Outcome | Pulse]:
    ready = prepare(trial, data)
    totals.kernels = ready.kernels
    try:
        yield from _Training(trial, data, ready, totals).events()
    finally:
        ready.batches.close()


class _Training:
    """A prepared run's steps, evaluations and checkpoints."""

    def __init__(self, trial: Trial, data: Dataset, ready: Ready, totals: _Totals) -> None:
        self._trial, self._data, self._ready, self._totals = trial, data, ready, totals
        self._step, self._batches = ready.step, ready.batches
        self._total = ready.batches.per_epoch * trial.epochs  # steps
        self._decay_start = decay_start(trial.recipe, self._total)
        self._own_checkpoint = inside(trial.folder, f"e{trial.epochs}.ckpt")
        # The epoch's sum of losses after every _DENSE steps of it, on the device: to look at one
        # would be to wait for its step.
        self._loss_sums: list[torch.Tensor] = []
        # shared by runs of all lengths, which are the same until their learning rates fall
        self._decay_checkpoint = inside(trial.folder, "before-decay.ckpt")

    def events(self) -> Iterator[Epoch | Outcome | Pulse]:
        """Train from the newest checkpoint on; the Outcome comes last."""
        trial, totals = self._trial, self._totals
        per_epoch = self._batches.per_epoch
        start = self._resume()
        evaluation: Evaluation | None = None
        last_pulse = time.perf_counter()
        for at in range(start, self._total):
            at_in_epoch = at % per_epoch
            if at_in_epoch == 0 or at == start:
                self._step.model.train()
                totals.begin_epoch()
            if at == self._decay_start:
                self._save(self._decay_checkpoint, at)
            if totals.exceed(trial.deadline):
                # so that another attempt goes on here, and knows that this one had its seconds
                self._save_if_possible(at)
                progress = f"at step {at} of {self._total}"
                yield totals.outcome(
                    "timeout", f"over its deadline of {trial.deadline:g} s {progress}"
                )
                return
            alive()
            if time.perf_counter() - last_pulse > _PULSE:
                yield from self._pulse(at)
                last_pulse = time.perf_counter()
            self._take_step(at)
            if (at_in_epoch + 1) % _DENSE == 0:
                self._loss_sums.append(self._step.loss_sum.clone())
            if at_in_epoch < per_epoch - 1:
                continue
            train_loss, losses = self._end_steps()
            if math.isfinite(train_loss):
                evaluation = evaluate(self._ready)
            if evaluation is None or not math.isfinite(train_loss + evaluation.loss):
                yield totals.outcome("diverged", f"loss not finite in epoch {at // per_epoch + 1}")
                return
            epoch = totals.end_epoch(train_loss, losses, evaluation)
            self._save(self._own_checkpoint, at + 1)
            if at + 1 == self._decay_start:
                # the schedule has no decay: a longer run goes on from this one's end
                self._save(self._decay_checkpoint, at + 1)
            yield epoch
        if evaluation is None:  # every step was taken in an earlier session
            evaluation = evaluate(self._ready)
        test_acc = self._test_accuracy() if trial.test else None
        yield totals.outcome("done", evaluation=evaluation, test_acc=test_acc)

    def _pulse(self, at: int) -> Iterator[Pulse]:
        """Yield a Pulse. Closed at it, write a checkpoint from which the run goes on at `at`."""
        try:
            yield Pulse()
        except GeneratorExit:
            self._save_if_possible(at)
            raise

    def _take_step(self, at: int) -> None:
        step, batches, recipe = self._step, self._batches, self._trial.recipe
        was_settled = step.settled
        batches.seek(at)
        step(batches.load, learning_rate(recipe, at, self._total, batches.per_epoch), at)
        self._totals.count(batches.size)
        if was_settled:
            return
        self._totals.eager = step.eager
        if step.settled:
            # steps until now, the capture included, say nothing of the network's speed
            memory.synchronize(self._totals.device)
            self._totals.restart_timing()

    def _end_steps(self) -> tuple[float, tuple[float, ...]]:
        """Wait for an epoch's last step; return the mean loss of the epoch's steps, and that of
        every _DENSE of them."""
        per_epoch, sums = self._batches.per_epoch, self._loss_sums
        if per_epoch % _DENSE:
            sums.append(self._step.loss_sum.clone())
        after = torch.stack(sums).tolist()
        steps = [min(_DENSE, per_epoch - start) for start in range(0, per_epoch, _DENSE)]
        losses: tuple[float, ...] = ()
        if len(after) == len(steps):  # not where a checkpoint of an earlier release lacked them
            losses = tuple((np.diff(after, prepend=0.0) / steps).tolist())
        self._step.loss_sum.zero_()
        self._loss_sums = []
        self._totals.end_steps()
        return after[-1] / per_epoch, losses

    def _test_accuracy(self) -> float:
        data, trial = self._data, self._trial
        count = len(data.test_labels)
        at = _evenly(count, count if trial.test_images is None else trial.test_images)
        with self._step.averaged():
            images, labels = on_device(
                data.test_images, data.test_labels, at, trial.arch.sides, self._totals.device
            )
            return measure(self._step, images, labels, trial.metric).accuracy

    # ---- checkpoints

    def _save(self, path: str, at: int) -> None:
        """Write a checkpoint from which the run goes on at step `at`."""
        state = {
            "step": at,
            **self._step.state(),
            "loss_sum": self._step.loss_sum.item(),
            "loss_sums": [loss_sum.item() for loss_sum in self._loss_sums],
            **self._totals.state(),
        }
        checkpoint.save(path, state)

    def _save_if_possible(self, at: int) -> None:
        """Write the run's own checkpoint in the middle of an epoch. Without memory for a copy of
        the weights, the run goes on from its last epoch."""
        try:
            self._save(self._own_checkpoint, at)
        except (RuntimeError, MemoryError) as error:
            logger.info("run %s: no checkpoint at step %d: %s", self._trial.key, at, error)

    def _resume(self) -> int:
        """Load the newest checkpoint that a run of this length passes through, if any, and return
        the step at which it goes on.

        That is its own, or another length's from before the decay. A damaged one counts as absent.
        Raises UserError where it is not a state of this network and recipe as this release has
        them."""
        newest: dict[str, Any] | None = None
        newest_path, newest_step = "", 0
        for path in (self._own_checkpoint, self._decay_checkpoint):
            try:
                state = checkpoint.load(path)
            except checkpoint.DamagedError as error:
                logger.warning("%s; it counts as absent", error)
                continue
            if state is None:
                continue
            step = state.get("step", 0)
            if path == self._decay_checkpoint and step > self._decay_start:
                continue  # of a longer run, which was at its full rate for longer than this one is
            if newest is None or step > newest_step:
                newest, newest_path, newest_step = state, path, step
        if newest is None:
            return 0
        try:
            at = _load(newest, self._step, self._totals)
            sums = newest.get("loss_sums", [])
            self._loss_sums = list(torch.tensor(sums, device=self._step.device))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "loading state_dict" not in str(error):
                raise  # the device's: out of memory, for instance
            raise UserError(
                f"checkpoint {newest_path}: of another release ({first_line(error, True)}); "
                "delete it, and the run begins anew"
            ) from error
        logger.info("run %s goes on at step %d of %d", self._trial.key, at, self._total)
        return at


def _load(state: dict[str, Any], step: Step, totals: _Totals) -> int:
    """Restore a checkpoint's state; return the step at which the run goes on."""
    step.load(state)
    step.loss_sum.fill_(state["loss_sum"])
    totals.load(state)
    at: int = state["step"]
    return at


def _evenly(count: int, limit: int) -> NDArray[np.int64]:
    """Return `limit` of the indices below `count`, or all of them, evenly spaced: a split may be
    sorted by class."""
    wanted = min(count, limit)
    return np.arange(wanted) * count // wanted
