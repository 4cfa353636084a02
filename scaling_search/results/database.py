"""The Optuna study behind a store: where its database is, how it is opened, what its errors mean.

The database is a SQLite file in the run folder, or on a PostgreSQL server.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from scaling_search import UserError, without_secrets

REMEMBERED = "store"  # the file in a run folder that says on which server its study is
_FILE = "study.db"  # the file in a run folder that holds its study, where no server does
_STUDY_NAME = "scaling-search"  # of the study in such a file; on a server it has the folder's name
_PATIENCE = 60.0  # seconds to wait for another program that has locked the file
_SERVER_OPTIONS = {
    "connect_timeout": 10,
    # A server that is lost is noticed within a minute (30 s + 3 × 10 s).
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}
# What opening a file or a server raises that holds no study of ours: KeyError for a study's name
# that is not there, RuntimeError for tables of another release of Optuna.
_OPENING_ERRORS = (
    SQLAlchemyError,
    OSError,
    KeyError,
    RuntimeError,
    optuna.exceptions.OptunaError,
)
# What parsing raises where what was stored has been damaged: JSON that is none, or lacks a part.
MALFORMED = (ValueError, LookupError, TypeError, AttributeError)


@dataclass(frozen=True)
class Database:
    """One Optuna study in its storage. `place` is its name in messages: a file, or the address of a
    server without the password."""

    storage: BaseStorage
    study_id: int
    place: str

    def attributes(self) -> dict[str, Any]:
        """The study's attributes. Raises UserError."""
        with self.translate_errors(), self._translate_malformed("its attributes"):
            return self.storage.get_study_user_attrs(self.study_id)

    def set_attribute(self, name: str, value: Any) -> None:
        """Set an attribute of the study, which any study takes at any time: a finished trial takes
        no more. Raises UserError."""
        with self.translate_errors():
            self.storage.set_study_user_attr(self.study_id, name, value)

    def trials(self) -> list[FrozenTrial]:
        """Every trial, in the order of their numbers, not to be altered. Raises UserError."""
        with self.translate_errors(), self._translate_malformed("its trials"):
            return self.storage.get_all_trials(self.study_id, deepcopy=False)

    def close(self) -> None:
        if isinstance(self.storage, RDBStorage):
            _close(self.storage)

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Raise UserError for what the database cannot do: a full disk, a lock, a lost server."""
        try:
            yield
        except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
            raise UserError(
                f"{self.place}: {_reason(error)}; every result recorded before is intact: mend it, "
                "and the same command goes on"
            ) from error

    @contextmanager
    def _translate_malformed(self, part: str) -> Iterator[None]:
        """Raise UserError where Optuna cannot parse what it reads. Only its calls belong inside: of
        our own code, the same exceptions are faults, not to be blamed on the file."""
        try:
            yield
        except MALFORMED as error:
            raise self.malformed(part, error) from error

    def malformed(self, part: str, error: Exception) -> UserError:
        """What to say of a part of the study that cannot be parsed."""
        return UserError(
            f"{self.place}: not a readable study ({part}: {type(error).__name__}: {error}); "
            "restore it, or use another folder"
        )


def versions() -> dict[str, str]:
    """Versions of the libraries that record a study."""
    return {"optuna": optuna.__version__}


def address_of(folder: Path, url: str | None) -> URL | None:
    """The server that `url` names or that the folder remembers; None for the folder's own file.
    Raises UserError for an address that is none, or that has its password where it would show."""
    with suppress(OSError):
        url = url or (folder / REMEMBERED).read_text().strip() or None
    if url is None:
        return None
    shown = without_secrets(url)
    try:
        address = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise _wrong_address(shown) from error
    if any("password" in key for key in address.query):
        raise UserError(
            f"--store {shown}: a password in the query would be written down; take ~/.pgpass or "
            "PGPASSWORD"
        )
    if address.get_backend_name() != "postgresql" or not address.database:
        raise _wrong_address(shown)
    if address.password == "***":  # as remembered: libpq takes it from ~/.pgpass or PGPASSWORD
        address = address._replace(password=None)
    if address.drivername == "postgresql":
        # by name, as SQLAlchemy 2.0 and 2.1 differ in which driver plain postgresql:// means
        address = address.set(drivername="postgresql+psycopg")
    return address


def _wrong_address(shown: str) -> UserError:
    return UserError(
        f"--store {shown}: wanted is postgresql://user@host/database; without it, SQLite in the "
        "run folder"
    )


def study_name(folder: Path, address: URL | None) -> str:
    """What the study of a run folder is called in its database."""
    return _STUDY_NAME if address is None else folder.resolve().name


def has_file(folder: Path) -> bool:
    """Whether a run folder holds a database of its own."""
    return (folder / _FILE).is_file()


def open_to_write(folder: Path, address: URL | None) -> Database:
    """The study, made where there is none. Raises UserError."""
    with _translate_opening_errors(folder, address), ExitStack() as opened:
        if address is None:
            storage = _write_file(folder / _FILE)
        else:
            storage = RDBStorage(
                address.render_as_string(hide_password=False), {"connect_args": _SERVER_OPTIONS}
            )
        opened.callback(_close, storage)
        if address is None:
            # With a write-ahead log, readers and the driver never wait for one another.
            with storage.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        storage.remove_session()
        # one flush, at the commit, after which nothing is read again: fewer statements a write
        storage.scoped_session.configure(expire_on_commit=False, autoflush=False)
        name = study_name(folder, address)
        try:
            study_id = storage.get_study_id_from_name(name)
        except KeyError:
            study_id = storage.create_new_study([StudyDirection.MAXIMIZE], name)
        opened.pop_all()  # from here on Database.close
        return Database(storage, study_id, _place(folder, address))


def open_to_read(folder: Path, address: URL | None) -> Database:
    """The study as it is; nothing is written, no table made. Raises UserError."""
    # Without a pool, a reader leaves no connection behind, nor SQLite's -wal file.
    options: dict[str, Any] = {"poolclass": NullPool}
    if address is None:
        path = (folder / _FILE).resolve()
        url = URL.create("sqlite", database=str(path))
        options["creator"] = lambda: _connect_read_only(path)
    else:
        url = address
        options["connect_args"] = _SERVER_OPTIONS
        options["execution_options"] = {"postgresql_readonly": True}
    with _translate_opening_errors(folder, address):
        storage = RDBStorage(
            url.render_as_string(hide_password=False), options, skip_table_creation=True
        )
        storage.remove_session()
        study_id = storage.get_study_id_from_name(study_name(folder, address))
        return Database(storage, study_id, _place(folder, address))


def open_in_memory() -> Database:
    """A study that goes with this process."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = InMemoryStorage()
    study_id = storage.create_new_study([StudyDirection.MAXIMIZE], _STUDY_NAME)
    return Database(storage, study_id, "memory")


def _write_file(path: Path) -> RDBStorage:
    if path.exists() and not os.access(path, os.W_OK):
        raise UserError(f"{path}: cannot be written by this user; choose another folder with --out")
    url = URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)
    return RDBStorage(url, {"connect_args": {"timeout": _PATIENCE}})


def _close(storage: RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()


def _connect_read_only(path: Path) -> sqlite3.Connection:
    """A connection that writes nothing to the study, also where this user could write nothing.

    A file with a write-ahead log takes some care (https://sqlite.org/wal.html, "Read-Only
    Databases"): to read it is to make its -wal and -shm files where they are not, and to remove
    them when the last connection is closed. Whoever may do so does, and is kept from all else."""
    uri = path.as_uri()
    if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        connection = _connect(f"{uri}?mode=rw")
        connection.execute("PRAGMA query_only = ON")
        return connection
    # A driver at work, or one that was killed, has left both files: SQLite reads them as they are.
    if path.with_name(f"{path.name}-wal").exists():
        return _connect(f"{uri}?mode=ro")
    # Without them no driver has the study open, so nothing changes it as it is read, but for a
    # driver that starts in this very moment; each connection looks anew.
    return _connect(f"{uri}?mode=ro&immutable=1")


def _connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, timeout=_PATIENCE, check_same_thread=False)


@contextmanager
def _translate_opening_errors(folder: Path, address: URL | None) -> Iterator[None]:
    """Raise UserError for a database that cannot be opened, or that holds no study."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    place = _place(folder, address)
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"--store {place}: needs psycopg (pip install 'psycopg[binary]')"
        ) from error
    except _OPENING_ERRORS as error:
        reason = _reason(error)
        if address is None:
            raise UserError(
                f"{place}: not a readable study ({reason}); restore it, or use another folder"
            ) from error
        raise UserError(
            f"--store {place}: {reason}; is it the right server, and study "
            f"{study_name(folder, address)} there?"
        ) from error


def _place(folder: Path, address: URL | None) -> str:
    if address is None:
        return str(folder / _FILE)
    return address.render_as_string(hide_password=True)


def _reason(error: BaseException) -> str:
    """What the database itself said, in one line: Optuna wraps SQLAlchemy's exception, which wraps
    the driver's."""
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    original = getattr(error, "orig", None) or error
    message = str(original).strip() or type(original).__name__  # some of Optuna's have no message
    return message.splitlines()[0]
