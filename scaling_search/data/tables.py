"""Tables of images, whatever holds them: which columns are meant, what their labels are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from scaling_search import UserError
from scaling_search.data.dataset import CacheWriter, Dataset
from scaling_search.data.decoding import decode
from scaling_search.data.source import Encoded, Options, Source, Split, shown

# Usual names of columns, for tables whose metadata do not say what they hold.
_IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png")
_LABEL_NAMES = ("label", "labels", "class", "class_label", "category", "target", "y")
# Numbers of rows, files or people, which are no classes.
_NO_LABEL_NAMES = ("id", "index", "idx", "width", "height", "row", "key", "__index_level_0__")


@dataclass(frozen=True, slots=True)
class Columns:
    """Where images and labels are. `names` are the classes', by label, where the table says
    them."""

    image: str
    label: str
    names: tuple[str, ...]

    def class_name(self, value: Any) -> str:
        """Return what the class of a label is called."""
        if isinstance(value, int) and value < len(self.names):
            return shown(self.names[value])
        return shown(str(value))


class Rows(Protocol):
    """The rows of a split, in order; each may be asked for more than once."""

    def labels(self) -> Iterator[tuple[str, Any]]:
        """Yield where each row is, and its label: a number, a text, or None where it has none."""

    def items(self) -> Iterator[Encoded]:
        """Yield the images. Raises UserError for a row without one."""


def label_of(cell: Any) -> Any:
    """Return a label; None for null and for numbers below 0, by which rows say that they have
    none."""
    return None if isinstance(cell, int) and cell < 0 else cell


def image_of(where: str, cell: Any) -> bytes:
    """Return the encoded image of a cell: bytes, or a struct with them. Raises UserError where
    there are none."""
    content, path = cell, None
    if isinstance(cell, dict):
        content, path = cell.get("bytes"), cell.get("path")
    if content is None:
        only = f", only a path ({shown(path)})" if path else ""
        raise UserError(f"data {where} has no image{only}; remove it")
    return bytes(content)


def read_rows(
    writer: CacheWriter,
    source: Source,
    where: str,
    splits: Mapping[str, Rows],
    columns: Columns,
    options: Options,
) -> Dataset:
    """Read the splits train, test and val of a table, the last two where they are there: the first
    of them is the test split, the other is for training.

    The classes are the labels that occur in training, in order. Raises UserError for labels that
    cannot be classes, a row without image or label, and images that cannot be read."""
    pool = splits["train"]
    _check_labels(where, pool, columns)
    notes = []
    held_out: list[tuple[str, Rows]] = []
    for kind in ("test", "val"):
        if kind not in splits:
            continue
        # as contests publish their images, without the answers
        if all(label is None for _, label in splits[kind].labels()):
            notes.append(f"left out: the split {kind}, whose images have no label")
        else:
            held_out.append((kind, splits[kind]))
    values = sorted({label for _, label in pool.labels()})
    train = _split(pool, values, columns)
    for _, rows in held_out[1:]:
        train += _split(rows, values, columns)
    test = None
    if held_out:
        kind, rows = held_out[0]
        test = _split(rows, values, columns)
        source = replace(source, origin=f"{source.origin}, {kind} as test")
    classes = tuple(columns.class_name(value) for value in values)
    return decode(writer, source, classes, train, test, options.channels, notes)


def _split(rows: Rows, values: Sequence[Any], columns: Columns) -> Split:
    """Return the rows with their classes, which are these values in order. Raises UserError for a
    row without label, or with another."""
    classes = {value: i for i, value in enumerate(values)}
    numbers = []
    for where, label in rows.labels():
        if label is None:
            raise UserError(f"data {where} has no label; remove it")
        if label not in classes:
            raise UserError(
                f"data {where} has the label {columns.class_name(label)!r}, which no training "
                "image has"
            )
        numbers.append(classes[label])
    return Split(numbers, rows.items)


def _check_labels(where: str, rows: Rows, columns: Columns) -> None:
    """Raise UserError where the training rows' labels cannot be classes: fewer than two, none, or
    another in each row."""
    counts: Counter[Any] = Counter()
    for row, label in rows.labels():
        if label is None:
            raise UserError(f"data {row} has no label; remove it")
        counts[label] += 1
    if not counts:
        raise UserError(f"data {where}: no rows")
    if len(counts) < 2:
        raise UserError(
            f"data {where}: only one class in its label column {columns.label}; at least 2 are "
            "needed"
        )
    if len(counts) == counts.total() and len(counts) > 2:
        raise UserError(
            f"data {where}: the column {columns.label} has another value in each row, so that it "
            "holds no classes; name the right one with --label-column"
        )


# ---- columns


def choose_columns(where: str, schema: Any, options: Options) -> Columns:
    """Return the columns of images and labels of a table with this pyarrow schema: those that the
    user names, else those that the Hugging Face metadata name, else those of a usual name, else the
    only ones that may be meant. Raises UserError where there is none, or more than one."""
    features = _features(schema)
    images, labels = [], []
    for column in schema:
        if may_hold_images(column.type):
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
                raise UserError(f"data {where}: no column {given}; its columns are {every}")
            if given not in able:
                kind = schema.field(given).type
                raise UserError(
                    f"data {where}: {flag} {given} is of type {kind}; wanted is {wanted}"
                )
            return given
        for rank in ranks:
            if len(rank) == 1:
                return rank[0]
            if rank:
                raise UserError(
                    f"data {where}: {', '.join(rank)} may each be the {what} column; name it "
                    f"with {flag}; its columns are {every}"
                )
        raise UserError(
            f"data {where}: no {what} column ({wanted}); its columns are {every}; name it "
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
        raise UserError(f"data {where}: {label} is both the image and the label column")
    names = features[label].get("names") if _feature(features, label) == "ClassLabel" else None
    return Columns(image, label, tuple(str(name) for name in names or ()))


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


def may_hold_images(kind: Any) -> bool:
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
