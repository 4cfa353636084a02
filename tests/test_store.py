import multiprocessing
import os
from pathlib import Path

import optuna
import pytest

from scaling_search import UserError
from scaling_search.space import plan
from scaling_search.store import Store
from scaling_search.study import Study
from scaling_search.trial import Epoch, Outcome

FACTS = {"settings": {"rungs": [1]}, "data": "x"}


def done(accuracy: float) -> Outcome:
    return Outcome("done", (Epoch(1, 1.0, 1.0, accuracy, 0.1),), "ff", seconds=1.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "run", {"a": 1}, FACTS)


def test_results_survive_and_runs_are_unique(store: Store, study: Study, tmp_path: Path) -> None:
    todo = plan(study, 10, 64).everything
    numbers = [store.add(c, 0, 1) for c in todo]
    assert numbers == list(range(len(todo))) and numbers == [store.add(c, 0, 1) for c in todo]
    assert store.pending(numbers) == numbers
    store.start(numbers[0])
    store.epoch(numbers[0], Epoch(1, 1.0, 1.0, 0.5, 0.1))
    store.finish(numbers[0], done(0.5))
    store.start(numbers[1])  # the driver dies here
    store.close()
    again = Store.create(tmp_path / "run", {"a": 1}, {})
    assert [again.add(c, 0, 1) for c in todo] == numbers
    assert again.pending(numbers) == numbers[1:], "what was running comes first and nothing twice"
    records = again.records()
    assert [r.candidate for r in records] == list(todo)
    assert records[0].val_acc == 0.5 and records[0].outcome == done(0.5)
    assert records[1].outcome is None and not records[1].done
    with pytest.raises(ValueError, match="no final accuracy"):
        _ = records[1].val_acc
    assert again.fact("data") == "x"


def test_outcome_recorded_but_not_told_is_finished_on_opening(store: Store, study: Study, tmp_path: Path) -> None:
    """A driver killed between recording an outcome and telling Optuna."""
    number = store.add(plan(study, 10, 64).baseline, 0, 1)
    store.start(number)
    trial = store._open[number][0]
    trial.set_user_attr("outcome", done(0.25).as_dict())
    store.close()
    again = Store.create(tmp_path / "run", {"a": 1}, {})
    assert again.pending([number]) == []
    raw = optuna.load_study(study_name="scaling-search", storage=f"sqlite:///{tmp_path}/run/study.db")
    assert raw.trials[0].state == optuna.trial.TrialState.COMPLETE and raw.best_value == 0.25
    assert raw.best_params["alpha"] == 1.0


def test_failures_are_rows_not_retried(store: Store, study: Study) -> None:
    todo = plan(study, 10, 64).everything
    for candidate, status in zip(todo, ("diverged", "out-of-memory", "crashed", "timeout"), strict=False):
        number = store.add(candidate, 0, 1)
        store.start(number)
        store.finish(number, Outcome(status, note="why"))
        assert store.pending([number]) == []
        assert store.records()[number].outcome.status == status
    store.set_test(0, 0.75)
    assert store.records()[0].test_acc == 0.75


def test_a_result_is_told_once(store: Store, study: Study) -> None:
    number = store.add(plan(study, 10, 64).baseline, 0, 1)
    store.start(number)
    store.finish(number, done(0.5))
    with pytest.raises(Exception, match="finished|already"):
        store.finish(number, done(0.9))
    assert store.records()[number].val_acc == 0.5


def test_another_study_is_refused_and_left_alone(store: Store, tmp_path: Path) -> None:
    store.close()
    before = (tmp_path / "run" / "study.db").read_bytes()
    with pytest.raises(
        UserError, match="belongs to a different study: a is 1 there, 2 here; b is the default there, 3 here"
    ):
        Store.create(tmp_path / "run", {"a": 2, "b": 3}, {})
    assert (tmp_path / "run" / "study.db").read_bytes() == before


def _hold(folder: str, ready: "multiprocessing.Queue[int]") -> None:
    store = Store.create(Path(folder), {"a": 1}, {})
    ready.put(os.getpid())
    import time

    time.sleep(60)
    store.close()


def test_second_writer_is_told_who_holds_it_and_readers_are_not_blocked(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Queue()
    process = context.Process(target=_hold, args=(str(tmp_path / "run"), ready))
    process.start()
    pid = ready.get(timeout=60)
    with pytest.raises(UserError, match=f"in use by process {pid} on "):
        Store.create(tmp_path / "run", {"a": 1}, {})
    assert Store.read(tmp_path / "run").records() == []
    process.kill()
    process.join()
    Store.create(tmp_path / "run", {"a": 1}, {}).close()  # a dead owner holds nothing


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no study.db there"):
        Store.read(tmp_path)
    import sqlite3

    other = sqlite3.connect(tmp_path / "study.db")
    other.execute("create table mine (x)")
    other.commit()
    other.close()
    with pytest.raises(UserError, match="not a readable study"):
        Store.read(tmp_path)
    (tmp_path / "study.db").unlink()
    (tmp_path / "study.db").write_bytes(b"SQLite format 3\0" + b"nonsense" * 100)
    with pytest.raises(UserError, match="not a readable study"):
        Store.read(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose one that can be written"):
        Store.create(tmp_path / "file" / "run", {}, {})
