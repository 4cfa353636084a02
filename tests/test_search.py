"""The driver with real trainings, on real worker processes."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import pandas as pd
import pytest

from scaling_search.data.dataset import Dataset
from scaling_search.driver.allocation import half, promoted
from scaling_search.driver.executors.protocol import Job
from scaling_search.driver.search import Conditions, Limits, Search, StoppedError, runs_needed
from scaling_search.results import tables
from scaling_search.results.store import Store
from scaling_search.study.candidate import Candidate
from scaling_search.study.plan import plan
from scaling_search.study.settings import Study
from scaling_search.training.trial import Outcome
from scaling_search.verdict.verdict import FRESH
from tests.records import read_records
from tests.searches import DISTURBED, TIMINGS, Quiet, Warm, few, search


def test_what_is_trained(undisturbed: pd.DataFrame, study: Study) -> None:
    todo = plan(study, 10, 64)
    assert (undisturbed["status"] == "done").all()
    order = [todo.baseline, *todo.candidates, *todo.references]
    assert list(undisturbed["network"][: len(order)]) == [c.key for c in order]
    more = undisturbed.iloc[len(todo.everything) :]
    candidates = {c.key for c in todo.candidates}
    assert more["network"].isin(candidates).sum() == study.extra
    assert set(more["network"]) <= candidates | {todo.baseline.key}
    assert (more["seed"] > 0).all()
    assert not undisturbed.duplicated(["network", "seed", "epochs"]).any()
    # the test split is touched for what the answer names, at most four networks
    tested = undisturbed[undisturbed["test_acc"].notna()]
    assert todo.baseline.key in set(tested["network"])
    assert 2 <= tested["network"].nunique() <= 4


@pytest.mark.parametrize("rungs", [(2,), (1, 2)])
def test_runs_without_a_decision_between_them_are_one_phase(
    rungs: tuple[int, ...], study: Study, data: Dataset, tmp_path: Path, warm: Warm
) -> None:
    """No worker waits for the last run of a seed or a rung; the first seed still comes first, and
    its shorter runs before its longer ones."""
    phases: list[tuple[str, int]] = []
    seen: list[tuple[int, int]] = []

    class Phases(Quiet):
        def phase(self, name: str, jobs: int, testing: bool = False) -> None:
            if not testing:
                phases.append((name, jobs))

        def started(self, job: Job, candidate: Candidate) -> None:
            if not job.trial.test:
                seen.append((job.trial.seed, job.trial.epochs))

    changes = {"seeds": 2, "extra": 0, "references": (), "rungs": rungs, "allocation": "flat"}
    several = study.model_copy(update=changes)
    trained, table = search(several, data, tmp_path, warm(1), Phases())
    networks = table["network"].nunique()
    assert trained == 2 * networks * len(rungs)
    lengths = "2 epochs" if len(rungs) == 1 else "1 to 2 epochs"
    assert phases == [(f"2 seeds, {lengths}", trained)]
    assert seen == [(seed, epochs) for seed in (0, 1) for epochs in rungs for _ in range(networks)]


def test_any_number_of_workers_gives_the_same_table(
    undisturbed: pd.DataFrame, study: Study, data: Dataset, tmp_path: Path, warm: Warm
) -> None:
    trained, table = search(study, data, tmp_path, warm(2))
    assert trained == len(table)
    pd.testing.assert_frame_equal(
        table.drop(columns=TIMINGS), undisturbed.drop(columns=TIMINGS), check_exact=True
    )


def test_interrupted_goes_on_and_repeats_nothing(
    undisturbed: pd.DataFrame, study: Study, data: Dataset, tmp_path: Path, warm: Warm
) -> None:
    def interrupt(count: int) -> None:
        if count == 4:
            raise KeyboardInterrupt

    first = Quiet(interrupt)
    with pytest.raises(KeyboardInterrupt):
        search(study, data, tmp_path, warm(2), first)
    second = Quiet()
    trained, table = search(study, data, tmp_path, warm(2), second)
    assert trained == len(undisturbed) - 4
    assert not set(first.seen) & set(second.seen[:trained])
    again = table["note"] != ""
    assert 1 <= again.sum() <= 2
    assert table["note"][again].str.endswith("its driver ended").all()
    pd.testing.assert_frame_equal(
        table.drop(columns=DISTURBED), undisturbed.drop(columns=DISTURBED), check_exact=True
    )
    trained, again = search(study, data, tmp_path, warm(2))
    assert trained == 0
    pd.testing.assert_frame_equal(again, table, check_exact=True)


def test_asked_to_stop_every_run_writes_its_checkpoint_and_goes_on_from_it(
    study: Study, data: Dataset, tmp_path: Path, warm: Warm
) -> None:
    """In the middle of an epoch: the step is in the checkpoint, and nothing changes."""
    whole_set = study.data.model_copy(update={"train_images": None})
    # seconds a run: longer than a signal takes to be seen
    long = few(study, 2, extra=0, rungs=(4,), data=whole_set)
    stop_requested = False

    class Stop(Quiet):
        def started(self, job: Job, candidate: Candidate) -> None:
            nonlocal stop_requested
            stop_requested = stop_requested or job.number == 2

    with pytest.raises(StoppedError):
        search(long, data, tmp_path / "a", warm(2), Stop(), lambda: stop_requested)
    records = read_records(tmp_path / "a")
    unfinished = [r for r in records if r.outcome is None]
    assert 1 <= len(unfinished) <= 2
    stop_requested = False
    trained, table = search(long, data, tmp_path / "a", warm(2))
    assert trained == len(table) - len(records) + len(unfinished)
    _, whole = search(long, data, tmp_path / "b", warm(2))
    pd.testing.assert_frame_equal(
        table.drop(columns=DISTURBED), whole.drop(columns=DISTURBED), check_exact=True
    )


def test_worker_killed_while_idle_is_replaced(
    study: Study, data: Dataset, tmp_path: Path, warm: Warm
) -> None:
    executor = warm(1)
    search(few(study, 3, extra=0), data, tmp_path, executor)
    worker = executor.local._workers[0]
    os.kill(worker.process.pid or 0, signal.SIGKILL)
    worker.process.join()
    _, table = search(few(study, 3, extra=1), data, tmp_path / "more", executor)
    assert (table["status"] == "done").all()
    assert worker not in executor.local._workers


def test_vanished_data_stop_the_study_and_condemn_no_network(
    study: Study, tmp_path: Path, warm: Warm
) -> None:
    from scaling_search import UserError
    from scaling_search.data import shapes
    from scaling_search.data.dataset import CacheWriter

    with CacheWriter(tmp_path / "data") as writer:
        own = writer.commit(
            "s", "g", shapes.CLASSES, *shapes.generate(600, 0), shapes.generate(100, 1)
        )
    (tmp_path / "data").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="the same command goes on"):
        search(few(study, 3), own, tmp_path / "run", warm(1))
    (tmp_path / "gone").rename(tmp_path / "data")
    _, table = search(few(study, 3), own, tmp_path / "run", warm(2))
    assert (table["status"] == "done").all()


def test_rungs_promote_half_and_continue(
    study: Study, data: Dataset, tmp_path: Path, warm: Warm
) -> None:
    rungs = study.model_copy(update={"rungs": (1, 2), "allocation": "rungs", "extra": 0})
    _, table = search(rungs, data, tmp_path, warm(2))
    todo = plan(rungs, 10, 64)
    candidates = {c.key for c in todo.candidates}
    low = table[(table["epochs"] == 1) & table["network"].isin(candidates)]
    high = table[(table["epochs"] == 2) & (table["seed"] == 0) & table["network"].isin(candidates)]
    assert len(low) == 6
    assert len(high) == half(6) == 3
    assert len(table) == runs_needed(rungs, todo)
    assert set(high["network"]) <= set(low["network"])
    always = {todo.baseline.key, *(r.key for r in todo.references)}
    assert always <= set(table[table["epochs"] == 2]["network"])


def test_flat_takes_every_network_through_every_rung(
    study: Study, data: Dataset, tmp_path: Path, warm: Warm
) -> None:
    flat = few(study, 3, rungs=(1, 2), seeds=2, extra=0, confirm=1)
    _, table = search(flat, data, tmp_path, warm(2))
    todo = plan(flat, 10, 64)
    grid = table[table["seed"] < FRESH]
    assert len(grid) == 2 * 2 * len(todo.everything)
    assert not grid["test_acc"].notna().any()
    fresh = table[table["seed"] >= FRESH]
    assert fresh["test_acc"].notna().all()
    assert (fresh["epochs"] == 2).all()
    assert todo.baseline.key in set(fresh["network"])


def test_tpe_trains_no_network_twice(
    study: Study, data: Dataset, tmp_path: Path, warm: Warm
) -> None:
    space = study.space.model_copy(update={"sampler": "tpe", "candidates": 9})
    tpe = study.model_copy(update={"space": space, "extra": 0, "references": ()})
    todo = plan(tpe, 10, 64)
    assert len(todo.candidates) < 9
    assert todo.pool
    _, table = search(tpe, data, tmp_path / "a", warm(2))
    cells = {c.key for c in (*todo.candidates, *todo.pool)}
    mine = table[table["network"].isin(cells)]
    assert len(mine) == mine["network"].nunique() == min(9, len(cells))
    assert len(table) == runs_needed(tpe, todo)
    _, other = search(tpe, data, tmp_path / "b", warm(1))
    assert list(other["network"]) == list(table["network"])  # whatever the number of workers


def test_time_stops_the_study_and_the_next_session_goes_on(
    undisturbed: pd.DataFrame,
    study: Study,
    data: Dataset,
    tmp_path: Path,
    warm: Warm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    todo = plan(study, 10, 64)
    started = 0

    class Clock(Quiet):
        """A clock that is one second on whenever a run starts."""

        def started(self, job: Job, candidate: Candidate) -> None:
            nonlocal started
            started += 1

        def monotonic(self) -> float:
            return started

    clock = Clock()
    monkeypatch.setattr("scaling_search.driver.search.time", clock)

    def session(until: float) -> tuple[Search, int]:
        store = Store.create(tmp_path, study.identity(data.digest), {})
        executor = warm(1)
        conditions = Conditions("cpu", str(tmp_path / "c"))
        limits = Limits(until)
        job = Search(study, todo, data.facts(), store, executor, clock, conditions, limits=limits)
        trained = job.run()
        executor.close()
        store.close()
        return job, trained

    job, trained = session(until=3.0)  # in the middle of the third run
    assert job.out_of_time
    assert 0 <= trained < len(undisturbed)
    job, later = session(math.inf)
    assert not job.out_of_time
    assert trained + later == len(undisturbed)
    table = tables.table(read_records(tmp_path))
    drop = [*DISTURBED, "test_acc"]
    pd.testing.assert_frame_equal(
        table.drop(columns=drop), undisturbed.drop(columns=drop), check_exact=True
    )


def test_ranking_ignores_what_failed(study: Study) -> None:
    from scaling_search.results.record import Record
    from tests.records import done

    todo = plan(study, 10, 64).candidates
    records = [Record(i, c, 0, 1, done(0.1 * i)) for i, c in enumerate(todo)]
    records[-1] = Record(99, todo[-1], 0, 1, Outcome("diverged"))
    chosen = promoted(records, list(todo), study)
    assert len(chosen) == half(len(todo))
    assert todo[-1] not in chosen
    assert todo[-2] in chosen
    assert todo[0] not in chosen
    assert promoted([], list(todo), study) == []
