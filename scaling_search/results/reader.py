"""A study's store as anyone may look at it, also while a driver writes to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.storages import RDBStorage
from sqlalchemy import URL

from scaling_search import UserError
from scaling_search.results.database import (
    Database,
    address_of,
    has_file,
    open_to_read,
    study_name,
)
from scaling_search.results.encoding import StoredRun, facts_among, read_runs
from scaling_search.results.locks import Owner, folder_is_held, last_sign, study_is_held
from scaling_search.results.record import Record

_WANTED = "give the folder of a run, such as runs/fashion-mnist-2x, or of a recorded study"


@dataclass(frozen=True, slots=True)
class Glance:
    """A study at one moment: its attributes, its runs that count, its driver, whether that is at
    work (None: it cannot be known from here), and when it last wrote [seconds since 1970], where
    that is known."""

    attributes: dict[str, Any]
    runs: list[StoredRun]
    owner: Owner | None
    alive: bool | None
    last_sign: float | None


class StoreReader:
    """Reads a store; each question asks the database anew, and neither blocks a driver nor waits
    for one. To be closed: a context manager."""

    def __init__(self, database: Database, folder: Path, address: URL | None) -> None:
        self._database, self._folder = database, folder
        self._is_on_server = address is not None
        self._name = study_name(folder, address)

    @classmethod
    def open(cls, folder: Path, url: str | None = None) -> StoreReader:
        """The study of a run folder, which may lie on the server at `url` or on the one that the
        folder remembers. Raises UserError where there is no study."""
        address = address_of(folder, url)
        if address is None and not has_file(folder):
            if not folder.exists():
                raise UserError(f"{folder}: no such folder; {_WANTED}")
            if folder.is_file():
                raise UserError(f"{folder}: a file; give the folder that it lies in")
            if (folder / "results.csv").is_file():
                raise UserError(
                    f"{folder}: has results.csv, but neither study.db nor curves.parquet, from "
                    "which a study is read"
                )
            if (folder / "study.toml").is_file():
                raise UserError(
                    f"{folder}: a study without any run; scaling-search search --study "
                    f"{folder / 'study.toml'} trains it"
                )
            raise UserError(f"{folder}: no study.db there; {_WANTED}")
        return cls(open_to_read(folder, address), folder, address)

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

    def glance(self) -> Glance:
        """The study and its driver as they are now."""
        # The lock first: a driver that ends in between has written all that is read after.
        alive = self._driver_is_alive()
        attributes = self._database.attributes()
        owner = Owner.read(attributes.get("driver", ""))
        if alive is False and not self._is_on_server and owner and not owner.is_on_this_host:
            alive = None
        runs = [run for run in read_runs(self._database) if not run.freed]
        return Glance(attributes, runs, owner, alive, last_sign(self._folder))

    def _driver_is_alive(self) -> bool | None:
        storage = self._database.storage
        if not self._is_on_server:
            return folder_is_held(self._folder)
        assert isinstance(storage, RDBStorage)
        with self._database.translate_errors():
            return study_is_held(storage.engine, self._name)
