"""One network that crashes is a row; networks that crash alike stop the study and are set free."""

from __future__ import annotations

import logging
import shlex
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from scaling_search import session
from scaling_search.cli import main
from scaling_search.driver.crashes import ALIKE, Crashes
from scaling_search.driver.dispatch import Training
from scaling_search.driver.executors.protocol import Job
from scaling_search.results.reader import StoreReader
from scaling_search.results.record import Run
from scaling_search.results.store import Store
from scaling_search.study.candidate import Candidate
from scaling_search.study.plan import plan
from scaling_search.study.settings import Study
from scaling_search.training.trial import Outcome, Trial
from tests.chaos import WORDS
from tests.records import done
from tests.searches import Quiet

CRASH = "ImportError: no module named torchvision (at 0x7f01, device 3)"
ALSO = "ImportError: no module named torchvision (at 0x7e99, device 1)"
OTHER = "RuntimeError: no algorithm for this convolution"


@pytest.fixture
def networks(study: Study) -> tuple[Candidate, ...]:
    return plan(study, 10, 64).candidates


class Scripted:
    """A step of a study on a store in memory; each run ends as the test says."""

    def __init__(self, store: Store, networks: tuple[Candidate, ...], trial: Trial) -> None:
        self.store = store
        self.crashes = Crashes(store)
        self.training = Training(
            store,
            Quiet(),
            [Run(network, 0, 2) for network in networks],
            lambda run: replace(trial, arch=run.candidate.arch, seed=run.seed, epochs=run.epochs),
            lambda: False,
            crashes=self.crashes,
            log_name="log.txt",
        )

    def start(self) -> Job:
        job = self.training.ask()
        assert job is not None
        return job

    def crash(self, job: Job, message: str = CRASH) -> None:
        traceback = f"Traceback (most recent call last):\n{message}\n"
        self.training.outcome(job, Outcome("crashed", note=message, traceback=traceback))

    def recorded(self, job: Job) -> Outcome | None:
        record = self.store.recorded((job.trial.arch.key, 0, 2))
        return record.outcome if record else None


@pytest.fixture
def step(networks: tuple[Candidate, ...], trial: Trial) -> Scripted:
    return Scripted(Store.in_memory({}), networks, trial)


def test_three_networks_that_crash_alike_stop_the_step_and_are_set_free(step: Scripted) -> None:
    jobs = [step.start() for _ in range(ALIKE + 1)]
    for job, message in zip(jobs[:ALIKE], (CRASH, ALSO, CRASH), strict=True):
        assert not step.training.over()
        step.crash(job, message)
    assert step.training.over()
    assert step.training.ask() is None
    assert step.crashes.common == CRASH
    assert step.crashes.networks == ALIKE
    assert [step.recorded(job) for job in jobs[:ALIKE]] == [None] * ALIKE
    step.crash(jobs[ALIKE])  # it was in progress
    assert step.crashes.networks == ALIKE + 1
    assert step.store.records() == []


def test_one_bad_node_among_good_ones_condemns_no_network(step: Scripted) -> None:
    """What others train in between does not hide it."""
    jobs = [step.start() for _ in range(5)]
    step.crash(jobs[0])
    step.training.outcome(jobs[1], done(0.5))
    step.crash(jobs[2])
    step.training.outcome(jobs[3], done(0.5))
    crashed = step.recorded(jobs[2])
    assert crashed is not None
    assert crashed.note == f"{CRASH}; traceback in log.txt"
    step.crash(jobs[4])
    assert step.training.over()
    assert [r.done for r in step.store.records()] == [True, True]


def test_other_crashes_and_other_seeds_are_not_alike(
    networks: tuple[Candidate, ...], trial: Trial
) -> None:
    two = Scripted(Store.in_memory({}), networks, trial)
    for message in (CRASH, OTHER, CRASH, OTHER):
        two.crash(two.start(), message)
    assert not two.crashes.common
    assert len(two.store.records()) == 4
    store = Store.in_memory({})
    crashes = Crashes(store)
    for seed in range(4):
        number = store.start(networks[0], seed, 2)
        store.finish(number, Outcome("crashed", note=CRASH))
        record = store.recorded((networks[0].key, seed, 2))
        assert record is not None
        crashes.record_crash(record, CRASH)
    assert not crashes.common, "one network, however many seeds"


def test_crashes_of_a_recorded_table_are_the_networks_own(
    step: Scripted, networks: tuple[Candidate, ...], trial: Trial
) -> None:
    replayed = Training(
        step.store,
        Quiet(),
        [Run(network, 0, 2) for network in networks],
        lambda run: replace(trial, arch=run.candidate.arch, seed=run.seed, epochs=run.epochs),
        lambda: False,
    )
    for _ in networks:
        job = replayed.ask()
        assert job is not None
        replayed.outcome(job, Outcome("crashed", note=CRASH))
    assert len(step.store.records()) == len(networks)


def test_a_network_set_free_comes_last_and_what_it_does_then_is_its_own(
    step: Scripted, networks: tuple[Candidate, ...], trial: Trial
) -> None:
    """Else a study with three networks that cannot be trained would never end."""
    freed = [step.start() for _ in range(ALIKE)]
    for job in freed:
        step.crash(job)
    later = Scripted(step.store, networks, trial)
    jobs = [later.start() for _ in networks]
    assert {job.trial.arch.key for job in jobs[-ALIKE:]} == {job.trial.arch.key for job in freed}
    later.training.outcome(jobs[0], done(0.5))
    for job in jobs[-ALIKE:]:
        later.crash(job)
    assert not later.training.over()
    outcomes = [later.recorded(job) for job in jobs[-ALIKE:]]
    assert [outcome.status for outcome in outcomes if outcome] == ["crashed"] * ALIKE


def test_a_machine_that_has_trained_nothing_blames_no_network_however_often(
    step: Scripted, networks: tuple[Candidate, ...], trial: Trial
) -> None:
    few = networks[:ALIKE]
    for _ in range(3):
        session = Scripted(step.store, few, trial)
        for job in [session.start() for _ in few]:
            session.crash(job)
        assert session.training.over()
        assert step.store.records() == []


def test_what_a_run_raised_is_in_the_log_whole(
    step: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "scaling_search"):
        step.crash(step.start())
    assert f"Traceback (most recent call last):\n{CRASH}" in caplog.text
    assert "run 0 starts: " in caplog.text


def test_runs_that_failed_are_set_free_on_demand(networks: tuple[Candidate, ...]) -> None:
    store = Store.in_memory({})
    statuses = ("crashed", "timeout", "out-of-memory", "diverged")
    for network, status in zip(networks, statuses, strict=False):
        store.finish(store.start(network, 0, 1), Outcome(status))  # type: ignore[arg-type]
    store.finish(store.start(networks[4], 0, 1), done(0.5))
    unfinished = store.start(networks[5], 0, 1)
    console = Console(record=True, width=200, quiet=False)
    session._free_failed(store, console)
    assert (
        "3 runs that failed (1 crashed, 1 out-of-memory, 1 timeout) are tried again"
        in console.export_text()
    )
    kept = [r.number for r in store.records()]
    assert kept == [3, 4, unfinished]


def test_a_library_that_workers_lack_condemns_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Checkpoints at an address need pyarrow, which the driver has and its workers cannot import:
    they take the driver's search path, in which a broken one now stands first."""
    import pyarrow.fs  # noqa: F401  the driver's

    # refused for people, who have plain folders for this; workers would read and write it
    monkeypatch.setattr("scaling_search.training.remote.check", lambda storage: None)
    run, broken = tmp_path / "run", tmp_path / "broken"
    broken.mkdir()
    (broken / "pyarrow.py").write_text("raise ImportError('built for another Python')\n")
    few = shlex.split(
        "--candidates 3 --extra 0 --epochs 1 --allocation flat --train-images 96 --workers 1"
    )
    command = ["search", *WORDS, *few, "--data", "shapes", "--out", str(run)]
    with monkeypatch.context() as context:
        context.syspath_prepend(broken)
        assert main([*command, "--storage", f"file://{tmp_path}/checkpoints"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert "3 networks crashed alike" in error
    assert "(ImportError: built for another Python)" in error
    assert "the traceback is in log.txt of the run folder" in error
    log = (run / "log.txt").read_text()
    assert "Traceback (most recent call last):" in log
    assert f'File "{broken / "pyarrow.py"}"' in log
    with StoreReader.open(run) as results:
        assert results.records() == []
    # the same study goes on, in a folder of its own, for which no library is needed
    assert main(command) == 0, capsys.readouterr().err
    table = pd.read_csv(run / "results.csv")
    assert len(table) >= 4
    assert (table["status"] == "done").all()
