"""What a running study shows on a terminal."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from effnet.budget import Budget
from scaling_search.driver import progress
from scaling_search.driver.executors.protocol import Job
from scaling_search.driver.progress import Live
from scaling_search.results.record import Record
from scaling_search.study.candidate import Candidate
from scaling_search.study.plan import plan
from scaling_search.study.settings import Study
from scaling_search.training.trial import Epoch, Outcome, Trial
from tests.records import done


class Moment:
    """A clock that stands where a test puts it."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def moment(monkeypatch: pytest.MonkeyPatch) -> Moment:
    moment = Moment()
    monkeypatch.setattr(progress, "time", moment)
    return moment


@pytest.fixture
def candidates(study: Study) -> tuple[Candidate, ...]:
    return plan(study, 10, 64).candidates


def terminal(width: int = 80) -> Console:
    return Console(
        file=StringIO(), force_terminal=True, color_system="standard", no_color=False, width=width
    )


def shown(live: Live, console: Console) -> list[str]:
    """The live lines, without their colours."""
    with console.capture() as capture:
        console.print(live._render())
    return [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", capture.get()).splitlines()]


def epoch(number: int) -> Epoch:
    return Epoch(number, 1.0, 1.0, 0.5, 0.1)


def start(live: Live, trial: Trial, networks: tuple[Candidate, ...], epochs: int) -> list[Job]:
    jobs = []
    for number, network in enumerate(networks, 1):
        jobs.append(Job(number, replace(trial, epochs=epochs)))
        live.started(jobs[-1], network)
    return jobs


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("workers", [1, 2, 4, 30])
def test_two_lines_that_are_never_cut(
    trial: Trial, candidates: tuple[Candidate, ...], moment: Moment, width: int, workers: int
) -> None:
    console = terminal(width)
    live = Live(console, 1234, earlier=[Record(0, candidates[0], 0, 1, done(0.5))])
    live.phase("more runs where they help", 1234)
    networks = tuple(candidates[i % len(candidates)] for i in range(workers))
    networks = tuple(replace(c, beta=1.0 + 1e-5 * i) for i, c in enumerate(networks))
    start(live, trial, networks, epochs=100)
    live.finished(Job(1, trial), networks[0], done(0.5123))
    moment.now += 4000.0
    lines = shown(live, console)
    assert len(lines) == 2
    assert all(len(line) < width for line in lines)
    assert "…" not in "".join(lines)
    assert "1/1234 runs" in lines[0]
    assert "━" in lines[0]
    if width >= 60:
        assert "1:06:40 · left " in lines[0]
    if width >= 80:
        assert lines[0].endswith("best so far 51.2")


def test_epochs_move_the_bar(
    trial: Trial, candidates: tuple[Candidate, ...], moment: Moment
) -> None:
    live = Live(terminal(), 2)
    live.phase("seed 0, 8 epochs", 2)
    one, other = start(live, trial, candidates[:2], epochs=8)
    for number in range(1, 9):
        live.epoch(one, epoch(number))
        assert live._progress()[:2] == (2, number / 8)
    live.finished(one, candidates[0], done(0.5))
    assert live._progress()[:2] == (2, 1)
    live.epoch(other, epoch(4))  # it went on from the third
    assert live._progress()[:2] == (2, 1 + 1 / 5)


def test_time_left_follows_from_the_epochs(
    trial: Trial, candidates: tuple[Candidate, ...], moment: Moment
) -> None:
    live = Live(terminal(), 4)
    jobs = start(live, trial, candidates[:2], epochs=4)
    assert live._time_left() is None
    moment.now += 10.0
    for job in jobs:
        live.epoch(job, epoch(1))
    assert live._time_left() == 70.0  # two at a time: 4 runs of 40 s, of which 10 s are over
    moment.now += 5.0
    assert live._time_left() == 65.0


def test_time_left_knows_that_runs_to_come_are_longer(
    trial: Trial, candidates: tuple[Candidate, ...], moment: Moment
) -> None:
    """One run of an epoch has ended; one of four epochs more is planned."""
    macs = candidates[0].cost.macs
    live = Live(terminal(), 2, work=5.0 * macs)
    (job,) = start(live, trial, candidates[:1], epochs=1)
    moment.now += 30.0
    live.finished(job, candidates[0], done(0.5))
    assert live._time_left() == pytest.approx(120.0)


def test_time_left_never_exceeds_the_bound(
    trial: Trial, candidates: tuple[Candidate, ...], moment: Moment
) -> None:
    console = Console(file=StringIO())  # no terminal: the line of a run says it
    live = Live(console, 500, began=moment.now - 10, end=moment.now + 80)
    (job,) = start(live, trial, candidates[:1], epochs=1)
    moment.now += 30.0
    live.finished(job, candidates[0], done(0.5))
    assert isinstance(console.file, StringIO)
    assert console.file.getvalue().endswith(" s · 0:50 left\n")
    moment.now += 60.0
    assert live._time_left() == 0.0


def test_scoring_the_test_split_is_no_training(
    trial: Trial, candidates: tuple[Candidate, ...], moment: Moment
) -> None:
    console = terminal()
    live = Live(console, 2)
    (job,) = start(live, trial, candidates[:1], epochs=1)
    live.finished(job, candidates[0], done(0.5))
    live.phase("scoring 3 networks on the test split", 4, testing=True)
    live.started(job, candidates[0])
    live.finished(job, candidates[0], done(0.5))
    lines = shown(live, console)
    assert "runs" not in lines[0]
    assert "left" not in lines[0]
    assert lines[1] == "scoring 3 networks on the test split"
    assert live._progress()[:2] == (4, 1)


def test_the_best_of_each_budget_and_of_the_longest_runs(
    trial: Trial, candidates: tuple[Candidate, ...]
) -> None:
    small = replace(candidates[0], budget=Budget.from_text("0.5x"))
    runs = [Record(0, candidates[0], 0, 2, done(0.6)), Record(1, candidates[1], 0, 1, done(0.9))]
    runs.append(Record(2, small, 0, 1, Outcome("diverged")))
    assert Live(terminal(), 1, earlier=runs)._bests() == ["best so far 60.0"]
    runs.append(Record(3, small, 0, 2, done(0.4)))
    live = Live(terminal(), 1, budgets=2, earlier=runs)
    assert live._bests() == [f"best 60.0 at {candidates[0].budget}, 40.0 at 0.5x"]


def test_it_is_told_once_that_a_first_candidate_has_finished(
    trial: Trial, study: Study, candidates: tuple[Candidate, ...]
) -> None:
    calls: list[float] = []
    live = Live(terminal(), 3, on_first=lambda: calls.append(time.monotonic()))
    live.finished(Job(1, trial), plan(study, 10, 64).baseline, done(0.5))
    assert not calls
    for number in (2, 3):
        live.finished(Job(number, trial), candidates[0], done(0.5))
    assert len(calls) == 1
