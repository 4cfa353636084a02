"""Ending a worker process that makes no progress, as with a hung file system or a lost device.

The thread that waits is C's (faulthandler's), so that it works while Python itself hangs; it writes
the traceback of each thread to stderr.
"""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Iterator
from contextlib import contextmanager

# s without a step: longer than torch.compile or the resizing of a large data set takes
STALL = 600.0
HUNG = 1  # the exit status that faulthandler gives

_stall: float | None = None  # s; None where the process is not watched
_last = 0.0  # when faulthandler was last set, on the monotonic clock


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
    """Report progress. Setting faulthandler anew starts a thread, so it is done once a second at
    most: between two of these, a call costs nothing to speak of."""
    global _last
    if _stall is None:
        return
    now = time.monotonic()
    if now - _last > min(1.0, _stall / 4):
        _last = now
        faulthandler.dump_traceback_later(_stall, exit=True)
