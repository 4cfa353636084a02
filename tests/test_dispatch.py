"""What is tried again, how often, and where: on a real store, with an executor that plays a
script."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from scaling_search.driver.dispatch import DEATHS, Measuring, Training
from scaling_search.driver.executors.protocol import WorkerLoss
from scaling_search.driver.packing import Packing
from scaling_search.results.record import Record, Run
from scaling_search.results.store import Store
from scaling_search.study.plan import plan
from scaling_search.study.settings import Study
from scaling_search.training.trial import Epoch, Outcome, Trial
from tests.records import done
from tests.searches import Quiet

EPOCH = Epoch(1, 1.0, 1.0, 0.5, 0.1)
KILLED = WorkerLoss("worker killed by SIGKILL", had_begun=True)


@pytest.fixture
def runs(study: Study) -> list[Run]:
    return [Run(c, 0, 2) for c in plan(study, 10, 64).candidates[:4]]


@pytest.fixture
def phase(
    runs: list[Run], trial: Trial, tmp_path: Path
) -> Iterator[Callable[..., tuple[Training, Store]]]:
    def trial_of(run: Run) -> Trial:
        return replace(trial, arch=run.candidate.arch, seed=run.seed, epochs=run.epochs)

    usual = {"runs": runs, "trial": trial_of, "over": lambda: False}
    with ExitStack() as stores:

        def make(**more: object) -> tuple[Training, Store]:
            store = more.pop("store", None)
            if store is None:
                store = stores.enter_context(Store.create(tmp_path / "run", {}, {}))
            training = Training(store, Quiet(), **{**usual, **more})  # type: ignore[arg-type]
            return training, store

        yield make


Make = Callable[..., tuple[Training, Store]]


def test_every_run_once_in_order(phase: Make, runs: list[Run]) -> None:
    training, store = phase()
    jobs = [training.ask() for _ in runs]
    assert [j.trial.arch.key for j in jobs] == [run.candidate.key for run in runs]
    assert training.ask() is None
    for job in reversed(jobs):
        training.epoch(job, EPOCH)
        training.outcome(job, done(0.5))
    assert all(r.done and r.again == () and r.outcome.note == "" for r in store.records())


def test_a_longer_run_waits_for_the_one_it_goes_on_from_and_holds_up_no_other(
    phase: Make, runs: list[Run]
) -> None:
    one, other = runs[0].candidate, runs[1].candidate
    wanted = [Run(one, 0, 1), Run(one, 0, 2), Run(one, 1, 1), Run(other, 0, 2)]
    training, store = phase(runs=wanted, packing=Packing(2**40, level=8))
    jobs = [training.ask() for _ in range(4)]
    started = [store.records()[job.number].key for job in jobs if job is not None]
    assert started == [wanted[i].key for i in (0, 2, 3)]
    first = jobs[0]
    training.outcome(first, Outcome("out-of-memory", note="needs 9 GiB"))
    for job in jobs[1:3]:
        training.outcome(job, done(0.5))
    again = training.ask()
    assert again == first, "tried alone, before the longer one"
    assert training.ask() is None
    training.outcome(again, Outcome("out-of-memory", note="needs 9 GiB"))
    longer = training.ask()
    assert store.records()[longer.number].key == wanted[1].key, "whatever became of the shorter"


def test_a_lost_worker_s_run_goes_on_until_it_has_cost_five_within_an_epoch(phase: Make) -> None:
    training, store = phase()
    job = training.ask()
    unseen = WorkerLoss("new worker killed by SIGKILL", had_begun=False)
    for loss in (KILLED, *[unseen] * 7):
        training.lost(job, loss)
        assert training.ask() == job, "before anything new"
    training.epoch(job, EPOCH)  # progress: the count begins again
    for i in range(DEATHS):
        training.lost(job, WorkerLoss("worker killed by SIGBUS", had_begun=True))
        assert (training.ask() == job) == (i < DEATHS - 1)
    record = store.records()[job.number]
    assert record.outcome.status == "crashed"
    assert record.outcome.note.startswith(
        "worker killed by SIGBUS, 5 times after epoch 1; started again after epoch 0: "
    )
    assert len(record.again) == 8 + DEATHS - 1


def test_a_run_that_kills_its_workers_is_given_up_in_a_later_session(
    phase: Make, tmp_path: Path
) -> None:
    for i in range(DEATHS):
        with Store.create(tmp_path / "run", {}, {}) as store:
            training, _ = phase(store=store)
            job = training.ask()
            training.lost(job, KILLED)
            outcome = store.records()[job.number].outcome
            assert (outcome is None) == (i < DEATHS - 1)
    assert outcome.status == "crashed"
    assert outcome.note.startswith("worker killed by SIGKILL, 5 times after epoch 0; ")


def test_out_of_memory_beside_others_is_tried_once_more_alone(phase: Make) -> None:
    packing = Packing(2**40, level=2)
    training, store = phase(packing=packing)
    a, b = training.ask(), training.ask()
    assert training.ask() is None, "packing says two"
    training.outcome(a, Outcome("out-of-memory", note="needs 9 GiB"))
    assert packing.level == 1
    assert store.records()[a.number].outcome is None
    training.outcome(b, done(0.5))
    others = []
    job = training.ask()
    while job is not None and job.number != a.number:
        others.append(job)
        training.outcome(job, done(0.5))
        job = training.ask()
    assert len(others) == 2, "when nothing else is left"
    assert job == a, "when nothing else is left"
    assert training.ask() is None
    training.outcome(a, Outcome("out-of-memory", note="needs 9 GiB"))
    record = store.records()[a.number]
    assert record.outcome.status == "out-of-memory"
    assert len(record.again) == 1
    assert training.ask() is None
    assert "out of memory beside other runs, now alone" in record.outcome.note


@pytest.mark.parametrize(
    ("level", "measured", "kept"),
    [
        pytest.param(3, 3, 2, id="as measured"),
        pytest.param(8, 3, 3, id="more than measured, by the user's wish"),
        pytest.param(1, 3, 3, id="no longer shared"),
    ],
)
def test_a_level_that_memory_has_lowered_holds_for_later_sessions(
    level: int, measured: int, kept: int, phase: Make
) -> None:
    store = Store.in_memory({"packing": {"level": measured, "gpu": "a card"}})
    training, _ = phase(packing=Packing(2**40, level=level), store=store)
    jobs = []
    for _ in range(2):
        job = training.ask()
        if job is not None:
            jobs.append(job)
    for job in jobs:  # several at one level count once
        training.outcome(job, Outcome("out-of-memory"))
    assert store.fact("packing") == {"level": kept, "gpu": "a card"}


def test_out_of_memory_alone_is_final(phase: Make) -> None:
    training, store = phase()
    job = training.ask()
    training.outcome(job, Outcome("out-of-memory"))
    assert store.records()[job.number].outcome.status == "out-of-memory"


def test_each_device_is_packed_by_itself(phase: Make) -> None:
    training, _ = phase(packing=Packing(2**40, level=1))
    assert training.ask("cuda:0") is not None
    assert training.ask("cuda:1") is not None
    assert training.ask("cuda:0") is None
    assert training.ask("cuda:1") is None


def with_speed(speed: float = 1000.0) -> Outcome:
    return replace(done(0.5), images_per_s=speed)


def test_a_run_that_shared_its_device_has_no_speed_on_record(phase: Make) -> None:
    training, store = phase(packing=Packing(2**40, level=2))
    a, b, c = training.ask("cuda:0"), training.ask("cuda:0"), training.ask("cuda:1")
    training.outcome(a, with_speed())
    training.outcome(b, with_speed())
    training.outcome(c, with_speed())
    d = training.ask("cuda:0")
    training.outcome(d, with_speed())
    speeds = [store.records()[job.number].outcome.images_per_s for job in (a, b, c, d)]
    assert speeds == [0.0, 0.0, 1000.0, 1000.0], "c had its device to itself, d too"


def test_on_a_cpu_every_run_has_its_speed(phase: Make) -> None:
    training, store = phase()
    a, b = training.ask(), training.ask()
    training.outcome(a, with_speed())
    training.outcome(b, with_speed())
    assert [r.outcome.images_per_s for r in store.records()] == [1000.0, 1000.0]


def test_what_was_started_again_or_goes_on_from_a_shared_run_has_no_speed(
    phase: Make, runs: list[Run]
) -> None:
    """Its clock holds time of which nobody knows who else was there."""
    training, store = phase(packing=Packing(2**40, level=1))
    shorter = store.start(runs[1].candidate, 0, 1)
    store.finish(shorter, with_speed(0.0))
    training, _ = phase(packing=Packing(2**40, level=1), store=store)
    a = training.ask("cuda:0")
    training.lost(a, KILLED)
    a = training.ask("cuda:0")
    training.outcome(a, with_speed())
    for _ in runs[1:3]:
        training.outcome(training.ask("cuda:0"), with_speed())
    longest = [r for r in store.records() if r.epochs == 2]
    assert [r.outcome.images_per_s for r in longest] == [0.0, 0.0, 1000.0]


def test_a_crash_beside_others_on_a_gpu_is_tried_once_more_alone(phase: Make) -> None:
    """Under MPS a fault of one training ends its neighbours too."""
    training, store = phase(packing=Packing(2**40, level=2))
    a, b, c = training.ask("cuda:0"), training.ask("cuda:0"), training.ask("cuda:1")
    training.outcome(a, Outcome("crashed", note="an illegal memory access"))
    training.outcome(c, Outcome("crashed", note="of its own"))
    assert store.records()[c.number].outcome.status == "crashed", "nobody was beside it"
    training.outcome(b, done(0.5))
    training.outcome(training.ask("cuda:0"), done(0.5))
    again = training.ask("cuda:0")
    assert again == a
    training.outcome(again, Outcome("crashed", note="an illegal memory access"))
    record = store.records()[a.number]
    assert record.outcome.status == "crashed"
    assert len(record.again) == 1


def test_deadlines_grow_with_the_trainings_that_share_a_device(phase: Make, trial: Trial) -> None:
    def limited(run: Run) -> Trial:
        return replace(trial, arch=run.candidate.arch, seed=run.seed, deadline=60.0)

    training, store = phase(packing=Packing(2**40, level=2), trial=limited)
    assert training.ask("cuda:0").trial.deadline == 120.0
    training, _ = phase(trial=limited, store=store)
    assert training.ask().trial.deadline == 60.0


def test_over_asks_for_nothing(phase: Make) -> None:
    training, store = phase(over=lambda: True)
    assert training.ask() is None
    assert store.records() == []


def test_what_was_running_goes_on_first_and_says_why(phase: Make, runs: list[Run]) -> None:
    training, store = phase()
    training.outcome(training.ask(), done(0.5))
    second = training.ask()
    store.set_fact("state", "stopped")
    store.close()
    training, store = phase()
    training._waiting.remove(runs[0])  # the search asks only for what has no outcome
    assert training.ask().trial == second.trial
    assert store.records()[1].again == ("after epoch 0: it was stopped",)


def test_testing_tries_a_lost_run_once_more(phase: Make, trial: Trial) -> None:
    training, store = phase()
    for _ in range(2):
        training.outcome(training.ask(), done(0.5))
    testing = Measuring(store, Quiet(), store.records(), lambda r: trial, lambda: False)
    first, second = testing.ask(), testing.ask()
    testing.epoch(first, EPOCH)  # trained again, as its checkpoint is gone
    testing.outcome(first, Outcome("done", (EPOCH,), test_acc=0.75))
    testing.lost(second, KILLED)
    assert testing.ask().number == second.number
    testing.lost(second, KILLED)
    assert testing.ask() is None
    tested: list[Record] = store.records()
    assert [r.test_acc for r in tested] == [0.75, None]
    assert [r.again for r in tested] == [("when tested: its checkpoint was gone",), ()]
