"""The log of runs for TensorBoard, read back as TensorBoard reads it."""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from scaling_search import session
from scaling_search.cli import main
from scaling_search.driver.tensorboard import FOLDER, TensorBoardLog
from scaling_search.results import curves
from scaling_search.results.record import Record
from scaling_search.results.store import Store
from scaling_search.study.settings import check
from scaling_search.training.recipe import Recipe
from scaling_search.training.trial import Epoch, Outcome
from tests.records import TODO, read_records
from tests.replays import OWN, synthetic

pytest.importorskip("tensorboard")

EPOCHS = tuple(Epoch(n, 2.0 / n, 2.5 / n, 0.2 * n, 1.0) for n in (1, 2, 3))
DONE = Outcome("done", EPOCHS, "ff", seconds=3.0)


def folders(run: Path) -> list[Path]:
    return sorted((run / FOLDER).iterdir())


def files(folder: Path) -> list[Path]:
    return list(folder.glob("events.out.tfevents.*"))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """{name: its steps and values} of a run's folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    names = read.Tags()["scalars"]
    return {name: [(e.step, e.value) for e in read.Scalars(name)] for name in names}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def opened(run: Path) -> Store:
    return Store.create(run, {"a": 1}, {})


def test_a_study_is_logged_run_by_run(tmp_path: Path, run: Path) -> None:
    synthetic(tmp_path / "t.parquet", OWN, range(3))
    from rich.console import Console

    for _ in range(2):  # the same command again adds nothing
        status = session.search(
            check(OWN, "test"),
            label="",
            out=run,
            place=session.Place(),
            clock=session.Clock(),
            command="test",
            console=Console(quiet=True),
            replay=tmp_path / "t.parquet",
            for_tensorboard=True,
        )
        assert status == 0
    records = curves.read(run / "curves.parquet").records()
    assert len(folders(run)) == len(records)
    for record in records[:5]:
        (folder,) = (
            f
            for f in folders(run)
            if f.name.endswith(f"{record.key[0]}-seed{record.seed}-epochs{record.epochs}")
        )
        assert len(files(folder)) == 1
        assert record.outcome is not None
        seen = scalars(folder)
        accuracies = [(e.epoch, pytest.approx(e.val_acc)) for e in record.outcome.epochs]
        assert seen["accuracy/val"] == accuracies
        assert set(seen) >= {"loss/train", "loss/val", "lr"}


def test_an_interrupted_run_has_every_epoch_once(run: Path) -> None:
    candidate = TODO.candidates[0]
    with opened(run) as store, closing(TensorBoardLog(run, Recipe())) as log:
        store.listener = log
        number = store.start(candidate, 0, 3)
        store.epoch(number, EPOCHS[0])
    (folder,) = folders(run)
    assert scalars(folder)["accuracy/val"] == [(1, pytest.approx(0.2))], "seen while it runs"
    with opened(run) as store, closing(TensorBoardLog(run, Recipe())) as log:
        log.catch_up(store.records())
        store.listener = log
        number = store.start(candidate, 0, 3)
        for epoch in EPOCHS:  # from its checkpoint, or from the beginning
            store.epoch(number, epoch)
        assert [step for step, _ in scalars(folder)["loss/val"]] == [1, 2, 3]
        store.finish(number, DONE)
    assert len(files(folder)) == 1
    seen = scalars(folder)
    assert [step for step, _ in seen["loss/val"]] == [1, 2, 3]
    assert seen["loss/train"] == [(e.epoch, pytest.approx(e.train_loss)) for e in EPOCHS]


def test_runs_from_before_are_caught_up_with(run: Path) -> None:
    """Of a session without a log, and of a driver that was killed between store and log."""
    with opened(run) as store, closing(TensorBoardLog(run, Recipe())) as log:
        first = store.start(TODO.candidates[0], 0, 3)
        store.finish(first, DONE)
        store.listener = log
        second = store.start(TODO.candidates[1], 0, 3)
        store.epoch(second, EPOCHS[0])
        store.listener = None
        store.finish(second, DONE)
    with closing(TensorBoardLog(run, Recipe())) as log:
        log.catch_up(read_records(run))
    assert len(folders(run)) == 2
    for folder in folders(run):
        assert len(files(folder)) == 1
        assert [step for step, _ in scalars(folder)["lr"]] == [1, 2, 3]


def test_a_failed_run_that_is_tried_again_is_logged_anew(run: Path) -> None:
    candidate = TODO.candidates[0]
    with opened(run) as store, closing(TensorBoardLog(run, Recipe())) as log:
        store.listener = log
        number = store.start(candidate, 0, 3)
        store.epoch(number, EPOCHS[0])
        store.finish(number, Outcome("crashed", EPOCHS[:1]))
        store.free(number, "--retry-failed")
        again = store.start(candidate, 0, 3)
        store.epoch(again, replace(EPOCHS[0], val_acc=0.7))
        (folder,) = folders(run)
        assert scalars(folder)["accuracy/val"] == [(1, pytest.approx(0.7))]


def test_the_learning_rate_is_the_schedules(run: Path) -> None:
    record = Record(0, TODO.candidates[0], 0, 3, DONE)
    with closing(TensorBoardLog(run, Recipe(lr=0.4, decay=0.5))) as log:
        log.ended(record)
    (folder,) = folders(run)
    (_, first), (_, second), (_, third) = scalars(folder)["lr"]
    assert first == pytest.approx(0.4)
    assert second == pytest.approx(0.4 * 2 / 3, rel=0.01)
    assert third == pytest.approx(0, abs=0.001)


def test_what_is_not_finite_or_has_no_epoch_is_logged(run: Path) -> None:
    with closing(TensorBoardLog(run, Recipe())) as log:
        log.ended(Record(0, TODO.candidates[0], 0, 1, Outcome("out-of-memory")))
        unknown = replace(EPOCHS[0], val_loss=math.nan)
        log.ended(Record(1, TODO.candidates[1], 0, 1, Outcome("done", (unknown,))))
    assert [len(files(folder)) for folder in folders(run)] == [1, 1]


def test_a_log_that_cannot_be_written_ends_nothing(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run.mkdir()
    (run / FOLDER).write_text("in the way")
    with opened(run) as store, closing(TensorBoardLog(run, Recipe())) as log:
        store.listener = log
        for candidate in TODO.candidates[:2]:
            number = store.start(candidate, 0, 3)
            store.epoch(number, EPOCHS[0])
            store.finish(number, DONE)
    assert all(record.done for record in read_records(run))
    assert caplog.text.count("the log for TensorBoard ends here") == 1


def test_without_tensorboard_it_says_what_to_install(
    tmp_path: Path, hide_package: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    hide_package("tensorboard")
    assert main(["search", "--log", "tensorboard", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "tensorboard is not installed; pip install tensorboard" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
