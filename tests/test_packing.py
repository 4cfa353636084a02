"""How many trainings share a GPU, on simulated devices: none is at hand where these run."""

import dataclasses

from scaling_search.packing import _CONTEXT, MOST, Packing, predicted
from scaling_search.trial import Trial

GIB = 2**30


def settle(speed: dict[int, float], devices: int = 1, memory: int = 80 * GIB, most: int = MOST) -> int:
    """The level that packing comes to on devices that do `speed[k]` work a second with k trainings each."""
    packing, now = Packing(memory, devices, most), 0.0
    for _ in range(600):
        level = packing.level
        now += 1.0 / (devices * speed[level])
        packing.worked(1.0, level * devices, now)
    return packing.level


def test_one_more_for_as_long_as_it_pays() -> None:
    assert settle({1: 1.0, 2: 1.9, 3: 2.6, 4: 3.0, 5: 3.05, 6: 3.0}) == 4
    assert settle({1: 1.0, 2: 1.02}) == 1
    assert settle({k: float(k) for k in range(1, 9)}) == MOST
    assert settle({k: float(k) for k in range(1, 9)}, most=3) == 3
    assert settle({1: 1.0, 2: 1.9, 3: 1.5}, devices=4) == 2


def test_only_full_devices_are_measured() -> None:
    """The tail of a step of the study, with fewer runs than places, says nothing."""
    packing = Packing(80 * GIB, 1)
    packing.level = 3
    for i in range(100):
        packing.worked(1.0, 2, float(i))
    assert packing.level == 3


def test_memory_bounds_what_may_start(trial: Trial) -> None:
    trial = dataclasses.replace(trial, device="cuda")
    each = _CONTEXT + predicted(trial)
    packing = Packing(int(2.5 * each / 0.9), 1)
    packing.level = 8
    assert packing.allows([], trial) and packing.allows([trial], trial) and not packing.allows([trial] * 2, trial)
    assert Packing(1, 1).allows([], trial), "one alone may always try"
    packing.measured(trial, 3 * predicted(trial) + 2 * _CONTEXT)  # the prediction was wrong
    assert not packing.allows([trial], trial)


def test_a_run_out_of_memory_lowers_the_number_for_good() -> None:
    packing = Packing(80 * GIB, 1)
    packing.level = 4
    for _ in range(4):  # all four at once
        packing.out_of_memory(4)
    assert packing.level == 3
    for i in range(1, 400):
        packing.worked(1.0, packing.level, i / packing.level)
    assert packing.level == 3
    for level in (3, 2, 1, 1):
        packing.out_of_memory(level)
    assert packing.level == 1


def test_predictions_grow_with_the_step(trial: Trial) -> None:
    larger = dataclasses.replace(trial, recipe=dataclasses.replace(trial.recipe, batch=64))
    assert predicted(larger) > 2 * predicted(trial) > 0
    assert predicted(dataclasses.replace(trial, device="cuda")) < predicted(trial), "bf16"
    assert predicted(dataclasses.replace(trial, recipe=dataclasses.replace(trial.recipe, optimizer="sgd"))) < predicted(
        trial
    )
