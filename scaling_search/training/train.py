"""One run: (network, recipe, seed, epochs) → metrics per epoch. Needs torch and numpy alone.

The learning rate warms up, stays constant and falls linearly to zero over the last fifth, because a
run of this schedule can be continued: from the checkpoint before the decay, a longer run goes on as
if it had been that long from the start, bit for bit on the CPU. All randomness is drawn from
(seed, epoch) or (seed, step), so nothing random needs to be stored.
"""

from __future__ import annotations

import itertools
import math
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

import effnet
from effnet.cost import training_memory
from effnet.messages import first_line
from effnet.nn.cuda import why_no_triton
from scaling_search import UserError
from scaling_search.data.dataset import Dataset, split
from scaling_search.data.images import Images, Normalise
from scaling_search.training import checkpoint, memory
from scaling_search.training.batches import Batches
from scaling_search.training.step import Step, kernels, precision_on, why_no_kernels
from scaling_search.training.trial import Epoch, Outcome, Pulse, Status, Trial, inside
from scaling_search.training.watchdog import alive

_EVAL_BATCH = 256  # images: more would take more memory on CUDA than a training step does
_PULSE = 0.5  # s between two moments at which a run can be stopped


@dataclass
class _Account:
    """What a run has come to, whatever ends it. Clocks start where a stopped run left off."""

    device: torch.device
    epochs: list[Epoch] = field(default_factory=list)
    seconds: float = 0.0
    trained_seconds: float = 0.0  # of the steps that are timed, evaluation not counted
    trained_images: int = 0  # in them
    eager: str = ""  # why steps on CUDA were not captured
    kernels: str = ""
    begun: float = field(default_factory=time.perf_counter)

    def total(self) -> float:
        return self.seconds + time.perf_counter() - self.begun

    def outcome(
        self, status: Status, note: str = "", right: str = "", test_acc: float | None = None
    ) -> Outcome:
        if self.eager:
            note = "; ".join(filter(None, [note, f"steps ran eagerly, not captured: {self.eager}"]))
        return Outcome(
            status=status,
            epochs=tuple(self.epochs),
            right=right,
            test_acc=test_acc,
            seconds=self.total(),
            images_per_s=self.trained_images / self.trained_seconds
            if self.trained_seconds
            else 0.0,
            peak_memory=memory.peak(self.device),
            versions=versions(self.kernels),
            note=note,
            eager=self.eager,
        )


def run(trial: Trial, data: Dataset) -> Iterator[Epoch | Outcome | Pulse]:
    """Train, yielding each Epoch as it ends and the Outcome last; goes on from the newest
    checkpoint that fits.

    In between it yields Pulses, twice a second: closed at one of them, it writes a checkpoint of
    the step that it has come to.

    Divergence, lack of memory, a deadline and crashes are outcomes, not exceptions; nothing of the
    run stays in memory. Raises OSError when a checkpoint cannot be written or the data cannot be
    read: that is the machine's failure, and no network's."""
    account = _Account(memory.activate(trial.device))
    try:
        memory.reset_peak(account.device)
        with flushed_denormals():
            yield from _run(trial, data, account)
    except (torch.OutOfMemoryError, MemoryError) as error:
        yield account.outcome("out-of-memory", _needed(trial, error))
    except (OSError, UserError):
        raise
    except Exception as error:  # a worker must outlive any one network
        if "can't allocate memory" in str(error):  # torch's CPU allocator
            yield account.outcome("out-of-memory", _needed(trial, error))
        else:
            yield account.outcome("crashed", first_line(error, named=True))
    finally:
        memory.release()


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Denormals count as zero, and the caller's setting comes back: they slow a CPU many times over
    and change nothing in a training, but other code in the process may need them."""
    flushed = (torch.tensor(1e-39) * 1).item() == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)


def _needed(trial: Trial, error: BaseException) -> str:
    batch, states = trial.recipe.batch, 1 if trial.recipe.optimizer == "sgd" else 2
    size = training_memory(trial.arch, batch, precision_on(torch.device(trial.device)), states)
    return f"a step at batch {batch} needs about {size / 2**30:.1f} GiB; {first_line(error)}"


def versions(kernels: str) -> dict[str, str]:
    """Of what a run's numbers depend on; `kernels` as step.kernels names them."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "kernels": kernels,
    }


@dataclass(frozen=True, slots=True)
class Ready:
    """A run's images on its device, its network and optimizer: all that comes before the first
    step.

    `norm_index`: the training images that re-estimate the batch norms."""

    images: Images
    labels: Tensor
    val_images: Images
    val_labels: Tensor
    norm_index: Tensor
    batches: Batches
    step: Step
    kernels: str


def prepare(trial: Trial, data: Dataset) -> Ready:
    """Raises ValueError for other data than the trial's, UserError for other kernels."""
    if data.digest != trial.data_digest:
        raise ValueError(
            f"data {data.folder} has digest {data.digest}, the trial wants {trial.data_digest}"
        )
    device = memory.activate(trial.device)
    kernels = _kernels_of(trial, device)
    recipe, side = trial.recipe, trial.arch.resolution
    torch.set_num_threads(trial.threads)
    memory.keep_freed_pages()
    train_at, val_at = split(data.train_hashes, trial.seed, trial.train_images, trial.val_images)
    images, labels = _part(data.train_images, data.train_labels, train_at, side, device)
    val_images, val_labels = _part(data.train_images, data.train_labels, val_at, side, device)
    # files often come sorted by class: the images that re-estimate batch norms are drawn at random
    drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(trial.seed))
    torch.manual_seed(trial.seed)
    model = effnet.build(
        trial.arch, dropout=None if recipe.dropout else 0.0, drop_path=recipe.drop_path
    )
    step = Step(
        model, recipe, device, Normalise(data, device), trial.compile, fused=kernels == "triton"
    )
    batches = Batches(images, labels, recipe, trial.seed)
    norm_index = drawn[: recipe.bn_images]
    return Ready(images, labels, val_images, val_labels, norm_index, batches, step, kernels)


def _kernels_of(trial: Trial, device: torch.device) -> str:
    """Those that the trial trains through: on CUDA plain modules unless it asks for others.

    Raises UserError where it asks for what this process does not have: other kernels give other
    bits, which are not to be mixed within a study."""
    available = kernels(device.type)
    wanted = trial.kernels or ("torch" if device.type == "cuda" else available)
    optional = device.type == "cuda" and wanted == "torch"
    if wanted != available and not optional:
        reason = why_no_triton() if device.type == "cuda" else why_no_kernels()
        raise UserError(
            f"{platform.node()}: the study trains through kernels of {wanted}, this machine has those of "
            f"{available}{f' ({reason})' if reason else ''}; install the same packages as where the study began"
        )
    return wanted


def training_steps(trial: Trial, data: Dataset) -> Iterator[int]:
    """Train without end or record, one step at each `next`, as a run does; the number of its
    images.

    For measurements: nothing is evaluated and nothing is written."""
    ready = prepare(trial, data)
    ready.step.model.train()
    batches = ready.batches
    warmed_up = max(trial.recipe.warmup(batches.per_epoch), 1)
    try:
        for at in itertools.count():
            batches.seek(at)
            ready.step(batches.load, trial.recipe.lr * min(1.0, (at + 1) / warmed_up), at)
            yield batches.size
    finally:
        batches.close()


def _run(trial: Trial, data: Dataset, account: _Account) -> Iterator[Epoch | Outcome | Pulse]:
    ready = prepare(trial, data)
    account.kernels = ready.kernels
    try:
        yield from _train(trial, data, ready, account)
    finally:
        ready.batches.close()


def _train(
    trial: Trial, data: Dataset, ready: Ready, account: _Account
) -> Iterator[Epoch | Outcome | Pulse]:
    recipe, device, step, batches = trial.recipe, account.device, ready.step, ready.batches
    per_epoch = batches.per_epoch
    total = per_epoch * trial.epochs
    start = _resume(trial, total, step, account)
    evaluation: tuple[float, float, str] | None = None
    epoch_began = timed_since = pulse = time.perf_counter()
    timed_images = 0  # since `timed_since`

    def state(at: int) -> dict[str, Any]:
        within = at % per_epoch > 0
        return {
            "step": at,
            **step.state(),
            "epochs": [asdict(e) for e in account.epochs],
            "loss_sum": step.loss_sum.item(),
            "seconds": account.total(),
            "trained_seconds": account.trained_seconds
            + (time.perf_counter() - timed_since if within else 0.0),
            "trained_images": account.trained_images + (timed_images if within else 0),
        }

    for at in range(start, total):
        epoch, i = divmod(at, per_epoch)
        if i == 0 or at == start:
            step.model.train()
            epoch_began = timed_since = time.perf_counter()
            timed_images = 0
        if at == recipe.decay_start(total):
            checkpoint.save(inside(trial.folder, "before-decay.ckpt"), state(at))
        if trial.deadline is not None and account.total() > trial.deadline:
            yield account.outcome(
                "timeout", f"over its deadline of {trial.deadline:g} s at step {at} of {total}"
            )
            return
        alive()
        if time.perf_counter() - pulse > _PULSE:
            try:
                yield Pulse()
            except GeneratorExit:
                with suppress(
                    RuntimeError, MemoryError
                ):  # no memory for it: the run goes on from its last epoch
                    checkpoint.save(inside(trial.folder, f"e{trial.epochs}.ckpt"), state(at))
                raise
            pulse = time.perf_counter()
        settled = step.settled
        batches.seek(at)
        step(batches.load, recipe.rate(at, total, per_epoch), at)
        timed_images += batches.size
        if not settled:
            account.eager = step.eager
            if (
                step.settled
            ):  # what came before, the capture included, says nothing of the network's speed
                memory.synchronize(device)
                timed_since, timed_images = time.perf_counter(), 0
        if i == per_epoch - 1:
            train_loss = step.loss_sum.item() / per_epoch
            step.loss_sum.zero_()
            account.trained_seconds += time.perf_counter() - timed_since
            account.trained_images += timed_images
            if math.isfinite(train_loss):
                evaluation = evaluate(ready)
            if not (math.isfinite(train_loss) and evaluation and math.isfinite(evaluation[0])):
                yield account.outcome("diverged", f"loss not finite in epoch {epoch + 1}")
                return
            val_loss, val_acc, _ = evaluation
            done = Epoch(
                epoch + 1, train_loss, val_loss, val_acc, time.perf_counter() - epoch_began
            )
            account.epochs.append(done)
            checkpoint.save(inside(trial.folder, f"e{trial.epochs}.ckpt"), state(at + 1))
            if at + 1 == recipe.decay_start(total):  # no decay: a longer run goes on from here
                checkpoint.save(inside(trial.folder, "before-decay.ckpt"), state(at + 1))
            yield done

    if evaluation is None:  # everything was trained before: only the measuring is left
        evaluation = evaluate(ready)
    test_acc = None
    if trial.test:
        count = len(data.test_labels)
        # evenly through the split, which may be sorted by class
        test_at = (
            np.arange(count) if trial.test_images is None else _evenly(count, trial.test_images)
        )
        with step.averaged():
            part = _part(data.test_images, data.test_labels, test_at, trial.arch.resolution, device)
            test_acc = _measure(step, *part)[1]
    yield account.outcome("done", right=evaluation[2], test_acc=test_acc)


def _part(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    at: NDArray[np.int64],
    side: int,
    device: torch.device,
) -> tuple[Images, Tensor]:
    return Images(images, at, side, device, alive), torch.from_numpy(labels[at]).to(device)


def _evenly(count: int, limit: int) -> NDArray[np.int64]:
    """`limit` of the indices below `count`, or all, evenly spaced."""
    wanted = min(count, limit)
    return np.arange(wanted) * count // wanted


def _resume(trial: Trial, total: int, step: Step, account: _Account) -> int:
    """Load the newest checkpoint that a run of this length passes through; the step it goes on
    from.

    Its own per-epoch one, or another length's from before the decay; a damaged one counts as
    absent."""
    best: dict[str, Any] | None = None
    for name in (f"e{trial.epochs}.ckpt", "before-decay.ckpt"):
        try:
            state = checkpoint.load(inside(trial.folder, name))
        except checkpoint.DamagedError:
            continue
        if state is None or (
            name == "before-decay.ckpt" and state["step"] > trial.recipe.decay_start(total)
        ):
            continue
        if best is None or state["step"] > best["step"]:
            best = state
    if best is None:
        return 0
    step.load(best)
    step.loss_sum.fill_(best["loss_sum"])
    account.epochs = [Epoch(**e) for e in best["epochs"]]
    account.seconds, account.trained_seconds = best["seconds"], best["trained_seconds"]
    at: int = best["step"]
    account.trained_images = best.get(
        "trained_images", at * min(trial.recipe.batch, trial.train_images or 10**9)
    )
    return at


def evaluate(ready: Ready) -> tuple[float, float, str]:
    """(loss, accuracy, right bits) after re-estimating every batch norm on plain training images.

    Running averages lag behind weights that still move fast: without this, short runs of deep
    networks look far worse than they are."""
    step = ready.step
    norms = step.norms()
    with step.averaged():
        step.model.eval()
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        first = min(_EVAL_BATCH, len(ready.norm_index))
        # the average counts every batch alike: a short last one would weigh too much
        whole = ready.norm_index[: len(ready.norm_index) // first * first]
        for number, chunk in enumerate(ready.images.batches(_EVAL_BATCH, whole), start=1):
            alive()
            for norm in norms:
                # a plain average over the batches, which torch's own (momentum None) asks the
                # device for
                norm.momentum = 1 / number
            step.logits(chunk)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        return _measure(step, ready.val_images, ready.val_labels)


def _measure(step: Step, images: Images, labels: Tensor) -> tuple[float, float, str]:
    """(mean cross-entropy, accuracy, right bits as hex)."""
    step.model.eval()
    logits = []
    for chunk in images.batches(_EVAL_BATCH):
        alive()
        logits.append(step.logits(chunk))
    scores = torch.cat(logits)
    right = scores.argmax(1) == labels
    bits = np.packbits(right.cpu().numpy()).tobytes().hex()
    return F.cross_entropy(scores, labels).item(), right.float().mean().item(), bits
