"""Run a program on a stand-in for CUDA: torch's CUDA build, on a machine without a GPU.

The stand-in is a library that answers for the CUDA runtime, the driver, cuBLAS and cuDNN
(`*.cpp` here). Device memory is host memory and kernels do nothing: losses and times mean nothing.
CUDA's rules are enforced (current device, stream capture, memory limits, forks), so that it
refuses what a GPU would refuse before any kernel runs, and it counts launches, graph nodes, copies
and waits. Triton compiles and launches its kernels on it as well.

In a test::

    from tests.cuda_stub import stub

    pytestmark = stub.needs_stub                       # skips where it cannot be built

    def test_x(tmp_path):
        code = '''
    import torch
    from tests.cuda_stub import counters
    x = torch.zeros(3, device="cuda")
    counters.reset()
    x + 1
    assert counters.count("launches") == 1
    '''
        stub.check("-c", code, gpus=2, memory=2e9)     # fails with the program's own output
        done = stub.run("run_search.py", "--preset", "standard", ...)   # a CompletedProcess

Programs run in the repository's root, so that `tests.cuda_stub.counters` and the project import.
Importing torch's CUDA build costs some seconds: one program may well hold many assertions.

By hand: `python -m tests.cuda_stub.stub run_search.py --preset standard ...`, with FAKE_GPUS and
FAKE_GPU_MEM for more devices and other memory.

It is built once for the sources here and the installed torch, by g++, into a folder under the
system's temporary one.

Environment variables that a test may add: FAKE_CUDA_CAPABILITY (9.0), FAKE_CUDA_LOG=1 (each refusal
on stderr), FAKE_CUDA_DRIVER_VERSION (12040 is a driver of CUDA 12.4, too old for a torch built for
CUDA 13), FAKE_CUDA_BLANK=1 (all that is read from a device is zero: without it a result is what the
memory held before, and a loss may be NaN). CUDA_VISIBLE_DEVICES works as it does on a GPU.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import runpy
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# Of the runtime that the sources answer for: its functions and structures change with it.
_CUDA_MAJOR = 13

# Functions of CUDA and its libraries, among the names that torch's libraries ask for.
_CUDA_NAME = re.compile(r"(__cuda|cuda|cudnn|cublas|cublasLt|cu)[A-Z]\w*")

# Answered by the real libraries: they need no device.
_REAL = re.compile(
    r"cuFile\w*|cublasLtGetVersion"
    r"|cudnnGet(Version|ErrorString|LastErrorString|CudartVersion|Property)"
)


def _torch_folder() -> Path | None:
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def _torch_version() -> tuple[str, str | None]:
    """torch's version and the CUDA release that it was built for, without importing it."""
    folder = _torch_folder()
    if folder is None:
        return "none", None
    facts = runpy.run_path(str(folder / "version.py"))
    return facts["__version__"], facts["cuda"]


def _headers() -> list[Path]:
    """Folders of CUDA's headers, to be searched in this order; empty where some are missing.

    torch's own packages bring those of the release that torch was built for. They lack the
    compiler's part, crt/, which comes with Triton, whose other headers may be of another release.
    """
    packages = importlib.util.find_spec("nvidia")
    triton = importlib.util.find_spec("triton")
    if packages is None or triton is None or triton.origin is None:
        return []
    places = packages.submodule_search_locations or []
    folders = [Path(place) / f"cu{_CUDA_MAJOR}/include" for place in places]
    folders = [folder for folder in folders if (folder / "cuda_runtime_api.h").exists()]
    compiler_part = Path(triton.origin).parent / "backends/nvidia/include"
    if not folders or not (compiler_part / "crt/host_defines.h").exists():
        return []
    return [folders[0], compiler_part]


def reason_to_skip() -> str | None:
    """Why the stand-in cannot be built here; None where it can."""
    for tool in ("g++", "nm"):
        if shutil.which(tool) is None:
            return f"the stand-in for CUDA is built with {tool}, which is not installed"
    cuda = _torch_version()[1]
    if cuda is None or cuda.split(".")[0] != str(_CUDA_MAJOR):
        return f"the stand-in for CUDA needs a torch built for CUDA {_CUDA_MAJOR}, not {cuda}"
    if not _headers():
        return (
            "the stand-in for CUDA needs the headers that come with torch's CUDA build and triton"
        )
    return None


needs_stub = pytest.mark.skipif(reason_to_skip() is not None, reason=reason_to_skip() or "")


def _names(tool_output: str) -> set[str]:
    """Symbols of nm's output, without the versions that may follow them."""
    last_words = (
        line.split()[-1].split("@")[0] for line in tool_output.splitlines() if line.strip()
    )
    return {name for name in last_words if _CUDA_NAME.fullmatch(name)}


def _called_by_torch() -> set[str]:
    """Functions of CUDA that torch's libraries call."""
    folder = _torch_folder()
    assert folder is not None
    libraries = sorted((folder / "lib").glob("*.so"))
    command = ["nm", "-D", "--undefined-only", *map(str, libraries)]
    return _names(subprocess.run(command, capture_output=True, text=True, check=False).stdout)


def _fillers(defined: set[str]) -> str:
    """C source of the functions that the C++ sources leave out.

    Those of symbols.txt do nothing and answer success. Others that torch calls are not modelled:
    they say so, and answer that they are not supported.
    """
    lines = (HERE / "symbols.txt").read_text().splitlines()
    succeed = {line for line in lines if line and not line.startswith("#")} - defined
    refuse = {name for name in _called_by_torch() - defined - succeed if not _REAL.fullmatch(name)}
    source = ["#include <stdio.h>"]
    for name in sorted(succeed):
        source.append(f"int {name}(void) {{ return 0; }}")
    for name in sorted(refuse):
        message = f"stand-in for CUDA: {name} is not modelled\\n"
        source.append(f'int {name}(void) {{ fputs("{message}", stderr); return 801; }}')
    return "\n".join(source) + "\n"


def _compile(folder: Path) -> None:
    """Build libcuda.so.1 in `folder`."""
    headers = _headers()
    cuda = _torch_version()[1]
    assert headers
    assert cuda is not None
    major, minor = cuda.split(".")[:2]
    runtime_version = 1000 * int(major) + 10 * int(minor)
    options = ["-c", "-fPIC", "-O1", "-w"]
    cpp_options = [f"-DRUNTIME_VERSION={runtime_version}", "-fvisibility=hidden"]
    cpp_options += [f"-I{folder}" for folder in headers]
    sources = sorted(map(str, HERE.glob("*.cpp")))
    run = functools.partial(subprocess.run, cwd=folder, check=True)
    run(["g++", "-std=c++17", *options, *cpp_options, *sources])
    objects = sorted(str(path) for path in folder.glob("*.o"))
    listing = run(["nm", "--defined-only", *objects], capture_output=True, text=True)
    (folder / "fillers.c").write_text(_fillers(_names(listing.stdout)))
    run(["g++", "-x", "c", *options, "fillers.c"])
    link = ["-ldl", "-lpthread", "-Wl,-soname,libcuda.so.1"]
    run(["g++", "-shared", *objects, "fillers.o", "-o", "libcuda.so.1", *link])


@functools.cache
def build() -> Path:
    """The folder that holds the stand-in, libcuda.so.1. Built where it is not yet there."""
    digest = hashlib.sha256(repr((_torch_version(), str(_torch_folder()))).encode())
    for source in sorted(HERE.iterdir()):
        if source.suffix in (".cpp", ".h", ".txt") or source.name == "stub.py":
            digest.update(source.read_bytes())
    name = f"cuda-stub-{os.getuid()}-{digest.hexdigest()[:16]}"
    folder = Path(tempfile.gettempdir()) / name
    if not folder.exists():
        # Several test processes may build at once: the first to rename its own folder wins.
        own = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        try:
            _compile(own)
            own.rename(folder)
        except OSError:
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(own, ignore_errors=True)
    return folder


def environment(gpus: int = 1, memory: float = 4e9, ledger: Path | None = None) -> dict[str, str]:
    """Environment variables that put a program on `gpus` devices of `memory` bytes each.

    They are added to this process's own. Processes with the same `ledger`, a file, share the
    devices' memory. Triton keeps what it compiles in a folder beside the stand-in's.
    """
    folder = build()
    others = os.environ.get("LD_LIBRARY_PATH")
    variables = {
        "LD_PRELOAD": str(folder / "libcuda.so.1"),
        "LD_LIBRARY_PATH": f"{folder}:{others}" if others else str(folder),
        "FAKE_GPUS": str(gpus),
        "FAKE_GPU_MEM": str(int(memory)),
        "TRITON_LIBCUDA_PATH": str(folder),
        "TRITON_CACHE_DIR": str(folder.with_name(f"cuda-stub-{os.getuid()}-triton")),
        "OMP_NUM_THREADS": "1",
    }
    if ledger is not None:
        variables["FAKE_CUDA_LEDGER"] = str(ledger)
    return variables


# At the end of code: the process ends at once, and not by way of the interpreter's end. torch's
# thread of a device lets go of a gradient that `torch.autograd.grad` has returned a moment after it
# has; one that needs the interpreter for that while it ends aborts the process ("terminate called
# without an active exception", 6 of 40 on a busy machine).
_END = """
import os, sys
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)
"""


def run(
    *arguments: str,
    gpus: int = 1,
    memory: float = 4e9,
    ledger: Path | None = None,
    timeout: float = 600,
    variables: dict[str, str] | None = None,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run this Python with `arguments` on the stand-in, in the repository's root, and return the
    result with its output as text.

    Its processes share the devices' memory, by a ledger of their own unless one is given.
    `variables` are added to the environment, `options` go to subprocess.run. Raises
    subprocess.TimeoutExpired after `timeout` seconds.
    """
    if arguments[0] == "-c":
        arguments = ("-c", arguments[1] + _END, *arguments[2:])
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    options = {"cwd": ROOT, "capture_output": True, "text": True, "check": False, **options}
    with tempfile.TemporaryDirectory(prefix="cuda-stub-run-") as folder:
        env = {
            **os.environ,
            "PYTHONPATH": python_path,
            **environment(gpus, memory, ledger or Path(folder) / "ledger"),
            **(variables or {}),
        }
        return subprocess.run([sys.executable, *arguments], env=env, timeout=timeout, **options)


def memory_peaks(ledger: Path) -> list[int]:
    """The most bytes that all processes with this ledger held together, for each of 16 devices."""
    return list(struct.unpack("16Q", ledger.read_bytes()[: 16 * 8]))


def check(*arguments: str, **options: Any) -> str:
    """`run`, which must end with status 0. Returns the program's stdout."""
    done = run(*arguments, **options)
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


if __name__ == "__main__":
    gpus = int(os.environ.get("FAKE_GPUS", "1"))
    memory = float(os.environ.get("FAKE_GPU_MEM", "4e9"))
    os.environ.update(environment(gpus, memory))
    os.environ.setdefault("FAKE_CUDA_BLANK", "1")
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
