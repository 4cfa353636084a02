"""Where a study's database is, and who holds it: one driver per study.

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
from typing import TextIO

from sqlalchemy import URL, Connection, Engine, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from scaling_search import UserError, without_secrets

REMEMBERED = "store"  # the file in a run folder that says on which server its study is


def address_of(folder: Path, url: str | None) -> URL | None:
    """Of the server that was asked for or that the folder remembers; None for the folder's own
    file. Raises UserError."""
    with suppress(OSError):
        url = url or (folder / REMEMBERED).read_text().strip() or None
    if url is None:
        return None
    try:
        address = make_url(url)
    except (ArgumentError, ValueError):
        address = None
    shown = without_secrets(url)
    if address is not None and any("password" in key for key in address.query):
        raise UserError(
            f"--store {shown}: a password in the query would be written down; take ~/.pgpass or PGPASSWORD"
        )
    if address is None or address.get_backend_name() != "postgresql" or not address.database:
        raise UserError(
            f"--store {shown}: wanted is postgresql://user@host/database; without it, SQLite in the run folder"
        )
    if address.password == "***":  # as remembered: from ~/.pgpass or PGPASSWORD then
        address = address._replace(password=None)
    # by name: which driver plain postgresql:// means differs between SQLAlchemy 2.0 and 2.1
    return (
        address.set(drivername="postgresql+psycopg")
        if address.drivername == "postgresql"
        else address
    )


def owner() -> str:
    """This process, as JSON; `described` makes words of it."""
    return json.dumps(
        {"pid": os.getpid(), "host": socket.gethostname(), "since": round(time.time())}
    )


def described(held: str) -> str:
    """'process 12 on host since 2026-01-31 10:00:00 (for 4 min)'."""
    try:
        who = json.loads(held)
        begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(who["since"]))
        minutes = max(0, round((time.time() - who["since"]) / 60))
        return f"process {who['pid']} on {who['host']} since {begun} (for {minutes} min)"
    except (ValueError, KeyError, TypeError):
        return "another process"


def hold_folder(folder: Path) -> TextIO:
    """Lock a run folder until the file is closed. Raises UserError naming the holder, OSError where
    it cannot be written."""
    file = (folder / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = described(file.read())
        file.close()
        raise UserError(
            f"run folder {folder} is in use by {holder}; wait for it, or choose another with --out"
        ) from None
    try:
        file.truncate(0)
        file.write(owner())
        file.flush()
    except OSError:
        with suppress(OSError):
            file.close()
        raise
    return file


def hold_study(engine: Engine, name: str) -> Connection | None:
    """Lock a study by name on a PostgreSQL server until the connection is closed; None while
    another holds it."""
    connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    connection.detach()  # closed, it is gone, and the lock with it; the pool would keep it
    for setting in (
        "idle = 30",
        "interval = 10",
        "count = 3",
    ):  # a driver whose machine is lost is gone in a minute
        connection.execute(text(f"SET tcp_keepalives_{setting}"))
    with suppress(SQLAlchemyError):  # before 14 there is no such setting
        connection.execute(text("SET idle_session_timeout = 0"))
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
    if connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar():
        return connection
    connection.close()
    return None


def check_held(lock: object) -> None:
    """Raises SQLAlchemyError where the server has dropped the lock's connection: another driver may
    hold the study by now. A file's lock stays until it is closed."""
    if isinstance(lock, Connection):
        lock.execute(text("SELECT 1"))
