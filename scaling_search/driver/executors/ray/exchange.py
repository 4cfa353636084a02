"""Between Tune's thread and the driver's: jobs one way, what became of them the other."""

from __future__ import annotations

import json
import logging
import queue
from dataclasses import replace
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from effnet.messages import last_line
from scaling_search.driver.executors.protocol import BOOTS, Job, WorkerLoss
from scaling_search.training.trial import Epoch, Outcome

_IDLE = 0.2  # s that Tune waits for a job while nothing is in progress
_ANSWER = 0.1  # s that it waits for the driver's next job after an outcome

logger = logging.getLogger(__name__)


class Exchange(Searcher, tune.Stopper):
    """Tune's searcher and stopper, which knows no search: it passes on.

    `sharing`: how many trainings share a GPU. A deadline is of a run's own time, so it is so many
    times longer; the rate of a run that shares would be its neighbours', and is 0.0 on record.
    `failure`: what ends the study, once there is something."""

    def __init__(self, sharing: int = 1) -> None:
        Searcher.__init__(self, metric="done", mode="max")
        self.sharing = sharing
        self.jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self.events: queue.SimpleQueue[tuple[Job, Epoch | Outcome | WorkerLoss]] = (
            queue.SimpleQueue()
        )
        self.failure: str | None = None
        self.stopping = False
        self._in_progress: dict[str, Job] = {}  # by Tune's name of the trial
        self._result_pending = False  # whether the driver has yet to answer an outcome
        self.begun: set[str] = set()  # trials that an actor has taken up
        self.boots = 0  # actors in a row that ended before they began
        self._spoiled = 0  # actors that refuse their next run

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        if self.stopping or self.failure:
            return Searcher.FINISHED
        try:
            job = self.jobs.get(timeout=self._patience())
        except queue.Empty:
            return None
        self._in_progress[trial_id] = job
        trial = job.trial
        if trial.deadline is not None:
            trial = replace(trial, deadline=self.sharing * trial.deadline)
        return {"trial": json.dumps(trial.as_dict())}

    def _patience(self) -> float:
        """Seconds to wait for the driver's next job. It answers an outcome with one, milliseconds
        later: without waiting for it, Tune would look again only after its next event, a tenth of a
        second away; with nothing else to attend to, after a second."""
        pending, self._result_pending = self._result_pending, False
        if not self._in_progress:
            return _IDLE
        return _ANSWER if pending else 0.0

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._log(result)
        if "epoch" in result:
            self._report_epoch(self._in_progress[trial_id], result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        job = self._in_progress.pop(trial_id)
        has_begun = trial_id in self.begun
        self.begun.discard(trial_id)
        result = result or {}
        if "failure" in result:
            self._log(result)
            trace = result["traceback"].rstrip()
            logger.error("run %d stops the study: %s\n%s", job.number, result["failure"], trace)
            self.failure = result["failure"]
        elif "outcome" in result:
            self._log(result)
            if "epoch" in result:  # with the outcome, of which Tune tells here only
                self._report_epoch(job, result)
            self._report_outcome(job, result)
        elif self._spoiled and not has_begun and not self.stopping:
            self._spoiled -= 1
            self.jobs.put(job)  # for a new actor; nothing of the run has happened
        elif not self.stopping:  # else Tune has stopped it: it goes on another time
            how = "worker lost" if has_begun else "lost before it began"
            loss = WorkerLoss(f"{how}: its Ray actor or node ended", has_begun)
            self.events.put((job, loss))
            self.boots += not has_begun

    def _report_epoch(self, job: Job, result: dict[str, Any]) -> None:
        self.events.put((job, Epoch.from_dict(json.loads(result["epoch"]))))

    def _report_outcome(self, job: Job, result: dict[str, Any]) -> None:
        outcome = Outcome.from_dict(json.loads(result["outcome"]))
        outcome = replace(outcome, traceback=result.get("traceback", ""))
        self._spoiled += outcome.spoils_its_process
        if self.sharing > 1:
            outcome = replace(outcome, images_per_s=0.0)
        self.events.put((job, outcome))
        self._result_pending = True

    def _log(self, result: dict[str, Any]) -> None:
        for line in json.loads(result.get("log", "[]")):
            logger.warning("%s", line)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.stopping or self.failure is not None

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles the experiment, to restore it one day; the driver's side stays with the
        driver."""
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Exchange:
        return self

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the store is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class Starts(tune.Callback):
    """Tells an actor that was lost in the middle of a run from one that never took it up."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._exchange.begun.add(trial.trial_id)
        self._exchange.boots = 0

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = str(trial.get_error() or "").strip()
        logger.warning("a Ray actor ended: %s", error or "no reason given")
        if self._exchange.boots >= BOOTS:
            reason = last_line(error, "no reason given")
            self._exchange.failure = (
                f"{BOOTS} Ray actors in a row ended before they began, the last: {reason}"
            )
