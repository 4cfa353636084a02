"""One run: (network, recipe, seed, epochs) → metrics per epoch. Needs torch and numpy alone.

The learning rate warms up, stays constant and falls linearly to zero over the last fifth, because a
run of this schedule can be continued: from the checkpoint before the decay, a longer run goes on as
if it had been that long from the start, bit for bit on the CPU. All randomness is drawn from
(seed, epoch) or (seed, step), so nothing random needs to be stored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import platform
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import effnet
from effnet import Arch
from scaling_search import checkpoint
from scaling_search.data import Dataset, augmented, epoch_order, normalised, resized, split

Status = Literal["done", "pruned", "diverged", "out-of-memory", "crashed", "timeout"]
DECAY = 0.2  # of all steps


@dataclass(frozen=True, slots=True)
class Recipe:
    """How every network of a study is trained. `lr` is the constant phase's; `shift` is a fraction of
    the side; `bn_images` training images re-estimate the batch norms before each evaluation."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 4e-3
    batch: int = 32
    weight_decay: float = 0.05
    momentum: float = 0.9
    label_smoothing: float = 0.1
    warmup_steps: int = 32
    flip: bool = True
    shift: float = 0.1
    dropout: bool = False
    drop_path: float = 0.0
    bn_images: int = 1024


@dataclass(frozen=True, slots=True)
class Trial:
    """What travels to a worker. Everything but the folders, the test and `epochs` makes the run's key;
    runs that differ in epochs alone share a folder of checkpoints. Limits on images are None for all."""

    arch: Arch
    data_digest: str
    data_folder: str
    recipe: Recipe
    seed: int
    epochs: int
    train_images: int | None
    val_images: int | None
    device: str  # cpu, cuda or cuda:N
    threads: int
    checkpoints: str  # folder; the run's own lies inside
    test: bool = False  # also measure the test split: for finalists alone
    test_images: int | None = None

    @property
    def key(self) -> str:
        identity = [
            self.arch.key,
            self.data_digest,
            asdict(self.recipe),
            self.seed,
            self.train_images,
            self.val_images,
            self.device.split(":")[0],
            self.threads,
        ]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        return Path(self.checkpoints) / self.key

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` is its inverse."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {**fields, "arch": self.arch.as_dict(), "recipe": asdict(self.recipe)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Trial:
        return cls(**{**data, "arch": Arch.from_dict(data["arch"]), "recipe": Recipe(**data["recipe"])})


@dataclass(frozen=True, slots=True)
class Epoch:
    """Losses are mean cross-entropies (the training one with label smoothing); `seconds` of this epoch."""

    epoch: int
    train_loss: float
    val_loss: float
    val_acc: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `right` has one bit for each validation image, in the fold's order, as hex."""

    status: Status
    epochs: tuple[Epoch, ...] = ()
    right: str = ""
    test_acc: float | None = None
    seconds: float = 0.0  # of training and evaluation, interruptions not counted
    images_per_s: float = 0.0  # training images, evaluation not counted
    peak_memory: int = 0  # bytes: of the device on CUDA, of the worker process (its highest yet) on the CPU
    versions: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Outcome:
        return cls(**{**data, "epochs": tuple(Epoch(**e) for e in data["epochs"])})


def learning_rate(step: int, total: int, peak: float, warmup: int) -> float:
    """At `step` (from 0) of `total`, `warmup` steps up to `peak`. Before the decay it does not depend on `total`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    start = decay_start(total)
    return peak * (total - step) / (total - start + 1) if step >= start else peak


def decay_start(total: int) -> int:
    """The first step of the decay."""
    return total - max(1, round(DECAY * total))


def run(trial: Trial, data: Dataset) -> Iterator[Epoch | Outcome]:
    """Train, yielding each Epoch as it ends and the Outcome last; goes on from the newest checkpoint that fits.

    Divergence, lack of memory and crashes are outcomes, not exceptions. Raises OSError when a checkpoint cannot be
    written or the data cannot be read: that is the machine's failure, and no network's."""
    try:
        yield from _run(trial, data)
    except (torch.OutOfMemoryError, MemoryError) as error:
        yield Outcome("out-of-memory", note=_first_line(error), versions=versions())
    except OSError:
        raise
    except Exception as error:  # a worker must outlive any one network
        status: Status = (
            "out-of-memory" if "can't allocate memory" in str(error) else "crashed"
        )  # torch's CPU allocator
        yield Outcome(status, note=f"{type(error).__name__}: {_first_line(error)}", versions=versions())


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}


def _run(trial: Trial, data: Dataset) -> Iterator[Epoch | Outcome]:
    if data.digest != trial.data_digest:
        raise ValueError(f"data {data.folder} has digest {data.digest}, the trial wants {trial.data_digest}")
    recipe, device = trial.recipe, torch.device(trial.device)
    torch.set_num_threads(trial.threads)
    torch.set_flush_denormal(True)  # denormals slow a CPU many times over and change nothing
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    side = trial.arch.resolution
    train_at, val_at = split(data.train_hashes, trial.seed, trial.train_images, trial.val_images)
    images = resized(data.train_images[train_at], side).to(device)
    labels = torch.from_numpy(data.train_labels[train_at]).to(device)
    val_images = resized(data.train_images[val_at], side).to(device)
    val_labels = torch.from_numpy(data.train_labels[val_at]).to(device)

    # files often come sorted by class: the images that re-estimate batch norms are drawn at random
    drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(trial.seed))[: recipe.bn_images]
    bn_images = images[drawn.to(device)]

    batch = min(recipe.batch, len(labels))
    per_epoch = len(labels) // batch
    total = per_epoch * trial.epochs
    # on little data a warm-up may take half of the first epoch; a bound by `total` would forbid continuing
    warmup = min(recipe.warmup_steps, per_epoch // 2)
    torch.manual_seed(trial.seed)
    dropout = None if recipe.dropout else 0.0
    model = effnet.build(trial.arch, dropout=dropout, drop_path=recipe.drop_path)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(model, recipe)

    before = _resume(trial, total, model, optimizer)
    start, epochs = before["step"], [Epoch(**e) for e in before["epochs"]]
    seconds, trained_seconds = before["seconds"], before["trained_seconds"]
    shift = round(recipe.shift * side)
    loss_sum = torch.tensor(before["loss_sum"], device=device)  # of the epoch so far
    order: list[Tensor] = []
    evaluation: tuple[float, float, str] | None = None
    clock = epoch_clock = time.perf_counter()

    def state(step: int) -> dict[str, Any]:
        return {
            "step": step,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epochs": [asdict(e) for e in epochs],
            "loss_sum": loss_sum.item(),
            "seconds": seconds + time.perf_counter() - clock,
            "trained_seconds": trained_seconds + time.perf_counter() - epoch_clock,
        }

    for step in range(start, total):
        epoch, i = divmod(step, per_epoch)
        if i == 0 or step == start:
            model.train()
            order = list(epoch_order(len(labels), batch, trial.seed, epoch))
            epoch_clock = time.perf_counter()
        if step == decay_start(total):
            checkpoint.save(trial.folder / "before-decay.ckpt", state(step))
        torch.manual_seed((trial.seed << 32) + step + 1)
        at = order[i].to(device)
        x = normalised(augmented(images[at], recipe.flip, shift), data)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, total, recipe.lr, warmup)
        with _autocast(device):
            loss = F.cross_entropy(model(x), labels[at], label_smoothing=recipe.label_smoothing)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss_sum += loss.detach()
        if i == per_epoch - 1:
            train_loss = loss_sum.item() / per_epoch
            loss_sum.zero_()
            trained_seconds += time.perf_counter() - epoch_clock
            if math.isfinite(train_loss):
                evaluation = _evaluate(model, data, bn_images, val_images, val_labels)
            if not (math.isfinite(train_loss) and evaluation and math.isfinite(evaluation[0])):
                yield Outcome(
                    "diverged",
                    tuple(epochs),
                    seconds=seconds + time.perf_counter() - clock,
                    peak_memory=_peak_memory(device),
                    versions=versions(),
                    note=f"loss not finite in epoch {epoch + 1}",
                )
                return
            val_loss, val_acc, _ = evaluation
            done = Epoch(epoch + 1, train_loss, val_loss, val_acc, time.perf_counter() - epoch_clock)
            epochs.append(done)
            epoch_clock = time.perf_counter()
            checkpoint.save(trial.folder / f"e{trial.epochs}.ckpt", state(step + 1))
            yield done

    if evaluation is None:  # everything was trained before: only the measuring is left
        evaluation = _evaluate(model, data, bn_images, val_images, val_labels)
    test_acc = None
    if trial.test:
        count = len(data.test_labels)
        # evenly through the split, which may be sorted by class
        test_at = np.arange(count) if trial.test_images is None else _evenly(count, trial.test_images)
        test_images = resized(data.test_images[test_at], side).to(device)
        test_labels = torch.from_numpy(data.test_labels[test_at]).to(device)
        test_acc = _measure(model, data, test_images, test_labels)[1]
    yield Outcome(
        "done",
        tuple(epochs),
        evaluation[2],
        test_acc,
        seconds + time.perf_counter() - clock,
        total * batch / trained_seconds if trained_seconds else 0.0,
        _peak_memory(device),
        versions(),
    )


def _evenly(count: int, limit: int) -> NDArray[np.int64]:
    """`limit` of the indices below `count`, or all, evenly spaced."""
    wanted = min(count, limit)
    return np.arange(wanted) * count // wanted


def _autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bf16 on CUDA alone: on the CPU it is slower than fp32 here (facts.md section 6)."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Weight decay on matrices and kernels, not on norms and biases."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, fused=True)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=True, fused=True)


def _resume(trial: Trial, total: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load the newest checkpoint that a run of this length passes through; what it says beside the weights.

    Its own per-epoch one, or another length's from before the decay; a damaged one counts as absent."""
    best: dict[str, Any] | None = None
    for name in (f"e{trial.epochs}.ckpt", "before-decay.ckpt"):
        try:
            state = checkpoint.load(trial.folder / name)
        except checkpoint.DamagedError:
            continue
        if state is None or (name == "before-decay.ckpt" and state["step"] > decay_start(total)):
            continue
        if best is None or state["step"] > best["step"]:
            best = state
    if best is None:
        return {"step": 0, "epochs": [], "loss_sum": 0.0, "seconds": 0.0, "trained_seconds": 0.0}
    model.load_state_dict(best["model"])
    optimizer.load_state_dict(best["optimizer"])
    return best


def _evaluate(
    model: nn.Module, data: Dataset, bn_images: Tensor, images: Tensor, labels: Tensor
) -> tuple[float, float, str]:
    """(loss, accuracy, right bits) after re-estimating every batch norm on plain training images.

    Running averages lag behind weights that still move fast: without this, short runs of deep
    networks look far worse than they are (facts.md section 6)."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, momentum = None, norm.momentum  # None: a plain average over the batches
        norm.train()
    with torch.no_grad(), _autocast(bn_images.device):
        first, *rest = bn_images.split(256)
        for chunk in (first, *rest):
            if len(chunk) == len(first):  # the average counts every batch alike: a short last one would weigh too much
                model(normalised(chunk, data))
    for norm in norms:
        norm.momentum = momentum
    return _measure(model, data, images, labels)


def _measure(model: nn.Module, data: Dataset, images: Tensor, labels: Tensor) -> tuple[float, float, str]:
    """(mean cross-entropy, accuracy, right bits as hex)."""
    model.eval()
    logits = []
    with torch.no_grad(), _autocast(images.device):
        for chunk in images.split(256):
            logits.append(model(normalised(chunk, data)).float())
    scores = torch.cat(logits)
    right = scores.argmax(1) == labels
    bits = np.packbits(right.cpu().numpy()).tobytes().hex()
    return F.cross_entropy(scores, labels).item(), right.float().mean().item(), bits


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes there, KiB elsewhere
