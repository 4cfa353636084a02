"""Data sets as uint8 arrays on disk, decoded once and mapped read-only by every worker, and folds.

It needs numpy alone, so that a bare machine can train from a cached data set. The original files
are read by sources.py.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaling_search import UserError

logger = logging.getLogger(__name__)

FOLDS = 5
ARRAYS = ("train_images", "train_labels", "train_hashes", "test_images", "test_labels")
_SAMPLE = 2000  # images that the mean and the deviation of colours are taken from


@dataclass(frozen=True, slots=True)
class Facts:
    """What a study needs to know of its data; a replayed study has these and no images."""

    name: str
    digest: str
    folder: str
    classes: int  # how many
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
            arrays: dict[str, Any] = {}
            for name in ARRAYS:
                arrays[name] = np.load(folder / f"{name}.npy", mmap_mode="r")
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
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"data cache {folder}: {error}; delete the folder to have it rebuilt"
            ) from error

    def verified(self) -> Dataset:
        """Check the cache's digest and return self.

        Of more than 4 GiB only a sample of the training images is checked. Raises UserError where
        images or labels are no longer what was read."""
        size = self.train_images.nbytes + self.test_images.nbytes
        every = -(-size // 2**32)  # the whole of a small set, every second image of 8 GiB, ...
        sampled_hashes = content_hashes(self.train_images[::every])
        same = np.array_equal(sampled_hashes, self.train_hashes[::every])
        if every == 1:
            test_hashes = content_hashes(self.test_images)
            digest = _digest(self.train_hashes, self.train_labels, test_hashes, self.test_labels)
            same = same and digest == self.digest
        if not same:
            raise UserError(
                f"data cache {self.folder}: altered since it was made; "
                "delete the folder to have it rebuilt"
            )
        return self

    def facts(self, train_limit: int | None = None, val_limit: int | None = None) -> Facts:
        """Return what a study that uses so many images of each run's fold records of its data."""
        line = self.describe(train_limit, val_limit)
        return Facts(self.name, self.digest, str(self.folder), len(self.classes), self.native, line)

    def describe(self, train_limit: int | None = None, val_limit: int | None = None) -> str:
        """Return one line: which data, from where, their splits, and how much of them is used."""
        train, val = split(self.train_hashes, 0)
        line = (
            f"{self.name} ({self.origin}) · {len(train):,} train / {len(val):,} validation "
            f"({FOLDS} rotating folds) / {len(self.test_labels):,} test · {self.native} px native"
        )
        used_train = min(train_limit or len(train), len(train))
        used_val = min(val_limit or len(val), len(val))
        if (used_train, used_val) != (len(train), len(val)):
            line += f" · each run uses {used_train:,} / {used_val:,}"
        return line


def is_cached(folder: Path) -> bool:
    """Whether the folder holds a whole data set."""
    return (folder / "meta.json").exists()


def cache_root() -> Path:
    """Return $SCALING_SEARCH_CACHE, or scaling-search under the user's cache folder."""
    own = os.environ.get("SCALING_SEARCH_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scaling-search"


def content_hashes(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each image's pixels: equal images land in the same fold."""
    digests = []
    for image in images:
        pixels = np.ascontiguousarray(image).data
        digests.append(hashlib.blake2b(pixels, digest_size=8).digest())
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def _digest(*parts: NDArray[Any]) -> str:
    """Return 16 hexadecimal digits for training hashes and labels, test hashes and labels."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()[:16]


def _colours(images: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel, as fractions of 255.

    From histograms: as floats, 2,000 images of 160 px would fill 1.2 GB."""
    levels = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(images.shape[3]):
        counts = np.zeros(256, dtype=np.int64)
        for image in images:
            counts += np.bincount(image[..., channel].ravel(), minlength=256)
        mean = float(counts @ levels / counts.sum())
        means.append(mean)
        deviations.append(math.sqrt(counts @ (levels - mean) ** 2 / counts.sum()))
    return means, deviations


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
            ) from error

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)

    def array(self, name: str, count: int, side: int, colours: int) -> NDArray[np.uint8]:
        """Return a writable array [count, side, side, colours] on disk, to be committed."""
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
        """Write everything, move it into place and return it.

        `images` are uint8 [N, side, side, 1 or 3], `test` images and labels. Without a test split,
        a tenth (by content hash) becomes one. Raises UserError for too few images or classes."""
        hashes = content_hashes(images)
        if test is None:
            # the upper half of the hash: folds are made of the whole of it
            held_out = (hashes >> np.uint64(32)) % np.uint64(10) == 0
            test = images[held_out], labels[held_out]
            images, labels, hashes = images[~held_out], labels[~held_out], hashes[~held_out]
            origin += ", a tenth held out as test"
        arrays: dict[str, NDArray[Any]] = {
            "train_images": images,
            "train_labels": np.asarray(labels, dtype=np.int64),
            "train_hashes": hashes,
            "test_images": test[0],
            "test_labels": np.asarray(test[1], dtype=np.int64),
        }
        _check(name, arrays, classes)
        for key, array in arrays.items():
            self._write(key, array)
        mean, std = _colours(images[:: max(1, len(images) // _SAMPLE)])
        meta = {
            "name": name,
            "origin": origin,
            "digest": _digest(hashes, labels, content_hashes(test[0]), test[1]),
            "classes": classes,
            "native": images.shape[1],
            "mean": mean,
            # a constant channel has no deviation, and is divided by this
            "std": [max(deviation, 1e-3) for deviation in std],
        }
        (self._partial / "meta.json").write_text(json.dumps(meta, indent=1))
        try:
            self._partial.rename(self.folder)
        except OSError:
            # another process may have finished the same data set first
            if not is_cached(self.folder):
                raise
        logger.info("data set %s: %d images written to %s", name, len(images), self.folder)
        return Dataset.open(self.folder)

    def _write(self, name: str, array: NDArray[Any]) -> None:
        file = self._partial / f"{name}.npy"
        if isinstance(array, np.memmap) and Path(str(array.filename)) == file:
            array.flush()  # made by `array`, and filled
            return
        # beside it first: the array may be a part of one that is mapped from this file
        beside = self._partial / f".{name}.npy"
        np.save(beside, array)
        beside.replace(file)


def _check(name: str, arrays: dict[str, NDArray[Any]], classes: tuple[str, ...]) -> None:
    """Raise UserError unless every fold and the test split hold images, training has more than one
    class, and each label has its class."""
    train_labels, test_labels = arrays["train_labels"], arrays["test_labels"]
    if len(np.unique(train_labels)) < 2:
        raise UserError(
            f"data {name}: only one class among the training images; at least 2 are needed"
        )
    folds = (arrays["train_hashes"] % np.uint64(FOLDS)).astype(int)
    if np.bincount(folds, minlength=FOLDS).min() < 1 or len(test_labels) < 1:
        raise UserError(
            f"data {name}: {len(train_labels)} training and {len(test_labels)} test images are too "
            f"few for {FOLDS} validation folds; about 10 images for each class are the least"
        )
    for part, labels in (("train", train_labels), ("test", test_labels)):
        if labels.max() >= len(classes) or labels.min() < 0:
            raise UserError(
                f"data {name}: the {part} split has label {labels.max()}, "
                f"but there are only the classes 0 to {len(classes) - 1}"
            )


# ---- folds


def split(
    hashes: NDArray[np.uint64],
    seed: int,
    train_limit: int | None = None,
    val_limit: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of the seed's training and validation images, each in ascending order.

    Those whose hash mod 5 is the seed mod 5 validate. A limit keeps the images that are lowest in
    an order that is random but the same for every network."""
    in_fold = hashes % np.uint64(FOLDS) == np.uint64(seed % FOLDS)
    order = np.argsort(hashes // np.uint64(FOLDS), kind="stable")
    train, val = order[~in_fold[order]], order[in_fold[order]]
    return np.sort(train[:train_limit]), np.sort(val[:val_limit])
