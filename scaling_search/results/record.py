"""A run as it is recorded, wherever: in a store, in a table of curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scaling_search.study.candidate import Candidate
from scaling_search.training.trial import Outcome


@dataclass(frozen=True)
class Record:
    """One run as recorded; `outcome` is None while it waits or runs. `again`: why it was started
    more than once."""

    number: int
    candidate: Candidate
    seed: int
    epochs: int
    outcome: Outcome | None
    test_acc: float | None = None
    again: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, int, int]:
        """(network, seed, epochs)."""
        return self.candidate.key, self.seed, self.epochs

    @property
    def done(self) -> bool:
        return self.outcome is not None and self.outcome.status == "done"

    @property
    def val_acc(self) -> float:
        """Of the last epoch. Raises ValueError for a run that is not done."""
        if self.outcome is None or self.outcome.status != "done":
            raise ValueError(f"run {self.number} has no final accuracy")
        return self.outcome.epochs[-1].val_acc


def by_network_key(runs: Sequence[Record]) -> dict[str, list[Record]]:
    """A key is a hash over the whole network: not to be had ten thousand times for each of a
    hundred networks."""
    found: dict[str, list[Record]] = {}
    for r in runs:
        found.setdefault(r.candidate.key, []).append(r)
    return found
