"""Where runs happen. An executor pulls jobs from a driver and pushes what they report, until there
is none left."""

from __future__ import annotations

from pathlib import Path

from scaling_search.data.dataset import Facts
from scaling_search.driver.executors.protocol import Executor


def open_executor(
    kind: str,
    workers: int | None,
    device: str,
    threads: int,
    data: Facts,
    checkpoints: str,
    address: str | None = None,
    *,
    devices: tuple[int, ...] | None = None,
    per_gpu: int = 1,
) -> Executor:
    """`local` or `ray`; only the chosen one is imported.

    `workers`: None for as many as the machine or the cluster has cores (or GPUs) for; `address`: of
    a running Ray; `devices`: of this machine's GPUs, these alone; `per_gpu`: how many trainings
    share a GPU under Ray where `workers` does not say. Raises UserError."""
    if kind == "ray":
        from scaling_search.driver.executors.ray import RayExecutor

        return RayExecutor(
            workers,
            device,
            threads,
            Path(data.folder),
            data.digest,
            checkpoints,
            address,
            devices=devices,
            per_gpu=per_gpu,
        )
    from scaling_search.driver.executors.local import open_local

    return open_local(workers, device, threads, devices)
