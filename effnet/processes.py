"""What a process that was started by another owes it."""

from __future__ import annotations

import multiprocessing
import os
import threading


def end_with_parent(status: int) -> None:
    """From now on this process ends, with this status, when the one that started it does: a parent
    that was killed cannot stop it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(status)

    threading.Thread(target=wait, daemon=True).start()
