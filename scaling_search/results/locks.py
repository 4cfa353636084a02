"""Who writes a study: one driver at a time, held by a lock in its run folder and on its server.

Both locks go with their owner, however it ends: the kernel frees a file lock with the process,
PostgreSQL an advisory lock with the connection. So whoever looks at a lock knows whether a driver
is at work, without taking it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TextIO

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from scaling_search import UserError

_LOCK = "lock"  # the file in a run folder
_GLANCES = 5  # how often a lock is tried that a reader may hold while it looks
_GLANCE = 0.02  # seconds between these tries


class Lock(Protocol):
    """Held from its making until it is closed."""

    def check(self) -> None:
        """Called before each write to the study. Raises SQLAlchemyError when the lock was lost, and
        another driver may hold the study."""

    def close(self) -> None: ...


class FolderLock:
    """The lock of a run folder."""

    def __init__(self, folder: Path) -> None:
        """Take the lock. Raises UserError naming the holder where there is one, OSError where the
        folder cannot be written."""
        self._file = _lock_file(folder)

    def check(self) -> None:
        """Leave a sign of life, the time of the file. There is nothing to check: the kernel keeps a
        file's lock until the file is closed."""
        with suppress(OSError):
            os.utime(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class StudyLock:
    """The lock of a study on a PostgreSQL server."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    def take(cls, engine: Engine, study_name: str) -> StudyLock | None:
        """The lock, or None while another driver holds it."""
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        # A detached connection ends when it is closed, and the lock with it. One that belongs to
        # the pool would go back there, still holding the lock.
        connection.detach()
        # The server learns within a minute (30 s + 3 × 10 s) that a driver's machine is lost.
        connection.execute(text("SET tcp_keepalives_idle = 30"))
        connection.execute(text("SET tcp_keepalives_interval = 10"))
        connection.execute(text("SET tcp_keepalives_count = 3"))
        # PostgreSQL before 14 has no such setting, and ends no idle session.
        with suppress(SQLAlchemyError):
            connection.execute(text("SET idle_session_timeout = 0"))
        key = {"key": _advisory_key(study_name)}
        locked = connection.execute(text("SELECT pg_try_advisory_lock(:key)"), key)
        if locked.scalar():
            return cls(connection)
        connection.close()
        return None

    def check(self) -> None:
        """Ask the server for anything, over the connection that holds the lock. A server that was
        restarted, or a network that was cut for long, has dropped both."""
        self._connection.execute(text("SELECT 1"))

    def close(self) -> None:
        with suppress(SQLAlchemyError, OSError):  # a server that is gone holds nothing
            self._connection.close()


@dataclass(frozen=True, slots=True)
class Owner:
    """A driver: its process, from when on it held the study [seconds since 1970], and the seconds
    by which its local time, in which Optuna records, is ahead of UTC."""

    pid: int
    host: str
    since: int
    ahead: int = 0

    @classmethod
    def read(cls, recorded: str) -> Owner | None:
        """Return what `owner` recorded; None where it cannot be read."""
        try:
            holder = json.loads(recorded)
            since = int(holder["since"])
            ahead = holder.get("ahead", time.localtime(since).tm_gmtoff)
            return cls(int(holder["pid"]), str(holder["host"]), since, int(ahead))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return None

    @property
    def words(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_on_this_host(self) -> bool:
        return self.host == socket.gethostname()


def owner() -> str:
    """This process, as JSON for whoever finds the study locked."""
    now = int(time.time())
    return json.dumps(
        asdict(Owner(os.getpid(), socket.gethostname(), now, time.localtime(now).tm_gmtoff))
    )


def describe_owner(recorded: str) -> str:
    """What `owner` recorded, in words: 'process 12 on host since 2026-01-31 10:00:00 (for 4 min)'.
    'another process' where it cannot be read."""
    holder = Owner.read(recorded)
    if holder is None:
        return "another process"
    begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since))
    minutes = max(0, round((time.time() - holder.since) / 60))
    return f"{holder.words} since {begun} (for {minutes} min)"


def folder_is_held(folder: Path) -> bool | None:
    """Whether a driver holds a run folder; None where the file system knows of no locks. A lock
    held on another host may not be seen from here."""
    try:
        with (folder / _LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:
        return None
    return False


def last_sign(folder: Path) -> float | None:
    """When a driver last wrote to the study of a run folder [seconds since 1970]; None where there
    never was one."""
    with suppress(OSError):
        return (folder / _LOCK).stat().st_mtime
    return None


def study_is_held(engine: Engine, study_name: str) -> bool:
    """Whether a driver holds a study on a PostgreSQL server, wherever it runs. Raises
    SQLAlchemyError."""
    key = _advisory_key(study_name) % 2**64
    # a key of 64 bits is shown as two halves, with objsubid 1 (PostgreSQL's manual, "pg_locks")
    query = text(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1 "
        "AND classid::bigint = :high AND objid::bigint = :low AND database = "
        "(SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    with engine.connect() as connection:
        is_held = connection.execute(query, {"high": key >> 32, "low": key % 2**32})
        return bool(is_held.scalar())


def _advisory_key(study_name: str) -> int:
    """The 64 bits by which the server knows a study's lock."""
    return int.from_bytes(hashlib.sha256(study_name.encode()).digest()[:8], signed=True)


def _lock_file(folder: Path) -> TextIO:
    """The folder's lock file, locked, with its owner written in it. Raises UserError, OSError."""
    file = (folder / _LOCK).open("a+")
    try:
        _lock(file)
    except BlockingIOError as error:
        file.seek(0)
        holder = describe_owner(file.read())
        file.close()
        raise UserError(
            f"run folder {folder} is in use by {holder}; wait for it, or choose another with --out"
        ) from error
    try:
        file.truncate(0)
        file.write(owner())
        file.flush()
    except OSError:
        with suppress(OSError):  # the same full disk once more, as the rest is flushed
            file.close()
        raise
    return file


def _lock(file: TextIO) -> None:
    """Lock a file. A reader that looks whether it is locked (`folder_is_held`) is waited for, a
    driver is not. Raises BlockingIOError where another driver has it."""
    for _ in range(_GLANCES):
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_GLANCE)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
