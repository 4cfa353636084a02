"""Where runs happen. An executor pulls jobs from a driver and pushes what they report, until there
is none left."""

from __future__ import annotations

from pathlib import Path

from scaling_search.data.dataset import Facts
from scaling_search.driver.executors.protocol import Executor
from scaling_search.driver.place import Place
from scaling_search.study.settings import Study


def open_executor(
    place: Place,
    study: Study,
    data: Facts,
    checkpoints: str,
    *,
    per_gpu: int = 1,
    log_file: Path | None = None,
) -> Executor:
    """The executor that `place` names; only that one is imported.

    `per_gpu`: how many trainings share a GPU under Ray where `place.workers` does not say;
    `log_file`: where what workers write to stderr is kept. Raises UserError."""
    if place.executor == "ray":
        from scaling_search.driver.executors.ray import RayExecutor

        return RayExecutor(
            place.workers,
            study.device,
            study.threads,
            Path(data.folder),
            data.digest,
            checkpoints,
            place.ray_address,
            devices=place.devices,
            per_gpu=per_gpu,
        )
    from scaling_search.driver.executors.local import open_local

    return open_local(place.workers, study.device, study.threads, place.devices, log_file)
