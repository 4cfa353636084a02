"""What a driver costs: seconds that 1,000 runs take when the training takes none.

    python benchmarks/overhead.py [--runs 1000] [--rounds 3] [--check]

Here: every run started, reported, recorded and told through this project's driver, store and
executor (two workers). Beside it: plain Optuna doing the same (ask, three suggestions, report,
tell) on SQLite, and plain Ray Tune with reused actors, two at a time. Medians of several rounds, in
one process after the other, on one disk. Then a study of 10,000 recorded runs is opened, and the
driver's memory is read as runs are added. The last line is the worst ratio to a peer.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scaling_search.data.dataset import CacheWriter, Dataset
from scaling_search.driver.dispatch import Training
from scaling_search.driver.executors.protocol import Executor
from scaling_search.results.record import Run
from scaling_search.results.store import Store
from scaling_search.study.plan import plan
from scaling_search.study.settings import check
from scaling_search.training.trial import Epoch, Outcome, Pulse, Trial

_FACTS = {"settings": {}, "data": "none"}


def trivial(trial: Trial, data: Dataset) -> Iterator[Epoch | Outcome | Pulse]:
    """A training that takes no time."""
    epoch = Epoch(1, 1.0, 1.0, 0.5, 0.0)
    yield epoch
    yield Outcome("done", (epoch,), "ff" * 190, seconds=0.1, images_per_s=1.0)


class _Quiet:
    """A watcher that notes when the first and the last run ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def phase(self, *args: object) -> None: ...
    def started(self, *args: object) -> None: ...
    def epoch(self, *args: object) -> None: ...
    def again(self, *args: object) -> None: ...
    def finished(self, *args: object) -> None:
        self.ends.append(time.perf_counter())


def data() -> Dataset:
    from scaling_search.data import shapes

    with CacheWriter(Path(tempfile.mkdtemp()) / "shapes") as writer:
        return writer.commit(
            "shapes", "generated", shapes.CLASSES, *shapes.generate(200, 0), shapes.generate(50, 1)
        )


def ours(runs: int, images: Dataset, executor: Executor) -> float:
    """Seconds a run, from the first outcome to the last: starting workers is not counted."""
    study = check({"device": "cpu"}, "benchmark")
    folder = Path(tempfile.mkdtemp())
    watcher = _Quiet()
    networks = plan(study, 10, 64).everything
    wanted = [Run(c, seed, 1) for seed in range(-(-runs // len(networks))) for c in networks][:runs]
    store = Store.create(folder / "run", {}, _FACTS)

    def trial(run: Run) -> Trial:
        return Trial(
            arch=run.candidate.arch,
            data_digest=images.digest,
            data_folder=str(images.folder),
            recipe=study.recipe,
            seed=run.seed,
            epochs=run.epochs,
            train_images=None,
            val_images=None,
            device="cpu",
            threads=1,
            checkpoints=str(folder),
        )

    executor.run(Training(store, watcher, wanted, trial, lambda: False))
    store.close()
    executor.close()
    assert len(watcher.ends) == runs
    return (watcher.ends[-1] - watcher.ends[0]) / (runs - 1)


def local(runs: int) -> float:
    from scaling_search.driver.executors.local import LocalExecutor

    return ours(runs, data(), LocalExecutor(2, train=trivial))


def ours_ray(runs: int) -> float:
    from scaling_search.driver.executors.ray import RayExecutor

    images = data()
    return ours(
        runs, images, RayExecutor(2, "cpu", 1, images.folder, images.digest, "", train=trivial)
    )


def plain_optuna(runs: int) -> float:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=f"sqlite:///{tempfile.mkdtemp()}/study.db",
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    began = time.perf_counter()
    for _ in range(runs):
        trial = study.ask()
        for name in ("alpha", "beta", "gamma"):
            trial.suggest_float(name, 0.001, 1000)
        trial.report(0.5, 1)
        study.tell(trial, 0.5)
    return (time.perf_counter() - began) / runs


def plain_ray(runs: int) -> float:
    import logging

    import ray
    from ray import tune

    ends: list[float] = []

    class Nothing(tune.Trainable):
        def setup(self, config: dict[str, float]) -> None: ...
        def step(self) -> dict[str, object]:
            return {"accuracy": 0.5, "done": True}

        def reset_config(self, new_config: dict[str, float]) -> bool:
            return True

    class Ends(tune.Callback):
        def on_trial_complete(self, *args: object, **kwargs: object) -> None:
            ends.append(time.perf_counter())

    kept = tune.CheckpointConfig(checkpoint_at_end=False)
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    tune.Tuner(
        tune.with_resources(Nothing, {"cpu": 1}),
        param_space={"alpha": tune.uniform(0.001, 1000)},
        tune_config=tune.TuneConfig(num_samples=runs, max_concurrent_trials=2, reuse_actors=True),
        run_config=tune.RunConfig(
            storage_path=tempfile.mkdtemp(), verbose=0, callbacks=[Ends()], checkpoint_config=kept
        ),
    ).fit()
    ray.shutdown()
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def rss() -> float:
    """MiB of this process now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def recorded(runs: int) -> float:
    """Seconds to open a study of `runs` recorded runs; prints the driver's memory while they are
    added."""
    study = check({"device": "cpu"}, "benchmark")
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))  # in memory: fsync costs nothing
    networks = plan(study, 10, 64).everything
    store = Store.create(folder, {}, _FACTS)
    outcome = list(trivial(None, None))[-1]  # type: ignore[arg-type]
    memory = {}
    for i in range(runs):
        number = store.start(networks[i % len(networks)], i // len(networks), 1)
        store.epoch(number, outcome.epochs[0])
        store.finish(number, outcome)
        if i + 1 in (runs // 10, runs):
            memory[i + 1] = rss()
    store.close()
    (few, before), (many, after) = memory.items()
    each = 1024 * (after - before) / (many - few)
    print(
        f"driver's memory: {before:.0f} MiB at {few:,} runs, {after:.0f} MiB at {many:,}: "
        f"{each:.1f} KiB a run"
    )
    times = []
    for _ in range(3):
        del store
        gc.collect()
        began = time.perf_counter()
        store = Store.create(folder, {}, _FACTS)
        times.append(time.perf_counter() - began)
        assert len(store.records()) == runs
        store.close()
    return statistics.median(times)


PARTS: dict[str, Callable[[int], float]] = {
    "local": local,
    "optuna": plain_optuna,
    "ours_ray": ours_ray,
    "ray": plain_ray,
    "recorded": recorded,
}


def part(name: str, runs: int) -> float:
    """Seconds a run of the part `name`, measured in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--part", name, "--runs", str(runs)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    *lines, last = done.stdout.strip().splitlines()
    for line in lines:
        if line.startswith("driver's"):
            print(line)
    return float(last)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.part:
        print(PARTS[args.part](args.runs))
        return 0
    rounds = [
        {name: part(name, args.runs) for name in PARTS if name != "recorded"}
        for _ in range(args.rounds)
    ]
    ms = {name: 1000 * statistics.median(r[name] for r in rounds) for name in rounds[0]}
    print(f"{args.runs:,} trivial runs, {args.rounds} rounds, milliseconds of the driver a run")
    print(
        f"local workers {ms['local']:6.1f}   plain Optuna on SQLite            {ms['optuna']:6.1f}"
    )
    print(
        f"Ray Tune      {ms['ours_ray']:6.1f}   plain Ray Tune with reused actors {ms['ray']:6.1f}"
    )
    seconds = part("recorded", 10 * args.runs)
    print(f"a study of {10 * args.runs:,} recorded runs opens in {seconds:.2f} s (at most 2)")
    worst = max(ms["local"] / ms["optuna"], ms["ours_ray"] / ms["ray"])
    verdict = "met" if worst <= 1 else "MISSED"
    print(f"worst ratio to a peer {worst:.2f} (at most 1: {verdict})")
    return int(args.check and (worst > 1 or seconds > 2))


if __name__ == "__main__":
    sys.exit(main())
