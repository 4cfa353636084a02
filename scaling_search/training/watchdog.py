"""Ends a worker process that makes no progress: a hung file system, a deadlocked library, a lost
device.

The thread that waits is C's (faulthandler's), so that it works while Python itself hangs; it writes
where to stderr.
"""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Iterator
from contextlib import contextmanager

STALL = (
    600.0  # s without a step: longer than torch.compile or the resizing of a large data set takes
)
HUNG = 1  # the exit status that faulthandler gives

_stall: float | None = None
_last = 0.0


@contextmanager
def watched(stall: float = STALL) -> Iterator[None]:
    """The process ends with status `HUNG` when `alive` is not called for `stall` seconds within
    this block."""
    global _stall, _last
    _stall, _last = stall, 0.0
    alive()
    try:
        yield
    finally:
        _stall = None
        faulthandler.cancel_dump_traceback_later()


def alive() -> None:
    """There is progress. Costs nothing to speak of, watched or not."""
    global _last
    if _stall is not None and (now := time.monotonic()) - _last > min(1.0, _stall / 4):
        _last = now
        faulthandler.dump_traceback_later(_stall, exit=True)
