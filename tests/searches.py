"""Whole studies of cheap real trainings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from scaling_search.data.dataset import Dataset
from scaling_search.driver.executors.local import LocalExecutor
from scaling_search.driver.executors.protocol import Driver, Executor, Job
from scaling_search.driver.search import Conditions, Limits, Search
from scaling_search.results import tables
from scaling_search.results.store import Store
from scaling_search.study.candidate import Candidate
from scaling_search.study.plan import Plan, plan
from scaling_search.study.settings import Study
from scaling_search.training.trial import Epoch, Outcome


class Quiet:
    """A watcher that remembers, and calls back on each outcome."""

    def __init__(self, then: Callable[[int], None] = lambda n: None) -> None:
        self.seen: list[tuple[str, int]] = []
        self._then = then

    def phase(self, name: str, jobs: int, testing: bool = False) -> None: ...
    def started(self, job: Job, candidate: Candidate) -> None: ...
    def epoch(self, job: Job, epoch: Epoch) -> None: ...
    def again(self, job: Job, candidate: Candidate, why: str) -> None: ...
    def finished(self, job: Job, candidate: Candidate, outcome: Outcome) -> None:
        self.seen.append((candidate.key, job.trial.seed))
        self._then(len(self.seen))


class WarmExecutor:
    """Local workers that stay from one search to the next: a new one takes four seconds of CPU
    time, most of them to import torch."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.local = LocalExecutor(workers)

    def run(self, driver: Driver) -> None:
        self.local.run(driver)

    def close(self) -> None:
        """End of a search. Workers in the middle of a run, after an interrupt, must not go on."""
        if any(worker.job for worker in self.local._workers):
            self.end()

    def end(self) -> None:
        """End the workers; another search would start new ones."""
        self.local.close()


Warm = Callable[[int], WarmExecutor]  # conftest's fixture: an executor of so many workers


def search(
    study: Study,
    data: Dataset,
    folder: Path,
    executor: Executor,
    watcher: Quiet | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> tuple[int, pd.DataFrame]:
    todo: Plan = plan(study, 10, 64)
    store = Store.create(folder, study.identity(data.digest), {})
    try:
        job = Search(
            study,
            todo,
            data.facts(),
            store,
            executor,
            watcher or Quiet(),
            Conditions("cpu", str(folder / "checkpoints")),
            limits=Limits(stopping=stopping),
        )
        trained = job.run()
        return trained, tables.table(store.records())
    finally:
        store.close()
        executor.close()


# Columns of results.csv that differ from one machine, or moment, to the next; and with the note
# those in which a study that was disturbed differs from one that was not.
TIMINGS = ["seconds", "images_per_s", "peak_memory"]
DISTURBED = [*TIMINGS, "note"]


def few(study: Study, candidates: int, **changes: object) -> Study:
    """The same study of fewer networks: for what does not depend on how many."""
    space = study.space.model_copy(update={"candidates": candidates})
    return study.model_copy(update={"space": space, "references": (), **changes})
