"""Stopping well: the first SIGINT or SIGTERM asks for it, the second one ends the process."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """Within this block, a first signal calls `on_first` and makes the object answer True; a second
    one is SystemExit at once. The exit status of either is 128 + the signal's number."""

    def __init__(self, on_first: Callable[[], None]) -> None:
        self._on_first = on_first
        self.status = 0
        self._at_once = 0  # the exit status, after a second signal

    def __call__(self) -> bool:
        if self._at_once:
            # What the handler raised was lost: where a signal meets a callback of the garbage
            # collector, Python prints the exception and goes on.
            raise SystemExit(self._at_once)
        return self.status != 0

    def __enter__(self) -> Stopping:
        self._before = {s: signal.signal(s, self._handle) for s in _SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.status:
            for s in _SIGNALS:  # closing takes a moment, and a third signal would cut it short
                signal.signal(s, signal.SIG_IGN)
            self._at_once = 128 + number
            raise SystemExit(self._at_once)
        self.status = 128 + number
        self._on_first()
