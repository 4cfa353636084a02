"""The same jobs through Ray Tune with reused actors. The only file that imports ray.

Tune's searcher here only hands over what the driver's own store gives and takes back what actors report,
so Optuna stays the one record.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Tune would otherwise catch Ctrl-C, change into a folder per trial and phone home.
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# A Ray started here listens on 127.0.0.1 alone: without this it resolves a loopback address to the machine's own.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray import tune
from ray.tune.search import Searcher

from scaling_search import UserError
from scaling_search.data import Dataset
from scaling_search.executors import Job
from scaling_search.train import run
from scaling_search.trial import Epoch, Outcome, Trial


class _Trainable(tune.Trainable):
    """One step is one epoch, the last one the outcome; the actor stays for the next trial.

    Results travel as JSON text, since Tune flattens dictionaries."""

    def setup(self, config: dict[str, Any]) -> None:
        trial = Trial.from_dict(config["trial"])
        self._events: Iterator[Epoch | Outcome] = run(trial, Dataset.open(Path(trial.data_folder)))

    def step(self) -> dict[str, Any]:
        try:
            event = next(self._events)
        except OSError as error:  # a full disk, vanished data: every run would fail alike
            return {"failure": str(error), "done": True}
        if isinstance(event, Outcome):
            return {"outcome": json.dumps(event.as_dict()), "done": True}
        return {"epoch": json.dumps(asdict(event))}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True


class _Delegate(Searcher):
    """Tune's way of asking and reporting, passed on to the driver."""

    def __init__(
        self,
        ask: Callable[[], Job | None],
        on_epoch: Callable[[Job, Epoch], None],
        on_outcome: Callable[[Job, Outcome], None],
        until: float = math.inf,
    ) -> None:
        super().__init__(metric="done", mode="max")
        self._ask, self._on_epoch, self._on_outcome = ask, on_epoch, on_outcome
        self._jobs: dict[str, Job] = {}
        self._until = until
        self.failure: str | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        job = None if self.failure else self._ask()
        if job is None:
            return Searcher.FINISHED
        self._jobs[trial_id] = job
        return {"trial": job.trial.as_dict()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if "epoch" in result:
            self._on_epoch(self._jobs[trial_id], Epoch(**json.loads(result["epoch"])))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        job = self._jobs.pop(trial_id)
        if result and "failure" in result:
            self.failure = result["failure"]
        elif result and "outcome" in result:
            self._on_outcome(job, Outcome.from_dict(json.loads(result["outcome"])))
        elif time.monotonic() < self._until:  # else Tune has stopped it: it goes on another time
            self._on_outcome(job, Outcome("crashed", note="the Ray actor ended without an outcome"))

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles the experiment, to restore it one day; the driver's callbacks stay with the driver."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the store is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class RayExecutor:
    def __init__(self, workers: int, device: str, threads: int) -> None:
        self._workers = workers
        cpus = threads * workers
        self._share = {"cpu": float(threads), "gpu": 1.0 / workers if device == "cuda" else 0.0}
        self._folder = tempfile.TemporaryDirectory(prefix="scaling-search-tune-")
        logging.getLogger("ray").setLevel(logging.ERROR)
        ray.init(
            num_cpus=max(cpus, 1),
            num_gpus=1 if device == "cuda" else 0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
        )

    def run(
        self,
        ask: Callable[[], Job | None],
        on_epoch: Callable[[Job, Epoch], None],
        on_outcome: Callable[[Job, Outcome], None],
        until: float = math.inf,
    ) -> None:
        first = ask()
        if first is None:  # Tune calls an experiment without trials an error
            return
        waiting = [first]
        delegate = _Delegate(lambda: waiting.pop() if waiting else ask(), on_epoch, on_outcome, until)
        tuner = tune.Tuner(
            tune.with_resources(_Trainable, self._share),
            tune_config=tune.TuneConfig(
                search_alg=delegate,
                num_samples=-1,
                max_concurrent_trials=self._workers,
                reuse_actors=True,
                time_budget_s=None if until == math.inf else max(0.1, until - time.monotonic()),
            ),
            run_config=tune.RunConfig(
                storage_path=self._folder.name,
                verbose=0,
                # the runs keep their own checkpoints
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        tuner.fit()
        if delegate.failure:
            raise UserError(f"training stopped: {delegate.failure}; mend it, and the same command goes on")

    def close(self) -> None:
        ray.shutdown()
        self._folder.cleanup()
