"""Ray Tune as the executor: a Ray of this machine's own, and clusters of two real nodes on it."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from benchmarks.jobs import Jobs
from effnet import custom
from effnet.arch import scale
from scaling_search import UserError
from scaling_search.cli import main
from scaling_search.data.dataset import Dataset
from scaling_search.driver.executors.protocol import Job
from scaling_search.driver.executors.ray import (
    RayExecutor,
    describe_cluster,
    disconnect,
    resolve_on_cluster,
)
from scaling_search.driver.search import StoppedError
from scaling_search.results.reader import StoreReader
from scaling_search.study.candidate import Candidate
from scaling_search.study.settings import Study
from scaling_search.training import step
from scaling_search.training.trial import Epoch, Outcome, Trial
from tests import functions
from tests.clusters import start_cluster
from tests.cuda_stub import stub
from tests.records import read_records
from tests.searches import DISTURBED, TIMINGS, Quiet, Warm, few, search

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster


def executor(
    data: Dataset, checkpoints: Path, workers: int | None, address: str | None = None
) -> RayExecutor:
    return RayExecutor(workers, "cpu", 1, data.folder, data.digest, str(checkpoints), address)


def two_nodes() -> Iterator[Cluster]:
    """Two nodes, the head with no core. That one is lost is noticed after 5 s without it, not
    15."""
    cluster = start_cluster(2, num_cpus=0, _system_config={"health_check_period_ms": 1000})
    yield cluster
    cluster.shutdown()


# Starting a cluster takes its processes ten seconds of CPU time: tests that do not harm it share
# one. (To share it with those that need no cluster would not pay: a new executor has each node
# import torch, to see whether it can read the data.)
lasting_cluster = pytest.fixture(two_nodes, scope="module", name="lasting_cluster")
cluster = pytest.fixture(two_nodes, name="cluster")


@pytest.fixture(scope="module")
def gpu_cluster() -> Iterator[str]:
    """The address of one node with two cores and four GPUs; the driver's own machine has none."""
    on_gpus = {"PYTHONPATH": str(stub.ROOT)}
    if stub.reason_to_skip() is None:
        on_gpus |= stub.environment(gpus=4, memory=8e9)
    before = dict(os.environ)
    os.environ.update(on_gpus)
    try:
        cluster = start_cluster(0, num_cpus=2, num_gpus=4)
    finally:
        os.environ.clear()
        os.environ.update(before)
    yield cluster.address
    cluster.shutdown()


def listening() -> set[tuple[str, str]]:
    """(address, port) of every listening TCP socket, in the kernel's hexadecimal."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        rows = (
            [line.split() for line in Path(table).read_text().splitlines()[1:]]
            if Path(table).exists()
            else []
        )
        sockets |= {tuple(row[1].split(":")) for row in rows if row[3] == "0A"}
    return sockets


def test_a_long_path_of_temporary_files_is_named(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's sockets lie there, and a socket's path has 107 bytes at most."""
    place = tmp_path / ("x" * 90)
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(UserError, match="its files lie under TMPDIR"):
        executor(data, tmp_path / "c", 1)


def test_a_ray_of_this_machine_gives_the_same_table_and_listens_here_alone(
    undisturbed: pd.DataFrame, study: Study, data: Dataset, tmp_path: Path
) -> None:
    before = listening()
    opened: set[tuple[str, str]] = set()

    class Look(Quiet):
        def finished(self, *args: object) -> None:
            opened.update(listening() - before)

    _, table = search(study, data, tmp_path, executor(data, tmp_path / "checkpoints", 2), Look())
    pd.testing.assert_frame_equal(
        table.drop(columns=TIMINGS), undisturbed.drop(columns=TIMINGS), check_exact=True
    )
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    if Path("/proc/net/tcp").exists():
        assert opened
        assert {address for address, _ in opened} <= loopback


def test_two_nodes_without_the_data_set_give_the_same_table_and_one_may_be_lost(
    undisturbed: pd.DataFrame, study: Study, data: Dataset, tmp_path: Path, cluster: Cluster
) -> None:
    """The nodes are shown a folder that only the driver can read: the images come through the
    object store."""
    own = tmp_path / "data"
    shutil.copytree(data.folder, own)
    on_cluster = executor(
        Dataset.open(own),
        tmp_path / "checkpoints",
        None,
        cluster.address,
    )
    assert on_cluster.workers == 2
    nodes, killed = list(cluster.worker_nodes), []
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

    _, table = search(study, data, tmp_path, on_cluster, Kill())
    assert killed
    assert len(seen) <= 2
    assert all("its Ray actor or node ended" in why for why in seen)
    pd.testing.assert_frame_equal(
        table.drop(columns=DISTURBED), undisturbed.drop(columns=DISTURBED), check_exact=True
    )


def test_the_images_travel_where_a_node_has_no_copy(
    data: Dataset, tmp_path: Path, lasting_cluster: Cluster
) -> None:
    moved = tmp_path / "data"
    shutil.copytree(data.folder, moved)
    on_cluster = executor(
        Dataset.open(moved),
        tmp_path / "c",
        1,
        lasting_cluster.address,
    )
    assert on_cluster._travelling_data(moved, data.digest, str(tmp_path / "c")) is None, (
        "every node maps it"
    )
    travelling = on_cluster._travelling_data(moved, "another digest", str(tmp_path / "c"))
    on_cluster.close()
    assert travelling is not None
    assert type(travelling.train_images).__name__ == "ndarray"


def test_asked_to_stop_runs_write_their_checkpoints(
    study: Study, data: Dataset, tmp_path: Path, warm: Warm, gpu_cluster: str
) -> None:
    long = few(study, 2, extra=0).model_copy(
        update={"rungs": (3,), "data": study.data.model_copy(update={"train_images": None})}
    )
    stop_requested = threading.Event()

    class Stop(Quiet):
        def epoch(self, job: Job, epoch: Epoch) -> None:
            stop_requested.set()

    with pytest.raises(StoppedError):
        one = executor(data, tmp_path / "checkpoints", 1, gpu_cluster)
        search(long, data, tmp_path, one, Stop(), stop_requested.is_set)
    left = read_records(tmp_path)
    assert 1 <= len(left) <= 2, "one in progress, one in line"
    assert all(r.outcome is None for r in left), "one in progress, one in line"
    assert list((tmp_path / "checkpoints").glob("*/e3.ckpt"))
    again = executor(data, tmp_path / "checkpoints", 1, gpu_cluster)
    _, table = search(long, data, tmp_path, again)
    _, whole = search(long, data, tmp_path / "b", warm(1))
    pd.testing.assert_frame_equal(
        table.drop(columns=DISTURBED), whole.drop(columns=DISTURBED), check_exact=True
    )
    assert table["note"][0].startswith("started again after epoch ")


def test_a_cluster_that_has_lost_all_its_nodes_stops_the_study(
    study: Study, data: Dataset, tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scaling_search.driver.executors.ray.executor._EMPTY", 3.0)

    class Kill(Quiet):
        def epoch(self, job: Job, epoch: Epoch) -> None:
            while nodes := list(cluster.worker_nodes):
                cluster.remove_node(nodes[0], allow_graceful=False)

    on_cluster = executor(data, tmp_path / "c", 2, cluster.address)
    with pytest.raises(
        UserError,
        match=r"no node of the cluster has had .* for 3 s; mend it, and the same command goes",
    ):
        search(few(study, 3, extra=0), data, tmp_path, on_cluster, Kill())
    assert all(r.outcome is None or r.done for r in read_records(tmp_path)), "no network is blamed"


def test_wrong_clusters(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # `auto` looks for any Ray on this machine: other tests', beside this one, are none of it
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", functools.cache(set))
    for address in ("auto", "127.0.0.1:1", "nonsense"):
        with pytest.raises(
            UserError, match=rf"--ray-address {address}: .*; start a cluster with ray start --head "
        ):
            executor(data, tmp_path, 1, address)


def test_the_source_of_a_function_travels_to_the_nodes(
    data: Dataset, trial: Trial, tmp_path: Path, lasting_cluster: Cluster
) -> None:
    place = functions.write(tmp_path)
    net = scale(custom.find(place), 1, 1, 12, num_classes=10)
    (tmp_path / "net.py").unlink()
    address = lasting_cluster.address
    (ended,) = outcomes(executor(data, tmp_path, 1, address), [replace(trial, arch=net)])
    assert ended.status == "done", ended.note


# ---- GPUs, which Ray counts as it is told; where something is trained on them, the stand-in's


def outcomes(executor: RayExecutor, trials: list[Trial]) -> list[Outcome]:
    driver = Jobs(trials)
    try:
        executor.run(driver)
    finally:
        executor.close()
    assert not driver.losses
    return [driver.outcomes[i] for i in sorted(driver.outcomes)]


def of_seeds(trial: Trial, count: int) -> list[Trial]:
    return [replace(trial, seed=seed, device="cuda", deadline=10.0) for seed in range(count)]


def test_four_gpus_of_a_cluster_are_kept_busy(
    data: Dataset, trial: Trial, tmp_path: Path, gpu_cluster: str
) -> None:
    """Each training waits until four have begun: with fewer at a time none would ever end."""
    place = str(tmp_path)

    def train(trial: Trial, data: Dataset) -> Iterator[Outcome]:
        Path(place, f"begun-{trial.seed}").touch()
        waited = 0.0
        while len(list(Path(place).glob("begun-*"))) < 4 and waited < 100:
            time.sleep(0.1)
            waited += 0.1
        note = f"{os.environ['CUDA_VISIBLE_DEVICES']} {trial.deadline:g} {waited < 100}"
        yield Outcome("done", images_per_s=5.0, note=note)

    four = RayExecutor(None, "cuda", 1, data.folder, data.digest, place, gpu_cluster, train=train)
    assert four.workers == 4
    ended = outcomes(four, of_seeds(trial, 4))
    assert sorted(outcome.note for outcome in ended) == [f"{card} 10 True" for card in range(4)]
    assert [outcome.images_per_s for outcome in ended] == [5.0] * 4


def test_runs_that_share_a_gpu_have_no_rate_and_a_longer_deadline(
    data: Dataset, trial: Trial, tmp_path: Path, gpu_cluster: str
) -> None:
    def train(trial: Trial, data: Dataset) -> Iterator[Outcome]:
        yield Outcome("done", images_per_s=5.0, note=f"{trial.deadline:g}")

    def on_cluster(workers: int | None, per_gpu: int) -> RayExecutor:
        return RayExecutor(
            workers,
            "cuda",
            4,
            data.folder,
            data.digest,
            str(tmp_path),
            gpu_cluster,
            per_gpu=per_gpu,
            train=train,
        )

    # six of 0.1667, to which Ray would round a sixth, do not fit one card
    for workers, per_gpu, places, gpu in ((None, 2, 8, 0.5), (3, 2, 3, 1.0), (24, 1, 24, 0.1666)):
        sharing = on_cluster(workers, per_gpu)
        assert sharing.workers == places
        assert sharing._share == {"cpu": 0.0, "gpu": gpu}
        sharing.close()
    (ended,) = outcomes(on_cluster(8, 1), of_seeds(trial, 1))
    assert ended.images_per_s == 0.0
    assert ended.note == "20"


def test_a_worker_that_a_run_has_spoiled_is_not_used_again(
    data: Dataset, trial: Trial, tmp_path: Path, gpu_cluster: str
) -> None:
    def train(trial: Trial, data: Dataset) -> Iterator[Outcome]:
        status, eager = ("crashed", "") if trial.seed % 2 else ("done", "a capture failed")
        yield Outcome(status, eager=eager, note=str(os.getpid()))

    one = RayExecutor(
        1, "cpu", 1, data.folder, data.digest, str(tmp_path), gpu_cluster, train=train
    )
    ended = outcomes(one, [replace(trial, seed=seed) for seed in range(3)])
    assert len({outcome.note for outcome in ended}) == 3, "each in a process of its own"


def test_other_kernels_on_a_node_stop_the_study(
    data: Dataset, trial: Trial, tmp_path: Path, gpu_cluster: str
) -> None:
    driver = Jobs([replace(trial, kernels="others")])
    one = executor(data, tmp_path, 1, gpu_cluster)
    try:
        with pytest.raises(
            UserError, match=r"training stopped: .*the study trains through kernels of others"
        ):
            one.run(driver)
    finally:
        one.close()
    assert not driver.outcomes, "no network is blamed"


def test_auto_is_the_clusters(gpu_cluster: str, lasting_cluster: Cluster) -> None:
    """The driver's machine has no say in it."""
    try:
        assert resolve_on_cluster(gpu_cluster, "auto") == "cuda"
        assert resolve_on_cluster(gpu_cluster, "cpu") == "cpu"
        with pytest.raises(
            UserError, match=r"--device cuda:1: Ray hands out the cards of a cluster"
        ):
            resolve_on_cluster(gpu_cluster, "cuda", (1,))
        disconnect()
        address = lasting_cluster.address
        assert resolve_on_cluster(address, "auto") == "cpu"
        with pytest.raises(
            UserError,
            match=r"--device cuda: no node of this Ray cluster has a GPU; use --device cpu",
        ):
            resolve_on_cluster(address, "cuda")
        machine = describe_cluster(address, "cpu", 1)
        assert machine.kernels == step.kernels("cpu")
        assert not machine.memory
    finally:
        disconnect()


@stub.needs_stub
def test_a_whole_study_on_the_gpus_of_a_cluster(
    pets: str, tmp_path: Path, gpu_cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    size = "--blocks 7 --width 0.1 --resolution 12 --batch 16 --train-images 48 --val-images 20"
    short = "--candidates 2 --epochs 1 --allocation flat --extra 0 --confirm 0 --workers 2"
    words = ["search", *size.split(), *short.split(), "--data", pets]
    words += ["--executor", "ray", "--ray-address", gpu_cluster]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0, capsys.readouterr()
    with StoreReader.open(tmp_path / "run") as reader:
        records, facts = reader.records(), reader.facts()
    assert len(records) >= 3
    assert all(r.done for r in records)
    settings = facts["settings"]
    assert settings["device"] == "cuda", "standard, the default with GPUs"
    assert settings["baseline"]["divisor"] == 8, "standard, the default with GPUs"
    kernels = facts["kernels"]
    assert {r.outcome.versions["kernels"] for r in records if r.outcome} == {kernels}
    assert "H100" in facts["provenance"]["hardware"]
