"""Before the first run on GPUs of this machine: MPS is started, and how many trainings share each
GPU is measured, or known from before."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from scaling_search.data.dataset import FOLDS, Dataset, Facts
from scaling_search.driver import mps
from scaling_search.driver.console import say
from scaling_search.driver.devices import Machine, cores
from scaling_search.driver.executors.local import LocalExecutor
from scaling_search.driver.packing import MOST, Packing, at_a_time, measuring_pays
from scaling_search.results.store import Store
from scaling_search.study.plan import Plan
from scaling_search.study.settings import Study
from scaling_search.training.trial import Trial

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Workload:
    """The training that a study will do: `runs` runs of `steps` steps at least, most of them much
    like `typical`, a training of the network with the median number of blocks."""

    typical: Trial
    runs: int
    steps: int


def workload(
    study: Study, todo: Plan, data: Facts, kernels: str, checkpoints: str, runs: int
) -> Workload:
    """The study's training that is still to be done.

    `runs` is the number of runs without an outcome; their steps are those of the first rung."""
    networks = [c.arch for c in (*todo.candidates, *todo.pool)] or [todo.baseline.arch]
    networks.sort(key=lambda arch: arch.blocks or 0)
    typical = Trial(
        arch=networks[len(networks) // 2],
        data_digest=data.digest,
        data_folder=data.folder,
        recipe=study.recipe,
        seed=study.seed,
        epochs=study.rungs[0],
        train_images=study.data.train_images,
        epoch_images=study.data.epoch_images,
        val_images=study.data.val_images,
        device=study.device,
        threads=study.threads,
        checkpoints=checkpoints,
        compile=study.compile,
        kernels=kernels,
    )
    images = study.data.epoch_images or study.data.train_images
    if images is None:  # one of the folds validates
        images = len(Dataset.open(Path(data.folder)).train_labels) * (FOLDS - 1) // FOLDS
    return Workload(typical, runs, study.rungs[0] * images // study.recipe.batch)


def settle(
    load: Workload,
    machine: Machine,
    executor: LocalExecutor,
    workers: int | None,
    store: Store,
    over: Callable[[], bool],
    console: Console,
) -> Packing:
    """Return how the GPUs of `machine` are shared.

    With `workers` from the user there are as many on each device as these make, unmeasured; else
    what a measurement says, where one pays, and 1 where none does. Says what it comes to, and keeps
    it in the store: on the same GPUs it holds for later sessions. Leaves early once `over`."""
    devices = len(executor.devices)
    if workers:
        packing = Packing(machine.memory, math.ceil(workers / devices), machine.precision)
        if packing.level > 1:
            _start_mps(executor, console)
        return packing
    packing = Packing(machine.memory, 1, machine.precision)
    # launching keeps a core busy: two trainings can share one, more would wait for it
    most = min(MOST, packing.room(load.typical), max(2, 2 * cores() // devices))
    if most <= 1 or not measuring_pays(load.runs, load.steps, devices):
        return packing
    under_mps = _start_mps(executor, console)
    setting = {"gpu": machine.gpu, "devices": devices, "mps": under_mps}
    recorded = store.fact("packing") or {}
    if all(recorded.get(name) == value for name, value in setting.items()):
        _apply(packing, load.typical, recorded["level"], recorded["peak"])
        say(console, "gpu", f"{at_a_time(packing.level)}, as in an earlier session")
        return packing
    with console.status("measuring how many trainings at a time pay on each device"):
        measured = executor.measure(load.typical, most, over)
    if measured is None:
        return packing
    _apply(packing, load.typical, measured.level, measured.peak)
    if measured.rates:
        store.set_fact("packing", {**setting, **asdict(measured)})
    words = measured.words(under_mps)
    logger.info("%s", words)
    say(console, "gpu", words)
    return packing


def _apply(packing: Packing, typical: Trial, level: int, peak: int) -> None:
    packing.level = level
    packing.record_peak(typical, peak)


def _start_mps(executor: LocalExecutor, console: Console) -> bool:
    """Whether workers that start from now on run under MPS; where it cannot be had, why is said."""
    try:
        server = mps.start()
    except mps.UnavailableError as error:
        say(
            console,
            "gpu",
            f"MPS cannot be started ({error}): trainings on one GPU take turns; where an "
            f"administrator starts it ({mps.CONTROL} -d), they run at the same time",
        )
        return False
    if server is None:
        return mps.is_running()
    executor.use_mps(server)
    return True
