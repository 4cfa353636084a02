"""The driver: which runs a study needs, handed to an executor, told to the store.

First every network with one seed (rung by rung, half of them going on), then more seeds for the finalists
and the baseline, then the finalists' test accuracy. Each step is decided from complete results only, so the
order in which runs end changes nothing.
"""

from __future__ import annotations

import math
from typing import Protocol

from scaling_search.data import Dataset
from scaling_search.executors import Executor, Job
from scaling_search.space import Candidate, Plan
from scaling_search.store import Record, Store
from scaling_search.study import Study
from scaling_search.trial import Epoch, Outcome, Trial


class Watcher(Protocol):
    """Who is told as a study goes on. `jobs` counts the runs still known to be needed."""

    def phase(self, name: str, jobs: int) -> None: ...
    def started(self, job: Job, candidate: Candidate) -> None: ...
    def epoch(self, job: Job, epoch: Epoch) -> None: ...
    def finished(self, job: Job, candidate: Candidate, outcome: Outcome) -> None: ...


class Search:
    def __init__(
        self,
        study: Study,
        plan: Plan,
        data: Dataset,
        store: Store,
        executor: Executor,
        watcher: Watcher,
        *,
        device: str,
        checkpoints: str,
    ) -> None:
        self._study, self._plan, self._data = study, plan, data
        self._store, self._executor, self._watcher = store, executor, watcher
        self._device, self._checkpoints = device, checkpoints

    def run(self) -> int:
        """Train whatever has no outcome yet; the number of runs trained now.

        KeyboardInterrupt passes through: what was told is kept, what was running goes on next time."""
        return self._grid()

    def _grid(self) -> int:
        """Every network with its first seeds: to the last rung, or rung by rung, half of them going on."""
        study, plan = self._study, self._plan
        trained = 0
        always = [plan.baseline, *plan.references]
        active = list(plan.candidates)
        for seed in range(study.seed, study.seed + study.seeds):
            for i, epochs in enumerate(study.rungs):
                trained += self._train(f"seed {seed}, {epochs} epochs", [*always, *active], [seed], epochs)
                if study.allocation == "rungs" and seed == study.seed and i + 1 < len(study.rungs):
                    active = promoted(self._records(epochs), active)
        return trained

    def _records(self, epochs: int) -> list[Record]:
        return [r for r in self._store.records() if r.epochs == epochs]

    def _train(self, name: str, candidates: list[Candidate], seeds: list[int], epochs: int) -> int:
        by_number: dict[int, tuple[Candidate, int]] = {}
        for seed in seeds:
            for candidate in candidates:
                by_number[self._store.add(candidate, seed, epochs)] = (candidate, seed)
        queue = self._store.pending(list(by_number))
        if not queue:
            return 0
        self._watcher.phase(name, len(queue))
        waiting = iter(queue)

        def ask() -> Job | None:
            number = next(waiting, None)
            if number is None:
                return None
            candidate, seed = by_number[number]
            self._store.start(number)
            job = Job(number, self._trial(candidate, seed, epochs))
            self._watcher.started(job, candidate)
            return job

        def on_epoch(job: Job, epoch: Epoch) -> None:
            self._store.epoch(job.number, epoch)
            self._watcher.epoch(job, epoch)

        def on_outcome(job: Job, outcome: Outcome) -> None:
            self._store.finish(job.number, outcome)
            self._watcher.finished(job, by_number[job.number][0], outcome)

        self._executor.run(ask, on_epoch, on_outcome)
        return len(queue)

    def _test(self, candidates: list[Candidate]) -> None:
        """Measure the test split for these networks' finished runs: the only place that touches it.

        Their checkpoints stand at the end of training, so nothing is trained again."""
        keys = {c.key for c in candidates}
        last = self._study.rungs[-1]
        missing = [r for r in self._records(last) if r.candidate.key in keys and r.done and r.test_acc is None]
        if not missing:
            return
        self._watcher.phase("test accuracy of the finalists", len(missing))
        waiting = iter(missing)
        by_number = {r.number: r.candidate for r in missing}

        def ask() -> Job | None:
            record = next(waiting, None)
            if record is None:
                return None
            job = Job(record.number, self._trial(record.candidate, record.seed, last, test=True))
            self._watcher.started(job, record.candidate)
            return job

        def on_outcome(job: Job, outcome: Outcome) -> None:
            if outcome.test_acc is not None:
                self._store.set_test(job.number, outcome.test_acc)
            self._watcher.finished(job, by_number[job.number], outcome)

        self._executor.run(ask, lambda job, epoch: None, on_outcome)

    def _trial(self, candidate: Candidate, seed: int, epochs: int, test: bool = False) -> Trial:
        study = self._study
        return Trial(
            arch=candidate.arch,
            data_digest=self._data.digest,
            data_folder=str(self._data.folder),
            recipe=study.recipe,
            seed=seed,
            epochs=epochs,
            train_images=study.data.train_images,
            val_images=study.data.val_images,
            device=self._device,
            threads=study.threads,
            checkpoints=self._checkpoints,
            test=test,
            test_images=study.data.test_images,
            compile=study.compile,
            deadline=study.deadline,
        )


def half(count: int) -> int:
    """How many of `count` go on to the next rung: never fewer than half."""
    return math.ceil(count / 2)


def runs_needed(study: Study, todo: Plan) -> int:
    """How many runs the study takes when none fails."""
    budgets = [c.budget for c in todo.candidates]
    groups = [budgets.count(b) for b in dict.fromkeys(budgets)]
    always, runs = 1 + len(todo.references), 0
    for seed in range(study.seeds):
        for i in range(len(study.rungs)):
            if study.allocation == "rungs" and seed == 0 and i:
                groups = [half(n) for n in groups]
            runs += always + sum(groups)
    return runs


def promoted(records: list[Record], active: list[Candidate]) -> list[Candidate]:
    """The better half of each budget (rounded up); networks that failed do not go on."""
    groups = _ranked(records, active)
    return [c for size, ranked in groups for c in ranked[: half(size)]]


def finalists(records: list[Record], candidates: list[Candidate], count: int, seed: int) -> list[Candidate]:
    """The `count` best of each budget by the first seed's validation accuracy."""
    groups = _ranked([r for r in records if r.seed == seed], candidates)
    return [c for _, ranked in groups for c in ranked[:count]]


def _ranked(records: list[Record], candidates: list[Candidate]) -> list[tuple[int, list[Candidate]]]:
    """For each budget: how many networks it has, and those that finished, best first."""
    scores = {r.candidate.key: r.val_acc for r in records if r.done}
    groups = []
    for budget in dict.fromkeys(c.budget for c in candidates):
        group = [c for c in candidates if c.budget == budget]
        finished = [c for c in group if c.key in scores]
        groups.append((len(group), sorted(finished, key=lambda c: (-scores[c.key], c.key))))
    return groups
