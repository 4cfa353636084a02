"""The life of an MPS server: with a stand-in for NVIDIA's control program, and for the driver
library that its clients load. There is no GPU where these run, so nothing is said of MPS itself."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.jobs import Jobs
from scaling_search.data.dataset import Dataset
from scaling_search.driver import mps
from scaling_search.driver.executors.local import LocalExecutor
from scaling_search.training.trial import Epoch, Outcome, Pulse, Trial

ROOT = Path(__file__).resolve().parent.parent

# -d leaves a process behind, as the real one does; quit ends it
CONTROL = """#!/bin/sh
pid="$CUDA_MPS_PIPE_DIRECTORY/nvidia-cuda-mps-control.pid"
if [ "$1" = -d ]; then
    [ -z "$REFUSED" ] || { echo "$REFUSED" >&2; exit 1; }
    setsid sleep 600 &
    echo $! >"$pid"
else
    read word
    [ "$word" = quit ] && kill "$(cat "$pid")"
fi
"""
LIBRARY = """
#include <stdlib.h>
int cuInit(unsigned flags) { return getenv("CLIENT_FAILS") ? 805 : 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { return 0; }
int cuGetErrorName(int status, const char **name) {
    *name = "CUDA_ERROR_MPS_CONNECTION_FAILED";
    return 0;
}
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("a C compiler makes the driver library that clients load")
    folder = tmp_path_factory.mktemp("programs")
    (folder / mps.CONTROL).write_text(CONTROL)
    (folder / mps.CONTROL).chmod(0o755)
    source = folder / "cuda.c"
    source.write_text(LIBRARY)
    command = ["cc", "-shared", "-fPIC", str(source), "-o", str(folder / "libcuda.so.1")]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture(autouse=True)
def machine(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with the control program, without a server of the user's."""
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(programs))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(mps, "_DEFAULT_PIPES", tmp_path / "nvidia-mps")
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def daemon(environment: dict[str, str]) -> int:
    pid = Path(environment["CUDA_MPS_PIPE_DIRECTORY"]) / "nvidia-cuda-mps-control.pid"
    return int(pid.read_text())


def is_alive(pid: int) -> bool:
    """A zombie, whose parent has not asked for it, is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ends(pid: int) -> bool:
    """Whether a process ends; two minutes mean that it hangs."""
    for _ in range(2400):
        if not is_alive(pid):
            return True
        time.sleep(0.05)
    return False


def servers(folder: Path) -> list[Path]:
    return list(folder.glob("scaling-search-mps-*"))


def test_a_server_of_one_s_own_lives_from_start_to_close(tmp_path: Path) -> None:
    server = mps.start()
    assert server is not None
    pid = daemon(server.environment)
    assert is_alive(pid)
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    server.close()
    server.close()
    assert ends(pid)
    assert servers(tmp_path) == []


def _says_its_pipes(trial: Trial, data: Dataset) -> Iterator[Epoch | Outcome | Pulse]:
    yield Outcome("done", note=os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "none"))


def test_workers_are_its_clients_and_it_ends_with_them(trial: Trial) -> None:
    server = mps.start()
    assert server is not None
    pid = daemon(server.environment)
    executor, jobs = LocalExecutor(1, train=_says_its_pipes), Jobs([trial])
    executor.use_mps(server)
    try:
        executor.run(jobs)
    finally:
        executor.close()
    assert jobs.outcomes[0].note == server.environment["CUDA_MPS_PIPE_DIRECTORY"]
    assert ends(pid)


DRIVER = """
import signal, sys, time
from scaling_search.driver import mps
from scaling_search.driver.executors.local import LocalExecutor
from scaling_search.driver.signals import Stopping

with Stopping(lambda: None) as stopping:
    executor = LocalExecutor(1)
    try:
        server = mps.start()
        executor.use_mps(server)
        print(server.environment["CUDA_MPS_PIPE_DIRECTORY"], flush=True)
        while not stopping():
            time.sleep(0.1)
        print("stopping", flush=True)
        time.sleep(1000)
    finally:
        executor.close()
"""


def driver() -> tuple[subprocess.Popen[str], int]:
    """A study's process with a server, and the server's."""
    code = f"from scaling_search.driver import mps\nfrom pathlib import Path\n{DRIVER}"
    code = code.replace("with Stop", "mps._DEFAULT_PIPES = Path('/nowhere')\nwith Stop", 1)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    pipes = process.stdout.readline().strip()
    return process, daemon({"CUDA_MPS_PIPE_DIRECTORY": pipes})


def test_it_ends_with_a_driver_that_is_told_to_stop_twice(tmp_path: Path) -> None:
    process, pid = driver()
    process.send_signal(signal.SIGTERM)
    # of two signals that are pending together Python would see the lower number first
    assert process.stdout is not None
    assert process.stdout.readline() == "stopping\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 128 + signal.SIGINT
    assert ends(pid)
    assert servers(tmp_path) == []


def test_the_server_of_a_killed_driver_is_ended_by_the_next_study(tmp_path: Path) -> None:
    process, abandoned = driver()
    held = mps.start()
    assert held is not None, "its driver lives"
    assert is_alive(abandoned), "its driver lives"
    process.kill()
    process.wait()
    assert is_alive(abandoned)
    server = mps.start()
    assert server is not None
    assert ends(abandoned)
    assert len(servers(tmp_path)) == 2
    assert is_alive(daemon(held.environment))
    server.close()
    held.close()
    assert servers(tmp_path) == []


def test_what_the_control_program_refuses_is_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFUSED", "Operation not permitted")
    with pytest.raises(mps.UnavailableError, match="^Operation not permitted$"):
        mps.start()
    assert servers(tmp_path) == []


def test_a_server_that_no_client_reaches_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIENT_FAILS", "1")
    with pytest.raises(mps.UnavailableError, match="^CUDA_ERROR_MPS_CONNECTION_FAILED$"):
        mps.start()
    assert servers(tmp_path) == []


def listening(folder: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """What a control daemon has in its folder for clients, as long as it lives."""
    folder.mkdir(exist_ok=True)
    control = socket.socket(socket.AF_UNIX, kind)
    control.bind(str(folder / "control"))
    control.listen()
    return control


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_server_of_the_user_s_is_left_alone(
    kind: socket.SocketKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    monkeypatch.setattr(mps, "_DEFAULT_PIPES", Path("nvidia-mps"))
    assert not mps.is_running()
    with listening(Path("nvidia-mps"), kind):
        assert mps.is_running()
        assert mps.start() is None
        monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "elsewhere")
        assert not mps.is_running(), "processes look there alone"
        with listening(Path("elsewhere"), kind):
            assert mps.is_running()
            assert mps.start() is None
    assert servers(tmp_path) == []


@pytest.mark.parametrize("named", [False, True])
def test_what_a_dead_daemon_left_is_no_server(
    named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mps, "_DEFAULT_PIPES", Path("nvidia-mps"))
    if named:
        monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "nvidia-mps")
    Path("nvidia-mps").mkdir()
    assert not mps.is_running(), "an empty folder"
    listening(Path("nvidia-mps")).close()
    assert Path("nvidia-mps/control").exists()
    assert not mps.is_running()
    server = mps.start()
    assert server is not None
    assert is_alive(daemon(server.environment))
    server.close()


def test_without_the_control_program_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert mps.start() is None
    assert not mps.is_running()
