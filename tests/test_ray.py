"""Ray Tune as the executor: a Ray of this machine's own, and clusters of two real nodes on it."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from scaling_search import UserError
from scaling_search.candidate import Candidate
from scaling_search.data import Dataset
from scaling_search.executors import Job
from scaling_search.executors.local import LocalExecutor
from scaling_search.executors.ray import RayExecutor
from scaling_search.search import StoppedError
from scaling_search.store import Store
from scaling_search.study import Study
from scaling_search.trial import Epoch
from tests.test_search import TIMINGS, Quiet, few, search

DISTURBED = [*TIMINGS, "note"]


def executor(data: Dataset, checkpoints: Path, workers: int | None, address: str | None = None) -> RayExecutor:
    return RayExecutor(workers, "cpu", 1, data.folder, data.digest, str(checkpoints), address)


@pytest.fixture
def cluster() -> Iterator[object]:
    """Two nodes of one core each, the head with none: processes of their own, as on two machines."""
    from ray.cluster_utils import Cluster

    quiet, here = {"include_dashboard": False}, {"node_ip_address": "127.0.0.1"}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **quiet, **here})
    made.add_node(num_cpus=1, **here)
    made.add_node(num_cpus=1, **here)
    yield made
    made.shutdown()


def listening() -> set[tuple[str, str]]:
    """(address, port) of every listening TCP socket, in the kernel's hexadecimal."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        rows = [line.split() for line in Path(table).read_text().splitlines()[1:]] if Path(table).exists() else []
        found |= {tuple(row[1].split(":")) for row in rows if row[3] == "0A"}
    return found


def test_a_ray_of_this_machine_gives_the_same_table_and_listens_here_alone(
    undisturbed: pd.DataFrame, study: Study, data: Dataset, tmp_path: Path
) -> None:
    before = listening()
    opened: set[tuple[str, str]] = set()

    class Look(Quiet):
        def finished(self, *args: object) -> None:
            opened.update(listening() - before)

    _, table = search(study, data, tmp_path, executor(data, tmp_path / "checkpoints", 2), Look())
    pd.testing.assert_frame_equal(table.drop(columns=TIMINGS), undisturbed.drop(columns=TIMINGS), check_exact=True)
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    if Path("/proc/net/tcp").exists():
        assert opened and {address for address, _ in opened} <= loopback


def test_two_nodes_without_the_data_set_give_the_same_table_and_one_may_be_lost(
    undisturbed: pd.DataFrame, study: Study, data: Dataset, tmp_path: Path, cluster: object
) -> None:
    """The nodes are shown a folder that only the driver can read: the images come through the object store."""
    own = tmp_path / "data"
    shutil.copytree(data.folder, own)
    there = executor(Dataset.open(own), tmp_path / "checkpoints", None, cluster.address)  # type: ignore[attr-defined]
    assert there.workers == 2
    nodes, killed = list(cluster.worker_nodes), []  # type: ignore[attr-defined]
    seen: list[str] = []

    class Kill(Quiet):
        def finished(self, job: Job, candidate: Candidate, outcome: object) -> None:
            super().finished(job, candidate, outcome)  # type: ignore[arg-type]
            if len(self.seen) == 3 and not killed:
                killed.append(nodes[0])
                raylet = nodes[0].all_processes["raylet"][0].process
                os.kill(raylet.pid, signal.SIGKILL)

        def again(self, job: Job, candidate: Candidate, why: str) -> None:
            seen.append(why)

    _, table = search(study, data, tmp_path, there, Kill())
    assert killed and len(seen) <= 2 and all("its Ray actor or node ended" in why for why in seen)
    pd.testing.assert_frame_equal(table.drop(columns=DISTURBED), undisturbed.drop(columns=DISTURBED), check_exact=True)


def test_the_images_travel_where_a_node_has_no_copy(data: Dataset, tmp_path: Path, cluster: object) -> None:
    moved = tmp_path / "data"
    shutil.copytree(data.folder, moved)
    there = executor(Dataset.open(moved), tmp_path / "c", 1, cluster.address)  # type: ignore[attr-defined]
    assert there._data(moved, data.digest, str(tmp_path / "c")) is None, "every node maps it"
    travelling = there._data(moved, "another digest", str(tmp_path / "c"))
    there.close()
    assert travelling is not None and type(travelling.train_images).__name__ == "ndarray"


def test_asked_to_stop_runs_write_their_checkpoints(study: Study, data: Dataset, tmp_path: Path) -> None:
    long = few(study, 2, extra=0).model_copy(
        update={"rungs": (3,), "data": study.data.model_copy(update={"train_images": None})}
    )
    asked = threading.Event()

    class Stop(Quiet):
        def epoch(self, job: Job, epoch: Epoch) -> None:
            asked.set()

    began = time.monotonic()
    with pytest.raises(StoppedError):
        search(long, data, tmp_path, executor(data, tmp_path / "checkpoints", 1), Stop(), asked.is_set)
    assert time.monotonic() - began < 60
    left = Store.read(tmp_path).records()
    assert 1 <= len(left) <= 2 and all(r.outcome is None for r in left), "one in progress, one in line"
    assert list((tmp_path / "checkpoints").glob("*/e3.ckpt"))
    _, table = search(long, data, tmp_path, executor(data, tmp_path / "checkpoints", 2))
    _, whole = search(long, data, tmp_path / "b", LocalExecutor(2))
    pd.testing.assert_frame_equal(table.drop(columns=DISTURBED), whole.drop(columns=DISTURBED), check_exact=True)
    assert table["note"][0].startswith("started again after epoch ")


def test_a_cluster_that_has_lost_all_its_nodes_stops_the_study(
    study: Study, data: Dataset, tmp_path: Path, cluster: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scaling_search.executors.ray._EMPTY", 3.0)

    class Kill(Quiet):
        def epoch(self, job: Job, epoch: Epoch) -> None:
            while nodes := list(cluster.worker_nodes):  # type: ignore[attr-defined]
                cluster.remove_node(nodes[0], allow_graceful=False)  # type: ignore[attr-defined]

    there = executor(data, tmp_path / "c", 2, cluster.address)  # type: ignore[attr-defined]
    with pytest.raises(
        UserError, match=r"no node of the cluster has had .* for 3 s; mend it, and the same command goes"
    ):
        search(few(study, 3, extra=0), data, tmp_path, there, Kill())
    assert all(r.outcome is None or r.done for r in Store.read(tmp_path).records()), "no network is blamed"


def test_wrong_clusters(data: Dataset, tmp_path: Path) -> None:
    for address in ("auto", "127.0.0.1:1", "nonsense"):
        with pytest.raises(UserError, match=rf"--ray-address {address}: .*; start a cluster with ray start --head "):
            executor(data, tmp_path, 1, address)
