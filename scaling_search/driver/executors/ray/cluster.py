"""A Ray cluster: connecting to it, and what its nodes have, see and train with."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from effnet.messages import first_line, last_line
from scaling_search import UserError
from scaling_search.data.dataset import Dataset
from scaling_search.driver.devices import Machine, check_numbers, describe, highest
from scaling_search.training import checkpoint

_SLIVER = 0.01  # of a GPU, for a task that looks at it
# s that a node has to say what it trains with; a busy GPU has no sliver to spare
_DESCRIBES = 120.0
_CHECKS = 300.0  # s that it has where it first checks the numbers of its card


# ---- connecting


def connect(address: str) -> None:
    """Connect to a running cluster; once connected, return at once. Raises UserError."""
    if ray.is_initialized():
        return
    try:
        _check_reachable(address)
        _init(address)
    except (OSError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, error) from error


def start_local(cpus: int, devices: tuple[int, ...] | None) -> None:
    """Start a Ray of this machine's own, with its GPUs `devices` (None: all). Raises UserError."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if devices is None:
        devices = tuple(range(torch.cuda.device_count()))
    elif devices:
        known = [str(i) for i in range(torch.cuda.device_count())]
        if visible:
            known = visible.split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(known[i] for i in devices)
    try:
        # counted by torch, as for local workers: Ray asks the driver's tools, which may count
        # otherwise
        _init("local", num_cpus=cpus, num_gpus=len(devices), include_dashboard=False)
    except Exception as error:  # a node that takes longer than 30 s to start is a bare Exception
        # the commonest cause: its sockets lie there, and a socket's path has 107 bytes at most
        raise UserError(
            f"Ray cannot start on this machine: {first_line(error)}; its files lie under TMPDIR "
            f"({tempfile.gettempdir()}), which must be short and writable; --executor local needs "
            "no Ray"
        ) from error
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        if visible is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible


def _init(address: str, **options: Any) -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Tune's tracebacks of trials that were lost; the driver says so, and starts them again
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    on_term = signal.getsignal(signal.SIGTERM)
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_term)  # Ray has put its own there, which leaves at once


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes. Raises OSError, ValueError."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("wanted is auto or HOST:PORT")
    socket.create_connection((host, int(port)), timeout=5).close()


def _no_cluster(address: str, error: Exception) -> UserError:
    return UserError(
        f"--ray-address {address}: {first_line(error)}; start a cluster with ray start --head (one "
        "that asks for a token: export RAY_AUTH_MODE=token), or leave the option out"
    )


def disconnect() -> None:
    """End the connection, and a Ray of this machine's own with it; without one this does
    nothing."""
    ray.shutdown()


# ---- what a cluster has


def count_gpus() -> int:
    """How many GPUs the nodes of the connected cluster have."""
    return int(ray.cluster_resources().get("GPU", 0))


def count_cpus() -> int:
    """How many CPUs the nodes of the connected cluster have."""
    return int(ray.cluster_resources().get("CPU", 1))


def resolve_on_cluster(address: str, device: str, devices: tuple[int, ...] | None = None) -> str:
    """`cpu` or `cuda` for `cpu`, `cuda` or `auto` on a cluster: CUDA where a node of it has a GPU.

    Raises UserError where there is no cluster, it has no GPU, or single cards are asked for."""
    if devices is not None:
        raise UserError(
            f"--device cuda:{devices[0]}: Ray hands out the cards of a cluster; use --device cuda, "
            "and --workers for fewer at a time"
        )
    connect(address)
    gpus = count_gpus()
    if device == "cuda" and not gpus:
        raise UserError("--device cuda: no node of this Ray cluster has a GPU; use --device cpu")
    if device == "auto":
        return "cuda" if gpus else "cpu"
    return device


def describe_cluster(address: str, device: str, threads: int, check: bool = False) -> Machine:
    """Describe what the nodes that can train on `device` (cpu or cuda) train with. The memory is
    the smallest GPU's; the cards of one node are taken for alike. `check`: each node first checks
    its card's numbers.

    A node that is busy for `_DESCRIBES` seconds, or lost, is left out: where none answers, this
    machine stands for them, without a memory. Raises UserError where nodes have other kernels than
    one another, or torch cannot use a node's GPU."""
    connect(address)
    machines = _describe_nodes(device, threads, check)
    if not machines:
        return describe(device) if device == "cpu" else Machine("torch")
    for name, machine in machines:
        if machine.problem:
            raise UserError(
                f"--device cuda: on node {name}, {machine.problem}, or use --device cpu"
            )
    if device == "cuda":
        return _common_gpu(machines)
    _check_same_kernels(machines)
    return machines[0][1]


def _describe_nodes(device: str, threads: int, check: bool) -> list[tuple[str, Machine]]:
    """(host, what it trains with) of each node that can train and answers in time."""
    kind, least = ("GPU", 1) if device == "cuda" else ("CPU", threads)
    hosts: dict[str, str] = {}
    node_of_task: dict[Any, str] = {}
    for node in ray.nodes():
        if not node["Alive"] or node["Resources"].get(kind, 0) < least:
            continue
        hosts[node["NodeID"]] = node["NodeManagerHostname"]
        task = _describe_node.options(
            num_gpus=_SLIVER if device == "cuda" else 0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        node_of_task[task.remote(device, check)] = node["NodeID"]
    patience = _CHECKS if check else _DESCRIBES
    return _machines_in_time(node_of_task, hosts, patience)


def _common_gpu(machines: Sequence[tuple[str, Machine]]) -> Machine:
    """Return what all nodes' GPUs can do: the smallest memory, the precision that takes most,
    Triton's kernels where every node may use them; plain modules are everywhere."""
    every = [machine for _, machine in machines]
    smallest = min(every, key=lambda machine: machine.memory)
    kernels = "triton"
    warnings: list[str] = []
    why_no_kernels = triton_failure = ""  # of the first node that has one
    for name, machine in machines:
        if machine.kernels != "triton":
            kernels = "torch"
        warnings += [f"{name}, {text}" for text in machine.warnings]
        if machine.why_no_kernels and not why_no_kernels:
            why_no_kernels = f"node {name}: {machine.why_no_kernels}"
        if machine.triton_failure and not triton_failure:
            triton_failure = f"node {name}, {machine.triton_failure}"
    return replace(
        smallest,
        kernels=kernels,
        why_no_kernels=why_no_kernels,
        precision=highest(machine.precision for machine in every),
        warnings=tuple(warnings),
        triton_failure=triton_failure,
    )


def _check_same_kernels(machines: Sequence[tuple[str, Machine]]) -> None:
    """Raises UserError where a node's CPU kernels are not the first one's."""
    first, common = machines[0]
    for name, machine in machines[1:]:
        if machine.kernels == common.kernels:
            continue
        reason = common.why_no_kernels or machine.why_no_kernels
        because = f" ({reason})" if reason else ""
        raise UserError(
            f"--ray-address: node {first} has the kernels of {common.kernels}, node {name} those "
            f"of {machine.kernels}{because}, and their last bits differ; install the same packages "
            "on every node"
        )


def _machines_in_time(
    node_of_task: dict[Any, str], hosts: dict[str, str], patience: float
) -> list[tuple[str, Machine]]:
    """(host, what it trains with) of the nodes that answer within `patience` seconds.

    Raises UserError where a node lacks this release."""
    if not node_of_task:
        return []
    tasks = list(node_of_task)
    ready, late = ray.wait(tasks, num_returns=len(tasks), timeout=patience)
    for reference in late:
        ray.cancel(reference, force=True)
    machines = []
    for reference in ready:
        name = hosts[node_of_task[reference]]
        try:
            machines.append((name, ray.get(reference)))
        except ray.exceptions.RayTaskError as error:
            raise _unfit_node(name, error) from error
        except ray.exceptions.RayError:  # the node is gone since
            continue
    return machines


def _unfit_node(name: str, error: Exception) -> UserError:
    """Not installed there, or another release."""
    reason = last_line(str(error))
    return UserError(
        f"--ray-address: node {name} cannot train: {reason}; install this release on every node"
    )


@ray.remote(num_cpus=0)
def _describe_node(device: str, check: bool) -> Machine:
    machine = describe(device)
    return check_numbers(machine) if check and not machine.problem else machine


# ---- what its nodes see of a study's files


def check_access(folder: Path, digest: str, checkpoints: str) -> bool:
    """Whether every node sees the data set `digest` in its own `folder`, and so can map it.

    Raises UserError where a node does not see `checkpoints`, or lacks this release."""
    hosts: dict[str, str] = {}
    for node in ray.nodes():
        if node["Alive"]:
            hosts[node["NodeID"]] = node["NodeManagerHostname"]
    token = checkpoint.leave_token(checkpoints)
    node_of_task: dict[Any, str] = {}
    for node in hosts:
        task = _can_access.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        )
        node_of_task[task.remote(str(folder), digest, checkpoints, token)] = node
    all_see_data = True
    without_storage: list[str] = []
    for task, node in node_of_task.items():
        try:
            sees_data, sees_storage = ray.get(task)
        except ray.exceptions.RayTaskError as error:
            raise _unfit_node(hosts[node], error) from error
        except ray.exceptions.RayError:  # the node is gone since
            continue
        all_see_data = all_see_data and sees_data
        if not sees_storage:
            without_storage.append(hosts[node])
    if without_storage:
        names = ", ".join(sorted(without_storage)[:3])
        raise UserError(
            f"--storage {checkpoints}: not seen by {len(without_storage)} of {len(hosts)} nodes "
            f"({names}), and a run that moves between nodes needs its checkpoints: a folder that "
            "all share, or s3://bucket/path"
        )
    return all_see_data


@ray.remote(num_cpus=0)
def _can_access(folder: str, digest: str, checkpoints: str, token: str) -> tuple[bool, bool]:
    """Whether a node has this data set in the same place, and sees what the driver left in
    `checkpoints`."""
    try:
        sees_data = Dataset.open(Path(folder)).digest == digest
    except UserError:
        sees_data = False
    return sees_data, checkpoint.has_token(checkpoints, token)
