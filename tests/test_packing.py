"""How many trainings share a GPU: the choice, on simulated devices, and the measurement, on real
worker processes and on the stand-in for CUDA."""

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.jobs import Jobs
from effnet.cost import Precision
from effnet.nn import cuda
from scaling_search.data.dataset import Dataset
from scaling_search.driver.executors import local, worker
from scaling_search.driver.executors.local import LocalExecutor
from scaling_search.driver.packing import (
    CONTEXT,
    Measured,
    Packing,
    choose_level,
    measuring_pays,
    predicted_peak,
)
from scaling_search.results.reader import StoreReader
from scaling_search.training import throughput
from scaling_search.training.recipe import Recipe
from scaling_search.training.trial import Epoch, Outcome, Pulse, Trial
from tests.cuda_stub import stub

GIB = 2**30


def chosen(speed: dict[int, float], most: int = 8) -> int:
    return choose_level(most, lambda level: speed.get(level)).level


def test_the_fewest_trainings_that_do_as_well_as_any() -> None:
    assert chosen({1: 1.0, 2: 1.9, 4: 3.0, 8: 3.1}) == 4
    assert chosen({1: 1.0, 2: 1.02, 4: 1.01, 8: 1.0}) == 1
    assert chosen({1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}) == 8
    assert chosen({1: 1.0, 2: 1.9, 4: 2.5, 8: 1.5}) == 4, "more may be slower"
    assert chosen({1: 1.0, 3: 2.5}, most=3) == 3
    assert chosen({1: 1.0, 2: 1.04, 4: 1.08, 8: 1.12}) == 4, "small losses do not add up"


def test_a_level_that_cannot_be_had_is_passed_over() -> None:
    assert chosen({1: 1.0, 2: 1.9, 4: 3.0}) == 4
    assert choose_level(8, lambda level: None) == Measured(1, {})
    assert choose_level(0, lambda level: 1.0) == Measured(1, {})


def test_levels_below_one_that_is_clearly_slower_are_not_measured() -> None:
    measured = choose_level(8, lambda level: float(level))
    assert measured == Measured(8, {8: 8.0, 4: 4.0})


def test_what_is_said_of_a_measurement() -> None:
    measured = Measured(4, {8: 41_500.4, 4: 41_000.0, 2: 35_000.0})
    assert measured.words(mps=True) == (
        "4 trainings at a time on each device: 35,000 images/s with 2, 41,000 with 4, "
        "41,500 with 8 (measured under MPS)"
    )
    nothing = Measured(1, {}, note="0 of 8 got ready beside one another: out of memory")
    assert nothing.words(mps=False) == (
        "1 training at a time on each device: nothing could be measured; "
        "0 of 8 got ready beside one another: out of memory"
    )


def test_a_measurement_must_pay() -> None:
    assert measuring_pays(runs=54, steps=2500, devices=1)
    assert not measuring_pays(runs=54, steps=20, devices=1)
    assert not measuring_pays(runs=7, steps=100_000, devices=4), "nothing to put beside a run"


def predicted(trial: Trial, precision: Precision = "fp32") -> int:
    assert trial.train_images is not None
    assert trial.val_images is not None
    images = trial.train_images + trial.val_images
    return predicted_peak(trial.arch, trial.recipe, images, precision)


def test_memory_bounds_what_may_start(trial: Trial) -> None:
    each = CONTEXT + predicted(trial)
    packing = Packing(int(2.5 * each / 0.9), 8)
    assert packing.room(trial) == 2
    assert packing.allows([], trial)
    assert packing.allows([trial], trial)
    assert not packing.allows([trial] * 2, trial)
    assert Packing(1, 8).allows([], trial), "one alone may always try"
    assert Packing(1, 8).room(trial) == 1
    packing.record_peak(trial, 3 * predicted(trial) + 2 * CONTEXT)  # the prediction was wrong
    assert not packing.allows([trial], trial)
    assert packing.room(trial) == 1


def test_more_trainings_fit_where_they_compute_in_bf16(trial: Trial) -> None:
    large = dataclasses.replace(trial, recipe=Recipe(batch=4096))
    memory = int(2 * (CONTEXT + predicted(large, "bf16")) / 0.9) + 2
    assert Packing(memory, 8, "bf16").room(large) == 2
    assert Packing(memory, 8, "fp32").room(large) == 1


def test_a_run_out_of_memory_lowers_the_number_for_good(trial: Trial) -> None:
    packing = Packing(80 * GIB, 4)
    for _ in range(4):  # all four at once
        packing.out_of_memory(4)
    assert packing.level == 3
    assert not packing.allows([trial] * 3, trial)
    for level in (3, 2, 1, 1):
        packing.out_of_memory(level)
    assert packing.level == 1


def test_a_deadline_is_of_the_run_s_own_time(trial: Trial) -> None:
    limited = dataclasses.replace(trial, deadline=60.0)
    shared = Packing(80 * GIB, 4).extend_deadline(limited)
    assert shared.deadline == 240.0
    assert shared.key == limited.key
    assert Packing(80 * GIB, 4).extend_deadline(trial) == trial


def test_predictions_grow_with_the_step(trial: Trial) -> None:
    larger = dataclasses.replace(trial, recipe=dataclasses.replace(trial.recipe, batch=64))
    assert predicted(larger) > 2 * predicted(trial) > 0
    assert predicted(trial, "bf16") < predicted(trial)
    sgd = dataclasses.replace(trial.recipe, optimizer="sgd")
    assert predicted(dataclasses.replace(trial, recipe=sgd)) < predicted(trial)


def test_a_study_ends_within_a_few_per_cent_of_the_best_fixed_level() -> None:
    """A part of benchmarks/packing.py."""
    from benchmarks import packing as simulation

    scenarios = []
    for scenario in simulation.scenarios():
        start = 10.0 if scenario.devices == 1 else 2.0  # s that a worker takes to start
        if scenario.start == start:
            scenarios.append(scenario)
    assert len(scenarios) == 16
    for scenario in scenarios:
        best, _, ours, levels = simulation.compare(scenario, repeats=1)
        assert ours <= simulation.TARGET * best, (scenario, levels)


# ---- the measurement: what a worker answers, in this process


def _paced(trial: Trial, data: Dataset) -> Iterator[int]:
    while True:
        time.sleep(0.001)
        yield 10


def _out_of_memory(trial: Trial, data: Dataset) -> Iterator[int]:
    yield 10
    raise torch.OutOfMemoryError("tried to allocate")


def rehearsed(trial: Trial, steps: worker.Steps, orders: list[float | None]) -> list[object]:
    """What a worker answers that prepares these steps and then gets these orders."""
    driver, theirs = multiprocessing.Pipe()
    for order in orders:
        driver.send(order)
    worker.rehearse(theirs, trial, {}, steps)
    answers: list[object] = []
    while driver.poll():
        answers.append(driver.recv())
    return answers


def test_a_worker_says_what_it_takes_and_then_its_rates(trial: Trial) -> None:
    ready, *rates = rehearsed(trial, _paced, [0.01, 0.01, None])
    assert isinstance(ready, worker.Prepared)
    assert ready.peak > 2**20
    assert len(rates) == 2
    assert all(isinstance(rate, float) and rate > 0 for rate in rates)


def test_a_worker_that_runs_out_of_memory_says_so(trial: Trial) -> None:
    assert rehearsed(trial, _out_of_memory, []) == [worker.Unprepared("out of memory")]


def test_a_worker_whose_step_was_not_captured_is_not_ready(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "process_is_spoiled", lambda: True)
    answers = rehearsed(trial, _paced, [None])
    assert answers == [worker.Unprepared("its step was not captured")]


# ---- the measurement, with worker processes


Executor = Callable[..., LocalExecutor]


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Executor]:
    """Of up to two workers a device. The choice is made of fixed rates, in which more trainings do
    more: the workers measure theirs, and those depend on what else this machine does."""

    def choose(most: int, measure: Callable[[int], float | None]) -> Measured:
        return choose_level(most, lambda level: float(level) if measure(level) else None)

    monkeypatch.setattr(local, "choose_level", choose)
    monkeypatch.setattr(local, "SECONDS", 0.05)
    opened: list[LocalExecutor] = []

    def make(steps: worker.Steps, *devices: str) -> LocalExecutor:
        opened.append(LocalExecutor(2 * len(devices), devices, train=_at_once, steps=steps))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def _one_dies(trial: Trial, data: Dataset) -> Iterator[int]:
    """The first to come here on cpu:0 ends in its first step that is measured."""
    dies = False
    if trial.device == "cpu:0":
        try:
            Path(trial.checkpoints).mkdir()
            dies = True
        except FileExistsError:
            pass
    for at, images in enumerate(_paced(trial, data)):
        if dies and at == throughput.FIRST_STEPS:
            os._exit(1)
        yield images


def _never_ready(trial: Trial, data: Dataset) -> Iterator[int]:
    time.sleep(1000)
    yield 1


def never() -> bool:
    return False


def _at_once(trial: Trial, data: Dataset) -> Iterator[Epoch | Outcome | Pulse]:
    yield Outcome("done", note=str(os.getpid()))


def test_a_worker_that_dies_while_it_is_measured_costs_its_place_alone(
    executor: Executor, trial: Trial
) -> None:
    """Two on each device cannot be had then, one can: it stays there, warm, and trains."""
    where = executor(_one_dies, "cpu", "cpu:0")
    measured = where.measure(trial, 2, never)
    assert measured is not None
    assert measured.peak > 2**20
    assert (measured.level, measured.rates, measured.note) == (1, {1: 1.0}, "")
    assert sorted(one.device for one in where._workers) == ["cpu", "cpu:0"]
    warm = {str(one.process.pid) for one in where._workers}
    jobs = Jobs([trial] * 2)
    where.run(jobs)
    assert {outcome.note for outcome in jobs.outcomes.values()} <= warm


def test_a_worker_without_memory_bounds_the_level(executor: Executor, trial: Trial) -> None:
    where = executor(_out_of_memory, "cpu")
    measured = where.measure(trial, 1, never)
    note = "0 of 1 got ready beside one another: out of memory"
    assert measured == Measured(1, {}, note=note)
    assert where._workers == []


def test_workers_that_hang_do_not_hang_the_study(
    executor: Executor, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_PREPARED", 0.2)
    where = executor(_never_ready, "cpu")
    measured = where.measure(trial, 2, never)
    assert measured is not None
    assert (measured.level, measured.rates) == (1, {})
    assert measured.note.startswith("0 of 2 got ready")
    assert where._workers == []


@pytest.mark.parametrize("at_once", [1, 2])
def test_steps_of_several_networks_are_timed_by_workers_that_stay(
    executor: Executor, trial: Trial, at_once: int
) -> None:
    where = executor(_paced, "cpu")
    rates = where.time_steps([trial, dataclasses.replace(trial, seed=1)], at_once, never)
    assert len(rates) == 2
    assert min(rates) > 0
    warm = {str(one.process.pid) for one in where._workers}
    assert len(warm) == at_once
    jobs = Jobs([trial] * at_once)
    where.run(jobs)
    assert {outcome.note for outcome in jobs.outcomes.values()} <= warm


def test_steps_that_cannot_be_timed_are_nobody_s_pace(executor: Executor, trial: Trial) -> None:
    where = executor(_out_of_memory, "cpu")
    assert where.time_steps([trial], 2, never) == [0.0]
    assert where.time_steps([trial], 2, lambda: True) == [0.0]
    assert where._workers == []


def test_a_measurement_ends_when_the_user_says_so(executor: Executor, trial: Trial) -> None:
    where = executor(_never_ready, "cpu")
    over = iter([False, False, True])
    assert where.measure(trial, 1, lambda: next(over, True)) is None
    assert where._workers == []


# ---- on the stand-in for CUDA

STUDY = """
import sys
from scaling_search.driver import sharing
from scaling_search.cli import main

if __name__ == "__main__":
    sharing.measuring_pays = lambda runs, steps, devices: True
    sharing.cores = lambda: 1
    sys.exit(main(sys.argv[1:]))
"""
SMALL = (
    "search --preset standard --candidates 2 --extra 0 --confirm 0 --epochs 1 "
    "--seeds 1 --allocation flat --blocks 7 --width 0.1 --divisor 2 --resolution 12 --batch 16 "
    "--train-images 48 --val-images 20 --no-check"
)


@stub.needs_stub
def test_a_study_on_a_device_measures_first(pets: str, tmp_path: Path) -> None:
    script, out = tmp_path / "study.py", tmp_path / "run"
    script.write_text(STUDY)
    arguments = (str(script), *SMALL.split(), "--data", pets, "--out", str(out))
    blank = {"FAKE_CUDA_BLANK": "1"}
    said = stub.check(*arguments, timeout=400, variables=blank)
    assert " at a time on each device: " in said
    assert "(measured)" in said
    with StoreReader.open(out) as reader:
        fact, records = reader.fact("packing"), reader.records()
    assert fact["level"] in (1, 2)
    assert fact["devices"] == 1
    assert fact["peak"] > 2**20
    assert all(r.done and r.outcome and not r.outcome.eager for r in records)
    if fact["level"] == 2:
        assert 0.0 in [r.outcome.images_per_s for r in records if r.outcome]
