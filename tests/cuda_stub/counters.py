"""Read the stand-in's counters, from within a program that runs on it.

`read()` gives all as a dictionary: launches, captured_nodes, graph_replays, replayed_nodes,
synchronisations, host_to_device_pageable, host_to_device_pinned, device_to_host, device_to_device,
fills, allocations, frees, pinned_allocations, out_of_memory, refused. Launches, copies and fills
are those outside a capture; within one, each is a captured node.

`launched()`, `captured()`, `replayed()` and `refusals()` count by name: of kernels (mangled, as the
compiler named them; Triton's as they are written), of copies and fills, of broken rules.

They are of this process alone: a worker's are read in the worker.
"""

from __future__ import annotations

import ctypes
import functools

_LAUNCHED, _CAPTURED, _REPLAYED, _REFUSALS = range(4)


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL("libcuda.so.1")
    library.fake_counter_name.restype = ctypes.c_char_p
    library.fake_counter.restype = ctypes.c_long
    library.fake_tally.restype = ctypes.c_char_p
    library.fake_memory_used.restype = ctypes.c_size_t
    library.fake_memory_peak.restype = ctypes.c_size_t
    return library


@functools.cache
def _names() -> tuple[str, ...]:
    names = []
    while (name := _library().fake_counter_name(len(names))) is not None:
        names.append(name.decode())
    return tuple(names)


def reset() -> None:
    """Set all counters to zero and forget all names. Memory in use is not a counter."""
    _library().fake_reset()


def read() -> dict[str, int]:
    """All counters since the last reset, in this process."""
    return {name: _library().fake_counter(i) for i, name in enumerate(_names())}


def count(name: str) -> int:
    """One counter since the last reset."""
    return _library().fake_counter(_names().index(name))


def _tally(table: int) -> dict[str, int]:
    rows = _library().fake_tally(table).decode().splitlines()
    counts = {}
    for row in rows:
        number, name = row.split("\t", 1)
        counts[name] = int(number)
    return counts


def launched() -> dict[str, int]:
    """Kernels launched outside a capture, by name."""
    return _tally(_LAUNCHED)


def captured() -> dict[str, int]:
    """Nodes that captures recorded, by name."""
    return _tally(_CAPTURED)


def replayed() -> dict[str, int]:
    """Nodes of the graphs launched, by name."""
    return _tally(_REPLAYED)


def refusals() -> dict[str, int]:
    """Calls that broke a rule of CUDA, by what they did."""
    return _tally(_REFUSALS)


def memory_used(device: int = 0) -> int:
    """Bytes that this process holds on a device: what cudaMalloc gave and cudaFree did not take."""
    return _library().fake_memory_used(device)


def memory_peak(device: int = 0) -> int:
    """The most that `memory_used` has been since `reset_memory_peak`."""
    return _library().fake_memory_peak(device)


def reset_memory_peak() -> None:
    """Set each device's peak to what is in use now."""
    _library().fake_reset_memory_peak()


def has_context(device: int) -> bool:
    """Whether this process has a CUDA context on the device. On a card one takes some 500 MB."""
    return bool(_library().fake_context_exists(device))
