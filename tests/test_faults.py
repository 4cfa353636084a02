"""What a study promises when machines fail: processes killed or hung, disks full, files damaged or
gone."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from scaling_search import UserError
from scaling_search.cli import main
from scaling_search.data.dataset import Dataset
from scaling_search.driver.executors.local import LocalExecutor
from scaling_search.driver.executors.protocol import Job
from scaling_search.results import tables
from scaling_search.results.reader import StoreReader
from scaling_search.results.store import Store
from scaling_search.study.candidate import Candidate
from scaling_search.study.plan import plan
from scaling_search.study.settings import Study
from scaling_search.training.train import run
from scaling_search.training.trial import Epoch, Outcome, Pulse, Trial
from scaling_search.training.watchdog import watched
from tests.chaos import ROOT, WORDS, Chaos, kill, kill_worker
from tests.records import done, read_records
from tests.searches import DISTURBED, Quiet, Warm, few, search

# ---- processes


def test_random_kills_lose_and_repeat_nothing(tmp_path: Path) -> None:
    """The short form of benchmarks/chaos.py: drivers and workers of a study in rungs, with runs
    where they help."""
    rng = random.Random(3)
    small = "--data shapes --workers 2 --candidates 3 --extra 2 --epochs 1,2 --set references=[] "
    words = [*WORDS, *shlex.split(small + "--train-images 120")]
    whole = Chaos(tmp_path / "whole", words, {}, rng)
    whole.run(0)
    assert whole.verdict
    assert len(whole.table) > 8
    victims = {"driver": kill, "worker": kill_worker(rng)}
    chaos = Chaos(tmp_path / "chaos", words, victims, rng, every=(0.0, 1.0), progress=True)
    chaos.run(2)
    assert chaos.killed.total() > 0
    chaos.check(whole)


def test_a_killed_worker_s_run_goes_on(
    study: Study, data: Dataset, tmp_path: Path, warm: Warm
) -> None:
    small, executor, killed = few(study, 3, extra=0), warm(1), []

    class Killer(Quiet):
        def started(self, job: Job, candidate: Candidate) -> None:
            if job.number == 2 and not killed:
                killed.append(job)
                os.kill(executor.local._workers[0].process.pid or 0, signal.SIGKILL)

        def again(self, job: Job, candidate: Candidate, why: str) -> None:
            assert job in killed
            assert why.endswith("worker killed by SIGKILL")

    _, table = search(small, data, tmp_path / "a", executor, Killer())
    _, whole = search(small, data, tmp_path / "b", executor)
    pd.testing.assert_frame_equal(
        table.drop(columns=DISTURBED), whole.drop(columns=DISTURBED), check_exact=True
    )
    assert table["note"][2].endswith("worker killed by SIGKILL")


def _kills_its_worker(trial: Trial, data: Dataset) -> Iterator[Epoch | Outcome | Pulse]:
    if trial.arch.blocks > 10:  # the deepest alone
        os.kill(os.getpid(), signal.SIGSEGV)
    yield from run(trial, data)


def test_a_run_that_kills_its_worker_each_time_is_a_row(
    study: Study, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scaling_search.driver.dispatch.DEATHS", 2)
    _, table = search(
        few(study, 3, extra=0), data, tmp_path, LocalExecutor(1, train=_kills_its_worker)
    )
    crashed = table[table["status"] == "crashed"]
    assert len(crashed) == 1
    assert crashed["note"].str.startswith("worker killed by SIGSEGV, 2 times after epoch 0").all()
    assert (table[table["blocks"] <= 10]["status"] == "done").all()


def _hangs(trial: Trial, data: Dataset) -> Iterator[Epoch | Outcome | Pulse]:
    """The first time, in a system call: as on a file system that has gone."""
    mark = Path(trial.checkpoints) / "hung"
    if not mark.exists():
        mark.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(mark)
        mark.read_bytes()
    yield from run(trial, data)


def test_a_hung_worker_is_ended_and_its_run_goes_on(
    study: Study, data: Dataset, tmp_path: Path
) -> None:
    # a step of a busy machine takes seconds, and must not count as hanging
    _, table = search(
        few(study, 3, extra=0), data, tmp_path, LocalExecutor(1, train=_hangs, stall=20.0)
    )
    assert (table["status"] == "done").all()
    assert table["note"][0] == "started again after epoch 0: worker hung, no step in 20 s"


def test_watching_ends_with_its_block() -> None:
    code = (
        "import time; from scaling_search.training.watchdog import alive, watched\n"
        "with watched(4):\n    for _ in range(5): time.sleep(1); alive()\n"
        "time.sleep(5); print('alive', flush=True)\nwith watched(0.5): time.sleep(1000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 1
    assert done.stdout == "alive\n"
    assert "Timeout" in done.stderr
    with watched(1000.0), watched(1000.0):
        pass


# ---- disks


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """syscalls.c, compiled."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler, or no Linux to preload a library on")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    source = Path(__file__).parent / "syscalls.c"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True
    )
    return library


def test_any_write_may_fail(shim: Path, tmp_path: Path) -> None:
    """Every n-th write, fsync or rename (of a store every third, the command alone takes all), one
    alone and all from there on: old or new, never mixed, one clear error."""
    works = ["store:3", "checkpoint", "report"]
    command = [sys.executable, "-m", "tests.syscalls", str(tmp_path), *works]
    environ = {**os.environ, "LD_PRELOAD": str(shim)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, cwd=ROOT, env=environ
    )
    assert done.returncode == 0, done.stderr[-3000:]
    store, checkpoint, report = map(int, done.stdout.split())
    assert store >= 30
    assert checkpoint >= 4
    assert report >= 8


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a small disk takes root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_one_error_and_the_study_goes_on_when_there_is_room(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = small_disk / "run"
    words = [*WORDS, *shlex.split("--data shapes --workers 1 --candidates 3 --extra 0")]
    words += ["--out", str(out)]
    ballast = small_disk / "ballast"
    # room for the study's start, not for all of its checkpoints
    ballast.write_bytes(bytes(1_400_000))
    command = [sys.executable, str(ROOT / "run_search.py"), *words]
    full = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert full.returncode == 2, full.stdout
    assert full.stderr.count("\n") == 1
    assert "Traceback" not in full.stderr
    assert "No space left" in full.stderr or "full" in full.stderr
    acknowledged = full.stdout.count("\nrun  ")
    before = [r.val_acc for r in read_records(out) if r.done]
    assert len(before) >= acknowledged, "what was acknowledged is there"
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert main(["search", *words]) == 0, capsys.readouterr().err
    table = pd.read_csv(out / "results.csv")
    assert (table["status"] == "done").all()
    assert not table.duplicated(["network", "seed", "epochs"]).any()
    assert list(table["val_acc"][: len(before)]) == before


def test_a_locked_database_is_waited_for_and_then_one_error(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scaling_search.results.database._PATIENCE", 0.3)
    store = Store.create(tmp_path, {}, {})
    baseline, *_ = plan(study, 10, 64).everything
    number = store.start(baseline, 0, 1)
    other = sqlite3.connect(tmp_path / "study.db", isolation_level=None)
    other.execute("begin immediate")
    with pytest.raises(
        UserError, match="study.db: database is locked; every result recorded before is intact"
    ):
        store.finish(number, done(0.5))
    other.execute("rollback")
    other.close()
    store.finish(number, done(0.5))
    assert store.records()[0].val_acc == 0.5
    store.close()


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "emptied"])
def test_a_damaged_database_is_one_error(study: Study, tmp_path: Path, damage: str) -> None:
    store = Store.create(tmp_path, {}, {})
    for candidate in plan(study, 10, 64).everything:
        store.finish(store.start(candidate, 0, 1), done(0.5))
    store.close()
    path = tmp_path / "study.db"
    raw = bytearray(path.read_bytes())
    if damage == "truncated":
        raw = raw[: len(raw) // 3]
    elif damage == "overwritten":
        raw[4096:] = os.urandom(len(raw) - 4096)
    else:
        raw = bytearray(b"\0" * len(raw))
    path.write_bytes(raw)
    for attempt in (StoreReader.open, lambda folder: Store.create(folder, {}, {})):
        with (
            pytest.raises(UserError, match=r"study\.db: .*(restore it|intact)"),
            attempt(tmp_path) as opened,
        ):
            opened.records()


def test_altered_images_are_refused_before_any_training(data: Dataset, tmp_path: Path) -> None:
    shutil.copytree(data.folder, tmp_path / "data")
    Dataset.open(tmp_path / "data").verified()
    for name in ("train_images", "test_images", "train_labels"):
        path = tmp_path / "data" / f"{name}.npy"
        raw = bytearray(path.read_bytes())
        raw[-5] ^= 1
        path.write_bytes(raw)
        with pytest.raises(UserError, match="altered since it was made; delete the folder"):
            Dataset.open(tmp_path / "data").verified()
        raw[-5] ^= 1
        path.write_bytes(raw)


def test_images_that_shrink_under_a_worker_stop_the_study(
    study: Study, data: Dataset, tmp_path: Path, warm: Warm
) -> None:
    """A mapped file cut short is SIGBUS in whoever reads it: the worker dies, the next one finds
    the file too short."""
    shutil.copytree(data.folder, tmp_path / "data")
    own = Dataset.open(tmp_path / "data")

    class Cut(Quiet):
        def finished(self, job: Job, candidate: Candidate, outcome: Outcome) -> None:
            os.truncate(tmp_path / "data" / "train_images.npy", 4096)

    with pytest.raises(
        UserError, match="training stopped: data cache .*; mend it, and the same command goes on"
    ):
        search(few(study, 3), own, tmp_path / "run", LocalExecutor(1), Cut())
    shutil.copy(data.folder / "train_images.npy", tmp_path / "data" / "train_images.npy")
    _, table = search(few(study, 3), own, tmp_path / "run", warm(2))
    assert (table["status"] == "done").all()
    assert len(tables.table(read_records(tmp_path / "run"))) == len(table)
