"""Opens what a folder holds: a study's own store, or the table of a recorded one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from scaling_search import UserError
from scaling_search.results import curves
from scaling_search.results.curves import TABLE
from scaling_search.results.database import has_file
from scaling_search.results.reader import StoreReader
from scaling_search.results.record import Record


class Results(Protocol):
    """What can be read of any study, wherever it is recorded."""

    def fact(self, name: str) -> Any:
        """One fact about the study; None where it is not known."""

    def facts(self) -> dict[str, Any]:
        """All that describes the study."""

    def records(self) -> list[Record]:
        """Every run, in the order in which they were started."""


@contextmanager
def open_results(folder: Path, store: str | None = None, empty: bool = False) -> Iterator[Results]:
    """What a folder holds: a study's own store (or what it has on the server at `store`), or else
    the table of a recorded one. Raises UserError for neither, and for a study without runs unless
    it may be `empty`."""
    if not store and not has_file(folder) and (folder / TABLE).is_file():
        table = curves.read(folder / TABLE)
        _check_runs(table, folder, empty)
        yield table
        return
    with StoreReader.open(folder, store) as reader:
        _check_runs(reader, folder, empty)
        yield reader


def _check_runs(results: Results, folder: Path, empty: bool) -> None:
    """Raise UserError where there is nothing to tell of."""
    if results.fact("settings") is None or not (empty or results.records()):
        raise UserError(f"{folder}: the study has no runs yet")
