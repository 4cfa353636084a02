"""A study's store as anyone may look at it, also while a driver writes to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scaling_search import UserError
from scaling_search.results.database import Database, address_of, has_file, open_to_read
from scaling_search.results.encoding import facts_among, read_runs
from scaling_search.results.record import Record


class StoreReader:
    """Reads a store; each question asks the database anew, and neither blocks a driver nor waits
    for one. To be closed: a context manager."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, folder: Path, url: str | None = None) -> StoreReader:
        """The study of a run folder, which may lie on the server at `url` or on the one that the
        folder remembers. Raises UserError where there is no study."""
        address = address_of(folder, url)
        if address is None and not has_file(folder):
            raise UserError(
                f"{folder}: no study.db there; give the folder of a run, such as "
                "runs/fashion-mnist-2x"
            )
        return cls(open_to_read(folder, address))

    def __enter__(self) -> StoreReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    def fact(self, name: str) -> Any:
        """One fact about the study; None where it is not known."""
        return self._database.attributes().get(name)

    def facts(self) -> dict[str, Any]:
        """All that describes the study."""
        return facts_among(self._database.attributes())

    def records(self) -> list[Record]:
        """Every run that counts, in the order in which they were started."""
        return [run.record for run in read_runs(self._database) if not run.freed]
