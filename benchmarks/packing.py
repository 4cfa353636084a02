"""How near does a study on GPUs come to the best number of trainings at a time? In virtual time.

    python benchmarks/packing.py [--repeats 5] [--check]

Devices, networks and measurements are simulated; what decides is the project's own: the choice of
packing.py and the hand-out of dispatch.py, on a store in memory. A device with k trainings does
`curve[k]` times the work of one with one, shared evenly; of two networks one may take twice as long
as the other. A new worker takes its start-up time before it trains. A study is 54 runs of 9 to 18
seconds alone. It measures first (every worker started at once, the typical network prepared, each
level for its window, a few per cent of noise), then trains. Beside it: every fixed level from 1 to
8, which pays for its workers' start-up and measures nothing. The last line is the worst ratio, over
all scenarios, of our mean time to the best fixed level's: at most 1.15."""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scaling_search.driver.dispatch import Training
from scaling_search.driver.executors.local import SECONDS
from scaling_search.driver.executors.protocol import Job
from scaling_search.driver.packing import CONTEXT, MOST, Packing, choose_level, predicted_peak
from scaling_search.results.record import Run
from scaling_search.results.store import Store
from scaling_search.study.candidate import Candidate
from scaling_search.study.plan import plan
from scaling_search.study.settings import check
from scaling_search.training.throughput import MARGIN
from scaling_search.training.trial import Epoch, Outcome, Trial

TARGET = 1.15
RUNS = 54
PREPARING = 2.0  # s: the typical network's data, modules, first steps and capture
ALONE = (9.0, 18.0)  # s that the fastest and the slowest network take alone on a device
NOISE = 0.03  # of a measured rate, one standard deviation
GIB = 2**30
EPOCH = Epoch(1, 1.0, 1.0, 0.5, 1.0)

# work a second with k trainings on a device, in units of one alone; between these, on a line
CURVES = {
    "full with 1": {1: 1.0, 8: 1.0},
    "full with 2": {1: 1.0, 2: 1.8, 8: 1.8},
    "full with 4": {1: 1.0, 2: 1.9, 4: 3.3, 8: 3.3},
    "full with 8": {1: 1.0, 2: 1.95, 4: 3.7, 8: 6.5},
    "slower with 8": {1: 1.0, 2: 1.8, 4: 2.5, 8: 1.9},
    "a little each": {1: 1.0, 2: 1.08, 4: 1.16, 8: 1.24},
}


@dataclass(frozen=True)
class Scenario:
    """`memory`: how many typical networks a device's memory holds."""

    curve: str
    start: float  # s of a worker
    devices: int
    memory: int

    def speed(self, level: int) -> float:
        """Work a second of a device with `level` trainings; one alone does 1."""
        points = CURVES[self.curve]
        below = max(k for k in points if k <= level)
        above = min(k for k in points if k >= level)
        if above == below:
            return points[below]
        return points[below] + (points[above] - points[below]) * (level - below) / (above - below)

    def __str__(self) -> str:
        room = f"room for {self.memory}" if self.memory < MOST else "room for all"
        return f"{self.curve:<14} {room:<13} start {self.start:>3g} s, {self.devices} device(s)"


def scenarios() -> Iterator[Scenario]:
    for devices in (1, 2):
        for start in (2.0, 10.0, 30.0):
            for curve in CURVES:
                yield Scenario(curve, start, devices, MOST)
            for memory in (2, 3):
                yield Scenario("full with 8", start, devices, memory)


class Quiet:
    """A watcher that says nothing."""

    def phase(self, *args: object) -> None: ...
    def started(self, job: Job, candidate: Candidate) -> None: ...
    def epoch(self, *args: object) -> None: ...
    def again(self, job: Job, candidate: Candidate, why: str) -> None: ...
    def finished(self, job: Job, candidate: Candidate, outcome: Outcome) -> None: ...


@dataclass
class _Busy:
    """A run on a simulated device: seconds until its worker has started, work left after that."""

    job: Job
    device: str
    starting: float
    work: float


class Devices:
    """An executor in virtual time: it asks the driver whenever a worker is free.

    `warm`: how many workers of each device have started already."""

    def __init__(self, scenario: Scenario, warm: int, alone: dict[str, float]) -> None:
        self._scenario, self._alone = scenario, alone
        self._names = [f"cuda:{i}" for i in range(scenario.devices)]
        self._warm = dict.fromkeys(self._names, warm)
        self.now = 0.0

    def run(self, driver: Training) -> None:
        busy: list[_Busy] = []
        while True:
            self._hand_out(driver, busy)
            if not busy:
                return
            self._advance(busy)
            for run in [run for run in busy if run.work <= 1e-9]:
                busy.remove(run)
                self._warm[run.device] += 1
                outcome = Outcome("done", (EPOCH,), peak_memory=peak(run.job.trial))
                driver.outcome(run.job, outcome)

    def _hand_out(self, driver: Training, busy: list[_Busy]) -> None:
        for _ in range(MOST):  # a training for each device in turn, as warm workers are
            for device in self._names:
                job = driver.ask(device)
                if job is None:
                    continue
                starting = 0.0 if self._warm[device] else self._scenario.start
                self._warm[device] = max(0, self._warm[device] - 1)
                work = self._alone[job.trial.arch.key]
                busy.append(_Busy(job, device, starting, work))

    def _advance(self, busy: list[_Busy]) -> None:
        """To the next moment at which a worker has started or a run has ended."""
        rates: dict[int, float] = {}
        for run in busy:
            beside = sum(r.device == run.device and r.starting <= 0 for r in busy)
            rates[id(run)] = self._scenario.speed(beside) / beside if run.starting <= 0 else 0.0
        waits = [run.starting if run.starting > 0 else run.work / rates[id(run)] for run in busy]
        step = min(waits)
        self.now += step
        for run in busy:
            if run.starting > 0:
                run.starting = run.starting - step if run.starting - step > 1e-9 else 0.0
            else:
                run.work -= step * rates[id(run)]


def networks() -> tuple[list[Candidate], Trial]:
    """The networks of a small study, and a trial of the first."""
    study = check({"device": "cuda"}, "benchmark")
    candidates = list(plan(study, 10, 64).candidates)
    trial = Trial(
        arch=candidates[0].arch,
        data_digest="",
        data_folder="",
        recipe=study.recipe,
        seed=0,
        epochs=1,
        train_images=1000,
        val_images=1000,
        device="cuda",
        threads=1,
        checkpoints="",
    )
    return candidates, trial


CANDIDATES, TRIAL = networks()


def peak(trial: Trial) -> int:
    """Bytes that it takes: as predicted, in fp32."""
    images = (trial.train_images or 0) + (trial.val_images or 0)
    return predicted_peak(trial.arch, trial.recipe, images, "fp32")


def train(scenario: Scenario, packing: Packing, warm: int, seed: int) -> float:
    """Seconds that the study's runs take."""
    rng = random.Random(seed)
    alone = {c.key: rng.uniform(*ALONE) for c in CANDIDATES}
    runs = [Run(CANDIDATES[i % len(CANDIDATES)], i // len(CANDIDATES), 1) for i in range(RUNS)]
    devices = Devices(scenario, warm, alone)
    driver = Training(
        Store.in_memory({}),
        Quiet(),
        runs,
        lambda run: dataclasses.replace(TRIAL, arch=run.candidate.arch, seed=run.seed),
        lambda: False,
        packing=packing,
    )
    devices.run(driver)
    return devices.now


def packing_of(scenario: Scenario, level: int) -> Packing:
    """Memory for so many trainings of the largest network, as nearly as it can be had."""
    if scenario.memory >= MOST:
        return Packing(10**6 * GIB, level)
    largest = CONTEXT + max(peak(dataclasses.replace(TRIAL, arch=c.arch)) for c in CANDIDATES)
    return Packing(int((scenario.memory + 0.5) * largest / 0.9), level)


def ours(scenario: Scenario, seed: int) -> tuple[float, int]:
    """(seconds, level chosen) of a study that measures first."""
    rng = random.Random(1000 + seed)
    packing = packing_of(scenario, MOST)
    spent = scenario.start + PREPARING

    def measure(level: int) -> float:
        nonlocal spent
        spent += SECONDS + 2 * MARGIN
        return scenario.speed(level) * rng.gauss(1.0, NOISE)

    packing.level = choose_level(min(MOST, packing.room(TRIAL)), measure).level
    return spent + train(scenario, packing, packing.level, seed), packing.level


def compare(scenario: Scenario, repeats: int) -> tuple[float, int, float, list[int]]:
    """(best fixed level's mean seconds, that level, our mean seconds, our levels)."""
    fixed = {}
    for level in range(1, MOST + 1):
        times = [train(scenario, packing_of(scenario, level), 0, s) for s in range(repeats)]
        fixed[level] = statistics.mean(times)
    best = min(fixed, key=lambda level: fixed[level])
    mine = [ours(scenario, seed) for seed in range(repeats)]
    return fixed[best], best, statistics.mean(t for t, _ in mine), sorted(n for _, n in mine)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5, help="studies per scenario")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    worst = 0.0
    print(f"{'':<58}{'best fixed':>14}{'measured first':>22}{'ratio':>8}")
    for scenario in scenarios():
        best, level, mine, levels = compare(scenario, args.repeats)
        worst = max(worst, mine / best)
        chosen = f"{levels[0]}" if levels[0] == levels[-1] else f"{levels[0]}-{levels[-1]}"
        print(
            f"{scenario!s:<58}{best:>8.0f} s ({level}){mine:>16.0f} s ({chosen})"
            f"{mine / best:>8.2f}",
            flush=True,
        )
    print(f"worst ratio, at most {TARGET}:")
    print(f"{worst:.3f}")
    return int(args.check and worst > TARGET)


if __name__ == "__main__":
    sys.exit(main())
