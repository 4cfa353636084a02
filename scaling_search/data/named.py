"""The data sets that have a name: Fashion-MNIST, CIFAR-10, shapes."""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scaling_search import UserError
from scaling_search.data import hub, shapes
from scaling_search.data.dataset import CacheWriter, Dataset
from scaling_search.data.network import NoNetworkError, download
from scaling_search.data.source import AS_THEY_ARE, Source

logger = logging.getLogger(__name__)

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# of the unpacked files, in the order in which they are read: Debian packs them anew, but their
# contents are the same
_FASHION_SHA256 = {
    "train-images-idx3-ubyte.gz": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
    ),
    "train-labels-idx1-ubyte.gz": (
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
    ),
}
_FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
_CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_CIFAR_ON_HUB = "hf:uoft-cs/cifar10"
_CIFAR_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # as published beside the file
_CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


# ---- the named sets


def _fashion() -> Source:
    """Fashion-MNIST from Debian's package where it is installed, else downloaded."""
    names = list(_FASHION_SHA256)
    if all((_DEBIAN / name).is_file() for name in names):
        files = {name: _unpacked(name, (_DEBIAN / name).read_bytes()) for name in names}
        return Source("fashion-mnist", "Debian's package", "", partial(_read_fashion, files))
    downloads = {name: download(_FASHION_URL + name) for name in names}
    try:
        files = {name: _unpacked(name, packed) for name, packed in downloads.items()}
    except UserError as error:  # a portal's page instead of the file, say
        raise NoNetworkError(str(error)) from error
    return Source("fashion-mnist", "downloaded", "", partial(_read_fashion, files))


def _unpacked(name: str, packed: bytes) -> bytes:
    """Return the file's content. Raises UserError where it is not the published one."""
    try:
        content = gzip.decompress(packed)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"data fashion-mnist: {name} cannot be unpacked ({error}); fetch it again"
        ) from error
    if hashlib.sha256(content).hexdigest() != _FASHION_SHA256[name]:
        raise UserError(
            f"data fashion-mnist: {name} does not have its known SHA-256; fetch it again"
        )
    return content


def _read_fashion(files: dict[str, bytes], writer: CacheWriter, source: Source) -> Dataset:
    arrays = []
    for name in _FASHION_SHA256:
        # idx: two zero bytes, the type, the number of dimensions, then each size in four bytes
        content = files[name]
        header = 4 + 4 * content[3]
        arrays.append(np.frombuffer(content, dtype=np.uint8, offset=header))
    images, labels, test_images, test_labels = arrays
    return writer.commit(
        source.name,
        source.origin,
        _FASHION_CLASSES,
        images.reshape(-1, 28, 28, 1),
        labels.astype(np.int64),
        (test_images.reshape(-1, 28, 28, 1), test_labels.astype(np.int64)),
    )


def _cifar() -> Source:
    """CIFAR-10 from the Hugging Face Hub where its library is installed, which resumes what breaks
    off, else from its authors' server."""
    if hub.is_installed():
        on_hub = replace(hub.hub_source(_CIFAR_ON_HUB, AS_THEY_ARE), name="cifar10")
        return replace(on_hub, read=partial(_read_cifar_of_hub, on_hub))
    return _cifar_of_its_authors()


def _read_cifar_of_hub(on_hub: Source, writer: CacheWriter, source: Source) -> Dataset:
    """Read from the Hub, or, where it cannot be had there, from the authors' server."""
    try:
        return on_hub.read(writer, on_hub)
    except (NoNetworkError, UserError) as error:
        logger.info("data set cifar10: %s; the authors' server is tried", error)
        authors = _cifar_of_its_authors()
        return authors.read(writer, authors)


def _cifar_of_its_authors() -> Source:
    archive = download(_CIFAR_URL)
    if hashlib.md5(archive).hexdigest() != _CIFAR_MD5:
        raise UserError(
            "data cifar10: the download does not have its published checksum; try again"
        )
    return Source("cifar10", "downloaded", "", partial(_read_cifar, archive))


def _read_cifar(archive: bytes, writer: CacheWriter, source: Source) -> Dataset:
    """Read the binary layout: five training batches and a test batch, of rows that are one label
    byte and 3 × 32 × 32 pixels."""
    batches: dict[str, NDArray[np.uint8]] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None and member.name.endswith(".bin"):
                rows = np.frombuffer(file.read(), np.uint8).reshape(-1, 3073)
                batches[Path(member.name).stem] = rows
    names = sorted(name for name in batches if name.startswith("data_batch"))
    train = np.concatenate([batches[name] for name in names])
    images, labels = _unpacked_cifar(train)
    test = _unpacked_cifar(batches["test_batch"])
    return writer.commit(source.name, source.origin, _CIFAR_CLASSES, images, labels, test)


def _unpacked_cifar(rows: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images [n, 32, 32, 3] and labels [n]."""
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, rows[:, 0].astype(np.int64)


def _shapes() -> Source:
    return Source("shapes", "generated", "", _read_shapes)


def _read_shapes(writer: CacheWriter, source: Source) -> Dataset:
    images, labels = shapes.generate(10_000, 0)
    test = shapes.generate(2_000, 1)
    return writer.commit(source.name, source.origin, shapes.CLASSES, images, labels, test)


@dataclass(frozen=True, slots=True)
class NamedSet:
    """`folder` is its own in the cache: another one when the same name comes to mean other images,
    as `shapes` did when its stripes came."""

    folder: str
    source: Callable[[], Source]


NAMED = {
    "fashion-mnist": NamedSet("fashion-mnist", _fashion),
    "cifar10": NamedSet("cifar10", _cifar),
    "shapes": NamedSet("shapes-stripes", _shapes),
}
