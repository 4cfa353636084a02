"""A run as it is recorded, be it in a store or in a table of curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scaling_search.study.candidate import Candidate
from scaling_search.training.trial import Outcome


@dataclass(frozen=True, slots=True)
class Run:
    """A training that a study asks for: a network with a seed, for so many epochs in all."""

    candidate: Candidate
    seed: int
    epochs: int

    @property
    def key(self) -> tuple[str, int, int]:
        """(network, seed, epochs)."""
        return self.candidate.key, self.seed, self.epochs


@dataclass(frozen=True, slots=True)
class Deaths:
    """How many workers have ended in a run since it reported its `epoch`."""

    epoch: int = 0
    count: int = 0


@dataclass(frozen=True)
class Record:
    """One run as recorded. `outcome` is None while the run waits or is in progress; `again` says,
    for each time that it was started once more, when and why."""

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
    def failed(self) -> bool:
        """Whether the run has ended, and is not done."""
        return self.outcome is not None and not self.done

    @property
    def val_acc(self) -> float:
        """The accuracy after the last epoch. Raises ValueError for a run that is not done."""
        if self.outcome is None or self.outcome.status != "done":
            raise ValueError(f"run {self.number} has no final accuracy")
        return self.outcome.epochs[-1].val_acc


def by_network_key(records: Sequence[Record]) -> dict[str, list[Record]]:
    """{key of a network: its runs}. One pass, as a key is a hash over the whole network: not to be
    computed ten thousand times for each of a hundred networks."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.candidate.key, []).append(record)
    return groups


def count_ended(runs: Iterable[Record]) -> int:
    """How many of the runs have an outcome, whatever it is."""
    return sum(run.outcome is not None for run in runs)
