"""The short check that precedes a study on a device, once per machine, driver and torch release."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from effnet import atomic
from effnet.messages import last_line
from effnet.nn import cuda
from scaling_search import __version__
from scaling_search.data.dataset import cache_root
from scaling_search.training.device_check.subject import Answer

logger = logging.getLogger(__name__)

_SECONDS = 300.0  # s that the check has: Triton compiles its kernels in it


@dataclass(frozen=True, slots=True)
class Verdict:
    """The kernels to train through, what failed, and why Triton's kernels are not used ("" where
    they are). `remembered`: from a check before an earlier study."""

    kernels: str
    failures: tuple[str, ...] = ()
    why_no_triton: str = ""
    remembered: bool = False


def verdict_before_study(device: str, name: str) -> Verdict:
    """Return the verdict on the device called `name`.

    The check runs in a process of its own, so that the driver of a study takes none of the GPU's
    memory. A verdict is remembered in the cache folder where plain modules compute rightly,
    whatever Triton's kernels do; else the check runs again before the next study."""
    path = cache_root() / "device-checks" / f"{_machine_key(name)}.json"
    remembered = _remembered(path)
    if remembered is not None:
        return remembered
    logger.info("checking %s (%s) before its first study", device, name)
    answers, problem = _ask_in_process(device)
    if problem:
        return Verdict("torch", (problem,), problem)
    failures = []
    why_no_triton = cuda.why_no_triton()
    for answer in answers:
        if answer.ok is not False:
            continue
        failure = f"{answer.question}: {answer.detail}"
        logger.info("%s: %s", device, failure)
        if answer.of_triton:
            why_no_triton = why_no_triton or failure
        else:
            failures.append(failure)
    if failures:
        return Verdict("torch", tuple(failures), why_no_triton or "plain modules failed the check")
    verdict = Verdict("torch" if why_no_triton else "triton", (), why_no_triton)
    content = {"kernels": verdict.kernels, "why_no_triton": why_no_triton, "device": name}
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, json.dumps(content).encode())
    return verdict


def _remembered(path: Path) -> Verdict | None:
    """Return the verdict that was written here; None where there is none, or a damaged one."""
    try:
        known = json.loads(path.read_text())
        return Verdict(known["kernels"], (), known["why_no_triton"], True)
    except (OSError, ValueError, KeyError):
        return None


def _ask_in_process(device: str) -> tuple[list[Answer], str]:
    """Return the short check's answers and "", or no answers and why there are none."""
    command = [sys.executable, "-m", "scaling_search.training.device_check", "--short", "--json"]
    try:
        done = subprocess.run(
            [*command, "--device", device],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return [], f"the check did not end within {_SECONDS:g} s: the device may hang"
    try:
        return [Answer(**row) for row in json.loads(last_line(done.stdout))], ""
    except (ValueError, TypeError):
        logger.info("the check of %s wrote to stderr:\n%s", device, done.stderr)
        reason = last_line(done.stderr, f"status {done.returncode}")[:200]
        return [], f"the check itself ended: {reason}"


def _machine_key(name: str) -> str:
    """Return a hash of all that a remembered verdict holds for."""
    facts = [
        platform.node(),
        name,
        torch.__version__,
        str(torch.version.cuda),
        __version__,
        _driver_version(),
        cuda.triton_version(),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _driver_version() -> str:
    """Return the version of NVIDIA's kernel module, "" where there is none."""
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return ""
