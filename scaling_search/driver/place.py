"""Where a study runs: this machine or a Ray cluster, with which device and kernels, and what is to
be said of it before the first run."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from scaling_search import UserError
from scaling_search.driver import devices
from scaling_search.driver.console import say
from scaling_search.driver.devices import Machine
from scaling_search.results.store import Store
from scaling_search.study.plan import Plan
from scaling_search.study.settings import Study

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a study runs and what it writes to: no part of its identity. None: this machine, the
    run folder."""

    executor: str = "local"
    workers: int | None = None
    ray_address: str | None = None
    devices: tuple[int, ...] | None = None  # of this machine's GPUs, these alone; None: every one
    check: bool = True  # the numbers of a GPU, once per machine and torch release
    # of checkpoints: a folder that all nodes share, or an address such as s3://bucket/path
    storage: str | None = None
    store: str | None = None  # postgresql://...


def resolve_device(study: Study, place: Place, console: Console) -> str:
    """`cpu` or `cuda`: of this machine or, with a Ray address, of that cluster.

    Raises UserError for a device that is not there."""
    if place.ray_address is not None:
        from scaling_search.driver.executors.ray import resolve_on_cluster

        return resolve_on_cluster(place.ray_address, study.device, place.devices)
    device, note = devices.resolve(study.device, place.devices)
    if note:
        say(console, "note", note)
    return device


def examine_machine(study: Study, todo: Plan, place: Place, console: Console) -> Machine:
    """Return what trains the study: this machine, or the nodes of its cluster. Warns of what is
    slow or does not fit. Raises UserError where nothing could be trained."""
    check_numbers = study.device == "cuda" and place.check
    wait = "looking at the devices"
    if check_numbers:
        wait = "checking the numbers of each kind of GPU (once; it is remembered)"
    with console.status(wait):
        machine = _describe(study, place, check_numbers)
    if study.device == "cuda" and not place.check:
        # Triton's kernels are for where they are known to agree with plain modules
        machine = replace(machine, kernels="torch")
    if study.baseline.function is not None:
        # our kernels know our modules, not those of a function
        machine = replace(machine, kernels="torch")
        note = "a function's modules train as torch runs them, without kernels of ours"
        say(console, "note", note)
        _say_failed_checks(machine, console)
    else:
        _say_what_is_wrong(study, machine, place, console)
    if machine.memory:
        networks = [c.arch for c in todo.everything]
        note = devices.check_memory(study, networks, machine)
        if note:
            say(console, "note", note)
    return machine


def _describe(study: Study, place: Place, check_numbers: bool) -> Machine:
    if place.ray_address is not None:
        from scaling_search.driver.executors.ray import describe_cluster

        return describe_cluster(place.ray_address, study.device, study.threads, check_numbers)
    machine = devices.describe(study.device, place.devices)
    if check_numbers:
        machine = devices.check_numbers(machine, place.devices)
    return machine


def _say_failed_checks(machine: Machine, console: Console) -> None:
    for warning in machine.warnings:
        logger.warning("a check of this machine's numbers failed: %s", warning)
        say(console, "check", f"FAIL {warning}; scaling-search check says more")


def _say_what_is_wrong(study: Study, machine: Machine, place: Place, console: Console) -> None:
    _say_failed_checks(machine, console)
    if study.device == "cuda" and machine.kernels == "torch":
        reason, remedy = _why_no_triton(machine, place)
        say(console, "note", f"{reason}: plain modules train; {remedy}, before the first run")
    if study.device == "cpu" and machine.why_no_kernels:
        say(
            console,
            "note",
            f"numba cannot be imported ({machine.why_no_kernels}): plain modules train, 2 to 5 "
            "times slower on a CPU; pip install numba, before the first run",
        )


def _why_no_triton(machine: Machine, place: Place) -> tuple[str, str]:
    """Why plain modules train a study on CUDA, and what would change that."""
    if machine.why_no_kernels:
        return f"Triton cannot be imported ({machine.why_no_kernels})", "pip install triton"
    if not place.check:
        return "Triton's kernels are not checked, for --no-check", "leave --no-check out"
    if machine.triton_failure:
        reason = f"Triton's kernels are not used, since a check failed ({machine.triton_failure})"
        return reason, "see scaling-search check"
    return "Triton's kernels are not checked, for no node has answered", "wait until a GPU is idle"


def agree_on_kernels(
    store: Store, study: Study, folder: Path, machine: Machine, place: Place
) -> str:
    """The kernels of every run of this study, recorded when its first run is about to begin.

    Raises UserError where its runs so far were trained with others: their last bits differ."""
    recorded = store.fact("kernels")
    if recorded is None or not store.records():  # nothing was trained yet
        recorded = machine.kernels
        store.set_fact("kernels", recorded)
    plain_on_cuda = study.device == "cuda" and recorded == "torch"  # which every machine has
    if recorded == machine.kernels or plain_on_cuda:
        return str(recorded)
    reason, remedy = machine.why_no_kernels, f"go on where {recorded}'s are"
    if study.device == "cuda" and machine.kernels == "torch":
        reason, remedy = _why_no_triton(machine, place)
    because = f" ({reason})" if reason else ""
    raise UserError(
        f"run folder {folder} was trained with the kernels of {recorded}, here they are those of "
        f"{machine.kernels}{because}, whose last bits differ: {remedy}, or choose another folder "
        "with --out"
    )


def trainings_per_gpu(study: Study, todo: Plan, machine: Machine | None) -> int:
    """How many trainings share a GPU under Ray, which counts by fractions, when nobody says.

    At most 2, unmeasured: without MPS, processes take turns on a card, and while two fill each
    other's gaps, more wait for one another and each takes memory."""
    if machine is None or not machine.memory:
        return 1
    return devices.trainings_per_gpu(study, [c.arch for c in todo.everything], machine, 2)
