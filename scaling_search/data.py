"""Data sets as uint8 arrays on disk, decoded once and mapped read-only by every worker; folds; batches.

Imports numpy and torch alone: a bare machine can train from a cached data set. Reading the original
files is `sources.py`'s business.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from scaling_search import UserError, memory
from scaling_search.watchdog import alive

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
    """Images [N, side, side, 1 or 3] uint8; labels [N] int64; one 64-bit content hash per training image."""

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
                for name in ("train_images", "train_labels", "train_hashes", "test_images", "test_labels")
            }
            return cls._from(folder, meta, arrays)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"data cache {folder}: {error}; delete the folder to have it rebuilt") from None

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
        """Itself. Raises UserError when the cached images or labels are no longer what was read; of more than 4 GiB
        the training images are sampled."""
        train, test = self.train_images, self.test_images
        every = -(-(train.nbytes + test.nbytes) // 2**32)
        whole = every == 1
        same = np.array_equal(content_hashes(train[::every]), self.train_hashes[::every])
        if whole:
            found = _digest(self.train_hashes, self.train_labels, content_hashes(test), self.test_labels)
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
    digests = [hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8).digest() for image in images]
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
            self._partial / f"{name}.npy", mode="w+", dtype=np.uint8, shape=(count, side, side, colours)
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
        """Write everything and move it into place. Without a test split, a tenth (by content hash) becomes one."""
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
        raise UserError(f"data {name}: only one class among the training images; at least 2 are needed")
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
    hashes: NDArray[np.uint64], seed: int, train_limit: int | None = None, val_limit: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of seed's training and validation images: validation are those whose hash mod 5 is seed mod 5.

    A limit keeps the images lowest in an order that is random but the same for every network."""
    in_fold = hashes % np.uint64(FOLDS) == np.uint64(seed % FOLDS)
    order = np.argsort(hashes // np.uint64(FOLDS), kind="stable")
    train, val = order[~in_fold[order]], order[in_fold[order]]
    return np.sort(train[:train_limit]), np.sort(val[:val_limit])


# ---- images on the device


class Images:
    """Images `at` of a data set's array [N, h, h, c], as uint8 [n, c, side, side] on a device.

    Resized once, antialiased from the original, and resident where half of the free memory holds
    them; else read from the mapped file ahead of time and resized batch by batch, through pinned
    memory to a CUDA device."""

    def __init__(
        self, source: NDArray[np.uint8], at: NDArray[np.int64], side: int, device: torch.device
    ) -> None:
        self._source, self._at, self.side, self.device = source, at, side, device
        self.channels: int = source.shape[3]
        self._resident: Tensor | None = None
        if 2 * len(at) * self.channels * side * side <= memory.free(device):
            shape = (len(at), self.channels, side, side)
            self._resident = torch.empty(shape, dtype=torch.uint8, device=device)
            for i in range(0, len(at), _CHUNK):
                rows = torch.arange(i, min(i + _CHUNK, len(at)))
                self._resident[i : i + _CHUNK] = self.place(self.fetch(rows))

    @property
    def resident(self) -> bool:
        """Whether all of them lie on the device."""
        return self._resident is not None

    def __len__(self) -> int:
        return len(self._at)

    def __getitem__(self, index: Tensor) -> Tensor:
        """The images at these places of `at`. Of resident ones `index` may lie on the device, and
        nothing is waited for."""
        if self._resident is not None:
            return self._resident[index.to(self.device)]
        return self.place(self.fetch(index))

    def fetch(self, index: Tensor) -> Tensor:
        """The originals at these places, uint8 [n, h, h, c] in memory (pinned for a CUDA device);
        read in the file's order, since a disk reads forward. May be called by another thread."""
        alive()
        rows = self._at[index.numpy()]
        order = np.argsort(rows)
        images = torch.empty((len(rows), *self._source.shape[1:]), dtype=torch.uint8)
        images.numpy()[order] = self._source[rows[order]]
        return images.pin_memory() if self.device.type == "cuda" else images

    def place(self, originals: Tensor) -> Tensor:
        """What `fetch` gave, on the device and resized."""
        return resized(originals.to(self.device, non_blocking=True), self.side)

    def batches(self, size: int, index: Tensor | None = None) -> Iterator[Tensor]:
        """All of them, or those at `index`, `size` at a time; the next are read meanwhile."""
        chosen = torch.arange(len(self)) if index is None else index
        parts = chosen.split(size)
        if self._resident is not None:
            for part in parts:
                yield self[part]
            return
        with ReadAhead(self, parts) as originals:
            for batch in originals:
                yield self.place(batch)


class ReadAhead:
    """The originals of `parts` of `images`, one after the other, two of them read ahead by a thread:
    a disk and a device work at the same time. Iterate within a `with` block, which ends the thread."""

    def __init__(self, images: Images, parts: Sequence[Tensor]) -> None:
        self._images = images
        self._waiting = deque(parts)
        self._reading: deque[Future[Tensor]] = deque()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._reader.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        """Raises OSError where the data have vanished."""
        while self._waiting and len(self._reading) < _AHEAD:
            self._reading.append(self._reader.submit(self._images.fetch, self._waiting.popleft()))
        if not self._reading:
            raise StopIteration
        return self._reading.popleft().result()


_AHEAD = 3  # batches: the one that is wanted now and two more
_CHUNK = 512


def resized(images: Tensor, side: int) -> Tensor:
    """uint8 [n, h, h, c] → [n, c, side, side], antialiased, on the same device."""
    images = images.permute(0, 3, 1, 2)
    if side == images.shape[-1]:
        return images.contiguous()
    scaled = F.interpolate(images.float(), size=(side, side), mode="bilinear", antialias=True)
    return scaled.round_().clamp_(0, 255).to(torch.uint8)


class Normalise:
    """uint8 [n, c, s, s] → float32 [n, 3, s, s], channels_last; grey becomes three equal channels."""

    def __init__(self, data: Dataset, device: torch.device) -> None:
        std = torch.tensor(data.std).view(1, -1, 1, 1) * 255
        self._scale = (1 / std).to(device)
        self._shift = (-torch.tensor(data.mean).view(1, -1, 1, 1) * 255 / std).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        x = images.contiguous(memory_format=torch.channels_last).float().mul_(self._scale).add_(self._shift)
        return x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def augmented(
    images: Tensor,
    mirror: Tensor | None = None,
    shift: Tensor | None = None,
    centre: Tensor | None = None,
    cutout: int = 0,
) -> Tensor:
    """Images [n, c, side, side] flipped where `mirror` [n] says so, moved by `shift` [n, 2] px (down,
    right; edges repeated), with a grey square of `cutout` px around `centre` [n, 2]; None leaves a
    change out. All on the images' device, without a copy or a wait, so that a captured step holds it."""
    n, channels, side, _ = images.shape
    pixels = torch.arange(side, device=images.device)
    if mirror is not None or shift is not None:
        rows = columns = pixels.expand(n, side)
        if mirror is not None:
            columns = torch.where(mirror[:, None], side - 1 - pixels, columns)
        if shift is not None:
            rows = (rows + shift[:, :1]).clamp_(0, side - 1)
            columns = (columns + shift[:, 1:]).clamp_(0, side - 1)
        places = (rows[:, :, None] * side + columns[:, None, :]).view(n, 1, -1)
        images = images.flatten(2).gather(2, places.expand(-1, channels, -1)).view(images.shape)
    if centre is not None:
        outside = (2 * (pixels - centre[:, :, None])).abs() >= cutout  # [n, 2, side]: of its rows, columns
        keep = outside[:, 0][:, None, :, None] | outside[:, 1][:, None, None, :]
        images = torch.where(keep, images, 128)
    return images


def epoch_order(count: int, batch: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """Index batches of one epoch: a fresh permutation from (seed, epoch), the incomplete last batch left out."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(count, generator=generator)
    for i in range(0, max(1, count // batch) * batch, batch):
        yield order[i : i + batch]


def mirrored(count: int, seed: int, epoch: int) -> Tensor:
    """Which images are flipped in this epoch: half of them in the first, drawn from the seed, then every image in
    turn (alternating flip: two epochs show each image both ways, where chance would show half of them twice alike)."""
    first = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5
    return first ^ bool(epoch % 2)
