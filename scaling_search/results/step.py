"""What a driver is doing, as a fact for whoever looks at the study while it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scaling_search.study.candidate import Candidate


@dataclass(frozen=True, slots=True)
class Planned:
    """A run that a step is to train: (network, seed), the network's name, and how many times the
    baseline's multiply-adds it takes."""

    network: str
    seed: int
    name: str
    ratio: float


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a study: `runs` to train for `epochs`, as they are handed out, or, where it is
    `testing`, to measure on the test split. `until`: when the time that was given is up [seconds
    since 1970]; None where none was."""

    name: str
    runs: tuple[Planned, ...]
    epochs: int
    testing: bool = False
    until: float | None = None

    @classmethod
    def of(
        cls,
        name: str,
        runs: Sequence[tuple[Candidate, int]],
        epochs: int,
        until: float,
        testing: bool = False,
    ) -> Step:
        """The step of these (network, seed); `until` is of time.monotonic()."""
        planned = tuple(Planned(c.key, seed, c.name, round(c.ratio, 3)) for c, seed in runs)
        end = None if until == math.inf else time.time() + until - time.monotonic()
        return cls(name, planned, epochs, testing, end)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Step:
        """Raises what malformed data raise."""
        return cls(**{**data, "runs": tuple(Planned(**run) for run in data["runs"])})
