"""Data sets as uint8 arrays on disk, decoded once and mapped read-only by every worker; folds;
batches.

Imports numpy and torch alone: a bare machine can train from a cached data set. Reading the original
files is `sources.py`'s business.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaling_search import UserError

FOLDS = 5


@dataclass(frozen=True, slots=True)
class Facts:
    """What a study needs to know of its data; a replayed study has these and no images."""

    name: str
    digest: str
    folder: str
    classes: int
    native: int  # px
    line: str  # for people


@dataclass(frozen=True)
class Dataset:
    """Images [N, side, side, 1 or 3] uint8; labels [N] int64; one 64-bit content hash per training
    image."""

    name: str
    origin: str  # where it came from, for people
    folder: Path  # where the arrays lie
    digest: str  # of every image and label
    classes: tuple[str, ...]
    native: int  # px
    mean: tuple[float, ...]  # per channel, of x / 255
    std: tuple[float, ...]
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    train_hashes: NDArray[np.uint64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]

    @classmethod
    def open(cls, folder: Path) -> Dataset:
        """Map a cached data set. Raises UserError where the folder holds none."""
        try:
            meta = json.loads((folder / "meta.json").read_text())
            arrays = {
                name: np.load(folder / f"{name}.npy", mmap_mode="r")
                for name in (
                    "train_images",
                    "train_labels",
                    "train_hashes",
                    "test_images",
                    "test_labels",
                )
            }
            return cls._from(folder, meta, arrays)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"data cache {folder}: {error}; delete the folder to have it rebuilt"
            ) from None

    @classmethod
    def _from(cls, folder: Path, meta: dict[str, Any], arrays: dict[str, Any]) -> Dataset:
        return cls(
            name=meta["name"],
            origin=meta["origin"],
            folder=folder,
            digest=meta["digest"],
            classes=tuple(meta["classes"]),
            native=meta["native"],
            mean=tuple(meta["mean"]),
            std=tuple(meta["std"]),
            **arrays,
        )

    def verified(self) -> Dataset:
        """Itself. Raises UserError when the cached images or labels are no longer what was read; of
        more than 4 GiB the training images are sampled."""
        train, test = self.train_images, self.test_images
        every = -(-(train.nbytes + test.nbytes) // 2**32)
        whole = every == 1
        same = np.array_equal(content_hashes(train[::every]), self.train_hashes[::every])
        if whole:
            found = _digest(
                self.train_hashes, self.train_labels, content_hashes(test), self.test_labels
            )
            same = same and found == self.digest
        if not same:
            raise UserError(
                f"data cache {self.folder}: altered since it was made; delete the folder to have it rebuilt"
            )
        return self

    def facts(self, train_limit: int | None = None, val_limit: int | None = None) -> Facts:
        line = self.describe(train_limit, val_limit)
        return Facts(self.name, self.digest, str(self.folder), len(self.classes), self.native, line)

    def describe(self, train_limit: int | None = None, val_limit: int | None = None) -> str:
        """One line: which, from where, its splits, and how much of it is used."""
        train, val = split(self.train_hashes, 0)
        line = (
            f"{self.name} ({self.origin}) · {len(train):,} train / {len(val):,} validation "
            f"({FOLDS} rotating folds) / {len(self.test_labels):,} test · {self.native} px native"
        )
        used = (min(train_limit or len(train), len(train)), min(val_limit or len(val), len(val)))
        if used != (len(train), len(val)):
            line += f" · each run uses {used[0]:,} / {used[1]:,}"
        return line


def cache_root() -> Path:
    """$SCALING_SEARCH_CACHE, or scaling-search under the user's cache folder."""
    if own := os.environ.get("SCALING_SEARCH_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scaling-search"


def content_hashes(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A 64-bit hash of each image's pixels: equal images land in the same fold."""
    digests = [
        hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8).digest()
        for image in images
    ]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def _digest(*parts: NDArray[Any]) -> str:
    """Of training hashes and labels, test hashes and labels."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()[:16]


class CacheWriter:
    """Builds a data set's arrays in a folder beside its final place; nothing is left on failure."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            self._partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
        except OSError as error:
            raise UserError(
                f"data cache {folder.parent}: {error.strerror}; "
                "set SCALING_SEARCH_CACHE to a folder that can be written"
            ) from None

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)

    def array(self, name: str, count: int, side: int, colours: int) -> NDArray[np.uint8]:
        """A writable array [count, side, side, colours] on disk."""
        return np.lib.format.open_memmap(
            self._partial / f"{name}.npy",
            mode="w+",
            dtype=np.uint8,
            shape=(count, side, side, colours),
        )

    def commit(
        self,
        name: str,
        origin: str,
        classes: tuple[str, ...],
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        test: tuple[NDArray[np.uint8], NDArray[np.int64]] | None,
    ) -> Dataset:
        """Write everything and move it into place. Without a test split, a tenth (by content hash)
        becomes one."""
        hashes = content_hashes(images)
        if test is None:
            held_out = (hashes >> np.uint64(32)) % np.uint64(10) == 0
            test = images[held_out], labels[held_out]
            images, labels, hashes = images[~held_out], labels[~held_out], hashes[~held_out]
            origin += ", a tenth held out as test"
        digest = _digest(hashes, labels, content_hashes(test[0]), test[1])
        sample = np.asarray(images[:: max(1, len(images) // 2000)], dtype=np.float64) / 255
        arrays: dict[str, NDArray[Any]] = {
            "train_images": images,
            "train_labels": np.asarray(labels, dtype=np.int64),
            "train_hashes": hashes,
            "test_images": test[0],
            "test_labels": np.asarray(test[1], dtype=np.int64),
        }
        _check(name, arrays, classes)
        for key, array in arrays.items():
            target = self._partial / f"{key}.npy"
            if isinstance(array, np.memmap) and Path(str(array.filename)) == target:
                array.flush()
            else:
                np.save(self._partial / f".{key}.npy", array)
                (self._partial / f".{key}.npy").replace(target)
        meta = {
            "name": name,
            "origin": origin,
            "digest": digest,
            "classes": classes,
            "native": images.shape[1],
            "mean": sample.mean((0, 1, 2)).tolist(),
            "std": np.maximum(sample.std((0, 1, 2)), 1e-3).tolist(),
        }
        (self._partial / "meta.json").write_text(json.dumps(meta, indent=1))
        try:
            self._partial.rename(self.folder)
        except OSError:  # another process finished the same data set first
            if not (self.folder / "meta.json").exists():
                raise
        return Dataset.open(self.folder)


def _check(name: str, arrays: dict[str, NDArray[Any]], classes: tuple[str, ...]) -> None:
    """Every fold and the test split must hold images, and training more than one class."""
    folds = np.bincount((arrays["train_hashes"] % np.uint64(FOLDS)).astype(int), minlength=FOLDS)
    if len(np.unique(arrays["train_labels"])) < 2:
        raise UserError(
            f"data {name}: only one class among the training images; at least 2 are needed"
        )
    if folds.min() < 1 or len(arrays["test_labels"]) < 1:
        raise UserError(
            f"data {name}: {len(arrays['train_labels'])} training and {len(arrays['test_labels'])} test images "
            f"are too few for {FOLDS} validation folds; about 10 images for each class are the least"
        )
    for part in ("train", "test"):
        labels = arrays[f"{part}_labels"]
        if labels.max() >= len(classes) or labels.min() < 0:
            raise UserError(
                f"data {name}: the {part} split has label {labels.max()}, but there are only the classes "
                f"0 to {len(classes) - 1}"
            )


# ---- folds


def split(
    hashes: NDArray[np.uint64],
    seed: int,
    train_limit: int | None = None,
    val_limit: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of seed's training and validation images: validation are those whose hash mod 5 is
    seed mod 5.

    A limit keeps the images lowest in an order that is random but the same for every network."""
    in_fold = hashes % np.uint64(FOLDS) == np.uint64(seed % FOLDS)
    order = np.argsort(hashes // np.uint64(FOLDS), kind="stable")
    train, val = order[~in_fold[order]], order[in_fold[order]]
    return np.sort(train[:train_limit]), np.sort(val[:val_limit])
