"""Every result ever told: an Optuna study in the run folder, one writer. The only file that imports optuna.

One run (network, seed, epochs) is one Optuna trial. The feasible networks are enumerated and enqueued,
so no trial is proposed that cannot be built and none is trained twice.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from scaling_search import UserError
from scaling_search.candidate import Candidate
from scaling_search.trial import Epoch, Outcome

_NAME = "scaling-search"
_DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "alpha": FloatDistribution(0.001, 1000.0),
    "beta": FloatDistribution(0.001, 1000.0),
    "gamma": FloatDistribution(0.001, 1000.0),
}
_STATES = {"done": TrialState.COMPLETE, "pruned": TrialState.PRUNED}  # everything else failed


@dataclass(frozen=True)
class Record:
    """One run as recorded; `outcome` is None while it waits or runs."""

    number: int
    candidate: Candidate
    seed: int
    epochs: int
    outcome: Outcome | None
    test_acc: float | None = None

    @property
    def done(self) -> bool:
        return self.outcome is not None and self.outcome.status == "done"

    @property
    def val_acc(self) -> float:
        """Of the last epoch. Raises ValueError for a run that is not done."""
        if self.outcome is None or self.outcome.status != "done":
            raise ValueError(f"run {self.number} has no final accuracy")
        return self.outcome.epochs[-1].val_acc


class Store:
    """A run folder's study.db. Open it with `create` to write, `read` to look."""

    def __init__(self, study: optuna.Study, lock: TextIO | None) -> None:
        self._study, self._lock = study, lock
        self._numbers: dict[tuple[str, int, int], int] = {}
        self._open: dict[int, tuple[optuna.Trial, set[int]]] = {}  # what runs, and the epochs it has reported

    # ---- opening

    @classmethod
    def create(cls, folder: Path, identity: dict[str, Any], facts: dict[str, Any]) -> Store:
        """Open for writing, made where absent; `facts` describe the study to its readers.

        Raises UserError when another process holds the folder, it cannot be written, or it belongs to a
        study whose identity differs (naming the fields that do)."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _lock(folder)
        except OSError as error:
            raise UserError(
                f"run folder {folder}: {error.strerror}; choose one that can be written with --out"
            ) from None
        study = _open(folder, create=True)
        store = cls(study, lock)
        recorded = store.fact("identity")
        if recorded is not None:
            _check_same(folder, recorded, identity)
        else:
            study.set_user_attr("identity", identity)
        for name in facts.keys() - study.user_attrs.keys():  # also those that an earlier release did not write
            study.set_user_attr(name, facts[name])
        store._settle()
        return store

    @classmethod
    def in_memory(cls, facts: dict[str, Any]) -> Store:
        """For a study that is replayed from a table: nothing that took time is lost with it."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
        for name, value in facts.items():
            study.set_user_attr(name, json.loads(json.dumps(value)))
        return cls(study, None)

    @classmethod
    def read(cls, folder: Path) -> Store:
        """Open for reading. Raises UserError where there is no study."""
        if not (folder / "study.db").is_file():
            raise UserError(f"{folder}: no study.db there; give the folder of a run, such as runs/fashion-mnist-2x")
        return cls(_open(folder, create=False), None)

    def close(self) -> None:
        if self._lock:
            self._lock.close()

    def fact(self, name: str) -> Any:
        return self._study.user_attrs.get(name)

    def facts(self) -> dict[str, Any]:
        """All that describes the study, but for what is told of single runs."""
        return {k: v for k, v in self._study.user_attrs.items() if not k.startswith(("test ", "identity"))}

    # ---- writing

    def _settle(self) -> None:
        """Index the runs, and finish what a killed driver had recorded but not yet told."""
        for trial in self._study.get_trials(deepcopy=False):
            attrs = trial.user_attrs
            self._numbers[attrs["network"]["key"], attrs["seed"], attrs["epochs"]] = trial.number
            if trial.state == TrialState.RUNNING:
                self._open[trial.number] = optuna.Trial(self._study, trial._trial_id), set(trial.intermediate_values)
                if "outcome" in attrs:
                    self._tell(trial.number, Outcome.from_dict(attrs["outcome"]))

    def add(self, candidate: Candidate, seed: int, epochs: int) -> int:
        """Enqueue a run unless it is already there; its number."""
        at = (candidate.key, seed, epochs)
        if at not in self._numbers:
            self._study.enqueue_trial(
                {
                    "alpha": candidate.alpha,
                    "beta": candidate.beta,
                    "gamma": candidate.gamma,
                },
                user_attrs={
                    "network": {"key": candidate.key, **candidate.as_dict()},
                    "seed": seed,
                    "epochs": epochs,
                },
            )
            self._numbers[at] = len(self._numbers)
        return self._numbers[at]

    def pending(self, numbers: list[int]) -> list[int]:
        """Those of `numbers` that have no outcome yet; the ones a killed driver left running come first."""
        trials = self._study.get_trials(deepcopy=False)
        states = {n: trials[n].state for n in numbers}
        running = [n for n in numbers if states[n] == TrialState.RUNNING]
        return running + [n for n in numbers if states[n] == TrialState.WAITING]

    def start(self, number: int) -> None:
        """Take an enqueued run out of Optuna's queue (in order), unless it is already running."""
        while number not in self._open:
            trial = self._study.ask(_DISTRIBUTIONS)
            self._open[trial.number] = trial, set()

    def epoch(self, number: int, epoch: Epoch) -> None:
        """Record an epoch's validation accuracy; one recorded before an interruption stays."""
        trial, reported = self._open[number]
        if epoch.epoch not in reported:
            trial.report(epoch.val_acc, epoch.epoch)
            reported.add(epoch.epoch)

    def finish(self, number: int, outcome: Outcome) -> None:
        """Record the outcome; a second one for the same run is refused by Optuna."""
        self._open[number][0].set_user_attr("outcome", outcome.as_dict())
        self._tell(number, outcome)

    def set_state(self, state: str) -> None:
        """running, finished or out of time."""
        self._study.set_user_attr("state", state)

    def set_test(self, number: int, accuracy: float) -> None:
        """A finalist's test accuracy; a finished Optuna trial takes no more attributes, the study does."""
        self._study.set_user_attr(f"test {number}", accuracy)

    def _tell(self, number: int, outcome: Outcome) -> None:
        state = _STATES.get(outcome.status, TrialState.FAIL)
        value = outcome.epochs[-1].val_acc if state == TrialState.COMPLETE else None
        self._study.tell(self._open[number][0], value, state)

    # ---- reading

    def records(self) -> list[Record]:
        """Every run, in the order in which it was enqueued."""
        tests = self._study.user_attrs
        found = []
        for trial in self._study.get_trials(deepcopy=False):
            attrs = trial.user_attrs
            network = {k: v for k, v in attrs["network"].items() if k != "key"}
            outcome = Outcome.from_dict(attrs["outcome"]) if "outcome" in attrs else None
            found.append(
                Record(
                    trial.number,
                    Candidate.from_dict(network),
                    attrs["seed"],
                    attrs["epochs"],
                    outcome,
                    tests.get(f"test {trial.number}"),
                )
            )
        return found


def suggest(seen: list[tuple[tuple[float, float], float]], count: int, seed: int) -> list[tuple[float, float]]:
    """`count` points of the unit square by Optuna's TPE, from ((u, v), accuracy) of what has finished."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=4, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    square: dict[str, BaseDistribution] = {"u": FloatDistribution(0.0, 1.0), "v": FloatDistribution(0.0, 1.0)}
    for (u, v), accuracy in seen:
        params = {"u": min(max(u, 0.0), 1.0), "v": min(max(v, 0.0), 1.0)}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=square, value=accuracy))
    asked = [study.ask(square) for _ in range(count)]
    return [(t.params["u"], t.params["v"]) for t in asked]


def versions() -> dict[str, str]:
    return {"optuna": optuna.__version__}


def _open(folder: Path, create: bool) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = folder / "study.db"
    try:
        storage = optuna.storages.RDBStorage(
            URL.create("sqlite", database=str(path)).render_as_string(),
            engine_kwargs={"connect_args": {"timeout": 60}},
        )
        if not create:
            return optuna.load_study(storage=storage, study_name=_NAME)
        return optuna.create_study(
            storage=storage,
            study_name=_NAME,
            direction="maximize",
            sampler=optuna.samplers.RandomSampler(seed=0),
            load_if_exists=True,
        )
    except (SQLAlchemyError, OSError, KeyError, RuntimeError, optuna.exceptions.OptunaError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: not a readable study ({reason}); restore it, or use another folder") from None


def _check_same(folder: Path, recorded: dict[str, Any], identity: dict[str, Any]) -> None:
    wanted = json.loads(json.dumps(identity))  # tuples become lists, as in what was recorded
    if recorded == wanted:
        return
    differing = [
        f"{name} is {recorded.get(name, 'the default')} there, {wanted.get(name, 'the default')} here"
        for name in sorted({*recorded, *wanted})
        if recorded.get(name) != wanted.get(name)
    ]
    raise UserError(
        f"run folder {folder} belongs to a different study: {'; '.join(differing)}. Choose another folder with --out"
    )


def _lock(folder: Path) -> TextIO:
    """Hold the folder until this process ends, however it ends; the file says who holds it."""
    file = (folder / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise UserError(
            f"run folder {folder} is in use by {holder}; wait for it, or choose another with --out"
        ) from None
    file.truncate(0)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
    file.flush()
    return file
