"""Data sets as uint8 arrays on disk, decoded once and mapped read-only by every worker, and folds.

It needs numpy alone, so that a bare machine can train from a cached data set. The original files
are read by sources.py.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import math
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from effnet.folders import cache_folder
from scaling_search import UserError

logger = logging.getLogger(__name__)

FOLDS = 5
ARRAYS = ("train_images", "train_labels", "train_hashes", "test_images", "test_labels")
_NAMES = 3  # of classes, in the line that describes a data set
_UNBALANCED = 10  # times the images of the smallest class
_FEW_SEEN = 0.01  # of the test images, that are among the training images: not worth a word
_PARTIAL = ".partial-"  # folders of the cache that are being filled
_NEW = ".new-"  # those that have no lock yet
_LOCK = "lock"  # the file in them that their owner holds
_ABANDONED_SECONDS = 3600.0  # of a partial folder without a lock
FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk
_CHUNK = 128  # images that are copied at a time
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
    channels: int = 3
    # what was left out or changed while the images were read, for people
    notes: tuple[str, ...] = ()
    # what preparing another image takes, as in Dataset; an earlier release did not record it
    class_names: tuple[str, ...] = ()
    columns: int = 0
    deepest: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """Images [N, rows, columns, channels] uint8 (squares, unless a study asks for others; `native`
    are the rows); labels [N] int64; one 64-bit content hash per
    training image."""

    name: str
    origin: str  # where it came from, for people
    folder: Path  # where the arrays lie
    digest: str  # of every image and label
    classes: tuple[str, ...]
    kind: str  # channels and sizes of the original images, for people
    notes: tuple[str, ...]  # what was left out or changed on reading, for people
    native: int  # px
    mean: tuple[float, ...]  # per channel, of x / 255
    std: tuple[float, ...]
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    train_hashes: NDArray[np.uint64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    deepest: int = 0  # the highest value of images of more than 8 bits; 0: there were none

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
                kind=meta.get("kind", ""),
                notes=tuple(meta.get("notes", ())),
                native=meta["native"],
                mean=tuple(meta["mean"]),
                std=tuple(meta["std"]),
                deepest=meta.get("deepest", 0),
                **arrays,
            )
        # EOFError and TypeError: an empty file, and one of another kind
        except (OSError, ValueError, KeyError, EOFError, TypeError) as error:
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

    @property
    def channels(self) -> int:
        return self.train_images.shape[3]

    def input_channels(self, wanted: int | None) -> int:
        """Return the channels of a network's input: the images' own, or three for grey ones where
        so many are wanted. Raises UserError for any other."""
        if self.takes(wanted):
            return wanted or self.channels
        raise UserError(
            f"data {self.name}: has images of {self.channels} channels; leave out --channels "
            f"{wanted}"
        )

    def takes(self, wanted: int | None) -> bool:
        """Whether these images can be trained on with so many channels."""
        return wanted in (None, self.channels) or (wanted == 3 and self.channels == 1)

    def facts(self, train_limit: int | None = None, val_limit: int | None = None) -> Facts:
        """Return what a study that uses so many images of each run's fold records of its data."""
        return Facts(
            self.name,
            self.digest,
            str(self.folder),
            len(self.classes),
            self.native,
            self.describe(train_limit, val_limit),
            self.channels,
            (*self.notes, *self._warnings()),
            class_names=self.classes,
            columns=self.train_images.shape[2],
            deepest=self.deepest,
            mean=self.mean,
            std=self.std,
        )

    def describe(self, train_limit: int | None = None, val_limit: int | None = None) -> str:
        """Return one line: which data, from where, what was understood of them (classes, splits,
        images), and how much of them is used."""
        train, val = split(self.train_hashes, 0)
        names = ", ".join(_short(name) for name in self.classes[:_NAMES])
        if len(self.classes) > _NAMES:
            names += ", …"
        images = self._images_per_class()
        each = f"{images.min():,}"
        if images.min() != images.max():
            each += f" to {images.max():,}"
        parts = [
            f"{self.name} ({self.origin})",
            f"{len(self.classes)} classes ({names}) of {each} images",
            f"{len(train):,} train / {len(val):,} validation ({FOLDS} rotating folds) / "
            f"{len(self.test_labels):,} test",
            *([self.kind] if self.kind else []),
            f"{self._native_px} native",
        ]
        used_train = min(train_limit or len(train), len(train))
        used_val = min(val_limit or len(val), len(val))
        if (used_train, used_val) != (len(train), len(val)):
            parts.append(f"each run uses {used_train:,} / {used_val:,}")
        return " · ".join(parts)

    @property
    def _native_px(self) -> str:
        """The cached images' size, one number for squares."""
        rows, columns = self.train_images.shape[1:3]
        return f"{rows} px" if rows == columns else f"{rows} rows × {columns} columns"

    def _images_per_class(self) -> NDArray[np.int64]:
        """Return the training images of each class, validation included."""
        return np.bincount(self.train_labels, minlength=len(self.classes)).astype(np.int64)

    def _warnings(self) -> list[str]:
        images = self._images_per_class()
        least, most = int(images.argmin()), int(images.argmax())
        warnings = []
        untested = np.setdiff1d(np.arange(len(self.classes)), self.test_labels)
        if len(untested):
            names = ", ".join(_short(self.classes[label]) for label in untested[:_NAMES])
            have = "class has" if len(untested) == 1 else "classes have"
            warnings.append(f"{len(untested)} {have} no test images ({names})")
        if images[most] <= _UNBALANCED * images[least]:
            return warnings
        return [
            *warnings,
            f"the classes are unbalanced: {_short(self.classes[most])} has {images[most]:,} "
            f"images, {_short(self.classes[least])} {images[least]:,}; accuracy counts images, "
            "--metric balanced classes",
        ]


def _short(name: str, most: int = 24) -> str:
    """Return a class's name, cut where it is long."""
    return name if len(name) <= most else name[: most - 1] + "…"


def is_cached(folder: Path) -> bool:
    """Whether the folder holds a whole data set. Raises UserError where that cannot be seen."""
    try:
        return (folder / "meta.json").exists()
    except OSError as error:
        raise _unusable(folder.parent, error) from error


def cache_root() -> Path:
    """Return $SCALING_SEARCH_CACHE, or scaling-search under the user's cache folder. Raises
    UserError where there is neither."""
    try:
        return cache_folder()
    except RuntimeError as error:
        raise UserError(
            "data cache: there is no home folder; set SCALING_SEARCH_CACHE to a folder that can be "
            "written"
        ) from error


def _unusable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"data cache {folder}: {error.strerror}; "
        "set SCALING_SEARCH_CACHE to a folder that can be written"
    )


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
    """Builds a data set's arrays in a folder beside its final place.

    Nothing is left on failure. What a killed process left is removed by the next one: a partial
    folder holds a lock file, and the kernel frees a lock with its owner."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError where the cache cannot be written."""
        self.folder = folder
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            self._partial, self._lock = _locked_folder(folder.parent)
        except OSError as error:
            raise _unusable(folder.parent, error) from error

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raises UserError where the disk is full."""
        self._lock.close()
        shutil.rmtree(self._partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise _unusable(self.folder.parent, error) from error

    def array(
        self, name: str, count: int, sides: tuple[int, int], channels: int
    ) -> NDArray[np.uint8]:
        """Return a writable array [count, rows, columns, channels] on disk, to be committed. Raises
        OSError where the disk has no room for it."""
        return self._mapped(self._partial / f"{name}.npy", (count, *sides, channels))

    def scratch(self, name: str) -> Path:
        """Return the path of a file that is gone when the data set is made."""
        return self._partial / f".{name}.scratch"

    def _mapped(self, file: Path, shape: tuple[int, ...], kind: DTypeLike = np.uint8) -> Any:
        """Return a writable array on disk, all of whose room is there."""
        array = np.lib.format.open_memmap(file, mode="w+", dtype=kind, shape=shape)
        # The file has holes so far. Writing into one through memory, on a full disk, is no error
        # that could be caught: the kernel ends the process (SIGBUS).
        if hasattr(os, "posix_fallocate"):  # not on macOS
            with file.open("r+b") as opened:
                os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
        return array

    def commit(
        self,
        name: str,
        origin: str,
        classes: tuple[str, ...],
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        test: tuple[NDArray[np.uint8], NDArray[np.int64]] | None,
        kind: str = "",
        notes: Sequence[str] = (),
        deepest: int = 0,
    ) -> Dataset:
        """Write everything, move it into place and return it.

        `images` are uint8 [N, side, side, channels], `test` images and labels. Without a test
        split, a tenth (by content hash) becomes one. `kind`, `notes` and `deepest` are those of
        Dataset, by default what `images` are. Raises UserError for too few images or classes."""
        hashes = content_hashes(images)
        if test is None:
            # the upper half of the hash: folds are made of the whole of it
            held_out = (hashes >> np.uint64(32)) % np.uint64(10) == 0
            test = self._chosen("test_images", images, held_out), labels[held_out]
            images = self._chosen("train_images", images, ~held_out)
            labels, hashes = labels[~held_out], hashes[~held_out]
            origin += ", a tenth held out as test"
        arrays: dict[str, NDArray[Any]] = {
            "train_images": images,
            "train_labels": np.asarray(labels, dtype=np.int64),
            "train_hashes": hashes,
            "test_images": test[0],
            "test_labels": np.asarray(test[1], dtype=np.int64),
        }
        _check(name, arrays, classes)
        test_hashes = content_hashes(test[0])
        seen = int(np.isin(test_hashes, hashes).sum())
        if seen > _FEW_SEEN * len(test_hashes):
            notes = [*notes, f"{seen:,} of the test images are among the training images too"]
        for key, array in arrays.items():
            self._write(key, array)
        mean, std = _colours(images[:: max(1, len(images) // _SAMPLE)])
        meta = {
            "name": name,
            "origin": origin,
            "digest": _digest(hashes, labels, test_hashes, test[1]),
            "classes": classes,
            "kind": kind or _kind(images),
            "notes": list(notes),
            "native": images.shape[1],
            "mean": mean,
            # a constant channel has no deviation, and is divided by this
            "std": [max(deviation, 1e-3) for deviation in std],
            "deepest": deepest,
        }
        (self._partial / "meta.json").write_text(json.dumps(meta, indent=1))
        for file in (self._partial / _LOCK, *self._partial.glob(".*.scratch")):
            file.unlink(missing_ok=True)
        try:
            self._partial.rename(self.folder)
        except OSError:
            # another process may have finished the same data set first
            if not is_cached(self.folder):
                raise
        logger.info("data set %s: %d images written to %s", name, len(images), self.folder)
        return Dataset.open(self.folder)

    def _chosen(
        self, name: str, images: NDArray[np.uint8], rows: NDArray[np.bool_]
    ) -> NDArray[np.uint8]:
        """Return the images of these rows as an array on disk, copied a few at a time: they may be
        more than memory holds."""
        at = np.flatnonzero(rows)
        # beside it first: `images` may be mapped from the file of this name
        beside = self._partial / f".{name}.npy"
        chosen = self._mapped(beside, (len(at), *images.shape[1:]))
        for start in range(0, len(at), _CHUNK):
            chosen[start : start + _CHUNK] = images[at[start : start + _CHUNK]]
            _release(chosen)
            _release(images)
        file = self._partial / f"{name}.npy"
        beside.replace(file)
        return np.load(file, mmap_mode="r+")

    def _write(self, name: str, array: NDArray[Any]) -> None:
        file = self._partial / f"{name}.npy"
        if isinstance(array, np.memmap) and Path(str(array.filename)) == file:
            array.flush()  # made by `array` or `_chosen`, and filled
            return
        self._mapped(file, array.shape, array.dtype)[...] = array


def _release(array: NDArray[Any]) -> None:
    """Let go of the memory that an array on disk is mapped to: nothing is lost, and what is read
    again comes from the file."""
    if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # Linux
        array.base.madvise(mmap.MADV_DONTNEED)


def _kind(images: NDArray[np.uint8]) -> str:
    """Return channels and size of images [N, h, w, channels], for people."""
    _, height, width, channels = images.shape
    return f"{channels_in_words(channels)}, {width} × {height} px"


def channels_in_words(count: int) -> str:
    """Return what images of so many channels are, for people."""
    return {1: "grey", 3: "RGB"}.get(count, f"{count} channels")


def _locked_folder(root: Path) -> tuple[Path, IO[str]]:
    """Make a partial folder in a cache, and hold its lock. It has its name when it has its lock, so
    that nobody takes it for an abandoned one. Raises OSError."""
    made = Path(tempfile.mkdtemp(prefix=_NEW, dir=root))
    try:
        lock = (made / _LOCK).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: its age tells, as of one without lock file
            (made / _LOCK).unlink()
        partial = made.with_name(made.name.replace(_NEW, _PARTIAL, 1))
        return made.rename(partial), lock
    except OSError:
        shutil.rmtree(made, ignore_errors=True)
        raise


def remove_abandoned(root: Path) -> None:
    """Remove the partial folders of a cache whose owners are gone."""
    folders: list[Path] = []
    with suppress(OSError):  # of another user, say: whoever reads or writes there is told
        folders = [*root.glob(f"{_PARTIAL}*"), *root.glob(f"{_NEW}*")]
    for folder in folders:
        try:
            if folder.name.startswith(_NEW):
                raise FileNotFoundError  # its lock is not held yet
            with (folder / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                logger.info("removed %s, which a process that is gone left unfinished", folder)
        except FileNotFoundError:
            # made this moment, or before partial folders had locks
            with suppress(OSError):
                if time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # somebody holds it, or it is another user's
            continue


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
