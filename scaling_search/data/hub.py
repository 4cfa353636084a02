"""Data sets of the Hugging Face Hub, by their names: hf:OWNER/NAME, /CONFIG after it, @REVISION.

They are read through Hugging Face's own library, `datasets`, an extra of this package. Rows are
streamed: what is downloaded goes into one file beside the cache that is made of it, and is gone
with it, since headers and pixels are read one after the other.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from effnet.messages import first_line
from scaling_search import UserError
from scaling_search.data.dataset import FULL, CacheWriter, Dataset
from scaling_search.data.network import reach
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
    Rows,
    check_names,
    check_no_splits,
    choose_columns,
    image_of,
    read_rows,
)

PREFIX = "hf:"  # of what --data takes
_SPEC = re.compile(r"(?P<name>[^@]+?)(?:@(?P<revision>[^@]+))?")


@dataclass(frozen=True, slots=True)
class _Address:
    """`name` is OWNER/NAME on the Hub, NAME of an old set without owner, or a local repository's
    folder."""

    name: str
    config: str | None
    revision: str | None

    @property
    def is_local(self) -> bool:
        return self.name.startswith((".", "/", "~"))

    def __str__(self) -> str:
        config = f"/{self.config}" if self.config else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.name}{config}{revision}"


def is_installed() -> bool:
    """Whether the library that reads from the Hub is there."""
    return find_spec("datasets") is not None


def hub_source(spec: str, options: Options) -> Source:
    """Return the data set that `spec` names; nothing is asked of the Hub before it is read, so that
    a cached one needs no network. Raises UserError for what is no name; reading raises it for what
    cannot be had, and NoNetworkError."""
    address = _parse(spec)
    name = safe_name(Path(address.name))
    if address.is_local:
        root = Path(address.name).expanduser()
        if not root.is_dir():
            raise UserError(f"data {address}: no such folder")
        files = [("", at / name) for at, names in walk(root) for name in sorted(names)]
        known = f"{address}\n{fingerprint(files)}"
    else:
        known = str(address)

    def read(writer: CacheWriter, source: Source) -> Dataset:
        return _read(address, writer, source, options)

    return Source(name, f"Hugging Face, {address}", known, read)


def _parse(spec: str) -> _Address:
    match = _SPEC.fullmatch(spec.removeprefix(PREFIX))
    if match is None:
        raise UserError(
            f"data {shown(spec)}: wanted is hf:OWNER/NAME, with /CONFIG or @REVISION after it"
        )
    name, revision = match["name"], match["revision"]
    if name.startswith((".", "/", "~")):
        return _Address(name, None, revision)
    parts = name.split("/")
    if not 1 <= len(parts) <= 3 or not all(parts):
        raise UserError(
            f"data {shown(spec)}: wanted is hf:OWNER/NAME, with /CONFIG or @REVISION after it"
        )
    config = parts[2] if len(parts) == 3 else None
    return _Address("/".join(parts[:2]), config, revision)


def _read(address: _Address, writer: CacheWriter, source: Source, options: Options) -> Dataset:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"data {address}: reading from the Hugging Face Hub takes its library datasets; "
            "pip install -e '.[hub]'"
        ) from error
    from huggingface_hub import constants
    from huggingface_hub.utils import logging

    if not address.is_local:
        reach(constants.ENDPOINT).close()  # the library itself tries for half a minute
    for quiet in (logging, datasets.logging):
        quiet.set_verbosity_error()
    place = str(Path(address.name).expanduser()) if address.is_local else address.name
    datasets.disable_progress_bars()
    try:
        streams = datasets.load_dataset(
            place, address.config, revision=address.revision, streaming=True
        )
        splits, left_out = _splits(address, streams)
        first = splits["train"]
        if first.features is None:
            raise UserError(f"data {address}: does not say which columns it has")
        schema = first.features.arrow_schema
        check_names(str(address), schema)
        columns = choose_columns(str(address), schema, options)
        if len(splits) == 1:  # before anything is downloaded
            check_no_splits(str(address), schema, columns)
        rows: dict[str, Rows] = {}
        for kind, stream in splits.items():
            rows[kind] = _spooled(address, kind, stream, columns, writer.scratch(kind))
    except UserError:
        raise
    # whatever the library, the network or the repository raise: ConnectionError, HfHubHTTPError,
    # DatasetNotFoundError, ValueError for a configuration that is not there, ...
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        raise UserError(
            f"data {address}: cannot be had from the Hugging Face Hub ({first_line(error)})"
        ) from error
    return read_rows(writer, source, str(address), rows, schema, columns, left_out)


def _splits(address: _Address, streams: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the streams of train, test and val, and notes on the others. Raises UserError where
    none can be trained on, or two have names of one kind."""
    splits: dict[str, Any] = {}
    for name, stream in streams.items():
        kind = split_kind(str(name))
        if kind in splits:
            raise UserError(
                f"data {address}: has several splits for {kind} ({', '.join(map(str, streams))})"
            )
        if kind:
            splits[kind] = stream
    if "train" not in splits:
        if len(streams) != 1:
            raise UserError(
                f"data {address}: has no split train; its splits are {', '.join(map(str, streams))}"
            )
        splits = {"train": next(iter(streams.values()))}
    others = [str(name) for name, stream in streams.items() if stream not in splits.values()]
    notes = [f"left out: the splits {', '.join(map(shown, others))}"] if others else []
    return splits, notes


def _spooled(
    address: _Address, kind: str, stream: Any, columns: Columns, file: Path
) -> _SpooledRows:
    """Read a stream once, its images as they are encoded into `file`."""
    import datasets

    rows = _SpooledRows(f"{address}, {kind}", file)
    encoded = stream.select_columns([columns.image, columns.label])
    encoded = encoded.cast_column(columns.image, datasets.Image(decode=False))
    with file.open("wb") as spool:
        for number, row in enumerate(encoded):
            cell = row[columns.image]
            if isinstance(cell, dict) and cell.get("bytes") is None and cell.get("path"):
                # an image in a file of its own, or in an archive of the repository
                with datasets.utils.file_utils.xopen(cell["path"], "rb") as file_of_image:
                    cell = file_of_image.read()
            content = image_of(rows.where(number), cell)
            spool.write(content)
            rows.ends.append(rows.ends[-1] + len(content))
            rows.values.append(row[columns.label])
    return rows


@dataclass
class _SpooledRows:
    """Rows whose images lie one after the other in a file: row i from byte ends[i] to
    ends[i + 1]."""

    name: str
    file: Path
    ends: array[int] = field(default_factory=lambda: array("q", [0]))
    values: list[Any] = field(default_factory=list)

    def where(self, row: int) -> str:
        return f"{self.name}, row {row}"

    def labels(self) -> Iterator[tuple[str, Any]]:
        for row, value in enumerate(self.values):
            yield self.where(row), value

    def items(self) -> Iterator[Encoded]:
        for row in range(len(self.values)):
            yield Encoded(self.where(row), partial(self._content, row))

    def _content(self, row: int) -> bytes:
        with self.file.open("rb") as spool:
            spool.seek(self.ends[row])
            return spool.read(self.ends[row + 1] - self.ends[row])
