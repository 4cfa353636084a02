"""CUDA's Multi-Process Service: kernels of several trainings run on one GPU at the same time.

Without it, processes take turns on a GPU. A study whose devices may be shared starts a server of
its own, for its workers alone, and ends it with them. NVIDIA's documentation of the control program
and its variables: docs.nvidia.com/deploy/mps, "Appendix: Tools and Interface Reference".
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from effnet.messages import last_line

CONTROL = "nvidia-cuda-mps-control"
_PIPES, _LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
_DEFAULT_PIPES = Path("/tmp/nvidia-mps")  # where clients look without the variable
_PREFIX = "scaling-search-mps-"
_HELD = "driver"  # locked by the driver for as long as it lives
_PATIENCE = 30.0  # s for an answer of the control program, or of a first client

# What a client does: it connects when CUDA starts, and its contexts are the server's.
_CLIENT = """
import ctypes, sys

def check(status):
    if status:
        name = ctypes.c_char_p()
        cuda.cuGetErrorName(status, ctypes.byref(name))
        sys.exit((name.value or b"CUDA error %d" % status).decode())

cuda = ctypes.CDLL("libcuda.so.1")
check(cuda.cuInit(0))
count = ctypes.c_int()
check(cuda.cuDeviceGetCount(ctypes.byref(count)))
for device in range(count.value):
    check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(ctypes.c_void_p()), device))
"""


class UnavailableError(Exception):
    """No server can be had here. The message says why, in a few words."""


class Server:
    """An MPS control daemon in a private folder. `environment` makes a process its client."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program, self._folder = program, folder
        self.environment = {
            _PIPES: str(folder / "pipe"),
            _LOGS: str(folder / "log"),
            **_visible_devices(os.environ),
        }
        for name in (_PIPES, _LOGS):
            Path(self.environment[name]).mkdir()
        # Locked under another name first: a folder with this file is held, or its driver is dead.
        self._lock = (folder / "new").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder / "new").rename(folder / _HELD)

    def launch(self) -> None:
        """Start the daemon, and a first client. Raises UnavailableError."""
        environment = {**os.environ, **self.environment}
        _run([self._program, "-d"], environment, self._folder)
        _run([sys.executable, "-c", _CLIENT], environment, self._folder)

    def close(self) -> None:
        """End the daemon, whose clients have ended. One that does not answer is left to the next
        study, which tries again."""
        if not self._lock.closed:
            _quit(self._program, self._folder)
            self._lock.close()


def start() -> Server | None:
    """A server that has been seen to work; None where there is no control program, or a server of
    the user's own, which serves this process and its workers as well.

    Raises UnavailableError."""
    program = shutil.which(CONTROL)
    if program is None or is_running():
        return None
    _end_abandoned(program)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    server = Server(program, folder)
    try:
        server.launch()
    except BaseException:  # a signal too: a daemon would outlive this process
        server.close()
        raise
    return server


def is_running() -> bool:
    """Whether processes connect without further ado to a server of the user's or the machine's.

    The answer is that of the daemon's socket, to which a client connects first: everybody may, also
    from a container that the folder is mounted into. The folder and the socket's file say nothing,
    for both stay when a daemon ends; of a dead one the connection is refused."""
    folder = Path(os.environ.get(_PIPES) or _DEFAULT_PIPES)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_PATIENCE)
        try:
            client.connect(str(folder / "control"))
        except OSError as error:
            return error.errno == errno.EPROTOTYPE  # alive, and a socket of another type
    return True


def _visible_devices(environment: Mapping[str, str]) -> dict[str, str]:
    """CUDA_VISIBLE_DEVICES by UUID where it is set by number: a server numbers the devices that it
    sees anew, so that its clients would look for numbers that it does not have (section
    "CUDA_VISIBLE_DEVICES" of the same appendix)."""
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", environment.get("CUDA_VISIBLE_DEVICES", "")):
        return {}
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {"CUDA_VISIBLE_DEVICES": ",".join(f"GPU-{device.uuid}" for device in devices)}


def _end_abandoned(program: str) -> None:
    """End the servers of drivers that were killed before they could."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # held, somebody else's, or gone since
            if folder.stat().st_uid != os.getuid():
                continue
            with (folder / _HELD).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _quit(program, folder)


def _quit(program: str, folder: Path) -> None:
    environment = {**os.environ, _PIPES: str(folder / "pipe"), _LOGS: str(folder / "log")}
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            [program],
            input=b"quit\n",
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE,
            start_new_session=True,
        )
        shutil.rmtree(folder, ignore_errors=True)


def _run(command: list[str], environment: dict[str, str], folder: Path) -> None:
    """Raises UnavailableError with the last line that the command, or else the daemon, wrote."""
    output = folder / "output"
    try:
        # to a file: a daemon that kept a pipe open would be waited for
        with output.open("wb") as file:
            status = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=_PATIENCE,
                start_new_session=True,  # Ctrl-C is for the driver
            ).returncode
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"no answer within {_PATIENCE:g} s") from error
    except OSError as error:
        raise UnavailableError(f"{command[0]}: {error.strerror}") from error
    if status == 0:
        return
    reasons = [_last_line(output), _last_line(folder / "log" / "control.log")]
    raise UnavailableError("; ".join(filter(None, reasons)) or f"{command[0]} ended with {status}")


def _last_line(file: Path) -> str:
    with suppress(OSError):
        return last_line(file.read_text(errors="replace"))
    return ""
