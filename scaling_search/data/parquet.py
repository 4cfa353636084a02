"""Parquet files, in the Hugging Face layout or any other with a column of encoded images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from effnet.messages import first_line
from scaling_search import UserError
from scaling_search.data.dataset import CacheWriter, Dataset
from scaling_search.data.source import (
    Encoded,
    Options,
    Source,
    fingerprint,
    safe_name,
    shown,
    split_kind,
    walk,
)
from scaling_search.data.tables import (
    Columns,
    check_columns,
    check_names,
    choose_columns,
    class_names,
    image_of,
    is_numeric_label,
    left_out_words,
    may_hold_images,
    read_rows,
)

_READ = 2**24  # bytes of rows that are read at a time, and rows
_MOST_ROWS = 4096
_BUFFER = 2**20  # bytes
SUFFIX = ".parquet"


def parquet_files(root: Path) -> list[Path]:
    """Return the parquet files in a folder, to any depth, links followed, in alphabetical order."""
    files = []
    for folder, names in walk(root):
        files += [folder / name for name in names if name.lower().endswith(SUFFIX)]
    return sorted(files)


def has_images(file: Path) -> bool:
    """Whether a parquet file has a column that may hold images."""
    return any(may_hold_images(column.type) for column in _schema(file))


def parquet_source(root: Path, files: Sequence[Path], options: Options) -> Source:
    """Return the data set of parquet files below `root`; a file's split is in its name, or in its
    folder's. Raises UserError where they cannot be read, or in more than one way."""
    by_split = _by_split(root, files)
    schemas = {file: _schema(file) for file in files}
    first = by_split["train"][0]
    check_names(shown(first), schemas[first])
    columns = choose_columns(shown(first), schemas[first], options)
    _check_one_set(root, files, schemas, columns)
    left_out = []
    for kind in ("test", "val"):
        # as contests publish their images, without the answers
        own = by_split.get(kind, [])
        if own and all(_is_unlabelled(file, schemas[file], columns.label) for file in own):
            del by_split[kind]
            left_out.append(left_out_words(kind))
    files = [file for own in by_split.values() for file in own]
    for file in files:
        check_columns(shown(file), schemas[file], columns)
        names = class_names(schemas[file], columns.label)
        if names and names != columns.names:
            raise UserError(
                f"data {shown(file)}: its classes have other names than those of {shown(first)}; "
                "the same label would be two classes"
            )
    splits = {kind: _FileRows(own, columns) for kind, own in by_split.items()}

    def read(writer: CacheWriter, source: Source) -> Dataset:
        return read_rows(writer, source, shown(first), splits, schemas[first], columns, left_out)

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


def _check_one_set(
    root: Path, files: Sequence[Path], schemas: Mapping[Path, Any], columns: Columns
) -> None:
    """Raise UserError where files that say no split lie in several folders, and the label 0 of one
    may be another class than that of the next.

    Texts say which class they are, and so do names that all files declare alike; folders such as
    year=2020 are the parts of one table."""
    if len(files) == 1 or any(_split_of(file, root)[0] for file in files):
        return
    folders = sorted({file.parent.relative_to(root) for file in files})
    parts = [part for folder in folders for part in folder.parts]
    are_parts = all("=" in part for part in parts)
    names = {class_names(schemas[file], columns.label) for file in files}
    are_named = len(names) == 1 and names != {()}
    kind = schemas[files[0]].field(columns.label).type
    if len(folders) > 1 and is_numeric_label(kind) and not are_parts and not are_named:
        listed = ", ".join(shown(folder) for folder in folders)
        raise UserError(
            f"data {shown(root)}: its parquet files lie in several folders ({listed}) and may be "
            "several data sets, whose labels are numbers; give the folder of one, or move all into "
            "one folder train"
        )


def _is_unlabelled(file: Path, schema: Any, label: str) -> bool:
    """Whether no row of a file has a label: there is no such column, or nothing in it. Raises
    UserError for a file that cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if label not in schema.names:
        return True
    try:
        column = pq.read_table(file, columns=[label]).column(0)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(file, error) from error
    return bool(column.null_count == len(column))


def _split_of(file: Path, root: Path) -> tuple[str, Path]:
    """Return train, val or test where the file's name or that of a folder below `root` says so,
    else ""; and the folder that holds what has this name, below `root`."""
    below = file.relative_to(root).with_suffix("")
    for part in (below, *below.parents):
        kind = split_kind(part.name, whole=False)
        if kind:
            return kind, part.parent
    return "", Path()


def _schema(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(file, error) from error


# ---- rows


@dataclass(frozen=True, slots=True)
class _FileRows:
    """The rows of a split's files, in order."""

    files: Sequence[Path]
    columns: Columns

    def labels(self) -> Iterator[tuple[str, Any]]:
        yield from self._cells(self.columns.label)

    def items(self) -> Iterator[Encoded]:
        for where, cell in self._cells(self.columns.image):
            content = image_of(where, cell)
            yield Encoded(where, partial(bytes, content), len(content))

    def _cells(self, column: str) -> Iterator[tuple[str, Any]]:
        """Yield where each row is, and what it has in a column. Raises UserError for a file that
        cannot be read."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        for file in self.files:
            row, name = 0, shown(file)
            try:
                with pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as table:
                    each = 1 + file.stat().st_size // max(1, table.metadata.num_rows)
                    rows = min(_MOST_ROWS, 1 + _READ // each)
                    for batch in table.iter_batches(rows, columns=[column]):
                        for cell in batch.column(0).to_pylist():
                            yield f"{name}, row {row}", cell
                            row += 1
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> UserError:
    return UserError(f"data {shown(file)}: not a readable parquet file ({first_line(error)})")
