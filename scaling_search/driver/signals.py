"""Stopping well: the first SIGINT or SIGTERM asks, the second one does."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType


class Stopping:
    """Within this block, a first signal calls `tell` and makes the object answer True; a second one
    is SystemExit at once. The exit status of either is 128 + the signal's number."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self.status = 0

    def __call__(self) -> bool:
        return self.status != 0

    def __enter__(self) -> Stopping:
        self._before = {s: signal.signal(s, self._on) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc: object) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)

    def _on(self, signum: int, frame: FrameType | None) -> None:
        if self.status:
            for s in (signal.SIGINT, signal.SIGTERM):  # nothing is quicker than what happens now
                signal.signal(s, signal.SIG_IGN)
            raise SystemExit(128 + signum)
        self.status = 128 + signum
        self._tell()
