"""Every result ever told: an Optuna study, in the run folder (SQLite) or on a server (PostgreSQL),
one writer. The only file that imports optuna.

One run (network, seed, epochs) is one Optuna trial, created when it starts: feasible networks are
enumerated, so no trial is proposed that cannot be built and none is trained twice. Optuna's storage
is written to directly: a run takes one transaction to start, one per epoch and two to end, where
`ask` and `tell` take a dozen.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from scaling_search import UserError
from scaling_search.results.database import (
    REMEMBERED,
    address_of,
    check_held,
    described,
    hold_folder,
    hold_study,
    owner,
)
from scaling_search.results.record import Record
from scaling_search.study.candidate import Candidate
from scaling_search.study.settings import check_same
from scaling_search.training.trial import Epoch, Outcome

_NAME = "scaling-search"  # of the study in a run folder's study.db
_DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "alpha": FloatDistribution(0.001, 1000.0),
    "beta": FloatDistribution(0.001, 1000.0),
    "gamma": FloatDistribution(0.001, 1000.0),
}
_PATIENCE = 60.0  # s for whoever else holds a lock on the file
_STATES = {"done": TrialState.COMPLETE, "pruned": TrialState.PRUNED}  # everything else failed
_LEFT = {"stopped": "it was stopped", "out of time": "the time was up"}
_BROKEN = (SQLAlchemyError, OSError, KeyError, RuntimeError, optuna.exceptions.OptunaError)


class _Lock(Protocol):
    def close(self) -> None: ...


class Store:
    """A study's results. Open it with `create` to write, `read` to look."""

    def __init__(
        self, storage: BaseStorage, study: int, where: str, locks: Sequence[_Lock] = ()
    ) -> None:
        self._storage, self._study, self._where, self._locks = storage, study, where, list(locks)
        self._records: dict[int, Record] = {}  # of the writer; a reader asks the database each time
        self._numbers: dict[tuple[str, int, int], int] = {}
        self._networks: set[str] = set()  # those that the study knows
        self._ids: dict[int, int] = {}  # Optuna's, of each run
        self._reported: dict[int, set[int]] = {}  # epochs, of what runs
        self._running: set[int] = set()
        self._left = ""  # why the driver before this one left runs unfinished

    # ---- opening

    @classmethod
    def create(
        cls, folder: Path, identity: dict[str, Any], facts: dict[str, Any], url: str | None = None
    ) -> Store:
        """Open for writing, made where absent; `facts` describe the study to its readers. `url`: of
        a PostgreSQL server, on which the study has the folder's name; remembered in the folder, but
        for a password.

        Raises UserError when another process holds the study, it cannot be written, or it belongs
        to a study whose identity differs (naming the fields that do)."""
        address = address_of(folder, url)
        if address is not None and (folder / "study.db").exists():
            raise UserError(
                f"run folder {folder} holds results of its own; --store takes a new one, with --out"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            locks: list[_Lock] = [hold_folder(folder)]
        except OSError as error:
            raise UserError(
                f"run folder {folder}: {error.strerror}; choose one that can be written with --out"
            ) from None
        try:
            storage, study, where = _open(folder, address, create=True)
            store = cls(storage, study, where, locks)
            with store._telling():
                if address is not None:
                    locks.append(_held(storage, study, folder.resolve().name, where))
                    store._locks = locks
                store._begin(folder, identity, facts)
            if url is not None and address is not None:
                (folder / REMEMBERED).write_text(
                    address.render_as_string(hide_password=True) + "\n"
                )
        except BaseException:
            for lock in reversed(locks):
                lock.close()
            raise
        return store

    @classmethod
    def in_memory(cls, facts: dict[str, Any]) -> Store:
        """For a study that is replayed from a table: nothing that took time is lost with it."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = InMemoryStorage()
        store = cls(storage, storage.create_new_study([StudyDirection.MAXIMIZE], _NAME), "memory")
        for name, value in facts.items():
            storage.set_study_user_attr(store._study, name, json.loads(json.dumps(value)))
        return store

    @classmethod
    def read(cls, folder: Path, url: str | None = None) -> Store:
        """Open for reading; a driver at work is neither blocked nor waited for. Raises UserError
        where there is no study."""
        address = address_of(folder, url)
        if address is None and not (folder / "study.db").is_file():
            raise UserError(
                f"{folder}: no study.db there; give the folder of a run, such as runs/fashion-mnist-2x"
            )
        return cls(*_open(folder, address, create=False))

    def close(self) -> None:
        if isinstance(self._storage, RDBStorage):
            self._storage.remove_session()
        for lock in reversed(self._locks):
            with suppress(SQLAlchemyError, OSError):
                lock.close()
        if isinstance(self._storage, RDBStorage):
            self._storage.engine.dispose()

    def fact(self, name: str) -> Any:
        return self._attrs().get(name)

    def facts(self) -> dict[str, Any]:
        """All that describes the study, but for what is told of single runs and of its driver."""
        return {
            k: v
            for k, v in self._attrs().items()
            if not k.startswith(
                ("test ", "again ", "freed ", "network ", "identity", "driver", "spent")
            )
        }

    def _attrs(self) -> dict[str, Any]:
        with self._telling():
            return self._storage.get_study_user_attrs(self._study)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What the database cannot do (a full disk, a lock, a lost server) is one line."""
        try:
            for lock in self._locks:
                check_held(lock)
            yield
        except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
            raise UserError(
                f"{self._where}: {_reason(error)}; every result recorded before is intact: mend it, and the same "
                "command goes on"
            ) from None

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """A bit that has flipped inside what was told."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self._where}: not a readable study ({error}); restore it, or use another folder"
            ) from None

    # ---- writing

    def _begin(self, folder: Path, identity: dict[str, Any], facts: dict[str, Any]) -> None:
        known = self._attrs()
        if "identity" in known:
            check_same(folder, known["identity"], identity)
        else:
            self._storage.set_study_user_attr(self._study, "identity", identity)
        for name in facts.keys() - known.keys():  # also those that an earlier release did not write
            self._storage.set_study_user_attr(self._study, name, facts[name])
        self._left = _LEFT.get(known.get("state", ""), "its driver ended")
        self._storage.set_study_user_attr(self._study, "driver", owner())
        self._settle()

    def _settle(self) -> None:
        """Index the runs, and finish what a killed driver had recorded but not yet told."""
        freed = self._freed()
        for trial, network, record in self._read():
            self._networks.add(network)
            self._ids[record.number] = trial._trial_id
            if record.number in freed:
                continue
            self._records[record.number] = record
            self._numbers[network, record.seed, record.epochs] = record.number
            if trial.state == TrialState.RUNNING:
                self._running.add(record.number)
                self._reported[record.number] = set(trial.intermediate_values)
                if record.outcome is not None:
                    self._tell(record.number, record.outcome)

    def recorded(self, key: tuple[str, int, int]) -> Record | None:
        """The run (network, seed, epochs), if it was ever started."""
        return self._records[self._numbers[key]] if key in self._numbers else None

    def epochs_of(self, number: int) -> int:
        """How many epochs a run in progress has reported."""
        return max(self._reported[number], default=0)

    def start(self, candidate: Candidate, seed: int, epochs: int) -> int:
        """A run begins; its number. One that a driver before this one left running goes on, and
        that is recorded."""
        key = (candidate.key, seed, epochs)
        if key not in self._numbers:
            return self._new(candidate, seed, epochs)
        number = self._numbers[key]
        if number in self._running:
            self.again(number, self._left)
        else:  # enqueued by a release that did so
            with self._telling():
                self._storage.set_trial_state_values(self._ids[number], TrialState.RUNNING)
            self._running.add(number)
            self._reported[number] = set()
        return number

    def _new(self, candidate: Candidate, seed: int, epochs: int) -> int:
        template = FrozenTrial(
            number=-1,
            trial_id=-1,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=datetime.now(),
            datetime_complete=None,
            params={"alpha": candidate.alpha, "beta": candidate.beta, "gamma": candidate.gamma},
            distributions=_DISTRIBUTIONS,
            # one attribute, and the network by name: each costs two statements, and its text is
            # read at every opening
            user_attrs={"run": {"network": candidate.key, "seed": seed, "epochs": epochs}},
            system_attrs={},
            intermediate_values={},
        )
        with self._telling():
            if candidate.key not in self._networks:
                self._storage.set_study_user_attr(
                    self._study, f"network {candidate.key}", candidate.as_dict()
                )
            self._ids[number := len(self._ids)] = self._storage.create_new_trial(
                self._study, template
            )
        self._records[number] = record = Record(number, candidate, seed, epochs, None)
        self._numbers[record.key] = number
        self._networks.add(candidate.key)
        self._running.add(number)
        self._reported[number] = set()
        return number

    def again(self, number: int, why: str) -> None:
        """Record why a run is started once more."""
        record = self._records[number]
        when = f"after epoch {self.epochs_of(number)}" if number in self._running else "when tested"
        record = replace(record, again=(*record.again, f"{when}: {why}"))
        with self._telling():
            if number in self._running:
                self._storage.set_trial_user_attr(self._ids[number], "again", list(record.again))
            else:
                self._storage.set_study_user_attr(
                    self._study, f"again {number}", list(record.again)
                )
        self._records[number] = record

    def epoch(self, number: int, epoch: Epoch) -> None:
        """Record an epoch's validation accuracy; one recorded before an interruption stays."""
        if epoch.epoch not in self._reported[number]:
            with self._telling():
                self._storage.set_trial_intermediate_value(
                    self._ids[number], epoch.epoch, epoch.val_acc
                )
            self._reported[number].add(epoch.epoch)

    def finish(self, number: int, outcome: Outcome) -> None:
        """Record the outcome; a second one for the same run is refused by Optuna. Once this returns
        it is safe."""
        with self._telling():
            self._storage.set_trial_user_attr(self._ids[number], "outcome", outcome.as_dict())
            self._tell(number, outcome)
        self._records[number] = replace(self._records[number], outcome=outcome)

    def free(self, number: int, why: str) -> None:
        """Set a failed run free: it may be started again, as a new Optuna trial.

        The failed trial stays in the study, which keeps as an attribute of its own why it no longer
        counts: a finished Optuna trial takes no more attributes. Raises ValueError for a run that
        has not failed."""
        record = self._records[number]
        if record.outcome is None or record.done:
            raise ValueError(f"run {number} has not failed")
        with self._telling():
            self._storage.set_study_user_attr(self._study, f"freed {number}", why)
        del self._records[number]
        del self._numbers[record.key]

    def _freed(self) -> set[int]:
        """Numbers of the runs that were set free."""
        prefix = "freed "
        return {int(n.removeprefix(prefix)) for n in self._attrs() if n.startswith(prefix)}

    def set_fact(self, name: str, value: Any) -> None:
        """`state`: running, finished, stopped or out of time; `spent`: seconds of all sittings."""
        with self._telling():
            self._storage.set_study_user_attr(self._study, name, value)

    def set_test(self, number: int, accuracy: float) -> None:
        """A finalist's test accuracy; a finished Optuna trial takes no more attributes, the study
        does."""
        with self._telling():
            self._storage.set_study_user_attr(self._study, f"test {number}", accuracy)
        self._records[number] = replace(self._records[number], test_acc=accuracy)

    def _tell(self, number: int, outcome: Outcome) -> None:
        state = _STATES.get(outcome.status, TrialState.FAIL)
        values = [outcome.epochs[-1].val_acc] if state == TrialState.COMPLETE else None
        self._storage.set_trial_state_values(self._ids[number], state, values)
        self._running.discard(number)
        self._reported.pop(number, None)

    # ---- reading

    def records(self) -> list[Record]:
        """Every run, in the order in which it was started."""
        if self._locks or isinstance(self._storage, InMemoryStorage):
            return [self._records[n] for n in sorted(self._records)]
        freed = self._freed()
        with self._telling():
            return [record for _, _, record in self._read() if record.number not in freed]

    def _read(self) -> list[tuple[FrozenTrial, str, Record]]:
        """Each run with its network's key, which is a hash of all of it."""
        tests = self._storage.get_study_user_attrs(
            self._study
        )  # and what else is told of finished runs
        names = {
            name: name.removeprefix("network ") for name in tests if name.startswith("network ")
        }
        candidates = {key: Candidate.from_dict(tests[name]) for name, key in names.items()}
        found = []
        with _no_collection(), self._readable():
            for trial in self._storage.get_all_trials(self._study, deepcopy=False):
                attrs = trial.user_attrs
                told = attrs.get(
                    "run", attrs
                )  # an earlier release had its parts as attributes, the network whole
                if not isinstance(key := told["network"], str):
                    key = told["network"].pop("key")
                    candidates[key] = candidates.get(key) or Candidate.from_dict(told["network"])
                outcome = Outcome.from_dict(attrs["outcome"]) if "outcome" in attrs else None
                again = tuple(tests.get(f"again {trial.number}", attrs.get("again", ())))
                test = tests.get(f"test {trial.number}")
                run = Record(
                    trial.number,
                    candidates[key],
                    told["seed"],
                    told["epochs"],
                    outcome,
                    test,
                    again,
                )
                found.append((trial, key, run))
        return found


@contextmanager
def _no_collection() -> Iterator[None]:
    """Ten thousand runs are a million objects, none of them garbage: looking for some took half of
    the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def suggest(
    seen: list[tuple[tuple[float, float], float]], count: int, seed: int
) -> list[tuple[float, float]]:
    """`count` points of the unit square by Optuna's TPE, from ((u, v), accuracy) of what has
    finished."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=4, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    square: dict[str, BaseDistribution] = {
        "u": FloatDistribution(0.0, 1.0),
        "v": FloatDistribution(0.0, 1.0),
    }
    for (u, v), accuracy in seen:
        params = {"u": min(max(u, 0.0), 1.0), "v": min(max(v, 0.0), 1.0)}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=square, value=accuracy)
        )
    asked = [study.ask(square) for _ in range(count)]
    return [(t.params["u"], t.params["v"]) for t in asked]


def versions() -> dict[str, str]:
    return {"optuna": optuna.__version__}


def _open(folder: Path, address: URL | None, create: bool) -> tuple[RDBStorage, int, str]:
    """Storage, Optuna's id of the study, and what to call it. Raises UserError."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = folder / "study.db"
    if address is None:
        url, where, name = URL.create("sqlite", database=str(path)), str(path), _NAME
        options: dict[str, Any] = {"timeout": _PATIENCE}
    else:
        url, where, name = (
            address,
            address.render_as_string(hide_password=True),
            folder.resolve().name,
        )
        options = {
            "connect_timeout": 10,
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
        }
    kept = (
        {} if create else {"poolclass": NullPool}
    )  # a reader leaves no connection behind, nor SQLite's -wal file
    try:
        storage = RDBStorage(
            url.render_as_string(hide_password=False), {"connect_args": options, **kept}
        )
        storage.remove_session()
        storage.scoped_session.configure(
            expire_on_commit=False, autoflush=False
        )  # one flush, at the commit
        if address is None and create:
            with (
                storage.engine.connect() as connection
            ):  # readers and the driver never wait for one another
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        try:
            return storage, storage.get_study_id_from_name(name), where
        except KeyError:
            if not create:
                raise
            return storage, storage.create_new_study([StudyDirection.MAXIMIZE], name), where
    except ImportError:
        raise UserError(f"--store {where}: needs psycopg (pip install 'psycopg[binary]')") from None
    except _BROKEN as error:
        if address is not None:
            raise UserError(
                f"--store {where}: {_reason(error)}; is it the right server, and study {name} there?"
            ) from None
        raise UserError(
            f"{where}: not a readable study ({_reason(error)}); restore it, or use another folder"
        ) from None


def _held(storage: RDBStorage, study: int, name: str, where: str) -> _Lock:
    lock = hold_study(storage.engine, name)
    if lock is None:
        holder = described(storage.get_study_user_attrs(study).get("driver", ""))
        raise UserError(
            f"study {name} on {where} is in use by {holder}; wait for it, or choose another with --out"
        )
    return lock


def _reason(error: BaseException) -> str:
    """What the database itself said, in one line."""
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]
