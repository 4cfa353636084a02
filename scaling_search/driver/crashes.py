"""Whose fault a crash is: the network's, or that of the program and the machine it runs on.

A run that raises an exception is a row with the status `crashed`, and its network is out of the
study. That is right where the network is the cause. A library that one node lacks, a broken driver
or a fault of this program raises in every network alike, and would condemn them all.
"""

from __future__ import annotations

import logging
import re

from scaling_search.results.record import Record
from scaling_search.results.store import Store

# One network that crashes is that network's affair, and two may be neighbours in the space: its two
# largest, say. Three that say the same have the program or the machine in common rather than their
# size. What was done in between does not speak for them: on a cluster, other nodes did it.
ALIKE = 3
_FACT = "driver's crashes"  # of the store: {kind: keys of the networks set free for it}

logger = logging.getLogger(__name__)


class Crashes:
    """The crashes of one session, in groups of one kind each.

    Where `ALIKE` networks have crashed alike, `common` says how, and their runs are set free. A
    network that was set free once, in an earlier session, and crashes alike again stays a row where
    any run of the study is done: else a study with three networks that cannot be trained would
    never end. Where none is done, the machine has trained nothing yet, and nobody is to blame."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._alike: dict[str, list[Record]] = {}  # rows of each kind
        self._set_free_before: dict[str, list[str]] = store.fact(_FACT) or {}
        self._set_free: set[str] = set()  # networks, in this session
        self.common = ""  # what the crashes that are nobody's own said

    @property
    def networks(self) -> int:
        """How many networks have crashed as `common` says."""
        return len(self._set_free)

    def was_set_free(self, network: str) -> bool:
        """Whether a run of this network was set free in an earlier session."""
        return any(network in keys for keys in self._set_free_before.values())

    def record_crash(self, record: Record, message: str) -> None:
        """`record` was finished as crashed; `message` is what its worker said, in one line."""
        kind = _without_numbers(message)
        network = record.candidate.key
        had_its_chance = network in self._set_free_before.get(kind, ())
        if had_its_chance and any(run.done for run in self._store.records()):
            return
        alike = self._alike.setdefault(kind, [])
        alike.append(record)
        networks = {crashed.candidate.key for crashed in alike} | self._set_free
        if len(networks) < ALIKE or (self.common and kind != _without_numbers(self.common)):
            return
        self.common = self.common or message
        self._set_free = networks
        logger.error("%d networks have crashed alike, and are set free: %s", len(networks), message)
        for crashed in alike:
            self._store.free(crashed.number, f"{len(networks)} networks crashed alike: {message}")
        alike.clear()
        # after the runs: cut short in between, they are set free once more than they should be
        known = {*self._set_free_before.get(kind, ()), *networks}
        self._store.set_fact(_FACT, {**self._set_free_before, kind: sorted(known)})


def _without_numbers(message: str) -> str:
    """The kind of an error: its type and first line, in which an address, a shape or the index of
    a device may differ from one network to the next."""
    return re.sub(r"0x[0-9a-f]+|\d+", "#", message)
