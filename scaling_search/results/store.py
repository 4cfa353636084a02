"""A study as its one driver writes it: every run, recorded as it starts, goes on and ends.

One run (network, seed, epochs) is one Optuna trial, made when it starts: the networks of a study
are enumerated, so none is proposed that cannot be built, and none is trained twice. Optuna's
storage is written to directly: a run takes one transaction to start, one per epoch and two to end,
where Optuna's `ask` and `tell` take a dozen.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import URL

from scaling_search import UserError
from scaling_search.results.database import (
    REMEMBERED,
    Database,
    address_of,
    has_file,
    open_in_memory,
    open_to_write,
    study_name,
)
from scaling_search.results.encoding import AGAIN, FREED, NETWORK, TEST, facts_among, read_runs
from scaling_search.results.locks import FolderLock, Lock, StudyLock, describe_owner, owner
from scaling_search.results.record import Deaths, Record
from scaling_search.study.candidate import Candidate
from scaling_search.study.settings import check_same
from scaling_search.training.trial import Epoch, Outcome

logger = logging.getLogger(__name__)

# Wide enough for any network: Optuna checks a trial's parameters against their ranges.
_DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "alpha": FloatDistribution(0.001, 1000.0),
    "beta": FloatDistribution(0.001, 1000.0),
    "gamma": FloatDistribution(0.001, 1000.0),
}
# Why a driver left runs in progress, by the state that it recorded; a killed one recorded none.
_INTERRUPTIONS = {"stopped": "it was stopped", "out of time": "the time was up"}


class Listener(Protocol):
    """Who is told of what was recorded, once it is safe."""

    def epoch(self, record: Record, epoch: Epoch) -> None: ...
    def ended(self, record: Record) -> None: ...


class Store:
    """The results of a study, open for its driver to write. To be closed: a context manager."""

    def __init__(self, database: Database, locks: Sequence[Lock] = ()) -> None:
        self._database, self._locks = database, locks
        # An index of all that counts, as one driver writes: nothing is read back.
        self._records: dict[int, Record] = {}
        self._numbers: dict[tuple[str, int, int], int] = {}  # (network, seed, epochs) → number
        self._networks: set[str] = set()  # keys of those that are stored
        self._next_number = 0  # Optuna numbers a study's trials in the order of their making
        self._reported: dict[int, set[int]] = {}  # number of a run in progress → its epochs
        self._deaths: dict[int, Deaths] = {}  # of workers, by the number of a run in progress
        self._trial_ids: dict[int, int] = {}  # of runs in progress now or earlier in this session
        self._interruption = ""  # why the driver before this one left runs in progress
        self.listener: Listener | None = None

    # ---- opening and closing

    @classmethod
    def create(
        cls,
        folder: Path,
        identity: dict[str, Any],
        facts: dict[str, Any],
        url: str | None = None,
        growing: Container[str] = (),
    ) -> Store:
        """Open the store of a run folder, made where there is none; `facts` describe the study to
        its readers. With the `url` of a PostgreSQL server the study lies there, under the folder's
        name, and the folder remembers the address without its password. Settings of the identity
        that are named `growing` may be others than were recorded.

        Raises UserError when another process holds the study, it cannot be written, or it belongs
        to a study whose identity differs (naming the fields that do)."""
        address = address_of(folder, url)
        if address is not None and has_file(folder):
            raise UserError(
                f"run folder {folder} holds results of its own; --store takes a new one, with --out"
            )
        with ExitStack() as opened:
            locks: list[Lock] = [_hold_folder(folder)]
            opened.callback(locks[0].close)
            database = open_to_write(folder, address)
            opened.callback(database.close)
            if address is not None:
                locks.append(_hold_study(database, study_name(folder, address)))
                opened.callback(locks[1].close)
            store = cls(database, locks)
            store._begin(folder, identity, facts, growing)
            if url is not None and address is not None:
                _remember(folder, address)
            opened.pop_all()
        return store

    @classmethod
    def in_memory(cls, facts: dict[str, Any]) -> Store:
        """A store that nothing outlives, for a study that is replayed from a table: what it holds
        took seconds."""
        store = cls(open_in_memory())
        for name, value in facts.items():
            # by way of JSON, so that tuples are lists as in a file
            store.set_fact(name, json.loads(json.dumps(value)))
        return store

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()
        for lock in reversed(self._locks):
            lock.close()

    def _begin(
        self,
        folder: Path,
        identity: dict[str, Any],
        facts: dict[str, Any],
        growing: Container[str],
    ) -> None:
        known = self._database.attributes()
        with self._writing() as database:
            if "identity" in known:
                check_same(folder, known["identity"], identity, growing)
            else:
                database.set_attribute("identity", identity)
            # A driver that was killed at its start has left some of them unwritten.
            for name in facts.keys() - known.keys():
                database.set_attribute(name, facts[name])
            self._interruption = _INTERRUPTIONS.get(known.get("state", ""), "its driver ended")
            database.set_attribute("driver", owner())
            if known.get("state") != "finished":
                database.set_attribute("state", "starting")
        self._index_runs()
        logger.info(
            "%s: open with %d runs, %d of them in progress when their driver ended",
            self._database.place,
            len(self._records),
            len(self._reported),
        )

    def _index_runs(self) -> None:
        """Index the runs, and finish those whose driver was killed between recording an outcome and
        ending the trial."""
        for run in read_runs(self._database):
            record = run.record
            self._networks.add(run.network)
            self._next_number = record.number + 1
            if run.freed:
                continue
            self._records[record.number] = record
            self._numbers[run.network, record.seed, record.epochs] = record.number
            if run.running:
                self._deaths[record.number] = run.deaths
                self._take_over(record, run.reported)

    def _take_over(self, record: Record, reported: Iterable[int]) -> None:
        """Take a run of the driver before this one into those in progress, or end it."""
        with self._writing() as database:
            trial_id = database.storage.get_trial_id_from_study_id_trial_number(
                database.study_id, record.number
            )
            self._follow(record.number, trial_id, reported)
            if record.outcome is not None:
                self._end_trial(database, record.number, record.outcome)

    def _follow(self, number: int, trial_id: int, reported: Iterable[int] = ()) -> None:
        """Take a run into those in progress."""
        self._trial_ids[number] = trial_id
        self._reported[number] = set(reported)

    # ---- reading

    def fact(self, name: str) -> Any:
        """One fact about the study; None where it is not known."""
        return self._database.attributes().get(name)

    def facts(self) -> dict[str, Any]:
        """All that describes the study."""
        return facts_among(self._database.attributes())

    def records(self) -> list[Record]:
        """Every run that counts, in the order in which they were started."""
        return [self._records[number] for number in sorted(self._records)]

    def recorded(self, key: tuple[str, int, int]) -> Record | None:
        """The run (network, seed, epochs), if it was ever started."""
        number = self._numbers.get(key)
        return None if number is None else self._records[number]

    def epochs_of(self, number: int) -> int:
        """How many epochs a run in progress has reported."""
        return max(self._reported[number], default=0)

    def deaths_of(self, number: int) -> Deaths:
        """How many workers a run in progress has cost since its last epoch, in every session."""
        epoch = self.epochs_of(number)
        deaths = self._deaths.get(number, Deaths())
        if deaths.epoch != epoch:  # there was progress: the count begins again
            return Deaths(epoch)
        return deaths

    # ---- writing

    def start(self, candidate: Candidate, seed: int, epochs: int) -> int:
        """Record that a run begins, and return its number. One that the driver before this left in
        progress goes on under its own number, and why is recorded. Raises ValueError for a run that
        has ended."""
        number = self._numbers.get((candidate.key, seed, epochs))
        if number is None:
            return self._start_new(candidate, seed, epochs)
        if number not in self._reported:
            raise ValueError(f"run {number} has ended")
        self.again(number, self._interruption)
        return number

    def _start_new(self, candidate: Candidate, seed: int, epochs: int) -> int:
        trial = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params={"alpha": candidate.alpha, "beta": candidate.beta, "gamma": candidate.gamma},
            distributions=_DISTRIBUTIONS,
            # One attribute, as each takes two statements; the network by its key, as all of it
            # would be read again with every run.
            user_attrs={"run": {"network": candidate.key, "seed": seed, "epochs": epochs}},
        )
        with self._writing() as database:
            if candidate.key not in self._networks:
                database.set_attribute(f"{NETWORK}{candidate.key}", candidate.as_dict())
                self._networks.add(candidate.key)
            trial_id = database.storage.create_new_trial(database.study_id, trial)
        number = self._next_number
        self._next_number += 1
        record = Record(number, candidate, seed, epochs, outcome=None)
        self._records[number] = record
        self._numbers[record.key] = number
        self._follow(number, trial_id)
        return number

    def take(self, record: Record) -> None:
        """Record a run that ended elsewhere, as it is in a table of curves."""
        assert record.outcome is not None
        number = self.start(record.candidate, record.seed, record.epochs)
        for epoch in record.outcome.epochs:
            self.epoch(number, epoch)
        self.finish(number, record.outcome)
        if record.test_acc is not None:
            self.set_test(number, record.test_acc)

    def again(self, number: int, why: str) -> None:
        """Record why a run is started once more."""
        record = self._records[number]
        running = number in self._reported
        when = f"after epoch {self.epochs_of(number)}" if running else "when tested"
        reasons = (*record.again, f"{when}: {why}")
        with self._writing() as database:
            if running:
                trial_id = self._trial_ids[number]
                database.storage.set_trial_user_attr(trial_id, "again", list(reasons))
                database.storage.set_trial_user_attr(trial_id, "resumed", time.time())
            else:
                database.set_attribute(f"{AGAIN}{number}", list(reasons))
        self._records[number] = replace(record, again=reasons)
        logger.info("run %d starts again, %s", number, reasons[-1])

    def set_deaths(self, number: int, deaths: Deaths) -> None:
        """Record how many workers a run in progress has cost: a study that is stopped and goes on
        every hour must not try for ever a run that kills its workers."""
        with self._writing() as database:
            database.storage.set_trial_user_attr(self._trial_ids[number], "deaths", asdict(deaths))
        self._deaths[number] = deaths

    def epoch(self, number: int, epoch: Epoch) -> None:
        """Record an epoch's validation accuracy. One that was recorded before an interruption
        stays."""
        if epoch.epoch in self._reported[number]:
            return
        with self._writing() as database:
            database.storage.set_trial_intermediate_value(
                self._trial_ids[number], epoch.epoch, epoch.val_acc
            )
        self._reported[number].add(epoch.epoch)
        if self.listener is not None:
            self.listener.epoch(self._records[number], epoch)

    def finish(self, number: int, outcome: Outcome) -> None:
        """Record how a run ended; once this returns, that is safe. Optuna refuses a second outcome
        of the same run."""
        with self._writing() as database:
            # The outcome first: a driver that is killed in between is made up for at the next
            # opening, while a trial that has ended takes no more attributes.
            database.storage.set_trial_user_attr(
                self._trial_ids[number], "outcome", outcome.as_dict()
            )
            self._end_trial(database, number, outcome)
        self._records[number] = replace(self._records[number], outcome=outcome)
        if self.listener is not None:
            self.listener.ended(self._records[number])

    def _end_trial(self, database: Database, number: int, outcome: Outcome) -> None:
        """Tell Optuna that a trial is complete, or that it failed."""
        state, values = TrialState.FAIL, None
        if outcome.status == "done":
            state, values = TrialState.COMPLETE, [outcome.epochs[-1].val_acc]
        database.storage.set_trial_state_values(self._trial_ids[number], state, values)
        self._reported.pop(number, None)
        self._deaths.pop(number, None)

    def free(self, number: int, why: str) -> None:
        """Set a failed run free: it no longer counts, and may be started again as a new trial.

        The failed trial stays in Optuna's study, beside the reason. Raises ValueError for a run
        that has not failed."""
        record = self._records[number]
        if record.outcome is None or record.done:
            raise ValueError(f"run {number} has not failed")
        with self._writing() as database:
            database.set_attribute(f"{FREED}{number}", why)
        del self._records[number]
        del self._numbers[record.key]
        logger.info("run %d (%s) is set free: %s", number, record.outcome.status, why)

    def set_fact(self, name: str, value: Any) -> None:
        """Set a fact such as `state` (running, finished, stopped or out of time; starting until one
        of them is set), `spent` (seconds of all sessions) or `step` (what the driver does now:
        results/step.py)."""
        with self._writing() as database:
            database.set_attribute(name, value)

    def set_test(self, number: int, accuracy: float) -> None:
        """Record a finished run's accuracy on the test split."""
        with self._writing() as database:
            database.set_attribute(f"{TEST}{number}", accuracy)
        self._records[number] = replace(self._records[number], test_acc=accuracy)

    @contextmanager
    def _writing(self) -> Iterator[Database]:
        """The database to write to. Raises UserError for what it cannot do, and where a lock was
        lost: another driver may be writing."""
        with self._database.translate_errors():
            for lock in self._locks:
                lock.check()
            yield self._database


def _hold_folder(folder: Path) -> FolderLock:
    """The lock of a run folder, made where there is none. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FolderLock(folder)
    except OSError as error:
        raise UserError(
            f"run folder {folder}: {error.strerror}; choose one that can be written with --out"
        ) from error


def _hold_study(database: Database, name: str) -> StudyLock:
    """The lock of a study on a server: the same study may be driven from another folder, on another
    machine. Raises UserError naming the holder."""
    assert isinstance(database.storage, RDBStorage)
    with database.translate_errors():
        lock = StudyLock.take(database.storage.engine, name)
    if lock is None:
        holder = describe_owner(database.attributes().get("driver", ""))
        raise UserError(
            f"study {name} on {database.place} is in use by {holder}; wait for it, or choose "
            "another with --out"
        )
    return lock


def _remember(folder: Path, address: URL) -> None:
    """Write down where the study is. Raises UserError for a full disk."""
    try:
        (folder / REMEMBERED).write_text(address.render_as_string(hide_password=True) + "\n")
    except OSError as error:
        raise UserError(
            f"run folder {folder}: {error.strerror}; choose one that can be written with --out"
        ) from error
