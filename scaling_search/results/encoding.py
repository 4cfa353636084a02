"""How a study's runs lie in Optuna: what is stored of each, read back as records.

A run (network, seed, epochs) is one trial. Its attribute `run` names it, `outcome` is how it ended,
`again` why it was started more than once, `resumed` when it last was [seconds since 1970],
`deaths` how many workers it has cost since its last epoch. The study's own attributes are its facts
and, by prefix, networks (stored once, not with each run) and what came to be known of runs that had
ended.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from scaling_search.results.database import MALFORMED, Database
from scaling_search.results.record import Deaths, Record
from scaling_search.study.candidate import Candidate
from scaling_search.training.trial import Outcome

# Prefixes of the study's attributes. The rest of a name is a network's key, or a run's number.
NETWORK = "network "
TEST = "test "
AGAIN = "again "
FREED = "freed "
# Attributes that concern its driver, and are no fact about the study.
_OF_THE_DRIVER = ("identity", "driver", "spent", "step")


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run as Optuna has it. `network` is its network's key, a hash of all of it, which takes long
    to compute; `reported` is the validation accuracy of each epoch that Optuna knows of; `deaths`,
    of its workers; `freed`, whether it no longer counts (Store.free). `begun` and `ended` are as
    Optuna has them, in the local time of the driver's host; `resumed` is when the run was last
    started once more [seconds since 1970]."""

    record: Record
    network: str
    running: bool
    reported: dict[int, float]
    deaths: Deaths
    freed: bool
    begun: datetime | None
    ended: datetime | None
    resumed: float | None


def facts_among(attributes: dict[str, Any]) -> dict[str, Any]:
    """All that describes the study: its attributes but for those of single runs and networks, and
    of its driver."""
    facts = {}
    for name, value in attributes.items():
        if not name.startswith((NETWORK, TEST, AGAIN, FREED, *_OF_THE_DRIVER)):
            facts[name] = value
    return facts


def read_runs(database: Database) -> list[StoredRun]:
    """Every run in the order in which they were started. Raises UserError where one cannot be
    read."""
    attributes = database.attributes()
    networks = _networks(database, attributes)
    runs = []
    with _without_garbage_collection():
        for trial in database.trials():
            runs.append(_run(database, trial, attributes, networks))
    return runs


def _networks(database: Database, attributes: dict[str, Any]) -> dict[str, Candidate]:
    """The stored networks by their keys."""
    networks = {}
    for name, stored in attributes.items():
        if not name.startswith(NETWORK):
            continue
        try:
            networks[name.removeprefix(NETWORK)] = Candidate.from_dict(stored)
        except MALFORMED as error:
            raise database.malformed(name, error) from error
    return networks


def _run(
    database: Database,
    trial: FrozenTrial,
    attributes: dict[str, Any],
    networks: dict[str, Candidate],
) -> StoredRun:
    number, stored = trial.number, trial.user_attrs
    try:
        network: str = stored["run"]["network"]
        candidate = networks[network]
        seed, epochs = stored["run"]["seed"], stored["run"]["epochs"]
        outcome = Outcome.from_dict(stored["outcome"]) if "outcome" in stored else None
        again = tuple(attributes.get(f"{AGAIN}{number}", stored.get("again", ())))
        deaths = Deaths(
            **stored.get("deaths", {})
        )  # of a run that has cost none, or an older study
    except MALFORMED as error:
        raise database.malformed(f"run {number}", error) from error
    test_acc = attributes.get(f"{TEST}{number}")
    return StoredRun(
        record=Record(number, candidate, seed, epochs, outcome, test_acc, again),
        network=network,
        running=trial.state == TrialState.RUNNING,
        reported=trial.intermediate_values,
        deaths=deaths,
        freed=f"{FREED}{number}" in attributes,
        begun=trial.datetime_start,
        ended=trial.datetime_complete,
        resumed=stored.get("resumed"),
    )


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Ten thousand runs are a million objects, none of them garbage: Python's search for some took
    half of the time of reading them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
