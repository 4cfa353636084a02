"""Reads what `--data` names into a cached Dataset: Fashion-MNIST, CIFAR-10, shapes, folders,
parquet."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
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
from typing import IO

import numpy as np
from numpy.typing import NDArray

from scaling_search import UserError
from scaling_search.data import shapes
from scaling_search.data.dataset import CacheWriter, Dataset, cache_root

KNOWN = (
    "auto, fashion-mnist, cifar10, shapes, a folder of class folders, or a parquet file or folder"
)
_NAMED = {"fashion-mnist", "cifar10", "shapes"}
_AUTO = "fashion-mnist|shapes"  # the smallest download, and where there is no network none
CONNECT_SECONDS = 4.0
# Larger originals are reduced when they are decoded: a search has no use for more.
MAX_SIDE = 320

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# Of the unpacked files: Debian packs them anew, their contents are the same.
_FASHION_SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
_CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_CIFAR_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # as published beside the file
_CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

_IMAGE_SUFFIXES = {
    ".jpg",
    ".jpeg",
    ".png",
    ".bmp",
    ".gif",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
}
_TEST_NAMES = ("test", "val", "valid", "validation")


@dataclass(frozen=True)
class Source:
    """A data set found but not yet read. `fingerprint` changes when its files do."""

    name: str
    origin: str
    fingerprint: str
    read: Callable[[CacheWriter, Source], Dataset]


class _NoNetworkError(Exception):
    """The file cannot be fetched."""


def load(spec: str) -> Dataset:
    """The data set that `spec` names, from the cache or read into it.

    Raises UserError for anything unknown, unreadable, empty or of one class."""
    if is_choice(spec):
        *wanted, last = (_AUTO if spec == "auto" else spec).split("|")
        for name in wanted:
            try:
                return load(name)
            except _NoNetworkError:
                continue
        return load(last)
    if spec == "fashion-mnist" or spec == "cifar10":
        folder = cache_root() / spec
        if (folder / "meta.json").exists():
            return Dataset.open(folder)
        source = _fashion() if spec == "fashion-mnist" else _cifar()
    elif spec == "shapes":
        source = Source("shapes", "generated", "10000+2000, seed 0", _read_shapes)
        folder = cache_root() / "shapes"
        if (folder / "meta.json").exists():
            return Dataset.open(folder)
    else:
        source = _from_path(own_path(spec), spec)
        key = hashlib.sha256(source.fingerprint.encode()).hexdigest()[:12]
        folder = cache_root() / f"{source.name}-{key}"
        if (folder / "meta.json").exists():
            return Dataset.open(folder)
    with CacheWriter(folder) as writer:
        return source.read(writer, source)


def is_choice(spec: str) -> bool:
    """Whether `spec` names several sets, of which the first that can be had is meant: `auto`, or
    known names with | between them."""
    return spec == "auto" or ("|" in spec and set(spec.split("|")) <= _NAMED)


def load_or_explain(spec: str) -> Dataset:
    """`load`, verified, with a missing network said in one line."""
    try:
        return load(spec).verified()
    except _NoNetworkError as error:
        raise UserError(
            f"data {spec}: not in the cache {cache_root()} and not to be had from the network ({error}); "
            "use --data shapes, or give a folder or parquet file of your own"
        ) from None


# ---- the named sets


def _download(url: str) -> bytes:
    """The file at `url`; _NoNetworkError when no answer begins within CONNECT_SECONDS (name look-up
    included)."""
    answer: list[IO[bytes]] = []
    failure: list[Exception] = []

    def connect() -> None:
        try:
            answer.append(urllib.request.urlopen(url, timeout=CONNECT_SECONDS))
        except (OSError, ValueError, http.client.HTTPException) as error:
            failure.append(error)

    # getaddrinfo knows no timeout, so the wait is on a thread that may be left behind
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if not answer:
        reason = failure[0] if failure else f"no answer within {CONNECT_SECONDS:g} s"
        raise _NoNetworkError(str(reason))
    try:
        with answer[0] as response:
            return response.read()
    except (OSError, http.client.HTTPException) as error:
        raise _NoNetworkError(f"download broke off: {error}") from None


def _fashion() -> Source:
    if all((_DEBIAN / name).is_file() for name in _FASHION_SHA256):
        raw = {name: _unpacked(name, (_DEBIAN / name).read_bytes()) for name in _FASHION_SHA256}
        return Source(
            "fashion-mnist", "Debian's package", "", lambda w, s: _read_fashion(w, s, raw)
        )
    packed = {name: _download(_FASHION_URL + name) for name in _FASHION_SHA256}
    try:
        raw = {name: _unpacked(name, content) for name, content in packed.items()}
    except UserError as error:  # a portal's page instead of the file, say
        raise _NoNetworkError(str(error)) from None
    return Source("fashion-mnist", "downloaded", "", lambda w, s: _read_fashion(w, s, raw))


def _unpacked(name: str, packed: bytes) -> bytes:
    try:
        raw = gzip.decompress(packed)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"data fashion-mnist: {name} cannot be unpacked ({error}); fetch it again"
        ) from None
    if hashlib.sha256(raw).hexdigest() != _FASHION_SHA256[name]:
        raise UserError(
            f"data fashion-mnist: {name} does not have its known SHA-256; fetch it again"
        )
    return raw


def _read_fashion(writer: CacheWriter, source: Source, raw: dict[str, bytes]) -> Dataset:
    # idx: two zero bytes, type, dimensions, then the sizes
    parts = [
        np.frombuffer(raw[name], dtype=np.uint8, offset=4 + 4 * raw[name][3])
        for name in _FASHION_SHA256
    ]
    images, labels, test_images, test_labels = parts
    return writer.commit(
        source.name,
        source.origin,
        _FASHION_CLASSES,
        images.reshape(-1, 28, 28, 1),
        labels.astype(np.int64),
        (test_images.reshape(-1, 28, 28, 1), test_labels.astype(np.int64)),
    )


def _cifar() -> Source:
    packed = _download(_CIFAR_URL)
    if hashlib.md5(packed).hexdigest() != _CIFAR_MD5:
        raise UserError(
            "data cifar10: the download does not have its published checksum; try again"
        )
    return Source("cifar10", "downloaded", "", lambda w, s: _read_cifar(w, s, packed))


def _read_cifar(writer: CacheWriter, source: Source, packed: bytes) -> Dataset:
    """The binary layout: one label byte, then 3 × 32 × 32 pixels, in five training batches and a
    test batch."""
    files: dict[str, NDArray[np.uint8]] = {}
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        for member in tar:
            if member.name.endswith(".bin") and (file := tar.extractfile(member)):
                files[Path(member.name).stem] = np.frombuffer(file.read(), np.uint8).reshape(
                    -1, 3073
                )
    train = np.concatenate([files[name] for name in sorted(files) if name.startswith("data_batch")])
    test = files["test_batch"]

    def unpack(rows: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        return rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0].astype(np.int64)

    return writer.commit(source.name, source.origin, _CIFAR_CLASSES, *unpack(train), unpack(test))


def _read_shapes(writer: CacheWriter, source: Source) -> Dataset:
    return writer.commit(
        source.name,
        source.origin,
        shapes.CLASSES,
        *shapes.generate(10_000, 0),
        shapes.generate(2_000, 1),
    )


# ---- files of one's own


def own_path(spec: str) -> Path:
    """The folder or file that a spec names. Raises UserError for a ~user that does not exist."""
    try:
        return Path(spec).expanduser()
    except RuntimeError as error:
        raise UserError(f"data {spec}: {error}") from None


@dataclass(frozen=True)
class _Encoded:
    """One image not yet decoded: where it is (for messages), how to get its bytes, its class."""

    where: str
    bytes: Callable[[], bytes]
    label: int


def _from_path(path: Path, spec: str) -> Source:
    if not path.exists():
        raise UserError(f"unknown data {spec!r}: known are {KNOWN}; no such file or folder either")
    if path.is_file():
        if path.suffix != ".parquet":
            raise UserError(
                f"data {spec}: a file must be .parquet (Hugging Face layout); else give a folder"
            )
        return _parquet(path, [path])
    files = sorted(p for pattern in ("*.parquet", "*/*.parquet") for p in path.glob(pattern))
    return _parquet(path, files) if files else _folder(path)


def _fingerprint(files: Iterable[Path]) -> str:
    parts = []
    for file in files:
        stat = file.stat()
        parts.append(f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}")
    return "\n".join(parts)


def _safe_name(path: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().stem).strip("-.") or "data"


def _folder(root: Path) -> Source:
    splits = {
        d.name.lower(): d for d in root.iterdir() if d.is_dir() and not d.name.startswith(".")
    }
    train_root = splits.get("train")
    held = [splits[name] for name in _TEST_NAMES if name in splits] if train_root else []
    train = _class_files(train_root or root)
    if len(train) < 2:
        found = (
            f"only one class folder ({next(iter(train))})"
            if train
            else "no image in any class folder"
        )
        raise UserError(
            f"data {root}: {found}; wanted is a folder for each class, at least 2, with images inside"
        )
    classes = tuple(train)
    tests = [_class_files(folder) for folder in held]
    for folder, files in zip(held, tests, strict=True):
        if extra := sorted(set(files) - set(classes)):
            raise UserError(
                f"data {folder}: class {extra[0]!r} is not among the classes of {train_root}"
            )
        if not files:
            raise UserError(f"data {folder}: no image in any class folder; fill it or remove it")

    def encoded(of: dict[str, list[Path]]) -> list[_Encoded]:
        return [
            _Encoded(str(f), f.read_bytes, classes.index(c))
            for c, files in of.items()
            for f in files
        ]

    pool = encoded(train) + [e for extra in tests[1:] for e in encoded(extra)]
    test = encoded(tests[0]) if tests else None
    everything = [f for of in (train, *tests) for files in of.values() for f in files]
    return Source(
        _safe_name(root),
        f"folder {root.name}" + (f", {held[0].name} as test" if held else ""),
        _fingerprint(everything),
        lambda w, s: _decode(w, s, classes, pool, test),
    )


def _class_files(root: Path) -> dict[str, list[Path]]:
    """Images per class folder (searched to any depth), classes in alphabetical order, empty ones
    left out."""
    classes = {}
    for folder in sorted(d for d in root.iterdir() if d.is_dir() and not d.name.startswith(".")):
        files = sorted(
            f for f in folder.rglob("*") if f.suffix.lower() in _IMAGE_SUFFIXES and f.is_file()
        )
        if files:
            classes[folder.name] = files
    return classes


def _parquet(root: Path, files: list[Path]) -> Source:
    by_split: dict[str, list[Path]] = {}
    for file in files:
        where = file.relative_to(root).with_suffix("") if file != root else Path(file.stem)
        match = re.search(
            r"(?<![a-z])(train|test|validation|valid|val)(?![a-z])", str(where).lower()
        )
        by_split.setdefault(match[1] if match else "", []).append(file)
    if list(by_split) == [""]:
        by_split = {"train": by_split[""]}
    if "train" not in by_split or "" in by_split:
        raise UserError(
            f"data {root}: name the parquet files train*, test* or val*, or none of them"
        )
    held = [name for name in _TEST_NAMES if name in by_split]

    def read(writer: CacheWriter, source: Source) -> Dataset:
        train, names = _parquet_rows(by_split["train"])
        tests = [_parquet_rows(by_split[name])[0] for name in held]
        pool = train + [row for extra in tests[1:] for row in extra]
        count = 1 + max(row.label for row in pool)
        classes = names if len(names) >= count else tuple(str(i) for i in range(count))
        if len({row.label for row in pool}) < 2:
            raise UserError(
                f"data {root}: only one class in its label column; at least 2 are needed"
            )
        return _decode(writer, source, classes, pool, tests[0] if tests else None)

    origin = f"parquet {root.name}" + (f", {held[0]} as test" if held else "")
    return Source(_safe_name(root), origin, _fingerprint(files), read)


def _parquet_rows(files: Sequence[Path]) -> tuple[list[_Encoded], tuple[str, ...]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[_Encoded] = []
    names: tuple[str, ...] = ()
    for file in files:
        try:
            table = pq.read_table(file)
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"data {file}: not a readable parquet file ({str(error).splitlines()[0]})"
            ) from None
        image = label = None
        for column in table.schema:
            kind = column.type
            if (
                pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
            ) or pa.types.is_binary(kind):
                image = image or column.name
            elif pa.types.is_integer(kind) and (label is None or column.name == "label"):
                label = column.name
        columns = ", ".join(table.schema.names)
        if image is None:
            raise UserError(
                f"data {file}: no image column (a struct with 'bytes', as Hugging Face writes it, or binary); "
                f"its columns are {columns}"
            )
        if label is None:
            raise UserError(f"data {file}: no integer label column; its columns are {columns}")
        features = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        names = tuple(
            features.get("info", {}).get("features", {}).get(label, {}).get("names", names)
        )
        cells, labels = table[image].to_pylist(), table[label].to_pylist()
        for i, (cell, y) in enumerate(zip(cells, labels, strict=True)):
            raw = cell["bytes"] if isinstance(cell, dict) else cell
            if raw is None or y is None or y < 0:
                raise UserError(f"data {file}: row {i} has no image or no label; remove it")
            rows.append(_Encoded(f"{file}, row {i}", partial(bytes, raw), int(y)))
    if not rows:
        raise UserError(f"data {files[0]}: no rows")
    return rows, names


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
            return Image.open(io.BytesIO(item.bytes()))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise _broken(item, error) from None

    def header(item: _Encoded) -> tuple[int, bool]:
        image = open_image(item)
        return min(image.size), image.mode in ("L", "1")

    with ThreadPoolExecutor() as pool:
        heads = list(pool.map(header, train))
        side = min(MAX_SIDE, int(np.quantile([s for s, _ in heads], 0.25, method="lower")))
        mode = "L" if all(grey for _, grey in heads) else "RGB"

        def decode(item: _Encoded) -> NDArray[np.uint8]:
            opened = open_image(item)
            try:
                image = ImageOps.exif_transpose(opened).convert(mode)
                square = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
            except (OSError, ValueError, SyntaxError) as error:
                raise _broken(item, error) from None
            return np.asarray(square).reshape(side, side, -1)

        def fill(name: str, items: list[_Encoded]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
            images = writer.array(name, len(items), side, len(mode))
            for i in range(0, len(items), 1024):
                for j, image in enumerate(pool.map(decode, items[i : i + 1024])):
                    images[i + j] = image
            return images, np.array([item.label for item in items], dtype=np.int64)

        images, labels = fill("train_images", train)
        held_out = fill("test_images", test) if test is not None else None
    return writer.commit(source.name, source.origin, classes, images, labels, held_out)


def _broken(item: _Encoded, error: Exception) -> UserError:
    return UserError(f"data {item.where}: not a readable image ({error}); repair or remove it")
