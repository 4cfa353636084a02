"""Reading what `--data` names into the cache: Fashion-MNIST, CIFAR-10, shapes, folders, parquet."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import logging
import re
import tarfile
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from effnet.messages import first_line
from scaling_search import UserError
from scaling_search.data import shapes
from scaling_search.data.dataset import CacheWriter, Dataset, cache_root, is_cached

logger = logging.getLogger(__name__)

KNOWN = (
    "auto, fashion-mnist, cifar10, shapes, a folder of class folders, or a parquet file or folder"
)
_AUTO = "fashion-mnist|shapes"  # the smallest download, and where there is no network none
CONNECT_SECONDS = 4.0  # that a server has to answer: without a network people wait for so long
# px: larger originals are reduced when they are decoded, a search has no use for more
MAX_SIDE = 320
_DECODED_AHEAD = 1024  # images

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
_CIFAR_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # as published beside the file
_CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

_IMAGE_SUFFIXES = {
    ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm",
}  # fmt: skip
# splits that may serve as the test split, the best first
_TEST_NAMES = ("test", "val", "valid", "validation")


@dataclass(frozen=True)
class Source:
    """A data set that is known and not yet read. `fingerprint` changes when its files do; `read`
    decodes them into the cache."""

    name: str
    origin: str  # for people
    fingerprint: str
    read: Callable[[CacheWriter, Source], Dataset]


class _NoNetworkError(Exception):
    """The file cannot be fetched."""


def load(spec: str) -> Dataset:
    """Return the data set that `spec` names, from the cache or read into it.

    Raises UserError for anything unknown, unreadable, empty or of one class, _NoNetworkError for a
    named set that is neither in the cache nor to be had from the network."""
    if is_choice(spec):
        return _load_first(_AUTO if spec == "auto" else spec)
    if spec in _NAMED:
        folder = cache_root() / spec
        if is_cached(folder):
            return Dataset.open(folder)
        source = _NAMED[spec]()
    else:
        source = _own_source(own_path(spec), spec)
        key = hashlib.sha256(source.fingerprint.encode()).hexdigest()[:12]
        folder = cache_root() / f"{source.name}-{key}"
        if is_cached(folder):
            return Dataset.open(folder)
    logger.info("reading data set %s (%s)", source.name, source.origin)
    with CacheWriter(folder) as writer:
        return source.read(writer, source)


def _load_first(choice: str) -> Dataset:
    """Return the first data set of `a|b|c` that can be had."""
    *preferred, last = choice.split("|")
    for name in preferred:
        try:
            return load(name)
        except _NoNetworkError as error:
            logger.info("data set %s cannot be fetched (%s): the next one is tried", name, error)
    return load(last)


def is_choice(spec: str) -> bool:
    """Whether `spec` names several sets, of which the first that can be had is meant: `auto`, or
    known names with | between them."""
    return spec == "auto" or ("|" in spec and set(spec.split("|")) <= _NAMED.keys())


def load_or_explain(spec: str) -> Dataset:
    """Return the data set that `spec` names, its cache checked. Raises UserError where it cannot be
    had, a missing network included."""
    try:
        return load(spec).verified()
    except _NoNetworkError as error:
        raise UserError(
            f"data {spec}: not in the cache {cache_root()} and not to be had from the network "
            f"({error}); use --data shapes, or give a folder or parquet file of your own"
        ) from error


# ---- the named sets


def _download(url: str) -> bytes:
    """Return the file at `url`. Raises _NoNetworkError when no answer begins within
    CONNECT_SECONDS, name look-up included."""
    answers: list[IO[bytes]] = []
    failures: list[Exception] = []

    def connect() -> None:
        try:
            answers.append(urllib.request.urlopen(url, timeout=CONNECT_SECONDS))
        except (OSError, ValueError, http.client.HTTPException) as error:
            failures.append(error)

    # getaddrinfo knows no timeout, so the wait is on a thread that may be left behind
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if failures:
        raise _NoNetworkError(str(failures[0])) from failures[0]
    if not answers:
        raise _NoNetworkError(f"no answer within {CONNECT_SECONDS:g} s")
    try:
        with answers[0] as response:
            return response.read()
    except (OSError, http.client.HTTPException) as error:
        raise _NoNetworkError(f"download broke off: {error}") from error


def _fashion() -> Source:
    """Fashion-MNIST from Debian's package where it is installed, else downloaded."""
    names = list(_FASHION_SHA256)
    if all((_DEBIAN / name).is_file() for name in names):
        files = {name: _unpacked(name, (_DEBIAN / name).read_bytes()) for name in names}
        return Source("fashion-mnist", "Debian's package", "", partial(_read_fashion, files))
    downloads = {name: _download(_FASHION_URL + name) for name in names}
    try:
        files = {name: _unpacked(name, packed) for name, packed in downloads.items()}
    except UserError as error:  # a portal's page instead of the file, say
        raise _NoNetworkError(str(error)) from error
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
    archive = _download(_CIFAR_URL)
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
    return Source("shapes", "generated", "10000+2000, seed 0, stripes", _read_shapes)


def _read_shapes(writer: CacheWriter, source: Source) -> Dataset:
    images, labels = shapes.generate(10_000, 0)
    test = shapes.generate(2_000, 1)
    return writer.commit(source.name, source.origin, shapes.CLASSES, images, labels, test)


_NAMED: dict[str, Callable[[], Source]] = {
    "fashion-mnist": _fashion,
    "cifar10": _cifar,
    "shapes": _shapes,
}


# ---- files of one's own


def own_path(spec: str) -> Path:
    """Return the folder or file that a spec names. Raises UserError for a ~user that does not
    exist."""
    try:
        return Path(spec).expanduser()
    except RuntimeError as error:
        raise UserError(f"data {spec}: {error}") from error


@dataclass(frozen=True)
class _Encoded:
    """One image that is not yet decoded: where it is (for messages), how to get its bytes, its
    class."""

    where: str
    read: Callable[[], bytes]
    label: int


def _own_source(path: Path, spec: str) -> Source:
    if not path.exists():
        raise UserError(f"unknown data {spec!r}: known are {KNOWN}; no such file or folder either")
    if path.is_file():
        if path.suffix != ".parquet":
            raise UserError(
                f"data {spec}: a file must be .parquet (Hugging Face layout); else give a folder"
            )
        return _parquet_source(path, [path])
    files = sorted([*path.glob("*.parquet"), *path.glob("*/*.parquet")])
    return _parquet_source(path, files) if files else _folder_source(path)


def _fingerprint(files: Iterable[Path]) -> str:
    """Return the files' paths, sizes and times of change: content would take too long to read."""
    parts = []
    for file in files:
        stat = file.stat()
        parts.append(f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}")
    return "\n".join(parts)


def _safe_name(path: Path) -> str:
    """Return the path's last part as a name that is safe in a path of the cache."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().stem).strip("-.") or "data"


def _visible_folders(root: Path) -> list[Path]:
    """Return the folders in `root`, hidden ones left out, in alphabetical order."""
    return sorted(d for d in root.iterdir() if d.is_dir() and not d.name.startswith("."))


# ---- folders of class folders


def _folder_source(root: Path) -> Source:
    """A folder of class folders, or of a folder train and others that hold class folders.

    The first of _TEST_NAMES is the test split; the images of the others are for training."""
    splits = {folder.name.lower(): folder for folder in _visible_folders(root)}
    held_out: list[Path] = []
    train_root = root
    if "train" in splits:
        train_root = splits["train"]
        held_out = [splits[name] for name in _TEST_NAMES if name in splits]
    train = _class_files(train_root)
    if len(train) < 2:
        problem = "no image in any class folder"
        if train:
            problem = f"only one class folder ({next(iter(train))})"
        raise UserError(
            f"data {root}: {problem}; "
            "wanted is a folder for each class, at least 2, with images inside"
        )
    classes = tuple(train)
    held_out_files = [_class_files(folder) for folder in held_out]
    for folder, class_files in zip(held_out, held_out_files, strict=True):
        unknown = sorted(set(class_files) - set(classes))
        if unknown:
            raise UserError(
                f"data {folder}: class {unknown[0]!r} is not among the classes of {train_root}"
            )
        if not class_files:
            raise UserError(f"data {folder}: no image in any class folder; fill it or remove it")
    pool = _encoded_files(train, classes)
    for class_files in held_out_files[1:]:
        pool += _encoded_files(class_files, classes)
    test = None
    origin = f"folder {root.name}"
    if held_out:
        test = _encoded_files(held_out_files[0], classes)
        origin += f", {held_out[0].name} as test"
    all_files: list[Path] = []
    for split in (train, *held_out_files):
        for files in split.values():
            all_files += files

    def read(writer: CacheWriter, source: Source) -> Dataset:
        return _decode(writer, source, classes, pool, test)

    return Source(_safe_name(root), origin, _fingerprint(all_files), read)


def _class_files(root: Path) -> dict[str, list[Path]]:
    """Return the images of each class folder (searched to any depth), classes in alphabetical
    order, empty ones left out."""
    classes = {}
    for folder in _visible_folders(root):
        files = []
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() in _IMAGE_SUFFIXES and file.is_file():
                files.append(file)
        if files:
            classes[folder.name] = files
    return classes


def _encoded_files(class_files: dict[str, list[Path]], classes: Sequence[str]) -> list[_Encoded]:
    encoded = []
    for name, files in class_files.items():
        label = classes.index(name)
        encoded += [_Encoded(str(file), file.read_bytes, label) for file in files]
    return encoded


# ---- parquet files


def _parquet_source(root: Path, files: list[Path]) -> Source:
    """Files in the Hugging Face layout. A file's split is in its name, or in its folder's."""
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file, root), []).append(file)
    if list(by_split) == [""]:
        by_split = {"train": by_split[""]}
    if "train" not in by_split or "" in by_split:
        raise UserError(
            f"data {root}: name the parquet files train*, test* or val*, or none of them"
        )
    held_out = [name for name in _TEST_NAMES if name in by_split]

    def read(writer: CacheWriter, source: Source) -> Dataset:
        pool, names = _parquet_rows(by_split["train"])
        tests = [_parquet_rows(by_split[name])[0] for name in held_out]
        for rows in tests[1:]:
            pool += rows
        labels = {row.label for row in pool}
        if len(labels) < 2:
            raise UserError(
                f"data {root}: only one class in its label column; at least 2 are needed"
            )
        count = 1 + max(labels)
        classes = names if len(names) >= count else tuple(str(i) for i in range(count))
        return _decode(writer, source, classes, pool, tests[0] if tests else None)

    origin = f"parquet {root.name}"
    if held_out:
        origin += f", {held_out[0]} as test"
    return Source(_safe_name(root), origin, _fingerprint(files), read)


def _split_of(file: Path, root: Path) -> str:
    """Return train, test, validation, valid or val where the file's path below `root` says so, else
    ""."""
    below = Path(file.stem) if file == root else file.relative_to(root).with_suffix("")
    pattern = r"(?<![a-z])(train|test|validation|valid|val)(?![a-z])"
    match = re.search(pattern, str(below).lower())
    return match[1] if match else ""


def _parquet_rows(files: Sequence[Path]) -> tuple[list[_Encoded], tuple[str, ...]]:
    """Return the images of all rows, and the classes' names where the files have them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[_Encoded] = []
    names: tuple[str, ...] = ()
    for file in files:
        try:
            table = pq.read_table(file)
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"data {file}: not a readable parquet file ({first_line(error)})"
            ) from error
        image, label = _columns(file, table.schema)
        metadata = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        features = metadata.get("info", {}).get("features", {})
        names = tuple(features.get(label, {}).get("names", names))
        cells, labels = table[image].to_pylist(), table[label].to_pylist()
        for i, (cell, y) in enumerate(zip(cells, labels, strict=True)):
            content = cell["bytes"] if isinstance(cell, dict) else cell
            if content is None or y is None or y < 0:
                raise UserError(f"data {file}: row {i} has no image or no label; remove it")
            rows.append(_Encoded(f"{file}, row {i}", partial(bytes, content), int(y)))
    if not rows:
        raise UserError(f"data {files[0]}: no rows")
    return rows, names


def _columns(file: Path, schema: Any) -> tuple[str, str]:
    """Return the names of the image column (the first of its kind) and of the label column (the one
    called label, else the first of whole numbers). Raises UserError where one is missing."""
    from pyarrow import types

    image = label = None
    for column in schema:
        kind = column.type
        is_struct_of_bytes = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if is_struct_of_bytes or types.is_binary(kind):
            image = image or column.name
        elif types.is_integer(kind) and (label is None or column.name == "label"):
            label = column.name
    columns = ", ".join(schema.names)
    if image is None:
        raise UserError(
            f"data {file}: no image column (a struct with 'bytes', as Hugging Face writes it, or "
            f"binary); its columns are {columns}"
        )
    if label is None:
        raise UserError(f"data {file}: no integer label column; its columns are {columns}")
    return image, label


# ---- decoding


def _decode(
    writer: CacheWriter,
    source: Source,
    classes: tuple[str, ...],
    train: list[_Encoded],
    test: list[_Encoded] | None,
) -> Dataset:
    """Decode every image: shorter side to the native side, antialiased, and the middle square of
    it.

    The native side is the one that three quarters of the images reach, at most MAX_SIDE."""
    from PIL import Image, ImageOps

    def open_image(item: _Encoded) -> Image.Image:
        try:
            return Image.open(io.BytesIO(item.read()))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise _unreadable(item, error) from error

    def measure(item: _Encoded) -> tuple[int, bool]:
        """The shorter side, and whether the image is grey, from its header."""
        image = open_image(item)
        return min(image.size), image.mode in ("L", "1")

    with ThreadPoolExecutor() as pool:
        headers = list(pool.map(measure, train))
        sides = [shorter_side for shorter_side, _ in headers]
        side = min(MAX_SIDE, int(np.quantile(sides, 0.25, method="lower")))
        mode = "L" if all(is_grey for _, is_grey in headers) else "RGB"

        def decode(item: _Encoded) -> NDArray[np.uint8]:
            opened = open_image(item)
            try:
                image = ImageOps.exif_transpose(opened).convert(mode)
                square = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
            except (OSError, ValueError, SyntaxError) as error:
                raise _unreadable(item, error) from error
            return np.asarray(square).reshape(side, side, -1)

        def fill(name: str, items: list[_Encoded]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
            images = writer.array(name, len(items), side, len(mode))
            # in parts: the pool reads as far ahead as it is given work
            for start in range(0, len(items), _DECODED_AHEAD):
                part = items[start : start + _DECODED_AHEAD]
                for i, image in enumerate(pool.map(decode, part), start=start):
                    images[i] = image
            return images, np.array([item.label for item in items], dtype=np.int64)

        images, labels = fill("train_images", train)
        held_out = fill("test_images", test) if test is not None else None
    return writer.commit(source.name, source.origin, classes, images, labels, held_out)


def _unreadable(item: _Encoded, error: Exception) -> UserError:
    return UserError(f"data {item.where}: not a readable image ({error}); repair or remove it")
