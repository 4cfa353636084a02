"""The driver with real trainings, on real worker processes and on a real Ray."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from scaling_search import analysis
from scaling_search.allocation import half, promoted
from scaling_search.candidate import Candidate
from scaling_search.data import Dataset
from scaling_search.executors import Executor, Job, open_executor
from scaling_search.executors.local import LocalExecutor
from scaling_search.search import Search, runs_needed
from scaling_search.space import Plan, plan
from scaling_search.store import Store
from scaling_search.study import Study
from scaling_search.trial import Epoch, Outcome
from scaling_search.verdict import FRESH


class Quiet:
    """A watcher that remembers, and calls back on each outcome."""

    def __init__(self, then: Callable[[int], None] = lambda n: None) -> None:
        self.seen: list[tuple[str, int]] = []
        self._then = then

    def phase(self, name: str, jobs: int) -> None: ...
    def started(self, job: Job, candidate: Candidate) -> None: ...
    def epoch(self, job: Job, epoch: Epoch) -> None: ...
    def finished(self, job: Job, candidate: Candidate, outcome: Outcome) -> None:
        self.seen.append((candidate.key, job.trial.seed))
        self._then(len(self.seen))


def search(
    study: Study, data: Dataset, folder: Path, executor: Executor, watcher: Quiet | None = None
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
            device="cpu",
            checkpoints=str(folder / "checkpoints"),
        )
        trained = job.run()
        return trained, analysis.table(store.records())
    finally:
        store.close()
        executor.close()


TIMINGS = ["seconds", "images_per_s", "peak_memory"]


@pytest.fixture(scope="module")
def undisturbed(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    from scaling_search.study import check
    from tests.conftest import SMALL

    _, table = search(check(SMALL, "test"), data, tmp_path_factory.mktemp("one"), LocalExecutor(1))
    return table


def test_what_is_trained(undisturbed: pd.DataFrame, study: Study) -> None:
    todo = plan(study, 10, 64)
    assert (undisturbed["status"] == "done").all()
    assert list(undisturbed["network"][: len(todo.everything)]) == [c.key for c in todo.everything]
    more = undisturbed.iloc[len(todo.everything) :]
    candidates = {c.key for c in todo.candidates}
    assert more["network"].isin(candidates).sum() == study.extra
    assert set(more["network"]) <= candidates | {todo.baseline.key} and (more["seed"] > 0).all()
    assert not undisturbed.duplicated(["network", "seed", "epochs"]).any()
    # the test split is touched for what the answer names, at most four networks
    tested = undisturbed[undisturbed["test_acc"].notna()]
    assert todo.baseline.key in set(tested["network"]) and 2 <= tested["network"].nunique() <= 4


@pytest.mark.parametrize("kind", ["local", "ray"])
def test_any_executor_gives_the_same_table(
    kind: str, undisturbed: pd.DataFrame, study: Study, data: Dataset, tmp_path: Path
) -> None:
    trained, table = search(study, data, tmp_path, open_executor(kind, 2, "cpu", 1))
    assert trained == len(table)
    pd.testing.assert_frame_equal(table.drop(columns=TIMINGS), undisturbed.drop(columns=TIMINGS), check_exact=True)


def listening() -> set[tuple[str, str]]:
    """(address, port) of every listening TCP socket, in the kernel's hexadecimal."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        rows = [line.split() for line in Path(table).read_text().splitlines()[1:]] if Path(table).exists() else []
        found |= {tuple(row[1].split(":")) for row in rows if row[3] == "0A"}
    return found


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="no /proc here")
def test_ray_listens_on_this_machine_alone() -> None:
    before = listening()
    executor = open_executor("ray", 1, "cpu", 1)
    opened = listening() - before
    executor.close()
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert opened and {address for address, _ in opened} <= loopback


def test_interrupted_goes_on_and_repeats_nothing(
    undisturbed: pd.DataFrame, study: Study, data: Dataset, tmp_path: Path
) -> None:
    def interrupt(count: int) -> None:
        if count == 4:
            raise KeyboardInterrupt

    first = Quiet(interrupt)
    with pytest.raises(KeyboardInterrupt):
        search(study, data, tmp_path, LocalExecutor(2), first)
    second = Quiet()
    trained, table = search(study, data, tmp_path, LocalExecutor(2), second)
    assert trained == len(undisturbed) - 4
    assert not set(first.seen) & set(second.seen[:trained])
    pd.testing.assert_frame_equal(table.drop(columns=TIMINGS), undisturbed.drop(columns=TIMINGS), check_exact=True)
    trained, again = search(study, data, tmp_path, LocalExecutor(2))
    assert trained == 0
    pd.testing.assert_frame_equal(again, table, check_exact=True)


def test_killed_worker_is_a_row_and_the_study_goes_on(
    undisturbed: pd.DataFrame, study: Study, data: Dataset, tmp_path: Path
) -> None:
    executor = LocalExecutor(1)

    class Killer(Quiet):
        def epoch(self, job: Job, epoch: Epoch) -> None: ...
        def started(self, job: Job, candidate: Candidate) -> None:
            if job.number == 4 and executor._workers[0].process.pid:
                os.kill(executor._workers[0].process.pid, signal.SIGKILL)

    _, table = search(study, data, tmp_path, executor, Killer())
    crashed = table[table["status"] == "crashed"]
    assert len(crashed) == 1 and "status -9" in crashed["note"].iloc[0]
    alive = table[(table["status"] == "done") & (table["seed"] == 0)].drop(columns=[*TIMINGS, "test_acc"])
    whole = undisturbed[undisturbed["seed"] == 0].drop(columns=[*TIMINGS, "test_acc"])
    merged = alive.merge(whole, how="inner")
    assert len(merged) == len(alive) == len(whole) - 1


def test_worker_killed_while_idle_is_replaced(study: Study, data: Dataset, tmp_path: Path) -> None:
    executor = LocalExecutor(1)
    search(few(study, 3, extra=0), data, tmp_path, _Open(executor))
    os.kill(executor._workers[0].process.pid or 0, signal.SIGKILL)
    executor._workers[0].process.join()
    _, table = search(few(study, 3, extra=1), data, tmp_path / "more", executor)
    assert (table["status"] == "done").all()


def few(study: Study, candidates: int, **changes: object) -> Study:
    """The same study of fewer networks: for what does not depend on how many."""
    space = study.space.model_copy(update={"candidates": candidates})
    return study.model_copy(update={"space": space, "references": (), **changes})


class _Open:
    """An executor that a search does not close."""

    def __init__(self, executor: LocalExecutor) -> None:
        self.run = executor.run

    def close(self) -> None: ...


def test_vanished_data_stop_the_study_and_condemn_no_network(study: Study, tmp_path: Path) -> None:
    from scaling_search import UserError, shapes
    from scaling_search.data import CacheWriter

    with CacheWriter(tmp_path / "data") as writer:
        own = writer.commit("s", "g", shapes.CLASSES, *shapes.generate(600, 0), shapes.generate(100, 1))
    (tmp_path / "data").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="the same command goes on"):
        search(few(study, 3), own, tmp_path / "run", LocalExecutor(1))
    (tmp_path / "gone").rename(tmp_path / "data")
    _, table = search(few(study, 3), own, tmp_path / "run", LocalExecutor(2))
    assert (table["status"] == "done").all()


def test_rungs_promote_half_and_continue(study: Study, data: Dataset, tmp_path: Path) -> None:
    rungs = study.model_copy(update={"rungs": (1, 2), "allocation": "rungs", "extra": 0})
    _, table = search(rungs, data, tmp_path, LocalExecutor(2))
    todo = plan(rungs, 10, 64)
    candidates = {c.key for c in todo.candidates}
    low = table[(table["epochs"] == 1) & table["network"].isin(candidates)]
    high = table[(table["epochs"] == 2) & (table["seed"] == 0) & table["network"].isin(candidates)]
    assert len(low) == 6 and len(high) == half(6) == 3 and len(table) == runs_needed(rungs, todo)
    assert set(high["network"]) <= set(low["network"])
    always = {todo.baseline.key, *(r.key for r in todo.references)}
    assert always <= set(table[table["epochs"] == 2]["network"])


def test_flat_takes_every_network_through_every_rung(study: Study, data: Dataset, tmp_path: Path) -> None:
    flat = few(study, 3, rungs=(1, 2), seeds=2, extra=0, confirm=1)
    _, table = search(flat, data, tmp_path, LocalExecutor(2))
    todo = plan(flat, 10, 64)
    grid = table[table["seed"] < FRESH]
    assert len(grid) == 2 * 2 * len(todo.everything) and not grid["test_acc"].notna().any()
    fresh = table[table["seed"] >= FRESH]
    assert (
        fresh["test_acc"].notna().all() and (fresh["epochs"] == 2).all() and todo.baseline.key in set(fresh["network"])
    )


def test_tpe_trains_no_network_twice(study: Study, data: Dataset, tmp_path: Path) -> None:
    space = study.space.model_copy(update={"sampler": "tpe", "candidates": 9})
    tpe = study.model_copy(update={"space": space, "extra": 0, "references": ()})
    todo = plan(tpe, 10, 64)
    assert len(todo.candidates) < 9 and todo.pool
    _, table = search(tpe, data, tmp_path / "a", LocalExecutor(2))
    cells = {c.key for c in (*todo.candidates, *todo.pool)}
    mine = table[table["network"].isin(cells)]
    assert len(mine) == mine["network"].nunique() == min(9, len(cells)) and len(table) == runs_needed(tpe, todo)
    _, other = search(tpe, data, tmp_path / "b", LocalExecutor(1))
    assert list(other["network"]) == list(table["network"])  # whatever the number of workers


def test_time_stops_the_study_and_the_next_sitting_goes_on(
    undisturbed: pd.DataFrame, study: Study, data: Dataset, tmp_path: Path
) -> None:
    todo = plan(study, 10, 64)

    def sitting(until: float) -> tuple[Search, int]:
        store = Store.create(tmp_path, study.identity(data.digest), {})
        executor = LocalExecutor(1)
        job = Search(
            study, todo, data.facts(), store, executor, Quiet(), device="cpu",
            checkpoints=str(tmp_path / "c"), until=until,
        )  # fmt: skip
        trained = job.run()
        executor.close()
        store.close()
        return job, trained

    job, trained = sitting(time.monotonic() + 4)
    assert job.out_of_time and 0 <= trained < len(undisturbed)
    job, rest = sitting(math.inf)
    assert not job.out_of_time and trained + rest == len(undisturbed)
    table = analysis.table(Store.read(tmp_path).records())
    drop = [*TIMINGS, "test_acc"]
    pd.testing.assert_frame_equal(table.drop(columns=drop), undisturbed.drop(columns=drop), check_exact=True)


def test_ranking_ignores_what_failed(study: Study) -> None:
    from scaling_search.store import Record
    from tests.test_store import done

    todo = plan(study, 10, 64).candidates
    records = [Record(i, c, 0, 1, done(0.1 * i)) for i, c in enumerate(todo)]
    records[-1] = Record(99, todo[-1], 0, 1, Outcome("diverged"))
    chosen = promoted(records, list(todo), study)
    assert len(chosen) == half(len(todo)) and todo[-1] not in chosen and todo[-2] in chosen and todo[0] not in chosen
    assert promoted([], list(todo), study) == []
