"""A worker process's memory: kept warm within a run, given back after it, its peak known."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

# of glibc's mallopt (malloc.h)
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_MALLOC_OPTIONS = {_MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**26}  # bytes


def keep_freed_pages() -> None:
    """Have glibc hand freed memory to the next tensor instead of the system.

    Every step asks for the same feature maps again, and fresh pages cost a fault each: a fifth of a
    small network's step. With another C library this does nothing."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for option, value in _MALLOC_OPTIONS.items():
            libc.mallopt(option, value)


def activate(name: str) -> torch.device:
    """Return the device of this name, with its index; a CUDA device is made the current one.

    Streams, captures and memory counters are those of the current device, and CUDA keeps none
    before it is started: so a run calls this before anything else."""
    device = torch.device(name)
    if device.type != "cuda":
        return device
    torch.cuda.init()
    index = torch.cuda.current_device() if device.index is None else device.index
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given; a CPU already has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release() -> None:
    """Give what the last run held back to the system and the device."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak(device: torch.device) -> None:
    """Let `peak` count from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # Linux alone; elsewhere the peak is the process's highest yet
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """Return the most bytes held since `reset_peak`: on a CUDA device those that torch had taken
    from it, which other processes cannot have (its tensors fill about half of them), else those of
    this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):  # the resident set's high-water mark, in KiB
                return 1024 * int(line.split()[1])
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others KiB
    return unit * highest
