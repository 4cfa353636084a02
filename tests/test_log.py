"""The log of a run folder: what loggers say, what ends a session, what workers write."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.jobs import Jobs
from scaling_search import UserError
from scaling_search.data.dataset import Dataset
from scaling_search.driver import log
from scaling_search.driver.executors.local import LocalExecutor
from scaling_search.driver.executors.protocol import Job
from scaling_search.training.trial import Outcome, Trial


def test_each_session_appends_what_both_packages_say(tmp_path: Path) -> None:
    for word in ("first", "second"):
        with log.log_into(tmp_path) as path:
            logging.getLogger("scaling_search.driver.search").info("%s session", word)
            logging.getLogger("effnet.nn").warning("%s warning", word)
            logging.getLogger("effnet").debug("nobody asked for this")
            logging.getLogger("another.library").warning("nor for this")
    assert path == tmp_path / "log.txt"
    lines = path.read_text().splitlines()
    said = [line.split(" ", 2)[2] for line in lines]  # after day and time
    assert said == [
        "INFO    scaling_search.driver.search: first session",
        "WARNING effnet.nn: first warning",
        "INFO    scaling_search.driver.search: second session",
        "WARNING effnet.nn: second warning",
    ]
    for name in ("scaling_search", "effnet"):
        assert logging.getLogger(name).handlers == []
        assert logging.getLogger(name).level == logging.NOTSET


def test_debug_is_kept_where_the_loggers_are_set_to_it(tmp_path: Path) -> None:
    logger = logging.getLogger("scaling_search")
    logger.setLevel(logging.DEBUG)
    try:
        with log.log_into(tmp_path) as path:
            assert log.level() == logging.DEBUG
            logging.getLogger("scaling_search.driver").debug("in detail")
        assert logger.level == logging.DEBUG
    finally:
        logger.setLevel(logging.NOTSET)
    assert "in detail" in path.read_text()


def test_what_ends_a_session_is_in_its_log(tmp_path: Path) -> None:
    with pytest.raises(UserError), log.log_into(tmp_path):
        raise UserError("the disk is full")
    with pytest.raises(ZeroDivisionError), log.log_into(tmp_path):
        1 / 0  # noqa: B018
    with pytest.raises(UserError), log.log_into(tmp_path):
        try:
            1 / 0  # noqa: B018
        except ZeroDivisionError as error:
            raise UserError("the machine cannot divide") from error
    lines = (tmp_path / "log.txt").read_text().splitlines()
    chained = next(i for i, line in enumerate(lines) if line.endswith("the machine cannot divide"))
    assert lines[chained + 1].startswith("Traceback")
    assert lines[-1] == "ZeroDivisionError: division by zero"
    first, *unexpected = lines[:chained]
    assert first.endswith("the disk is full")
    assert "Traceback (most recent call last):" in unexpected
    assert unexpected[-1] == "ZeroDivisionError: division by zero"


def test_a_log_that_cannot_be_written_is_one_line_or_silent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "log.txt").mkdir(parents=True)
    with (
        pytest.raises(UserError, match=r"log.txt: Is a directory; the run folder must"),
        log.log_into(tmp_path / "run"),
    ):
        pass
    full = Path("/dev/full")
    if full.exists():
        (tmp_path / "log.txt").symlink_to(full)
        with log.log_into(tmp_path):
            logging.getLogger("scaling_search").warning("no room for this")
    assert capfd.readouterr().err == ""


def _writes(trial: Trial, data: Dataset) -> Iterator[Outcome]:
    os.write(2, b"a C library complains\n")
    logging.getLogger("scaling_search.training").info("from a worker")
    yield Outcome("done")


def test_what_a_worker_writes_to_stderr_is_in_the_log(
    trial: Trial, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with log.log_into(tmp_path) as path:
        executor, jobs = LocalExecutor(1, train=_writes, log_file=path), Jobs([trial])
        try:
            executor.run(jobs)
        finally:
            executor.close()
    assert jobs.outcomes[0].status == "done"
    lines = path.read_text().splitlines()
    assert "a C library complains" in lines
    assert any(line.endswith("scaling_search.training: from a worker") for line in lines)
    assert capfd.readouterr().err == ""


def _fills_the_disk(trial: Trial, data: Dataset) -> Iterator[Outcome]:
    raise OSError(errno.ENOSPC, "No space left on device")
    yield


def test_what_stops_a_study_in_a_worker_is_in_its_log_with_its_traceback(
    trial: Trial, tmp_path: Path
) -> None:
    with log.log_into(tmp_path) as path:
        executor = LocalExecutor(1, train=_fills_the_disk, log_file=path)
        try:
            with pytest.raises(UserError, match="training stopped: .* No space left on device"):
                executor.run(Jobs([trial]))
        finally:
            executor.close()
    assert ", in _fills_the_disk" in path.read_text()


def test_what_stops_a_study_in_an_actor_is_in_its_log_with_its_traceback(
    trial: Trial, data: Dataset, tmp_path: Path
) -> None:
    from scaling_search.driver.executors.ray.actor import Trainable
    from scaling_search.driver.executors.ray.exchange import Exchange

    class Actor(Trainable):  # as one in a process of its own, on one node
        def setup(self, config: dict) -> None:
            super().setup(config, data, _fills_the_disk)

    exchange = Exchange()
    exchange.jobs.put(Job(0, trial))
    with log.log_into(tmp_path) as path:
        exchange.on_trial_complete("first", Actor(exchange.suggest("first")).step())
    assert exchange.failure == "[Errno 28] No space left on device"
    assert ", in _fills_the_disk" in path.read_text()
