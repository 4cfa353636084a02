"""Parquet files, in the Hugging Face layout or any other with a column of encoded images."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from effnet.messages import first_line
from scaling_search import UserError
from scaling_search.data.dataset import CacheWriter, Dataset
from scaling_search.data.decoding import decode
from scaling_search.data.source import (
    Encoded,
    Options,
    Source,
    Split,
    fingerprint,
    is_hidden,
    safe_name,
    shown,
    split_kind,
)

# Usual names of columns, for files whose metadata do not say what they hold.
_IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png")
_LABEL_NAMES = ("label", "labels", "class", "class_label", "category", "target", "y")
# Numbers of rows, files or people, which are no classes.
_NO_LABEL_NAMES = ("id", "index", "idx", "width", "height", "row", "key", "__index_level_0__")
_ROWS = 64  # that are read at a time: see decoding._AHEAD
_BUFFER = 2**20  # bytes


@dataclass(frozen=True, slots=True)
class _Columns:
    """Where images and labels are. `names` are the classes', by label, where the files say them."""

    image: str
    label: str
    names: tuple[str, ...]

    def class_name(self, value: Any) -> str:
        """Return what the class of a label is called."""
        if isinstance(value, int) and value < len(self.names):
            return shown(self.names[value])
        return shown(str(value))


def parquet_files(root: Path) -> list[Path]:
    """Return the parquet files in a folder, to any depth, links followed, in alphabetical order."""
    found = []
    seen: set[Path] = set()
    for at, folders, files in os.walk(root, followlinks=True):
        real = Path(at).resolve()
        if real in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not is_hidden(name)]
        found += [Path(at, f) for f in files if f.endswith(".parquet") and not is_hidden(f)]
    return sorted(found)


def has_images(file: Path) -> bool:
    """Whether a parquet file has a column that may hold images."""
    return any(_may_hold_images(column.type) for column in _schema(file))


def parquet_source(root: Path, files: Sequence[Path], options: Options) -> Source:
    """Return the data set of parquet files below `root`; a file's split is in its name, or in its
    folder's. Raises UserError where they cannot be read, or in more than one way."""
    by_split = _by_split(root, files)
    columns = _columns(by_split["train"][0], options)

    def read(writer: CacheWriter, source: Source) -> Dataset:
        pool = _Rows(by_split["train"], columns)
        _check_labels(pool, columns)
        notes = []
        held_out: list[tuple[str, _Rows]] = []
        for kind in ("test", "val"):
            if kind not in by_split:
                continue
            rows = _Rows(by_split[kind], columns)
            # as contests publish their images, without the answers
            if all(label is None for _, label in rows.labels()):
                notes.append(f"left out: the split {kind}, whose images have no label")
            else:
                held_out.append((kind, rows))
        values = sorted({label for _, label in pool.labels()})
        train = pool.split(values)
        for _, rows in held_out[1:]:
            train += rows.split(values)
        test = None
        if held_out:
            kind, rows = held_out[0]
            test = rows.split(values)
            source = replace(source, origin=f"{source.origin}, {kind} as test")
        classes = tuple(columns.class_name(value) for value in values)
        return decode(writer, source, classes, train, test, options.channels, notes)

    origin = f"parquet {shown(root.name)}"
    listed = [("", file) for file in files]
    return Source(safe_name(root), origin, fingerprint(listed), read)


# ---- splits


def _by_split(root: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Return the files of each split, train among them. Raises UserError where they are of several
    data sets, or some have no split."""
    if len(files) == 1:
        return {"train": list(files)}
    splits: dict[str, list[Path]] = {}
    folders: dict[Path, Path] = {}
    for file in files:
        kind, above = _split_of(file, root)
        splits.setdefault(kind, []).append(file)
        if kind == "train":
            folders.setdefault(above, file)
    if list(splits) == [""]:
        return {"train": splits[""]}
    if "train" not in splits or "" in splits:
        raise UserError(
            f"data {shown(root)}: name the parquet files train*, test* or val*, or none of them"
        )
    if len(folders) > 1:
        names = ", ".join(shown(folder) for folder in folders)
        raise UserError(
            f"data {shown(root)}: holds several data sets ({names}); give the folder of one"
        )
    return splits


def _split_of(file: Path, root: Path) -> tuple[str, Path]:
    """Return train, val or test where the file's name or that of a folder below `root` says so,
    else ""; and the folder that holds what has this name, below `root`."""
    below = file.relative_to(root).with_suffix("")
    for part in (below, *below.parents):
        kind = split_kind(part.name, whole=False)
        if kind:
            return kind, part.parent
    return "", Path()


# ---- columns


def _schema(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(file, error) from error


def _columns(file: Path, options: Options) -> _Columns:
    """Return the columns of images and labels: those that the user names, else those that the
    Hugging Face metadata name, else those of a usual name, else the only ones that may be meant.
    Raises UserError where there is none, or more than one."""
    schema = _schema(file)
    features = _features(schema)
    images, labels = [], []
    for column in schema:
        if _may_hold_images(column.type):
            images.append(column.name)
        elif _may_hold_labels(column.type):
            labels.append(column.name)
    every = ", ".join(schema.names)

    def chosen(
        what: str, wanted: str, given: str | None, able: list[str], *ranks: list[str]
    ) -> str:
        flag = f"--{what}-column"
        if given is not None:
            if given not in schema.names:
                raise UserError(f"data {shown(file)}: no column {given}; its columns are {every}")
            if given not in able:
                kind = schema.field(given).type
                raise UserError(
                    f"data {shown(file)}: {flag} {given} is of type {kind}; wanted is {wanted}"
                )
            return given
        for rank in ranks:
            if len(rank) == 1:
                return rank[0]
            if rank:
                raise UserError(
                    f"data {shown(file)}: {', '.join(rank)} may each be the {what} column; name it "
                    f"with {flag}; its columns are {every}"
                )
        raise UserError(
            f"data {shown(file)}: no {what} column ({wanted}); its columns are {every}; name it "
            f"with {flag}"
        )

    image = chosen(
        "image",
        "a struct with 'bytes', as Hugging Face writes it, or binary",
        options.image_column,
        images,
        [name for name in images if _feature(features, name) == "Image"],
        [name for name in images if name.lower() in _IMAGE_NAMES],
        images,
    )
    declared = [name for name in labels if _feature(features, name) == "ClassLabel"]
    if len(declared) > 1:
        declared = [name for name in declared if name.lower() in _LABEL_NAMES] or declared
    label = chosen(
        "label",
        "whole numbers or text",
        options.label_column,
        labels,
        declared,
        [name for name in labels if name.lower() in _LABEL_NAMES],
        _other_labels(schema, labels),
    )
    if label == image:
        raise UserError(f"data {shown(file)}: {label} is both the image and the label column")
    names = features[label].get("names") if _feature(features, label) == "ClassLabel" else None
    return _Columns(image, label, tuple(str(name) for name in names or ()))


def _other_labels(schema: Any, labels: Sequence[str]) -> list[str]:
    """Return the columns of whole numbers that are not named as what is no class."""
    from pyarrow import types

    others = []
    for name in labels:
        is_other = name.lower() in _NO_LABEL_NAMES or name.lower().endswith(("_id", "_index"))
        if not is_other and types.is_integer(schema.field(name).type):
            others.append(name)
    return others


def _features(schema: Any) -> dict[str, Any]:
    """Return what the Hugging Face metadata say of the columns; nothing where there are none, or
    none that can be understood."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _feature(features: dict[str, Any], column: str) -> str:
    """Return the type that the metadata give to a column, "" where they give none."""
    feature = features.get(column)
    return str(feature.get("_type", "")) if isinstance(feature, dict) else ""


def _may_hold_images(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _may_hold_labels(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(types.is_integer(kind) or types.is_boolean(kind) or is_text)


# ---- rows


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a split's files, in order."""

    files: Sequence[Path]
    columns: _Columns

    def labels(self) -> Iterator[tuple[str, Any]]:
        """Yield where each row is, and its label: a number, a text, or None where it has none (null
        or below 0)."""
        for where, label in self._cells(self.columns.label):
            is_missing = label is None or (isinstance(label, int) and label < 0)
            yield where, None if is_missing else label

    def items(self) -> Iterator[Encoded]:
        """Yield the images. Raises UserError for a row without one."""
        for where, cell in self._cells(self.columns.image):
            content, path = cell, None
            if isinstance(cell, dict):
                content, path = cell.get("bytes"), cell.get("path")
            if content is None:
                only = f", only a path ({shown(path)})" if path else ""
                raise UserError(f"data {where} has no image{only}; remove it")
            yield Encoded(where, partial(bytes, content))

    def split(self, values: Sequence[Any]) -> Split:
        """Return the rows with their classes, which are these values in order. Raises UserError for
        a row without label, or with another."""
        classes = {value: i for i, value in enumerate(values)}
        numbers = []
        for where, label in self.labels():
            if label is None:
                raise UserError(f"data {where} has no label; remove it")
            if label not in classes:
                raise UserError(
                    f"data {where} has the label {self.columns.class_name(label)!r}, which no "
                    "training image has"
                )
            numbers.append(classes[label])
        return Split(numbers, self.items)

    def _cells(self, column: str) -> Iterator[tuple[str, Any]]:
        """Yield where each row is, and what it has in a column. Raises UserError for a file that
        cannot be read, or lacks the column."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        for file in self.files:
            row = 0
            try:
                with pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as table:
                    if column not in table.schema_arrow.names:
                        raise UserError(f"data {shown(file)}: no column {column}")
                    for batch in table.iter_batches(_ROWS, columns=[column]):
                        for cell in batch.column(0).to_pylist():
                            yield f"{shown(file)}, row {row}", cell
                            row += 1
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(file, error) from error


def _check_labels(rows: _Rows, columns: _Columns) -> None:
    """Raise UserError where the training rows' labels cannot be classes: fewer than two, none, or
    another in each row."""
    where = f"data {shown(rows.files[0])}"
    counts: Counter[Any] = Counter()
    for row, label in rows.labels():
        if label is None:
            raise UserError(f"data {row} has no label; remove it")
        counts[label] += 1
    if not counts:
        raise UserError(f"{where}: no rows")
    if len(counts) < 2:
        raise UserError(
            f"{where}: only one class in its label column {columns.label}; at least 2 are needed"
        )
    if len(counts) == counts.total() and len(counts) > 2:
        raise UserError(
            f"{where}: the column {columns.label} has another value in each row, so that it holds "
            "no classes; name the right one with --label-column"
        )


def _unreadable(file: Path, error: Exception) -> UserError:
    return UserError(f"data {shown(file)}: not a readable parquet file ({first_line(error)})")
