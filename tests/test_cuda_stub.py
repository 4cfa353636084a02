"""The stand-in for CUDA enforces CUDA's rules, and counts.

Most rules are asked of its functions directly, by ctypes: a program without torch starts at once.
Those that need torch or Triton share one program. Each program is this module, run on the stand-in.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from ctypes import byref, c_float, c_int, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import pytest

from tests.cuda_stub import counters, stub

pytestmark = stub.needs_stub

# Of cudaError_t.
SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, INITIALIZATION_ERROR = 0, 1, 2, 3
INVALID_CONFIGURATION, INVALID_DEVICE, INVALID_HANDLE, ILLEGAL_STATE = 9, 101, 400, 401
UNSUPPORTED, INVALIDATED, MERGE, UNMATCHED, UNJOINED = 900, 901, 902, 903, 904
ISOLATION, IMPLICIT, CAPTURED_EVENT, WRONG_THREAD = 905, 906, 907, 908

GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2  # capture modes
NON_BLOCKING = 1  # a stream's flag
NO_TIMING = 2  # an event's flag


# ---------------------------------------------------------------- CUDA's functions, by ctypes


class Dim3(ctypes.Structure):
    _fields_ = (("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint))


if __name__ == "__main__":
    cuda = ctypes.CDLL("libcuda.so.1")

allocated: list[c_void_p] = []  # by `allocate`, since the present function began


def make_stream(device: int = 0, flags: int = NON_BLOCKING) -> c_void_p:
    stream = c_void_p()
    assert cuda.cudaSetDevice(device) == SUCCESS
    assert cuda.cudaStreamCreateWithFlags(byref(stream), flags) == SUCCESS
    assert cuda.cudaSetDevice(0) == SUCCESS
    return stream


def make_event(device: int = 0, flags: int = 0) -> c_void_p:
    event = c_void_p()
    assert cuda.cudaSetDevice(device) == SUCCESS
    assert cuda.cudaEventCreateWithFlags(byref(event), flags) == SUCCESS
    assert cuda.cudaSetDevice(0) == SUCCESS
    return event


def launch(stream: c_void_p | None, blocks: int = 1, threads: int = 32, layers: int = 1) -> int:
    """Start a kernel that the stand-in has no name for."""
    kernel = c_void_p(1)
    grid, block = Dim3(blocks, 1, layers), Dim3(threads, 1, 1)
    return cuda.cudaLaunchKernel(kernel, grid, block, None, c_size_t(0), stream)


def allocate(size: int = 64) -> tuple[int, c_void_p]:
    """cudaMalloc's status and pointer."""
    pointer = c_void_p()
    status = cuda.cudaMalloc(byref(pointer), c_size_t(size))
    if status == SUCCESS:
        allocated.append(pointer)
    return status, pointer


def begin(stream: c_void_p, mode: int = GLOBAL) -> None:
    assert cuda.cudaStreamBeginCapture(stream, mode) == SUCCESS


def end(stream: c_void_p) -> tuple[int, int]:
    """The status of the capture's end and the graph's number of nodes, -1 without a graph."""
    graph, nodes = c_void_p(), c_size_t()
    status = cuda.cudaStreamEndCapture(stream, byref(graph))
    if not graph:
        return status, -1
    assert cuda.cudaGraphGetNodes(graph, None, byref(nodes)) == SUCCESS
    return status, nodes.value


def in_thread(function: Callable[[], int], mode: int = GLOBAL) -> int:
    """The status of a call in another thread, whose capture mode is `mode`."""
    statuses = []

    def work() -> None:
        exchanged = c_int(mode)
        cuda.cudaThreadExchangeStreamCaptureMode(byref(exchanged))
        statuses.append(function())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return statuses[0]


# ---------------------------------------------------------------- the rules, one function each


def rule_a_kernel_runs_on_a_stream_of_the_current_device() -> None:
    on_first, on_second = make_stream(0), make_stream(1)
    assert launch(on_first) == SUCCESS
    assert launch(None) == SUCCESS
    assert launch(on_second) == INVALID_HANDLE
    assert counters.read()["launches"] == 2
    cuda.cudaSetDevice(1)
    assert launch(on_second) == SUCCESS
    assert launch(on_first) == INVALID_HANDLE


def rule_a_loaded_kernel_runs_on_the_device_where_it_was_loaded() -> None:
    module, function = c_void_p(), c_void_p()
    assert cuda.cuModuleLoadData(byref(module), b"") == SUCCESS
    assert cuda.cuModuleGetFunction(byref(function), module, b"kernel") == SUCCESS
    sizes = (1, 1, 1, 32, 1, 1, 0)
    assert cuda.cuLaunchKernel(function, *sizes, None, None, None) == SUCCESS
    assert counters.launched() == {"kernel": 1}
    cuda.cudaSetDevice(1)
    assert cuda.cuLaunchKernel(function, *sizes, None, None, None) == INVALID_HANDLE


def rule_a_launch_has_limits() -> None:
    assert launch(None, threads=1025) == INVALID_CONFIGURATION
    assert launch(None, layers=65536) == INVALID_CONFIGURATION
    assert launch(None, blocks=0) == INVALID_CONFIGURATION
    assert launch(None, blocks=70000) == SUCCESS


def rule_devices_are_numbered_and_contexts_made_when_they_are_used() -> None:
    number = c_int()
    assert cuda.cudaGetDeviceCount(byref(number)) == SUCCESS
    assert number.value == 2
    assert cuda.cudaSetDevice(2) == INVALID_DEVICE
    assert cuda.cudaSetDevice(-1) == INVALID_DEVICE
    code = (
        "import ctypes; from tests.cuda_stub import counters; "
        "cuda = ctypes.CDLL('libcuda.so.1'); n = ctypes.c_int(); "
        "cuda.cudaGetDeviceCount(ctypes.byref(n)); before = counters.has_context(1); "
        "cuda.cudaSetDevice(1); print(before, counters.has_context(0), counters.has_context(1))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True"]


def rule_visible_devices_are_the_only_ones() -> None:
    code = (
        "import ctypes; cuda = ctypes.CDLL('libcuda.so.1'); n = ctypes.c_int(); "
        "cuda.cudaGetDeviceCount(ctypes.byref(n)); bus = ctypes.create_string_buffer(20); "
        "n.value and cuda.cudaDeviceGetPCIBusId(bus, 20, 0); print(n.value, bus.value.decode())"
    )
    answers = []
    for visible in ("1", "1,0", "0,7,1", ""):
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": visible}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        answers.append(done.stdout.split())
    assert answers == [["1", "0000:02:00.0"], ["2", "0000:02:00.0"], ["1", "0000:01:00.0"], ["0"]]


def rule_a_fork_after_the_first_use_is_refused() -> None:
    make_stream()
    child = os.fork()
    if child == 0:
        os._exit(cuda.cudaGetDeviceCount(byref(c_int())))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == INITIALIZATION_ERROR


def rule_an_event_belongs_to_its_device() -> None:
    assert cuda.cudaEventRecord(make_event(1), make_stream(0)) == INVALID_HANDLE
    milliseconds = c_float(-1)
    on_first, on_second, unrecorded = make_event(0), make_event(1), make_event(0)
    without_time = make_event(0, NO_TIMING)
    stream, other = make_stream(0), make_stream(1)
    assert cuda.cudaEventRecord(on_first, stream) == SUCCESS
    assert cuda.cudaEventRecord(without_time, stream) == SUCCESS
    assert cuda.cudaEventRecord(on_second, other) == SUCCESS
    for event in (on_second, unrecorded, without_time):
        assert cuda.cudaEventElapsedTime(byref(milliseconds), on_first, event) == INVALID_HANDLE
    again = make_event(0)
    assert cuda.cudaEventRecord(again, stream) == SUCCESS
    assert cuda.cudaEventElapsedTime(byref(milliseconds), on_first, again) == SUCCESS
    assert milliseconds.value >= 0


def rule_a_capture_records_and_a_replay_repeats() -> None:
    stream = make_stream()
    begin(stream)
    for _ in range(3):
        assert launch(stream) == SUCCESS
    assert counters.read()["launches"] == 0, "a captured kernel is not launched"
    graph, executable = c_void_p(), c_void_p()
    assert cuda.cudaStreamEndCapture(stream, byref(graph)) == SUCCESS
    flags = ctypes.c_ulonglong(0)
    assert cuda.cudaGraphInstantiateWithFlags(byref(executable), graph, flags) == SUCCESS
    for _ in range(2):
        assert cuda.cudaGraphLaunch(executable, stream) == SUCCESS
    counts = counters.read()
    assert (counts["captured_nodes"], counts["graph_replays"], counts["replayed_nodes"]) == (
        3,
        2,
        6,
    )
    assert list(counters.captured().values()) == [3]
    assert list(counters.replayed().values()) == [6]
    begin(stream)
    assert cuda.cudaGraphLaunch(executable, stream) == UNSUPPORTED, "no graph within a capture"
    assert end(stream) == (INVALIDATED, -1)


def rule_an_unsafe_call_invalidates_the_thread_s_own_capture() -> None:
    for mode in (GLOBAL, THREAD_LOCAL):
        stream, status = make_stream(), c_int()
        begin(stream, mode)
        assert launch(stream) == SUCCESS
        assert allocate()[0] == UNSUPPORTED
        assert cuda.cudaStreamIsCapturing(stream, byref(status)) == SUCCESS
        assert status.value == 2
        assert launch(stream) == INVALIDATED
        assert end(stream) == (INVALIDATED, -1)
        assert allocate()[0] == SUCCESS, "once the capture has ended"
    assert counters.read()["refused"] == 2


def rule_a_relaxed_capture_allows_unsafe_calls() -> None:
    stream = make_stream()
    begin(stream, RELAXED)
    assert allocate()[0] == SUCCESS
    assert in_thread(lambda: allocate()[0]) == SUCCESS
    assert end(stream) == (SUCCESS, 0)
    begin(stream, GLOBAL)
    mode = c_int(RELAXED)
    assert cuda.cudaThreadExchangeStreamCaptureMode(byref(mode)) == SUCCESS
    assert mode.value == GLOBAL
    assert allocate()[0] == SUCCESS
    assert cuda.cudaThreadExchangeStreamCaptureMode(byref(mode)) == SUCCESS
    assert end(stream) == (SUCCESS, 0)


def rule_a_global_capture_forbids_unsafe_calls_in_other_threads() -> None:
    event = make_event()
    host = c_void_p()
    calls: list[Callable[[], int]] = [
        lambda: allocate()[0],
        lambda: cuda.cudaFree(pointer),
        lambda: cuda.cudaEventQuery(event),
        lambda: cuda.cudaEventSynchronize(event),
        lambda: cuda.cudaHostAlloc(byref(host), c_size_t(8), 0),
        lambda: cuda.cudaMemcpy(pointer, ctypes.create_string_buffer(8), c_size_t(8), 4),
        lambda: cuda.cuModuleLoadData(byref(c_void_p()), b""),
    ]
    for call in calls:
        _, pointer = allocate()
        stream = make_stream()
        begin(stream, GLOBAL)
        assert in_thread(call) == UNSUPPORTED
        assert end(stream) == (INVALIDATED, -1)
        begin(stream, GLOBAL)
        assert in_thread(call, THREAD_LOCAL) == SUCCESS, "a thread may look to itself alone"
        assert end(stream) == (SUCCESS, 0)
        _, pointer = allocate()
        begin(stream, THREAD_LOCAL)
        assert in_thread(call) == SUCCESS
        assert end(stream) == (SUCCESS, 0)


def rule_a_capturing_stream_cannot_be_waited_for() -> None:
    for call in (cuda.cudaStreamSynchronize, cuda.cudaStreamQuery):
        stream = make_stream()
        begin(stream, RELAXED)
        assert call(make_stream()) == SUCCESS
        assert call(stream) == UNSUPPORTED
        assert end(stream) == (INVALIDATED, -1)


def rule_a_capturing_device_cannot_be_waited_for() -> None:
    stream = make_stream(1)
    begin(stream, RELAXED)
    assert cuda.cudaDeviceSynchronize() == SUCCESS, "another device can"
    cuda.cudaSetDevice(1)
    assert cuda.cudaDeviceSynchronize() == UNSUPPORTED
    assert in_thread(lambda: cuda.cudaSetDevice(1) or cuda.cudaDeviceSynchronize()) == UNSUPPORTED
    assert end(stream) == (INVALIDATED, -1)


def rule_a_captured_event_cannot_be_asked() -> None:
    for call in (cuda.cudaEventQuery, cuda.cudaEventSynchronize):
        stream, event = make_stream(), make_event()
        begin(stream, RELAXED)
        assert cuda.cudaEventRecord(event, stream) == SUCCESS
        assert call(event) == CAPTURED_EVENT
        assert end(stream) == (INVALIDATED, -1)
        assert cuda.cudaEventRecord(event, stream) == SUCCESS
        assert call(event) == SUCCESS


def rule_the_legacy_stream_waits_for_blocking_streams() -> None:
    blocking = make_stream(0, 0)
    begin(blocking, RELAXED)
    assert launch(None) == IMPLICIT
    assert end(blocking) == (INVALIDATED, -1)
    other = make_stream(0, NON_BLOCKING)
    begin(other, RELAXED)
    assert launch(None) == SUCCESS
    assert end(other) == (SUCCESS, 0)
    assert cuda.cudaStreamBeginCapture(None, GLOBAL) == UNSUPPORTED


def rule_a_fork_within_a_capture_is_joined() -> None:
    stream, other = make_stream(), make_stream()
    forked, joined = make_event(), make_event()
    for join in (True, False):
        begin(stream)
        assert launch(stream) == SUCCESS
        assert cuda.cudaEventRecord(forked, stream) == SUCCESS
        assert cuda.cudaStreamWaitEvent(other, forked, 0) == SUCCESS
        assert launch(other) == SUCCESS, "captured as well"
        assert cuda.cudaEventRecord(joined, other) == SUCCESS
        if join:
            assert cuda.cudaStreamWaitEvent(stream, joined, 0) == SUCCESS
        assert end(stream) == ((SUCCESS, 2) if join else (UNJOINED, -1))
    assert counters.read()["launches"] == 0
    assert launch(other) == SUCCESS
    assert counters.read()["launches"] == 1, "after the end it does not capture"


def rule_a_capture_waits_for_nothing_outside() -> None:
    stream, outside, event = make_stream(), make_stream(), make_event()
    assert cuda.cudaEventRecord(event, outside) == SUCCESS
    begin(stream, RELAXED)
    assert cuda.cudaStreamWaitEvent(stream, event, 0) == ISOLATION
    assert end(stream) == (INVALIDATED, -1)
    begin(stream, RELAXED)
    begin(outside, RELAXED)
    assert cuda.cudaEventRecord(event, outside) == SUCCESS
    assert cuda.cudaStreamWaitEvent(stream, event, 0) == MERGE
    assert end(stream) == (INVALIDATED, -1)
    assert end(outside) == (INVALIDATED, -1)


def rule_a_capture_ends_where_it_began() -> None:
    stream, other, event = make_stream(), make_stream(), make_event()
    assert end(stream) == (ILLEGAL_STATE, -1)
    begin(stream)
    assert cuda.cudaStreamBeginCapture(stream, GLOBAL) == ILLEGAL_STATE
    assert in_thread(lambda: end(stream)[0]) == WRONG_THREAD
    assert end(stream) == (INVALIDATED, -1)
    begin(stream)
    assert cuda.cudaEventRecord(event, stream) == SUCCESS
    assert cuda.cudaStreamWaitEvent(other, event, 0) == SUCCESS
    assert end(other) == (UNMATCHED, -1)
    assert end(stream) == (INVALIDATED, -1)
    begin(stream, RELAXED)
    assert in_thread(lambda: end(stream)[0]) == SUCCESS


def rule_each_device_has_so_much_memory() -> None:
    free, total = c_size_t(), c_size_t()
    status, first = allocate(600_000)
    assert status == SUCCESS
    assert allocate(600_000)[0] == OUT_OF_MEMORY
    assert cuda.cudaMemGetInfo(byref(free), byref(total)) == SUCCESS
    assert (free.value, total.value) == (400_000, 1_000_000)
    cuda.cudaSetDevice(1)
    status, second = allocate(900_000)
    assert status == SUCCESS, "the other device has its own"
    assert counters.memory_used(0) == 600_000
    assert counters.memory_used(1) == 900_000
    assert cuda.cudaFree(first) == SUCCESS
    assert cuda.cudaFree(second) == SUCCESS
    assert cuda.cudaFree(c_void_p(8)) == INVALID_VALUE
    assert counters.memory_used(0) == 0
    assert counters.memory_peak(0) == 600_000
    counts = counters.read()
    assert (counts["allocations"], counts["frees"], counts["out_of_memory"]) == (3, 2, 1)
    cuda.cudaSetDevice(0)
    assert allocate(1_000_000)[0] == SUCCESS, "it has come back"


def rule_processes_share_a_device() -> None:
    code = (
        "import ctypes, time; cuda = ctypes.CDLL('libcuda.so.1'); p = ctypes.c_void_p(); "
        "print(cuda.cudaMalloc(ctypes.byref(p), ctypes.c_size_t(600_000)), flush=True); "
        "time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "0\n"
        free, total = c_size_t(), c_size_t()
        assert cuda.cudaMemGetInfo(byref(free), byref(total)) == SUCCESS
        assert free.value == 400_000
        assert allocate(600_000)[0] == OUT_OF_MEMORY
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert allocate(600_000)[0] == SUCCESS, "a process that is killed gives its memory back"


def rule_copies_are_counted_by_kind() -> None:
    stream, pinned = make_stream(), c_void_p()
    (_, first), (_, second) = allocate(8), allocate(8)
    assert cuda.cudaHostAlloc(byref(pinned), c_size_t(8), 0) == SUCCESS
    pageable, back = ctypes.create_string_buffer(b"pageable", 8), ctypes.create_string_buffer(8)
    size, kind = c_size_t(8), 4
    for target, source in ((first, pageable), (second, pinned), (second, first), (back, second)):
        assert cuda.cudaMemcpyAsync(target, source, size, kind, stream) == SUCCESS
    assert back.raw == b"pageable"
    assert cuda.cudaMemsetAsync(first, 0, size, stream) == SUCCESS
    names = ("host_to_device_pageable", "host_to_device_pinned", "device_to_device")
    names = (*names, "device_to_host", "fills")
    assert [counters.count(name) for name in names] == [1, 1, 1, 1, 1]
    begin(stream)
    assert cuda.cudaMemcpyAsync(first, pageable, size, kind, stream) == SUCCESS
    assert cuda.cudaMemcpyAsync(first, pinned, size, kind, stream) == SUCCESS
    assert end(stream) == (SUCCESS, 2)
    assert [counters.count(name) for name in names] == [1, 1, 1, 1, 1], "captured, not made"
    expected = {"copy pageable host to device": 1, "copy pinned host to device": 1}
    assert counters.captured() == expected


def rule_a_blank_device_reads_as_zero() -> None:
    code = (
        "import ctypes; cuda = ctypes.CDLL('libcuda.so.1'); p = ctypes.c_void_p(); "
        "size = ctypes.c_size_t(4); back = ctypes.create_string_buffer(b'back', 4); "
        "cuda.cudaMalloc(ctypes.byref(p), size); cuda.cudaMemcpy(p, b'here', size, 4); "
        "cuda.cudaMemcpy(back, p, size, 4); print(back.raw)"
    )
    for variables, expected in (({}, b"here"), ({"FAKE_CUDA_BLANK": "1"}, bytes(4))):
        env = {**os.environ, **variables}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == repr(expected)


def rule_waits_are_counted() -> None:
    stream, event = make_stream(), make_event()
    assert cuda.cudaEventRecord(event, stream) == SUCCESS
    assert cuda.cudaEventQuery(event) == SUCCESS
    assert cuda.cudaStreamQuery(stream) == SUCCESS
    assert counters.count("synchronisations") == 0, "a question is no wait"
    assert cuda.cudaStreamSynchronize(stream) == SUCCESS
    assert cuda.cudaEventSynchronize(event) == SUCCESS
    assert cuda.cudaDeviceSynchronize() == SUCCESS
    _, pointer = allocate(8)
    assert cuda.cudaMemcpy(pointer, ctypes.create_string_buffer(8), c_size_t(8), 4) == SUCCESS
    assert counters.count("synchronisations") == 4


# ---------------------------------------------------------------- the same through torch


def capture_on(device: int, graph: Any, mode: str = "global") -> Any:
    """torch.cuda.graph on a stream of this device: by itself it keeps one stream for the whole
    process, on the device where it was first used (torch 2.11 to 2.14)."""
    import torch

    return torch.cuda.graph(graph, stream=torch.cuda.Stream(device), capture_error_mode=mode)


def torch_sees_two_devices() -> None:
    import torch

    assert torch.cuda.is_available()
    assert torch.cuda.device_count() == 2
    properties = torch.cuda.get_device_properties(1)
    assert (properties.major, properties.minor) == (9, 0)
    assert properties.total_memory == 300_000_000
    assert torch.cuda.is_bf16_supported()
    assert torch.cuda.mem_get_info(1) == (300_000_000, 300_000_000)


def torch_runs_out_of_memory_and_gets_it_back() -> None:
    import torch

    torch.cuda.empty_cache()
    before = torch.cuda.mem_get_info(0)[0]
    kept = torch.empty(200_000_000, dtype=torch.uint8, device="cuda:0")
    with pytest.raises(torch.cuda.OutOfMemoryError):
        torch.empty(200_000_000, dtype=torch.uint8, device="cuda:0")
    on_second = torch.empty(200_000_000, dtype=torch.uint8, device="cuda:1")
    assert counters.memory_used(0) >= 200_000_000
    assert counters.memory_used(1) >= 200_000_000
    del kept, on_second
    torch.cuda.empty_cache()
    assert torch.cuda.mem_get_info(0)[0] == before


def torch_copies_and_waits_are_counted() -> None:
    import torch

    host = torch.zeros(1000)
    pinned = host.pin_memory()
    torch.cuda.synchronize()
    counters.reset()
    device = host.cuda()
    counts = counters.read()
    assert (counts["host_to_device_pageable"], counts["synchronisations"]) == (1, 1)
    counters.reset()
    device.copy_(pinned, non_blocking=True)
    counts = counters.read()
    assert (counts["host_to_device_pinned"], counts["host_to_device_pageable"]) == (1, 0)
    assert counts["synchronisations"] == 0
    counters.reset()
    (device + 1).sum().item()
    counts = counters.read()
    assert (counts["launches"], counts["device_to_host"], counts["synchronisations"]) == (2, 1, 1)


def torch_events_measure() -> None:
    import torch

    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    torch.zeros(10, device="cuda") + 1
    stop.record()
    stop.synchronize()
    assert start.elapsed_time(stop) > 0


def torch_captures_a_training_step() -> None:
    """A graph's memory pool stays as long as the graph, and comes back after it."""
    import torch
    from torch import nn

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 3))
    model.to("cuda:1", memory_format=torch.channels_last)
    images = torch.zeros(4, 3, 32, 32, device="cuda:1")

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            model(images).float().mean().backward()

    with torch.cuda.device(1):
        step()
        torch.cuda.empty_cache()
        before = counters.memory_used(1)
        graph = torch.cuda.CUDAGraph()
        counters.reset()
        with capture_on(1, graph):
            step()
        nodes = counters.read()["captured_nodes"]
        assert nodes > 20
        assert counters.read()["refused"] == 0
        counters.reset()
        graph.replay()
        counts = counters.read()
        assert (counts["replayed_nodes"], counts["launches"]) == (nodes, 0)
        torch.cuda.empty_cache()
        assert counters.memory_used(1) > before, "the graph's own"
        del graph
        torch.cuda.empty_cache()
        assert counters.memory_used(1) == before


def torch_threads_may_allocate_during_a_thread_local_capture() -> None:
    import torch

    torch.zeros(10, device="cuda:1")

    def allocate_elsewhere(size: int) -> int:
        with torch.cuda.device(1):
            try:
                torch.empty(size, dtype=torch.uint8, device="cuda:1")
            except RuntimeError:
                return UNSUPPORTED
        return SUCCESS

    def capture(mode: str, size: int) -> int:
        graph = torch.cuda.CUDAGraph()
        with capture_on(0, graph, mode):
            torch.zeros(10, device="cuda:0")
            return in_thread(lambda: allocate_elsewhere(size))

    torch.zeros(10, device="cuda:0")
    assert capture("thread_local", 30_000_000) == SUCCESS
    # A failed capture leaves its stream current (torch 2.11 and 2.14), which is restored here.
    stream = torch.cuda.current_stream()
    with pytest.raises(RuntimeError, match="previous error during capture"):
        capture("global", 60_000_000)
    torch.cuda.set_stream(stream)


def triton_kernels_are_launched_and_captured() -> None:
    import torch
    import triton
    import triton.language as tl

    def twice(source, target, count, block: tl.constexpr):
        index = tl.program_id(0) * block + tl.arange(0, block)
        inside = index < count
        tl.store(target + index, 2 * tl.load(source + index, mask=inside), mask=inside)

    kernel = triton.jit(twice)
    source = torch.zeros(1000, device="cuda:0")
    target = torch.empty_like(source)
    counters.reset()
    kernel[(4,)](source, target, 1000, block=256)
    assert counters.launched() == {"twice": 1}
    graph = torch.cuda.CUDAGraph()
    with capture_on(0, graph):
        kernel[(4,)](source, target, 1000, block=256)
    graph.replay()
    assert counters.captured() == {"twice": 1}
    assert counters.replayed() == {"twice": 1}
    on_second = torch.zeros(1000, device="cuda:1")
    with pytest.raises(ValueError, match="cannot be accessed"):
        kernel[(4,)](source, on_second, 1000, block=256)
    assert counters.refusals() == {"a pointer of another device": 1}


def triton_kernels_cannot_be_loaded_during_a_capture() -> None:
    import torch
    import triton
    import triton.language as tl

    def clear(target, block: tl.constexpr):
        tl.store(target + tl.arange(0, block), 0.0)

    kernel = triton.jit(clear)
    target = torch.zeros(64, device="cuda:0")
    stream = torch.cuda.current_stream()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="capture|capturing"), capture_on(0, graph):
        kernel[(1,)](target, block=64)
    torch.cuda.set_stream(stream)


def torch_refuses_a_capture_with_the_wrong_device_current() -> None:
    import torch

    torch.cuda.set_device(0)
    counters.reset()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="capture|capturing"), capture_on(0, graph):
        torch.empty(100_000_000, dtype=torch.uint8, device="cuda:1")
    assert counters.refusals() == {"cudaMalloc during a capture": 1}


# ---------------------------------------------------------------- the programs


def functions(prefixes: tuple[str, ...]) -> list[Callable[[], None]]:
    """The functions of this module whose names begin so, in the order they are written."""
    return [value for name, value in globals().items() if name.startswith(prefixes)]


def run_all(prefixes: tuple[str, ...]) -> int:
    """Run them one after another; 1 where some failed, and say which."""
    failed = []
    for function in functions(prefixes):
        counters.reset()
        counters.reset_memory_peak()
        cuda.cudaSetDevice(0)
        try:
            function()
        except (Exception, pytest.fail.Exception):
            failed.append(function.__name__)
            traceback.print_exc()
        while allocated:
            cuda.cudaFree(allocated.pop())
    print(f"{len(failed)} failed: {failed}")
    return 1 if failed else 0


def test_rules(tmp_path: Path) -> None:
    """CUDA's rules, asked of its functions."""
    ledger = tmp_path / "ledger"
    stub.check("-m", "tests.test_cuda_stub", "rule_", gpus=2, memory=1e6, ledger=ledger)
    peaks = stub.memory_peaks(ledger)
    assert peaks[0] == 1_000_000
    assert 900_000 <= peaks[1] <= 1_000_000
    assert not any(peaks[2:])


def test_rules_through_torch() -> None:
    """Memory, copies, waits and captures as torch and Triton meet them."""
    stub.check("-m", "tests.test_cuda_stub", "torch_", "triton_", gpus=2, memory=3e8)


def test_what_torch_says_of_a_driver_too_old() -> None:
    code = "import torch; print(torch.cuda.is_available(), torch.cuda.device_count())"
    done = stub.run("-c", code, variables={"FAKE_CUDA_DRIVER_VERSION": "12040"})
    assert done.stdout.split() == ["False", "0"]
    assert "too old (found version 12040)" in done.stderr


if __name__ == "__main__":
    sys.exit(run_all(tuple(sys.argv[1:])))
