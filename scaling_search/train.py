"""One run: (network, recipe, seed, epochs) → metrics per epoch. Needs torch and numpy alone.

The learning rate warms up, stays constant and falls linearly to zero over the last fifth, because a
run of this schedule can be continued: from the checkpoint before the decay, a longer run goes on as
if it had been that long from the start, bit for bit on the CPU. All randomness is drawn from
(seed, epoch) or (seed, step), so nothing random needs to be stored.
"""

from __future__ import annotations

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
from scaling_search import checkpoint, memory
from scaling_search.data import Dataset, Images, Normalise, augmented, epoch_order, mirrored, split
from scaling_search.recipe import Recipe
from scaling_search.step import Step, kernels
from scaling_search.trial import Epoch, Outcome, Pulse, Status, Trial, inside
from scaling_search.watchdog import alive

_EVAL_BATCH = {"cpu": 256, "cuda": 1024}  # images
_PULSE = 0.5  # s between two moments at which a run can be stopped


@dataclass
class _Account:
    """What a run has come to, whatever ends it. Clocks start where a stopped run left off."""

    device: torch.device
    epochs: list[Epoch] = field(default_factory=list)
    seconds: float = 0.0
    trained_seconds: float = 0.0
    trained_images: int = 0
    begun: float = field(default_factory=time.perf_counter)

    def total(self) -> float:
        return self.seconds + time.perf_counter() - self.begun

    def outcome(self, status: Status, note: str = "", right: str = "", test_acc: float | None = None) -> Outcome:
        rate = self.trained_images / self.trained_seconds if self.trained_seconds else 0.0
        return Outcome(
            status, tuple(self.epochs), right, test_acc, self.total(), rate, memory.peak(self.device), versions(), note
        )


def run(trial: Trial, data: Dataset) -> Iterator[Epoch | Outcome | Pulse]:
    """Train, yielding each Epoch as it ends and the Outcome last; goes on from the newest checkpoint that fits.

    In between it yields Pulses, twice a second: closed at one of them, it writes a checkpoint of the step
    that it has come to.

    Divergence, lack of memory, a deadline and crashes are outcomes, not exceptions; nothing of the run stays in
    memory. Raises OSError when a checkpoint cannot be written or the data cannot be read: that is the machine's
    failure, and no network's."""
    account = _Account(torch.device(trial.device))
    try:
        memory.reset_peak(account.device)
        with flushed_denormals():
            yield from _run(trial, data, account)
    except (torch.OutOfMemoryError, MemoryError) as error:
        yield account.outcome("out-of-memory", _needed(trial, error))
    except OSError:
        raise
    except Exception as error:  # a worker must outlive any one network
        if "can't allocate memory" in str(error):  # torch's CPU allocator
            yield account.outcome("out-of-memory", _needed(trial, error))
        else:
            yield account.outcome("crashed", f"{type(error).__name__}: {_first_line(error)}")
    finally:
        memory.release()


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Denormals count as zero, and the caller's setting comes back: they slow a CPU many times over and change
    nothing in a training, but other code in the process may need them."""
    flushed = (torch.tensor(1e-39) * 1).item() == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def _needed(trial: Trial, error: BaseException) -> str:
    batch, states = trial.recipe.batch, 1 if trial.recipe.optimizer == "sgd" else 2
    size = training_memory(trial.arch, batch, "bf16" if trial.device.startswith("cuda") else "fp32", states)
    return f"a step at batch {batch} needs about {size / 2**30:.1f} GiB; {_first_line(error)}"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return {**found, "kernels": kernels()}


class Augment:
    """A recipe's augmentation of a batch: whole tensors at a time, but for RandAugment."""

    def __init__(self, recipe: Recipe, side: int, count: int, seed: int) -> None:
        self._recipe, self._count, self._seed = recipe, count, seed
        self._shift, self._cutout = round(recipe.shift * side), round(recipe.cutout * side)
        self._mirrored: tuple[int, Tensor] = (-1, torch.empty(0))
        self._policy: Any = None
        if recipe.randaugment:
            from torchvision.transforms.v2 import RandAugment

            self._policy = RandAugment()

    def __call__(self, images: Tensor, index: Tensor, epoch: int) -> Tensor:
        """uint8 images [n, c, s, s], the training images `index`, in this epoch."""
        if self._mirrored[0] != epoch:
            self._mirrored = (epoch, mirrored(self._count, self._seed, epoch))
        mirror = self._mirrored[1][index] if self._recipe.flip else None
        images = augmented(images, mirror, self._shift, self._cutout)
        if self._policy is not None:
            images = torch.stack([self._policy(image) for image in images])
        return images


@dataclass(frozen=True, slots=True)
class Ready:
    """A run's images on its device, its network and optimizer: all that comes before the first step."""

    images: Images
    labels: Tensor
    val_images: Images
    val_labels: Tensor
    bn_images: Tensor
    batch: int
    step: Step
    augment: Augment


def prepare(trial: Trial, data: Dataset) -> Ready:
    """Raises ValueError for other data than the trial's."""
    if data.digest != trial.data_digest:
        raise ValueError(f"data {data.folder} has digest {data.digest}, the trial wants {trial.data_digest}")
    recipe, device, side = trial.recipe, torch.device(trial.device), trial.arch.resolution
    torch.set_num_threads(trial.threads)
    memory.keep_freed_pages()
    train_at, val_at = split(data.train_hashes, trial.seed, trial.train_images, trial.val_images)
    images, labels = _part(data.train_images, data.train_labels, train_at, side, device)
    val_images, val_labels = _part(data.train_images, data.train_labels, val_at, side, device)
    # files often come sorted by class: the images that re-estimate batch norms are drawn at random
    drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(trial.seed))[: recipe.bn_images]
    torch.manual_seed(trial.seed)
    model = effnet.build(trial.arch, dropout=None if recipe.dropout else 0.0, drop_path=recipe.drop_path)
    step = Step(model, recipe, device, Normalise(data, device), trial.compile)
    augment = Augment(recipe, side, len(labels), trial.seed)
    batch = min(recipe.batch, len(labels))
    return Ready(images, labels, val_images, val_labels, images[drawn], batch, step, augment)


def _run(trial: Trial, data: Dataset, account: _Account) -> Iterator[Epoch | Outcome | Pulse]:
    ready, recipe, device = prepare(trial, data), trial.recipe, account.device
    step, labels, batch = ready.step, ready.labels, ready.batch
    per_epoch = len(labels) // batch
    total = per_epoch * trial.epochs
    start = _resume(trial, total, step, account)
    order: list[Tensor] = []
    evaluation: tuple[float, float, str] | None = None
    clock = time.perf_counter()
    pulse = time.perf_counter()

    def state(at: int) -> dict[str, Any]:
        return {
            "step": at,
            **step.state(),
            "epochs": [asdict(e) for e in account.epochs],
            "loss_sum": step.loss_sum.item(),
            "seconds": account.total(),
            "trained_seconds": account.trained_seconds + (time.perf_counter() - clock if at % per_epoch else 0.0),
        }

    for at in range(start, total):
        epoch, i = divmod(at, per_epoch)
        if i == 0 or at == start:
            step.model.train()
            order = list(epoch_order(len(labels), batch, trial.seed, epoch))
            clock = time.perf_counter()
        if at == recipe.decay_start(total):
            checkpoint.save(inside(trial.folder, "before-decay.ckpt"), state(at))
        if trial.deadline is not None and account.total() > trial.deadline:
            yield account.outcome("timeout", f"over its deadline of {trial.deadline:g} s at step {at} of {total}")
            return
        alive()
        if time.perf_counter() - pulse > _PULSE:
            try:
                yield Pulse()
            except GeneratorExit:
                with suppress(RuntimeError, MemoryError):  # no memory for it: the run goes on from its last epoch
                    checkpoint.save(inside(trial.folder, f"e{trial.epochs}.ckpt"), state(at))
                raise
            pulse = time.perf_counter()
        torch.manual_seed((trial.seed << 32) + at + 1)
        x = ready.augment(ready.images[order[i]], order[i], epoch)
        step(x, labels[order[i].to(device)], recipe.rate(at, total, per_epoch), at)
        account.trained_images = (at + 1) * batch
        if i == per_epoch - 1:
            train_loss = step.loss_sum.item() / per_epoch
            step.loss_sum.zero_()
            now = time.perf_counter()
            account.trained_seconds += now - clock
            if math.isfinite(train_loss):
                evaluation = evaluate(ready)
            if not (math.isfinite(train_loss) and evaluation and math.isfinite(evaluation[0])):
                yield account.outcome("diverged", f"loss not finite in epoch {epoch + 1}")
                return
            val_loss, val_acc, _ = evaluation
            done = Epoch(epoch + 1, train_loss, val_loss, val_acc, time.perf_counter() - clock)
            account.epochs.append(done)
            checkpoint.save(inside(trial.folder, f"e{trial.epochs}.ckpt"), state(at + 1))
            if at + 1 == recipe.decay_start(total):  # no decay: a longer run goes on from here
                checkpoint.save(inside(trial.folder, "before-decay.ckpt"), state(at + 1))
            yield done

    account.trained_images = total * batch
    if evaluation is None:  # everything was trained before: only the measuring is left
        evaluation = evaluate(ready)
    test_acc = None
    if trial.test:
        count = len(data.test_labels)
        # evenly through the split, which may be sorted by class
        test_at = np.arange(count) if trial.test_images is None else _evenly(count, trial.test_images)
        with step.averaged():
            part = _part(data.test_images, data.test_labels, test_at, trial.arch.resolution, device)
            test_acc = _measure(step, *part)[1]
    yield account.outcome("done", right=evaluation[2], test_acc=test_acc)


def _part(
    images: NDArray[np.uint8], labels: NDArray[np.int64], at: NDArray[np.int64], side: int, device: torch.device
) -> tuple[Images, Tensor]:
    return Images(images, at, side, device), torch.from_numpy(labels[at]).to(device)


def _evenly(count: int, limit: int) -> NDArray[np.int64]:
    """`limit` of the indices below `count`, or all, evenly spaced."""
    wanted = min(count, limit)
    return np.arange(wanted) * count // wanted


def _resume(trial: Trial, total: int, step: Step, account: _Account) -> int:
    """Load the newest checkpoint that a run of this length passes through; the step it goes on from.

    Its own per-epoch one, or another length's from before the decay; a damaged one counts as absent."""
    best: dict[str, Any] | None = None
    for name in (f"e{trial.epochs}.ckpt", "before-decay.ckpt"):
        try:
            state = checkpoint.load(inside(trial.folder, name))
        except checkpoint.DamagedError:
            continue
        if state is None or (name == "before-decay.ckpt" and state["step"] > trial.recipe.decay_start(total)):
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
    return at


def evaluate(ready: Ready) -> tuple[float, float, str]:
    """(loss, accuracy, right bits) after re-estimating every batch norm on plain training images.

    Running averages lag behind weights that still move fast: without this, short runs of deep
    networks look far worse than they are (facts.md section 6)."""
    step = ready.step
    norms = step.norms()
    with step.averaged():
        step.model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum, momentum = None, norm.momentum  # None: a plain average over the batches
            norm.train()
        first, *rest = ready.bn_images.split(_EVAL_BATCH[step.device.type])
        for chunk in (first, *rest):
            alive()
            if len(chunk) == len(first):  # the average counts every batch alike: a short last one would weigh too much
                step.logits(chunk)
        for norm in norms:
            norm.momentum = momentum
        return _measure(step, ready.val_images, ready.val_labels)


def _measure(step: Step, images: Images, labels: Tensor) -> tuple[float, float, str]:
    """(mean cross-entropy, accuracy, right bits as hex)."""
    step.model.eval()
    found = []
    for chunk in images.batches(_EVAL_BATCH[step.device.type]):
        alive()
        found.append(step.logits(chunk))
    scores = torch.cat(found)
    right = scores.argmax(1) == labels
    bits = np.packbits(right.cpu().numpy()).tobytes().hex()
    return F.cross_entropy(scores, labels).item(), right.float().mean().item(), bits
