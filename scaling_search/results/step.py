"""What a driver is doing, as a fact for whoever looks at the study while it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scaling_search.results.record import Record, Run


@dataclass(frozen=True, slots=True)
class Planned:
    """A run that a step is to train or to measure: its network's key, seed and epochs; that
    network's name, and how many times the baseline's multiply-adds it takes."""

    network: str
    seed: int
    epochs: int
    name: str
    ratio: float

    @property
    def key(self) -> tuple[str, int, int]:
        """(network, seed, epochs)."""
        return self.network, self.seed, self.epochs


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a study: `runs` to train, in the order in which they are handed out but for the
    longer ones that wait for a shorter one, or, where it is `testing`, to measure on the test
    split. `until`: when the time that was given is up [seconds since 1970]; None where none was."""

    name: str
    runs: tuple[Planned, ...]
    testing: bool = False
    until: float | None = None

    @classmethod
    def of(
        cls, name: str, runs: Sequence[Run | Record], until: float, testing: bool = False
    ) -> Step:
        """The step of these runs; `until` is of time.monotonic()."""
        planned = []
        for run in runs:
            network = run.candidate
            ratio = round(network.ratio, 3)
            planned.append(Planned(network.key, run.seed, run.epochs, network.name, ratio))
        end = None if until == math.inf else time.time() + until - time.monotonic()
        return cls(name, tuple(planned), testing, end)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Step:
        """Raises what malformed data raise."""
        return cls(**{**data, "runs": tuple(Planned(**run) for run in data["runs"])})
