"""The executor: a Tune experiment in a thread, and the driver's side of it."""

from __future__ import annotations

import logging
import math
import queue
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune

from scaling_search import UserError
from scaling_search.data.dataset import ARRAYS, Dataset
from scaling_search.driver.devices import cores
from scaling_search.driver.executors.protocol import GRACE, POLL, Driver, Job
from scaling_search.driver.executors.ray.actor import Trainable
from scaling_search.driver.executors.ray.cluster import (
    check_access,
    connect,
    count_cpus,
    count_gpus,
    disconnect,
    start_local,
)
from scaling_search.driver.executors.ray.exchange import Exchange, Starts
from scaling_search.driver.executors.worker import Train
from scaling_search.training.train import run
from scaling_search.training.trial import Epoch, Outcome

# s without a node that could train, before the study stops; a cluster may be growing one
_EMPTY = 120.0
_LOOKS = 2.0  # s between two looks at the cluster
_CLOSES = 5.0  # s that Tune has to end by itself
# s that the store may keep Python's lock while Tune waits for it (Python's own: 0.005)
_SWITCH = 5e-5
_FRACTIONS = 10_000  # of a GPU: Ray rounds to the nearest, and six of 0.1667 would be more than one

logger = logging.getLogger(__name__)


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
        self._exchange = Exchange()
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
        try:
            sharing = self._share_out(workers, per_gpu)
            data = self._travelling_data(folder, digest, checkpoints) if address else None
        except BaseException:
            self.close()
            raise
        self._exchange.sharing = sharing
        # parameters travel once through the object store, not with every trial
        self._trainable = tune.with_resources(
            tune.with_parameters(Trainable, data=data, train=train), self._share
        )

    def _share_out(self, workers: int | None, per_gpu: int) -> int:
        """Settle how many trainings run at a time, and what each takes of a node. Returns how many
        of them share a GPU."""
        if not self._cuda:
            self.workers = workers or max(1, count_cpus() // self._threads)
            self._share = {"cpu": float(self._threads), "gpu": 0.0}
            return 1
        gpus = count_gpus()
        if not gpus:
            raise UserError(
                "--device cuda: no node of this Ray cluster has a GPU; use --device cpu"
            )
        self.workers = workers or per_gpu * gpus
        sharing = math.ceil(self.workers / gpus)
        # the cards are the limit: a training launches one graph a step, and its CPU waits
        self._share = {"cpu": 0.0, "gpu": math.floor(_FRACTIONS / sharing) / _FRACTIONS}
        return sharing

    def _travelling_data(self, folder: Path, digest: str, checkpoints: str) -> Dataset | None:
        """None where every node sees the data's own folder, and maps it; else the data, for Ray's
        object store."""
        if check_access(folder, digest, checkpoints):
            return None
        mapped = Dataset.open(folder)
        arrays: dict[str, Any] = {name: np.asarray(getattr(mapped, name)) for name in ARRAYS}
        return replace(mapped, **arrays)

    def run(self, driver: Driver) -> None:
        in_progress: dict[int, Job] = {}
        while True:
            if driver.over():
                self._stop(GRACE)
            self._hand_out(driver, in_progress)
            stopped = self._exchange.stopping and self._exchange.events.empty()
            if not in_progress or stopped:
                break
            if not self._exchange.stopping:  # else only what is in the queue is still read
                self._start()
            try:
                job, event = self._exchange.events.get(timeout=POLL)
            except queue.Empty:
                self._check_cluster()
                continue
            self._last_usable_node_seen = time.monotonic()
            if isinstance(event, Epoch):
                driver.epoch(job, event)
                continue
            del in_progress[job.number]
            if isinstance(event, Outcome):
                driver.outcome(job, event)
            else:
                driver.lost(job, event)
        if self._exchange.stopping:
            # the next step of the study, if there is one, starts Tune anew
            self._exchange = Exchange(self._exchange.sharing)

    def _hand_out(self, driver: Driver, in_progress: dict[int, Job]) -> None:
        """One more job than there are workers: it waits in line, so that none waits for the
        driver's disk."""
        while not self._exchange.stopping and len(in_progress) <= self.workers:
            job = driver.ask()
            if job is None:
                return
            in_progress[job.number] = job
            self._exchange.jobs.put(job)

    def _check_cluster(self) -> None:
        """Nothing has happened for a moment. Raises UserError where nothing will."""
        if self._no_usable_node():
            needs = "a GPU" if self._cuda else f"{self._threads} CPUs"
            self._exchange.failure = f"no node of the cluster has had {needs} for {_EMPTY:g} s"
        failure = self._exchange.failure
        if failure:
            self._stop(GRACE)
            raise UserError(f"training stopped: {failure}; mend it, and the same command goes on")

    def _no_usable_node(self) -> bool:
        """Whether for some time no node has had what one training takes."""
        if time.monotonic() > self._next_look:
            # the head itself may be gone
            with suppress(ray.exceptions.RayError, ConnectionError, RuntimeError):
                if any(self._is_usable(node) for node in ray.nodes()):
                    self._last_usable_node_seen = time.monotonic()
            self._next_look = time.monotonic() + _LOOKS
        return time.monotonic() - self._last_usable_node_seen > _EMPTY + _LOOKS

    def _is_usable(self, node: dict[str, Any]) -> bool:
        resources = node["Resources"] if node["Alive"] else {}
        return all(resources.get(k.upper(), 0.0) >= share for k, share in self._share.items())

    def _start(self) -> None:
        if self._thread is None:
            sys.setswitchinterval(_SWITCH)
            self._last_usable_node_seen = time.monotonic()
            self._thread = threading.Thread(target=self._tune, daemon=True)
            self._thread.start()

    def _stop(self, timeout: float) -> None:
        self._exchange.stopping = True
        if self._thread is not None:
            self._thread.join(timeout)
            self._thread = None
            sys.setswitchinterval(self._switch)

    def _tune(self) -> None:
        """The experiment, in its thread, until there is nothing more to hand over."""
        exchange = self._exchange
        tuner = tune.Tuner(
            self._trainable,
            tune_config=tune.TuneConfig(
                search_alg=exchange,
                num_samples=-1,  # as many as the driver gives
                max_concurrent_trials=self.workers,
                reuse_actors=True,  # a new one takes seconds to import torch and read the data
            ),
            run_config=tune.RunConfig(
                storage_path=self._folder.name,
                verbose=0,
                stop=exchange,
                callbacks=[Starts(exchange)],
                # the runs keep their own checkpoints
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        try:
            tuner.fit()
            why = "it ended"
        except BaseException as error:  # of Tune's own, or a cluster that is gone
            logger.warning("Ray Tune ended", exc_info=True)
            why = f"{type(error).__name__}: {error}"
        if not exchange.stopping:
            exchange.failure = exchange.failure or f"Ray Tune: {why}"

    def close(self) -> None:
        self._stop(_CLOSES)
        disconnect()
        self._folder.cleanup()
