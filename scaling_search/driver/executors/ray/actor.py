"""What runs in a Ray actor: one training after another, as Tune hands them over."""

from __future__ import annotations

import json
import platform
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import tune

from scaling_search import UserError
from scaling_search.data.dataset import Dataset
from scaling_search.driver.executors.worker import Train
from scaling_search.driver.log import Collected
from scaling_search.training.train import run
from scaling_search.training.trial import Epoch, Outcome, Pulse, Trial
from scaling_search.training.watchdog import watched

_PULSES = 5.0  # s between two results of Tune's: each costs its driver some milliseconds


class Trainable(tune.Trainable):
    """A step ends with an epoch, the outcome or a pulse; the actor stays for the next trial.

    Trials and results travel as JSON text, since Tune flattens and copies dictionaries. A result
    has the keys `epoch`, `outcome`, or else `failure`, what would fail every run alike; and beside
    them `traceback` (of what was raised) and `log` (what loggers said)."""

    def setup(
        self, config: dict[str, Any], data: Dataset | None = None, train: Train = run
    ) -> None:
        self._data, self._train = data, train
        self._spoiled = False
        self._log = Collected()
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        if self._spoiled:  # Tune ends this actor; returning False would halt the experiment
            raise RuntimeError("the run before this one has spoiled the process")
        trial = self._trial = Trial.from_dict(json.loads(new_config["trial"]))
        self._failure: dict[str, Any] = {}  # a result, of what failed before the first step
        try:
            if self._data is None or self._data.digest != trial.data_digest:
                self._data = Dataset.open(Path(trial.data_folder))
            self._events: Iterator[Epoch | Outcome | Pulse] = self._train(trial, self._data)
        except (UserError, OSError) as error:
            self._failure = _failure_of(error)
        return True

    def step(self) -> dict[str, Any]:
        result = self._failure or self._step()
        log = self._log.take()
        if log:
            result["log"] = json.dumps(log)
        return result

    def _step(self) -> dict[str, Any]:
        try:
            with watched():
                return self._next_result()
        except (UserError, OSError) as error:
            # a full disk, vanished data: every run would fail alike
            return _failure_of(error)

    def _next_result(self) -> dict[str, Any]:
        begun = time.monotonic()
        result: dict[str, Any] = {}
        for event in self._events:
            if isinstance(event, Outcome):
                self._spoiled = event.spoils_its_process
                if event.traceback:
                    result["traceback"] = _with_node(event.traceback)
                return {**result, "outcome": json.dumps(event.as_dict()), "done": True}
            if isinstance(event, Epoch):
                result["epoch"] = json.dumps(asdict(event))
                # after the last epoch the outcome follows at once: one result for both
                if event.epoch < self._trial.epochs:
                    break
            elif time.monotonic() - begun > _PULSES:
                break
        return result or {"pulse": True}

    def cleanup(self) -> None:
        """Told to stop, between two steps: the run writes its checkpoint."""
        if not self._failure:
            with suppress(OSError):
                self._events.close()  # type: ignore[attr-defined]  # a generator


def _failure_of(error: Exception) -> dict[str, Any]:
    """The result of a run that stops the study. To be called while `error` is handled."""
    trace = _with_node(traceback.format_exc())
    return {"failure": str(error), "traceback": trace, "done": True}


def _with_node(trace: str) -> str:
    """A traceback that says where it is from: one node may lack what the others have."""
    return f"on node {platform.node()}\n{trace}"
