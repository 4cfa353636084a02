"""Tables of images, whatever holds them: which columns are meant, what their labels are."""

from __future__ import annotations

import json
import re
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
# Columns that say which split a row is of: split, data_split, Usage, is_training.
_SPLIT_NAME = re.compile(
    r"(.*_)?(split|subset|partition)(_.*)?|usage"
    r"|is_?(train|training|test|testing|val|valid|validation)"
)
_WANTED = {
    "image": "a struct with 'bytes', as Hugging Face writes it, or binary",
    "label": "whole numbers or text",
}
_SIGNS = (-1, 1)  # labels of two classes
# Numbers of rows, files or people, which are no classes.
_NO_LABEL_NAMES = ("id", "index", "idx", "width", "height", "row", "key", "__index_level_0__")
_NO_LABEL_ENDS = ("_id", "_index", "path", "name", "url")
# Whatever their end: class_id, category_name.
_LABEL_NAME = re.compile(r"(class|category|label|target)s?_(id|index|name)")
# A usual name of a label that is as usual of something else: a coordinate.
_DOUBTFUL = "y"


@dataclass(frozen=True, slots=True)
class Columns:
    """Where images and labels are. `names` are the classes', by label, where the table says
    them."""

    image: str
    label: str
    names: tuple[str, ...]

    def class_name(self, value: Any) -> str:
        """Return what the class of a label is called."""
        if isinstance(value, int) and 0 <= value < len(self.names):
            return shown(self.names[value])
        return shown(str(value))


class Rows(Protocol):
    """The rows of a split, in order; each may be asked for more than once."""

    def labels(self) -> Iterator[tuple[str, Any]]:
        """Yield where each row is, and its label: a number, a text, or null."""

    def items(self) -> Iterator[Encoded]:
        """Yield the images. Raises UserError for a row without one."""


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
    schema: Any,
    columns: Columns,
    left_out: Sequence[str] = (),
) -> Dataset:
    """Read the splits train, test and val of a table, the last two where they are there: the first
    of them is the test split, the other is for training.

    The classes are the labels that occur in training, in order. Raises UserError for labels that
    cannot be classes, a row without image or label, images that cannot be read, and training data
    of `schema` that say themselves which rows are for testing, where no other split is left."""
    pool = splits["train"]
    values = _check_labels(where, pool, columns)
    notes = list(left_out)
    held_out: list[tuple[str, Rows]] = []
    for kind in ("test", "val"):
        if kind not in splits:
            continue
        # as contests publish their images, without the answers
        if all(_is_missing(label, values) for _, label in splits[kind].labels()):
            notes.append(left_out_words(kind))
        else:
            held_out.append((kind, splits[kind]))
    if not held_out:
        check_no_splits(where, schema, columns)
    train = _split(pool, values, columns)
    for _, rows in held_out[1:]:
        train += _split(rows, values, columns)
    test = None
    if held_out:
        kind, rows = held_out[0]
        test = _split(rows, values, columns)
        source = replace(source, origin=f"{source.origin}, {kind} as test")
    classes = tuple(columns.class_name(value) for value in values)
    return decode(writer, source, classes, train, test, notes)


def left_out_words(kind: str) -> str:
    """Say that a split, test or val, is left out since its images have no label."""
    return f"left out: the split {kind}, whose images have no label"


def _split(rows: Rows, values: Sequence[Any], columns: Columns) -> Split:
    """Return the rows with their classes, which are these values in order. Raises UserError for a
    row without label, or with another."""
    classes = {value: i for i, value in enumerate(values)}
    numbers = []
    for where, label in rows.labels():
        if _is_missing(label, values):
            raise _no_label(where, label)
        if label not in classes:
            if type(label) is not type(values[0]):
                raise UserError(
                    f"data {where} has the label {label!r}, and those of training are of another "
                    f"type, as {values[0]!r} is; write them alike"
                )
            raise UserError(
                f"data {where} has the label {columns.class_name(label)!r}, which no training "
                "image has"
            )
        numbers.append(classes[label])
    return Split(numbers, rows.items)


def _is_missing(label: Any, values: Sequence[Any]) -> bool:
    """Whether a label says that there is none: null, no text, or a number below 0 that is no
    class."""
    return label in (None, "") or (isinstance(label, int) and label < 0 and label not in values)


def _no_label(where: str, label: Any) -> UserError:
    if label in (None, ""):
        return UserError(f"data {where} has no label; remove it")
    return UserError(f"data {where} has the label {label}, which stands for none; remove it")


def _check_labels(where: str, rows: Rows, columns: Columns) -> list[Any]:
    """Return the labels that are the classes, in order. Raises UserError where the training rows'
    labels cannot be classes: fewer than two, none, or another in each row."""
    counts: Counter[Any] = Counter()
    first: dict[Any, str] = {}
    for row, label in rows.labels():
        counts[label] += 1
        first.setdefault(label, row)
    if len({type(label) for label in counts if label is not None}) > 1:
        raise UserError(f"data {where}: the labels of {columns.label} are of several types")
    # -1 and 1 are two classes; -1 beside others is a row without label
    values = list(_SIGNS) if counts.keys() == set(_SIGNS) else []
    for label, row in first.items():
        if _is_missing(label, values):
            raise _no_label(row, label)
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
    return sorted(counts)


# ---- columns


def choose_columns(where: str, schema: Any, options: Options) -> Columns:
    """Return the columns of images and labels of a table with this pyarrow schema: those that the
    user names, else those that the Hugging Face metadata name, else those of a usual name, else the
    only ones that may be meant. Raises UserError where there is none, or more than one; a label of
    a usual name beside one that the metadata name is one more."""
    features = _features(schema)
    images: list[str] = []
    labels: list[str] = []
    unable: list[str] = []  # columns with the name of a label that can be none
    for column in schema:
        if may_hold_images(column.type):
            images.append(column.name)
        elif _may_hold_labels(column.type):
            labels.append(column.name)
        if column.name.lower() in _LABEL_NAMES and column.name not in labels:
            unable.append(column.name)
    image = _chosen(
        where,
        schema,
        "image",
        options.image_column,
        images,
        [name for name in images if _feature(features, name) == "Image"],
        [name for name in images if name.lower() in _IMAGE_NAMES],
        images,
    )
    declared = [name for name in labels if _feature(features, name) == "ClassLabel"]
    if len(declared) > 1:
        declared = [name for name in declared if name.lower() in _LABEL_NAMES] or declared
    usual = [name for name in labels if name.lower() in _LABEL_NAMES]
    if declared and not set(declared) & set(usual):
        declared += [name for name in usual if name.lower() != _DOUBTFUL]
    if unable and options.label_column is None and not declared and not usual:
        kind = schema.field(unable[0]).type
        raise UserError(
            f"data {where}: {unable[0]} is of type {kind}; wanted is {_WANTED['label']}; name "
            "another column with --label-column"
        )
    label = _chosen(
        where,
        schema,
        "label",
        options.label_column,
        labels,
        declared,
        usual,
        [name for name in labels if not _is_no_class(name)],
    )
    return Columns(image, label, class_names(schema, label))


def _chosen(
    where: str, schema: Any, what: str, given: str | None, able: list[str], *ranks: list[str]
) -> str:
    """Return the column that the user gave, else the only one of the first rank that has any.

    `what`: image or label; `able`: the columns that may hold such. Raises UserError where there is
    none, or more than one."""
    flag = f"--{what}-column"
    every = f"its columns are {', '.join(schema.names)}"
    if given is not None:
        if given not in schema.names:
            raise UserError(f"data {where}: no column {given}; {every}")
        if given not in able:
            kind = schema.field(given).type
            raise UserError(
                f"data {where}: {flag} {given} is of type {kind}; wanted is {_WANTED[what]}"
            )
        return given
    for rank in ranks:
        if len(rank) == 1:
            return rank[0]
        if rank:
            raise UserError(
                f"data {where}: {', '.join(rank)} may each be the {what} column; name it with "
                f"{flag}; {every}"
            )
    raise UserError(
        f"data {where}: no {what} column ({_WANTED[what]}); {every}; name it with {flag}"
    )


def _is_no_class(name: str) -> bool:
    """Whether a column has the name of what is no class."""
    name = name.lower()
    if _LABEL_NAME.fullmatch(name):
        return False
    return name in _NO_LABEL_NAMES or name.endswith(_NO_LABEL_ENDS)


def check_columns(where: str, schema: Any, columns: Columns) -> None:
    """Raise UserError for a table that lacks one of these columns, or has something else in it."""
    checks = (
        ("image", columns.image, may_hold_images),
        ("label", columns.label, _may_hold_labels),
    )
    for what, column, may_hold in checks:
        if column not in schema.names:
            raise UserError(
                f"data {where}: no column {column}; its columns are {', '.join(schema.names)}"
            )
        kind = schema.field(column).type
        if not may_hold(kind):
            raise UserError(
                f"data {where}: {column} is of type {kind}; wanted is {_WANTED[what]}, as in the "
                "other files"
            )


def check_names(where: str, schema: Any) -> None:
    """Raise UserError for a table with two columns of one name."""
    names = list(schema.names)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"data {where}: two columns are called {twice[0]}; rename one")


def check_no_splits(where: str, schema: Any, columns: Columns) -> None:
    """Raise UserError for a table with a column, other than these, that says which rows are of
    which split: it would be trained on what it is tested on."""
    for name in schema.names:
        if name not in (columns.image, columns.label) and _SPLIT_NAME.fullmatch(name.lower()):
            raise UserError(
                f"data {where}: has a column {name}, which is not read; write a file for each "
                "split, named train*, val* or test*, or take the column out"
            )


def class_names(schema: Any, label: str) -> tuple[str, ...]:
    """Return the names of a label's classes, by number; none where the metadata do not say them."""
    features = _features(schema)
    if _feature(features, label) != "ClassLabel":
        return ()
    return tuple(str(name) for name in features[label].get("names") or ())


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
        at = kind.get_field_index("bytes")
        if at < 0:
            return False
        # null where no row has any: its first row says what is wrong
        kind = kind.field(at).type
        return bool(_is_binary(kind) or types.is_null(kind))
    return _is_binary(kind)


def is_numeric_label(kind: Any) -> bool:
    """Whether labels of this type are numbers, which say nothing of their classes."""
    from pyarrow import types

    return bool(types.is_integer(kind) or types.is_boolean(kind))


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _may_hold_labels(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(is_numeric_label(kind) or is_text)
