"""The same jobs through Ray Tune with reused actors, on this machine or a cluster. The only file
that imports ray.

One Tune experiment lasts as long as the executor, in a thread: its searcher hands over what the
driver gives and its results come back through a queue, so that the driver stays in the main thread,
Optuna the one record, and actors warm.
"""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

# Tune would otherwise catch Ctrl-C, change into a folder per trial, log each result thrice and
# phone home.
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = (
    "86400"  # the store is the record, not Tune's own copy of it
)
os.environ["TUNE_FORCE_TRIAL_CLEANUP_S"] = "20"
os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_AUTO_CONNECT"] = (
    "0"  # Tune's thread must not start a Ray anew behind the driver's back
)
# A Ray started here listens on 127.0.0.1 alone: without this it resolves a loopback address to the
# machine's own.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import numpy as np
import ray
import torch
from ray import tune
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from scaling_search import UserError
from scaling_search.data.dataset import Dataset
from scaling_search.driver.devices import Machine, check_numbers, describe, highest
from scaling_search.driver.executors.local import Train, cores
from scaling_search.driver.executors.protocol import Driver, Job
from scaling_search.training import checkpoint
from scaling_search.training.train import run
from scaling_search.training.trial import Epoch, Outcome, Pulse, Trial
from scaling_search.training.watchdog import watched

_POLL = 0.2  # s: how late a signal or the end of the time given is noticed
_ANSWER = 0.1  # s that Tune waits for the driver's next job
_PULSES = 5.0  # s between two results of Tune's: each costs its driver some milliseconds
_GRACE = 20.0  # s that runs have to write their checkpoints; Ray itself may be gone
_BOOTS = 10  # actors in a row that end before they begin: then it is the cluster
_EMPTY = (
    120.0  # s without a node that could train, before the study stops; a cluster may be growing one
)
_LOOKS = 2.0  # s between two looks at the cluster
_CLOSES = 5.0  # s that Tune has to end by itself
_SWITCH = (
    5e-5  # s that the store may keep Python's lock while Tune waits for it (Python's own: 0.005)
)
_FRACTIONS = 10_000  # of a GPU: Ray rounds to the nearest, and six of 0.1667 would be more than one
_SLIVER = 0.01  # of a GPU, for a task that looks at it
_DESCRIBES = (
    120.0  # s that a node has to say what it trains with; a busy GPU has no sliver to spare
)
_CHECKS = 300.0  # s that it has where it first checks the numbers of its card
_ARRAYS = ("train_images", "train_labels", "train_hashes", "test_images", "test_labels")


class _Trainable(tune.Trainable):
    """A step ends with an epoch, the outcome or a pulse; the actor stays for the next trial.

    Trials and results travel as JSON text, since Tune flattens and copies dictionaries."""

    def setup(
        self, config: dict[str, Any], data: Dataset | None = None, train: Train = run
    ) -> None:
        self._data, self._train = data, train
        self._spoiled = False
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        if self._spoiled:  # Tune ends this actor; returning False would halt the experiment
            raise RuntimeError("the run before this one has spoiled the process")
        trial = self._trial = Trial.from_dict(json.loads(new_config["trial"]))
        self._failure = ""
        try:
            if self._data is None or self._data.digest != trial.data_digest:
                self._data = Dataset.open(Path(trial.data_folder))
            self._events: Iterator[Epoch | Outcome | Pulse] = self._train(trial, self._data)
        except (UserError, OSError) as error:
            self._failure = str(error)
        return True

    def step(self) -> dict[str, Any]:
        if self._failure:
            return {"failure": self._failure, "done": True}
        begun, result = time.monotonic(), dict[str, Any]()
        try:
            with watched():
                for event in self._events:
                    if isinstance(event, Outcome):
                        self._spoiled = event.spoils_its_process
                        return {**result, "outcome": json.dumps(event.as_dict()), "done": True}
                    if isinstance(event, Epoch):
                        result["epoch"] = json.dumps(asdict(event))
                        if (
                            event.epoch < self._trial.epochs
                        ):  # else the outcome follows at once: one result for both
                            break
                    elif time.monotonic() - begun > _PULSES:
                        break
        except (
            UserError,
            OSError,
        ) as error:  # a full disk, vanished data: every run would fail alike
            return {"failure": str(error), "done": True}
        return result or {"pulse": True}

    def cleanup(self) -> None:
        """Told to stop, between two steps: the run writes its checkpoint."""
        if not self._failure:
            with suppress(OSError):
                self._events.close()  # type: ignore[attr-defined]  # a generator


class _Exchange(Searcher, tune.Stopper):
    """Between Tune's thread and the driver's: jobs one way, what became of them the other.

    `sharing`: how many trainings share a GPU. A deadline is of a run's own time, so it is so many
    times longer; the rate of a run that shares would be its neighbours', and is 0.0 on record."""

    def __init__(self, sharing: int = 1) -> None:
        Searcher.__init__(self, metric="done", mode="max")
        self.sharing = sharing
        self.jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self.events: queue.SimpleQueue[tuple[Job, Epoch | Outcome | str]] = queue.SimpleQueue()
        self.failure: str | None = None
        self.stopping = False
        self._live: dict[str, Job] = {}
        self._result_pending = False  # whether the driver has yet to answer an outcome
        self.begun: set[str] = set()
        self.boots = 0
        self._spoiled = 0  # actors that refuse their next run

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        if self.stopping or self.failure:
            return Searcher.FINISHED
        # The driver answers an outcome with the next job, milliseconds later: without waiting for
        # it, Tune would look again only after its next event, a tenth of a second away; with
        # nothing else to attend to, after a second.
        wait = _POLL if not self._live else _ANSWER if self._result_pending else 0.0
        self._result_pending = False
        try:
            job = self.jobs.get(timeout=wait)
        except queue.Empty:
            return None
        self._live[trial_id] = job
        trial = job.trial
        if trial.deadline is not None:
            trial = replace(trial, deadline=self.sharing * trial.deadline)
        return {"trial": json.dumps(trial.as_dict())}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if "epoch" in result:
            self.events.put((self._live[trial_id], Epoch(**json.loads(result["epoch"]))))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        job = self._live.pop(trial_id)
        if (
            result and "epoch" in result and "outcome" in result
        ):  # the last result alone, which Tune tells here only
            self.events.put((job, Epoch(**json.loads(result["epoch"]))))
        if result and "failure" in result:
            self.failure = result["failure"]
        elif result and "outcome" in result:
            outcome = Outcome.from_dict(json.loads(result["outcome"]))
            self._spoiled += outcome.spoils_its_process
            if self.sharing > 1:
                outcome = replace(outcome, images_per_s=0.0)
            self.events.put((job, outcome))
            self._result_pending = True
        elif self._spoiled and trial_id not in self.begun and not self.stopping:
            self._spoiled -= 1
            self.jobs.put(job)  # for a new actor; nothing of the run has happened
        elif not self.stopping:  # else Tune has stopped it: it goes on another time
            begun = trial_id in self.begun
            self.events.put(
                (
                    job,
                    f"{'worker lost' if begun else 'lost before it began'}: its Ray actor or node ended",
                )
            )
            self.boots += not begun
        self.begun.discard(trial_id)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.stopping or self.failure is not None

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles the experiment, to restore it one day; the driver's side stays with the
        driver."""
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Exchange:
        return self

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the store is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class _Starts(tune.Callback):
    """Tells an actor that was lost in the middle of a run from one that never took it up."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._exchange.begun.add(trial.trial_id)
        self._exchange.boots = 0

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self._exchange.boots >= _BOOTS:
            reason = (str(trial.get_error() or "").strip().splitlines() or ["no reason given"])[-1]
            self._exchange.failure = (
                f"{_BOOTS} Ray actors in a row ended before they began, the last: {reason}"
            )


class RayExecutor:
    """`address`: of a running cluster, `auto` for the one that this machine belongs to; None starts
    a Ray of this machine's own, which listens on 127.0.0.1, with its GPUs `devices` (None: all).
    `per_gpu` trainings share a GPU where `workers` does not say. Raises UserError where there is
    none, or its nodes do not see `checkpoints`."""

    def __init__(
        self,
        workers: int | None,
        device: str,
        threads: int,
        folder: Path,
        digest: str,
        checkpoints: str,
        address: str | None = None,
        *,
        devices: tuple[int, ...] | None = None,
        per_gpu: int = 1,
        train: Train = run,
    ) -> None:
        self._threads, self._cuda = threads, device == "cuda"
        self._folder = tempfile.TemporaryDirectory(
            prefix="scaling-search-tune-", ignore_cleanup_errors=True
        )
        self._exchange = _Exchange()
        self._thread: threading.Thread | None = None
        self._switch = sys.getswitchinterval()
        self._last_usable_node_seen = 0.0  # time.monotonic() at which a node could train
        self._next_look = 0.0  # at the cluster's nodes
        try:
            if address is None:
                room = workers or max(1, cores() // threads)
                start_local(max(threads * room, 1), devices if self._cuda else ())
            else:
                connect(address)
        except UserError:
            self._folder.cleanup()
            raise
        gpus = cluster_gpus()
        try:
            if self._cuda and not gpus:
                raise UserError(
                    "--device cuda: no node of this Ray cluster has a GPU; use --device cpu"
                )
            self.workers = workers or (per_gpu * gpus if self._cuda else self._room())
            sharing = math.ceil(self.workers / gpus) if self._cuda else 1
            # On CUDA the cards are the limit: a training launches one graph a step, and its CPU
            # waits.
            self._share = {"cpu": float(threads), "gpu": 0.0}
            if self._cuda:
                self._share = {"cpu": 0.0, "gpu": math.floor(_FRACTIONS / sharing) / _FRACTIONS}
            data = self._data(folder, digest, checkpoints) if address else None
        except BaseException:
            self.close()
            raise
        self._sharing = self._exchange.sharing = sharing
        self._trainable = tune.with_resources(
            tune.with_parameters(_Trainable, data=data, train=train), self._share
        )

    def _room(self) -> int:
        return max(1, int(ray.cluster_resources().get("CPU", 1)) // self._threads)

    def _data(self, folder: Path, digest: str, checkpoints: str) -> Dataset | None:
        """None where every node sees the data's own folder, and maps it; else the data, for Ray's
        object store."""
        hosts = {
            node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]
        }
        token = checkpoint.leave_token(checkpoints)
        node_of_task: dict[Any, str] = {}
        for node in hosts:
            task = _can_access_data.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            )
            node_of_task[task.remote(str(folder), digest, checkpoints, token)] = node
        all_map_data = True
        without_storage: list[str] = []
        for task, node in node_of_task.items():
            try:
                maps_data, sees_storage = ray.get(task)
            except ray.exceptions.RayTaskError as error:
                raise _unfit_node(hosts[node], error) from None
            except ray.exceptions.RayError:  # the node is gone since
                continue
            all_map_data = all_map_data and maps_data
            if not sees_storage:
                without_storage.append(hosts[node])
        if without_storage:
            names = ", ".join(sorted(without_storage)[:3])
            raise UserError(
                f"--storage {checkpoints}: not seen by {len(without_storage)} of {len(hosts)} nodes "
                f"({names}), and a run that moves between nodes needs its checkpoints: a folder that "
                "all share, or s3://bucket/path"
            )
        if all_map_data:
            return None
        here = Dataset.open(folder)
        arrays: dict[str, Any] = {name: np.asarray(getattr(here, name)) for name in _ARRAYS}
        return replace(here, **arrays)

    def run(self, driver: Driver) -> None:
        live: dict[int, Job] = {}
        while True:
            if driver.over():
                self._stop(_GRACE)
            # one more than there are workers: it waits in line, so that none waits for the driver's
            # disk
            while not self._exchange.stopping and len(live) <= self.workers:
                new_job = driver.ask()
                if new_job is None:
                    break
                live[new_job.number] = new_job
                self._exchange.jobs.put(new_job)
            if not live or (self._exchange.stopping and self._exchange.events.empty()):
                break
            self._start()
            try:
                job, event = self._exchange.events.get(timeout=_POLL)
            except queue.Empty:
                if self._no_usable_node():
                    needs = "a GPU" if self._cuda else f"{self._threads} CPUs"
                    self._exchange.failure = (
                        f"no node of the cluster has had {needs} for {_EMPTY:g} s"
                    )
                if self._exchange.failure:
                    self._stop(_GRACE)
                    raise UserError(
                        f"training stopped: {self._exchange.failure}; mend it, and the same command goes on"
                    ) from None
                continue
            self._last_usable_node_seen = time.monotonic()
            if isinstance(event, Epoch):
                driver.epoch(job, event)
                continue
            del live[job.number]
            if isinstance(event, Outcome):
                driver.outcome(job, event)
            else:
                driver.lost(job, event)
        if self._exchange.stopping:
            self._exchange = _Exchange(
                self._sharing
            )  # the next step of the study, if there is one, starts Tune anew

    def _no_usable_node(self) -> bool:
        """Whether for some time no node has had what one training takes."""
        if time.monotonic() > self._next_look:
            with suppress(
                ray.exceptions.RayError, ConnectionError, RuntimeError
            ):  # the head itself may be gone
                for node in ray.nodes():
                    has = node["Resources"] if node["Alive"] else {}
                    if all(
                        has.get(kind.upper(), 0.0) >= share for kind, share in self._share.items()
                    ):
                        self._last_usable_node_seen = time.monotonic()
            self._next_look = time.monotonic() + _LOOKS
        return time.monotonic() - self._last_usable_node_seen > _EMPTY + _LOOKS

    def _start(self) -> None:
        if self._thread is None:
            sys.setswitchinterval(_SWITCH)
            self._last_usable_node_seen = time.monotonic()
            self._thread = threading.Thread(target=self._tune, daemon=True)
            self._thread.start()

    def _stop(self, timeout: float | None = None) -> None:
        self._exchange.stopping = True
        if self._thread is not None:
            self._thread.join(timeout)
            self._thread = None
            sys.setswitchinterval(self._switch)

    def _tune(self) -> None:
        exchange = self._exchange
        tuner = tune.Tuner(
            self._trainable,
            tune_config=tune.TuneConfig(
                search_alg=exchange,
                num_samples=-1,
                max_concurrent_trials=self.workers,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=self._folder.name,
                verbose=0,
                stop=exchange,
                callbacks=[_Starts(exchange)],
                # the runs keep their own checkpoints
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        try:
            tuner.fit()
            why = "it ended"
        except BaseException as error:  # of Tune's own, or a cluster that is gone
            why = f"{type(error).__name__}: {error}"
        if not exchange.stopping:
            exchange.failure = exchange.failure or f"Ray Tune: {why}"

    def close(self) -> None:
        self._stop(_CLOSES)
        disconnect()
        self._folder.cleanup()


def connect(address: str) -> None:
    """Connect to a running cluster; once connected, return at once. Raises UserError."""
    if ray.is_initialized():
        return
    try:
        _check_reachable(address)
        _init(address)
    except (OSError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, error) from None


def start_local(cpus: int, devices: tuple[int, ...] | None) -> None:
    """Start a Ray of this machine's own, with its GPUs `devices` (None: all). Raises UserError."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if devices is None:
        devices = tuple(range(torch.cuda.device_count()))
    elif devices:
        known = (
            visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
        )
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(known[i] for i in devices)
    try:
        # counted by torch, as for local workers: Ray asks the driver's tools, which may count
        # otherwise
        _init("local", num_cpus=cpus, num_gpus=len(devices), include_dashboard=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise _no_cluster(None, error) from None
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


def _no_cluster(address: str | None, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0]
    return UserError(
        f"--ray-address {address}: {reason}; start a cluster with ray start --head (one that asks for a token: "
        "export RAY_AUTH_MODE=token), or leave the option out"
    )


def disconnect() -> None:
    """End the connection, and a Ray of this machine's own with it; without one this does
    nothing."""
    ray.shutdown()


def cluster_gpus() -> int:
    """How many GPUs the nodes of the connected cluster have."""
    return int(ray.cluster_resources().get("GPU", 0))


def resolve_on_cluster(address: str, device: str, devices: tuple[int, ...] | None = None) -> str:
    """`cpu` or `cuda` for `cpu`, `cuda` or `auto` on a cluster: CUDA where a node of it has a GPU.

    Raises UserError where there is no cluster, it has no GPU, or single cards are asked for."""
    if devices is not None:
        raise UserError(
            f"--device cuda:{devices[0]}: Ray hands out the cards of a cluster; use --device cuda, "
            "and --workers for fewer at a time"
        )
    connect(address)
    gpus = cluster_gpus()
    if device == "cuda" and not gpus:
        raise UserError("--device cuda: no node of this Ray cluster has a GPU; use --device cpu")
    if device == "auto":
        return "cuda" if gpus else "cpu"
    return device


def describe_cluster(address: str, device: str, threads: int, check: bool = False) -> Machine:
    """What the nodes that can train on `device` (cpu or cuda) train with; the memory of the
    smallest GPU, the cards of one node being taken for alike. `check`: each node first checks its
    card's numbers.

    A node that is busy for `_DESCRIBES` seconds, or lost, is left out: where none answers, this
    machine stands for them, without a memory. Raises UserError where nodes have other kernels than
    one another, or torch cannot use a node's GPU."""
    connect(address)
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
    machines = _machines_in_time(node_of_task, hosts, patience)
    if not machines:
        return describe(device) if device == "cpu" else Machine("torch")
    for name, machine in machines:
        if machine.problem:
            raise UserError(
                f"--device cuda: on node {name}, {machine.problem}, or use --device cpu"
            )
    first, common = machines[0]
    smallest = min((machine for _, machine in machines), key=lambda machine: machine.memory)
    if device == "cuda":  # plain modules are everywhere, Triton's kernels where all may use them
        kernels = (
            "triton" if all(machine.kernels == "triton" for _, machine in machines) else "torch"
        )
        warnings = tuple(
            f"{name}, {text}" for name, machine in machines for text in machine.warnings
        )
        precision = highest(machine.precision for _, machine in machines)
        missing = [f"node {name}: {m.why_no_kernels}" for name, m in machines if m.why_no_kernels]
        failed = [f"node {name}, {m.triton_failure}" for name, m in machines if m.triton_failure]
        return replace(
            smallest,
            kernels=kernels,
            why_no_kernels=missing[0] if missing else "",
            precision=precision,
            warnings=warnings,
            triton_failure=failed[0] if failed else "",
        )
    for name, machine in machines[1:]:
        if machine.kernels != common.kernels:
            reason = common.why_no_kernels or machine.why_no_kernels
            raise UserError(
                f"--ray-address: node {first} has the kernels of {common.kernels}, node {name} those of "
                f"{machine.kernels}{f' ({reason})' if reason else ''}, and their last bits differ; "
                "install the same packages on every node"
            )
    return smallest


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
            raise _unfit_node(name, error) from None
        except ray.exceptions.RayError:  # the node is gone since
            continue
    return machines


def _unfit_node(name: str, error: Exception) -> UserError:
    """Not installed there, or another release."""
    reason = str(error).strip().splitlines()[-1]
    return UserError(
        f"--ray-address: node {name} cannot train: {reason}; install this release on every node"
    )


@ray.remote(num_cpus=0)
def _describe_node(device: str, check: bool) -> Machine:
    machine = describe(device)
    return check_numbers(machine) if check and not machine.problem else machine


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes. Raises OSError, ValueError."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("wanted is auto or HOST:PORT")
    socket.create_connection((host, int(port)), timeout=5).close()


@ray.remote(num_cpus=0)
def _can_access_data(folder: str, digest: str, checkpoints: str, token: str) -> tuple[bool, bool]:
    """Whether a node has this data set in the same place, and sees what the driver left in
    `checkpoints`."""
    try:
        maps_data = Dataset.open(Path(folder)).digest == digest
    except UserError:
        maps_data = False
    return maps_data, checkpoint.has_token(checkpoints, token)
