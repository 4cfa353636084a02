"""The log of a run folder: what the program did, when, and every traceback, whole."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scaling_search import UserError

LOG = "log.txt"  # in a run folder; each session appends to it
_LOGGERS = ("scaling_search", "effnet")
_SHORT_FORMAT = "%(levelname)-7s %(name)s: %(message)s"
_FORMAT = f"%(asctime)s {_SHORT_FORMAT}"

_logger = logging.getLogger(__name__)


class _LogFile(logging.FileHandler):
    """A log that cannot be written ends nothing: a full disk stops a study by its results, in one
    line, and logging would print a traceback for each message."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's own name
        """Say nothing."""

    def close(self) -> None:
        with suppress(OSError):  # of what it could not write before
            super().close()


@contextmanager
def log_into(folder: Path) -> Iterator[Path]:
    """Within this block, what the loggers of both packages say goes to the folder's log: INFO, and
    DEBUG where these loggers are set to it; an exception that ends it too. Yields the file. Raises
    UserError where it cannot be written."""
    path = folder / LOG
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; the run folder must be writable") from error
    handler.setFormatter(logging.Formatter(_FORMAT))
    levels_before: dict[str, int] = {}
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        levels_before[name] = logger.level
        logger.setLevel(min(logging.INFO, logger.getEffectiveLevel()))
        logger.addHandler(handler)
    try:
        yield path
    except UserError as error:
        # the one line says what to do; its cause, where there is one, how it came about
        _logger.error("%s", error, exc_info=error.__cause__)
        raise
    except Exception:
        _logger.exception("an unexpected error")
        raise
    finally:
        for name, level in levels_before.items():
            logger = logging.getLogger(name)
            logger.removeHandler(handler)
            logger.setLevel(level)
        handler.close()


def level() -> int:
    """From which level on the packages' loggers say something in this process."""
    return logging.getLogger(_LOGGERS[0]).getEffectiveLevel()


def log_to_stderr(from_level: int) -> None:
    """Send the messages of both packages' loggers in this process to its stderr. A worker's stderr
    is the log of its study."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"%(asctime)s worker {os.getpid()} {_SHORT_FORMAT}"))
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(from_level)
        logger.addHandler(handler)


def stderr_into(path: Path) -> None:
    """Make file descriptor 2 of this process the log: what a C library or faulthandler writes there
    is kept too."""
    if sys.stderr is not None:  # a process without stderr, of a service
        sys.stderr.flush()
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(log, 2)
    os.close(log)


class Collected(logging.Handler):
    """Messages of both packages in this process, kept until they are taken: an actor's, which sends
    them with its next result."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: list[str] = []
        self.setFormatter(logging.Formatter(f"worker {os.getpid()} {_SHORT_FORMAT}"))
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))

    def take(self) -> list[str]:
        """The messages since the last call."""
        lines, self._lines = self._lines, []
        return lines
