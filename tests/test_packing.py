"""How many trainings share a GPU: the choice, on simulated devices, and the measurement, on real
worker processes and on the stand-in for CUDA."""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.jobs import Jobs
from scaling_search.data import Dataset
from scaling_search.executors.local import LocalExecutor
from scaling_search.packing import (
    _CONTEXT,
    Measured,
    Packing,
    choose_level,
    measuring_pays,
    predicted,
)
from scaling_search.store import Store
from scaling_search.trial import Epoch, Outcome, Pulse, Trial
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


def test_memory_bounds_what_may_start(trial: Trial) -> None:
    trial = dataclasses.replace(trial, device="cuda")
    each = _CONTEXT + predicted(trial)
    packing = Packing(int(2.5 * each / 0.9), 8)
    assert packing.room(trial) == 2
    assert packing.allows([], trial) and packing.allows([trial], trial)
    assert not packing.allows([trial] * 2, trial)
    assert Packing(1, 8).allows([], trial), "one alone may always try"
    assert Packing(1, 8).room(trial) == 1
    packing.record_peak(trial, 3 * predicted(trial) + 2 * _CONTEXT)  # the prediction was wrong
    assert not packing.allows([trial], trial) and packing.room(trial) == 1


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
    shared = Packing(80 * GIB, 4).shared(limited)
    assert shared.deadline == 240.0 and shared.key == limited.key
    assert Packing(80 * GIB, 4).shared(trial) == trial


def test_predictions_grow_with_the_step(trial: Trial) -> None:
    larger = dataclasses.replace(trial, recipe=dataclasses.replace(trial.recipe, batch=64))
    assert predicted(larger) > 2 * predicted(trial) > 0
    assert predicted(dataclasses.replace(trial, device="cuda")) < predicted(trial), "bf16"
    sgd = dataclasses.replace(trial.recipe, optimizer="sgd")
    assert predicted(dataclasses.replace(trial, recipe=sgd)) < predicted(trial)


def test_a_study_ends_within_a_few_per_cent_of_the_best_fixed_level() -> None:
    """A part of benchmarks/packing.py."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
    try:
        import packing as simulation
    finally:
        sys.path.pop(0)
    some = [s for s in simulation.scenarios() if s.start == (10.0 if s.devices == 1 else 2.0)]
    assert len(some) == 16
    for scenario in some:
        best, _, ours, levels = simulation.compare(scenario, repeats=1)
        assert ours <= simulation.TARGET * best, (scenario, levels)


# ---- the measurement, on worker processes

Executor = Callable[..., LocalExecutor]


@pytest.fixture
def executor() -> Iterator[Executor]:
    opened: list[LocalExecutor] = []

    def make(steps: Callable[[Trial, Dataset], Iterator[int]], most: int = 2) -> LocalExecutor:
        opened.append(LocalExecutor(most, ("cpu",), train=_at_once, steps=steps))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def _paced(trial: Trial, data: Dataset) -> Iterator[int]:
    """A thousand images a second, beside others as well: waiting takes no core."""
    while True:
        time.sleep(0.01)
        yield 10


def _by_turns(trial: Trial, data: Dataset) -> Iterator[int]:
    """A device that does one step at a time, for whoever holds it."""
    import fcntl

    with Path(trial.checkpoints).open("w") as device:
        while True:
            fcntl.flock(device, fcntl.LOCK_EX)
            time.sleep(0.03)  # long beside what passing the device on takes
            fcntl.flock(device, fcntl.LOCK_UN)
            time.sleep(0.0002)
            yield 10


def _no_room_for_two(trial: Trial, data: Dataset) -> Iterator[int]:
    try:
        Path(trial.checkpoints).mkdir()
    except FileExistsError:
        raise torch.OutOfMemoryError("tried to allocate") from None
    yield from _paced(trial, data)


def _one_dies_when_measured(trial: Trial, data: Dataset) -> Iterator[int]:
    """The first to come here ends in its twentieth step, which no preparation reaches."""
    try:
        Path(trial.checkpoints).mkdir()
        last = 20
    except FileExistsError:
        last = 10**9
    for at, images in enumerate(_paced(trial, data)):
        if at == last:
            os._exit(1)
        yield images


def _never_ready(trial: Trial, data: Dataset) -> Iterator[int]:
    time.sleep(1000)
    yield 1


def never() -> bool:
    return False


def _at_once(trial: Trial, data: Dataset) -> Iterator[Epoch | Outcome | Pulse]:
    yield Outcome("done", note=str(os.getpid()))


def test_trainings_that_do_not_slow_one_another(executor: Executor, trial: Trial) -> None:
    local = executor(_paced)
    measured = local.measure(trial, 2, never)
    assert measured is not None and measured.level == 2 and measured.note == ""
    assert measured.rates[2] > 1.5 * measured.rates[1] and measured.peak > 2**20
    jobs = Jobs([trial] * 2)
    local.run(jobs)
    measured_by = {str(w.process.pid) for w in local._workers}
    assert len(measured_by) == 2
    assert {o.note for o in jobs.outcomes.values()} <= measured_by, "they stay, warm"


def test_trainings_that_take_turns(executor: Executor, trial: Trial, tmp_path: Path) -> None:
    local = executor(_by_turns)
    turns = dataclasses.replace(trial, checkpoints=str(tmp_path / "device"))
    measured = local.measure(turns, 2, never)
    assert measured is not None and measured.level == 1 and set(measured.rates) == {1, 2}
    assert len(local._workers) == 1, "the other ends"


def test_a_worker_out_of_memory_bounds_the_level(executor: Executor, trial: Trial) -> None:
    measured = executor(_no_room_for_two).measure(trial, 2, never)
    assert measured is not None and measured.level == 1 and set(measured.rates) == {1}
    assert measured.note == "1 of 2 got ready beside one another: out of memory"


def test_a_worker_that_dies_while_it_is_measured(executor: Executor, trial: Trial) -> None:
    measured = executor(_one_dies_when_measured).measure(trial, 2, never)
    assert measured is not None and measured.level == 1 and set(measured.rates) == {1}


def test_workers_that_hang_do_not_hang_the_study(
    executor: Executor, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scaling_search.executors.local._PREPARED", 1.0)
    local = executor(_never_ready)
    measured = local.measure(trial, 2, never)
    assert measured is not None and (measured.level, measured.rates) == (1, {})
    assert measured.note.startswith("0 of 2 got ready") and local._workers == []


def test_a_measurement_ends_when_the_user_says_so(executor: Executor, trial: Trial) -> None:
    local = executor(_never_ready)
    asked = iter([False, False, True])
    assert local.measure(trial, 2, lambda: next(asked, True)) is None
    assert local._workers == []


# ---- on the stand-in for CUDA

STUDY = """
import sys
from scaling_search import sharing
from scaling_search.cli import main

if __name__ == "__main__":
    sharing.measuring_pays = lambda runs, steps, devices: True
    sharing.cores = lambda: 2
    sys.exit(main(sys.argv[1:]))
"""
SMALL = (
    "search --preset standard --data shapes --candidates 2 --extra 0 --confirm 0 --epochs 1 "
    "--allocation flat --blocks 7 --width 0.1 --divisor 2 --resolution 12 --batch 16 "
    "--train-images 48 --val-images 20"
)


@stub.needs_stub
def test_a_study_on_two_devices_measures_first(tmp_path: Path) -> None:
    script, out = tmp_path / "study.py", tmp_path / "run"
    script.write_text(STUDY)
    arguments = (str(script), *SMALL.split(), "--out", str(out))
    blank = {"FAKE_CUDA_BLANK": "1"}
    said = stub.check(*arguments, gpus=2, timeout=400, variables=blank)
    assert " at a time on each device: " in said and "(measured)" in said
    store = Store.read(out)
    fact, records = store.fact("packing"), store.records()
    assert fact["level"] in (1, 2) and fact["devices"] == 2 and fact["peak"] > 2**20
    assert all(r.done and r.outcome and not r.outcome.eager for r in records)
    if fact["level"] == 2:
        assert 0.0 in [r.outcome.images_per_s for r in records if r.outcome]
