"""What travels to a worker, and what comes back."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from effnet import Arch
from scaling_search.training.recipe import Recipe

Status = Literal["done", "pruned", "diverged", "out-of-memory", "crashed", "timeout"]


def inside(folder: str, name: str) -> str:
    """A file or folder `name` in a folder or at an address, whose query (?region=...) stays at the
    end."""
    path, mark, query = folder.partition("?") if "://" in folder else (folder, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


@dataclass(frozen=True, slots=True)
class Trial:
    """Everything but the folders, the test, the deadline and `epochs` makes the run's key; runs
    that differ in epochs alone share a folder of checkpoints. Limits on images are None for all."""

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
    checkpoints: str  # folder or address; the run's own folder lies inside
    test: bool = False  # also measure the test split: for finalists alone
    test_images: int | None = None
    compile: bool = False  # torch.compile: on CUDA, for runs long enough to pay for it
    deadline: float | None = None  # seconds of training and evaluation
    kernels: str = (
        ""  # that it must train through (step.kernels); "": numba's where they are, on CUDA torch's
    )

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
            *(["compile"] if self.compile else []),
            *([self.kernels] if self.kernels not in ("", self._usual_kernels) else []),
        ]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    @property
    def _usual_kernels(self) -> str:
        """Those that a key does not name, so that checkpoints of before it knew of them are still
        its own."""
        return "numba" if self.device == "cpu" else "torch"

    @property
    def folder(self) -> str:
        """Of its checkpoints: a path, or an address such as s3://bucket/path."""
        return inside(self.checkpoints, self.key)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` is its inverse."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {**fields, "arch": self.arch.as_dict(), "recipe": asdict(self.recipe)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Trial:
        return cls(
            **{**data, "arch": Arch.from_dict(data["arch"]), "recipe": Recipe(**data["recipe"])}
        )


@dataclass(frozen=True, slots=True)
class Epoch:
    """Losses are mean cross-entropies (the training one with label smoothing); `seconds` of this
    epoch."""

    epoch: int
    train_loss: float
    val_loss: float
    val_acc: float
    seconds: float


class Pulse:
    """A run is alive, between two steps: the moment at which it can be stopped, with its checkpoint
    written."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `right` has one bit for each validation image, in the fold's order, as
    hex."""

    status: Status
    epochs: tuple[Epoch, ...] = ()
    right: str = ""
    test_acc: float | None = None
    seconds: float = 0.0  # of training and evaluation, interruptions not counted
    images_per_s: float = 0.0  # training images, evaluation not counted
    # bytes, of this run: taken from a CUDA device, the worker process's resident set on the CPU
    peak_memory: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    note: str = ""
    eager: str = ""  # why steps on CUDA were not captured
    traceback: str = ""  # of what the run raised, whole: for the study's log, not for its store

    @property
    def spoils_its_process(self) -> bool:
        """Whether the process that trained it is not to be used again: what broke a run, or the
        capture of its steps, may have broken the process too, a CUDA context above all."""
        return self.status == "crashed" or bool(self.eager)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the store, without the traceback."""
        fields = asdict(self)
        del fields["traceback"]
        return fields

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Outcome:
        return cls(**{**data, "epochs": tuple(Epoch(**e) for e in data["epochs"])})
