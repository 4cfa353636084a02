"""What travels to a worker, and what comes back."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from effnet.arch import Network, network_from_dict
from effnet.custom import CustomArch
from scaling_search.training.recipe import Recipe

Status = Literal["done", "diverged", "out-of-memory", "crashed", "timeout"]


def inside(folder: str, name: str) -> str:
    """Return the path of `name` in a folder, or its address in an object store, where the query
    (?region=...) stays at the end."""
    path, mark, query = folder, "", ""
    if "://" in folder:
        path, mark, query = folder.partition("?")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


# What an accuracy is: the part of the images that is right, or the mean of that over classes.
Metric = Literal["accuracy", "balanced"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One training, as plain data.

    Every field makes the run's key, but for the folders, the test, the deadline and `epochs`: runs
    that differ in epochs alone share a folder of checkpoints. Limits on images are None for all."""

    arch: Network
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
    # it must train through these (step.kernels); "": numba's where they are, torch's on CUDA
    kernels: str = ""
    # images that make an epoch, however often each is seen; None: one pass
    epoch_images: int | None = None
    metric: Metric = "accuracy"

    @property
    def key(self) -> str:
        """A hash of all that determines the run's numbers, as 16 hexadecimal digits. Checkpoints
        lie under it: it must not change from release to release."""
        identity = [
            self.arch.key,
            self.data_digest,
            _first_settings(self.recipe),
            self.seed,
            self.train_images,
            self.val_images,
            self.device.split(":")[0],  # one GPU's checkpoints are the other's
            self.threads,
        ]
        # what is usual adds nothing: these fields are younger than the first checkpoints
        if self.epoch_images is not None:
            identity.append({"epoch_images": self.epoch_images})
        if self.metric != "accuracy":
            identity.append({"metric": self.metric})
        if self.compile:
            identity.append("compile")
        usual_kernels = "numba" if self.device == "cpu" else "torch"
        if self.kernels not in ("", usual_kernels):
            identity.append(self.kernels)
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    @property
    def folder(self) -> str:
        """Where its checkpoints lie: a path, or an address such as s3://bucket/path."""
        return inside(self.checkpoints, self.key)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; `from_dict` is the inverse."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        arch = self.arch.as_dict()
        if isinstance(self.arch, CustomArch):  # the function goes to where it is trained
            function = self.arch.function
            arch |= {"function": function.place, "source": function.source}
        return {**fields, "arch": arch, "recipe": asdict(self.recipe)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Trial:
        arch, recipe = network_from_dict(data["arch"]), Recipe(**data["recipe"])
        if isinstance(arch, CustomArch):  # a trial comes from the study's own driver
            arch = replace(arch, function=replace(arch.function, source=data["arch"]["source"]))
        return cls(**{**data, "arch": arch, "recipe": recipe})


def _first_settings(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data; settings younger than the first checkpoints only where they are not
    what they stand at by default, since that is how every run was trained before they were."""
    settings = asdict(recipe)
    usual = asdict(Recipe())
    for name in ("decay", "plain_passes"):
        if settings[name] == usual[name]:
            del settings[name]
    return settings


@dataclass(frozen=True, slots=True)
class Epoch:
    """Metrics of one epoch. Losses are mean cross-entropies, the training one with label smoothing;
    `seconds` are those of its training and evaluation. `losses` are the training losses in more
    detail: the mean of every 32 steps of the epoch, and of the rest."""

    epoch: int  # from 1
    train_loss: float
    val_loss: float
    val_acc: float
    seconds: float
    losses: tuple[float, ...] = ()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Epoch:
        """The inverse of `asdict`, also where JSON has made lists of tuples."""
        return cls(**{**data, "losses": tuple(data.get("losses", ()))})


class Pulse:
    """A run is alive, between two steps: the moment at which it can be stopped, with its checkpoint
    written."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `right` has one bit for each validation image, in the fold's order, as
    hex; `effective_images` is that of Evaluation."""

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
    effective_images: int = 0
    eager: str = ""  # why steps on CUDA were not captured
    traceback: str = ""  # of what the run raised, whole: for the study's log, not for its store

    @property
    def spoils_its_process(self) -> bool:
        """Whether the process that trained it must not train another run: what broke a run, or the
        capture of its steps, may have broken the process too, a CUDA context above all."""
        return self.status == "crashed" or bool(self.eager)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for the store, without the traceback."""
        fields = asdict(self)
        del fields["traceback"]
        return fields

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Outcome:
        epochs = tuple(Epoch.from_dict(epoch) for epoch in data["epochs"])
        return cls(**{**data, "epochs": epochs})
