"""Who writes a study: one driver at a time, held by a lock in its run folder and on its server.

Both locks go with their owner, however it ends: the kernel frees a file lock with the process,
PostgreSQL an advisory lock with the connection.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TextIO

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from scaling_search import UserError


class Lock(Protocol):
    """Held from its making until it is closed."""

    def check(self) -> None:
        """Raise SQLAlchemyError when the lock was lost, and another driver may hold the study."""

    def close(self) -> None: ...


class FolderLock:
    """The lock of a run folder."""

    def __init__(self, folder: Path) -> None:
        """Take the lock. Raises UserError naming the holder where there is one, OSError where the
        folder cannot be written."""
        self._file = _lock_file(folder)

    def check(self) -> None:
        """Nothing to check: the kernel keeps a file's lock until the file is closed."""

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
        digest = hashlib.sha256(study_name.encode()).digest()
        key = int.from_bytes(digest[:8], signed=True)  # advisory locks are named by 64 bits
        locked = connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": key})
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


def owner() -> str:
    """This process, as JSON for whoever finds the study locked."""
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": round(time.time())}
    return json.dumps(holder)


def describe_owner(recorded: str) -> str:
    """What `owner` recorded, in words: 'process 12 on host since 2026-01-31 10:00:00 (for 4 min)'.
    'another process' where it cannot be read."""
    try:
        holder = json.loads(recorded)
        since = holder["since"]
        begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
        minutes = max(0, round((time.time() - since) / 60))
        return f"process {holder['pid']} on {holder['host']} since {begun} (for {minutes} min)"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _lock_file(folder: Path) -> TextIO:
    """The folder's lock file, locked, with its owner written in it. Raises UserError, OSError."""
    file = (folder / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
