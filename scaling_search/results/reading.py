"""Opens what a folder holds: a study's own store, or the table of a recorded one."""

from __future__ import annotations

from pathlib import Path

from scaling_search import UserError
from scaling_search.results import curves
from scaling_search.results.curves import TABLE, Curves
from scaling_search.results.store import Store


def open_results(folder: Path, store: str | None = None, empty: bool = False) -> Store | Curves:
    """What a folder holds: a study's own store (or what it has on the server at `store`), or the
    table of a recorded one. Raises UserError for neither, or for a study without runs unless it may
    be `empty`."""
    if store or (folder / "study.db").is_file() or not (folder / TABLE).is_file():
        source: Store | Curves = Store.read(folder, store)
    else:
        source = curves.read(folder / TABLE)
    if source.fact("settings") is None or not (empty or source.records()):
        raise UserError(f"{folder}: the study has no runs yet")
    return source
