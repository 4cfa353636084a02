"""CUDA graphs that are recorded on the right device, and refusals that leave the process as it was."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable

import torch

_a_capture_failed = False


def process_is_spoiled() -> bool:
    """Whether a capture has failed in this process. Before torch 2.12 the memory that it had taken
    never comes back: such a worker ends after its run."""
    return _a_capture_failed


def capture(
    device: torch.device, work: Callable[[], object]
) -> tuple[torch.cuda.CUDAGraph | None, str]:
    """The graph of the kernels that `work` launches, none of which runs now; or None and the reason.

    Run `work` a few times before: libraries choose their kernels and take their workspaces. torch's
    own context manager captures on the current device, whatever device `work` is for; where it is
    refused it leaves the capture stream current, and the random generator in the middle of a capture.
    Where memory was short the caller may run `work` eagerly: what it held is gone by then."""
    global _a_capture_failed
    stream = _capture_stream(device)
    graph = torch.cuda.CUDAGraph()
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()  # what eager steps have left would lie idle beside the graph's memory
    refusal = ""
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.device(device), torch.cuda.stream(stream):
        # thread_local: a thread that reads data ahead may allocate pinned memory meanwhile
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            work()
        except RuntimeError as error:
            refusal = _first_line(error)
        try:
            graph.capture_end()
        except RuntimeError as error:
            refusal = refusal or _first_line(error)
    torch.cuda.current_stream(device).wait_stream(stream)
    if not refusal:
        return graph, ""
    _a_capture_failed = True
    _renew_generator(device)
    graph.reset()
    del graph
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return None, refusal


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each device and process: a stream is never given back, and keeps memory of its own."""
    return torch.cuda.Stream(device)


def _renew_generator(device: torch.device) -> None:
    """Before torch 2.12 a generator that was part of a failed capture refuses to draw."""
    state = torch.Generator(device).graphsafe_get_state()
    index = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.default_generators[index].graphsafe_set_state(state)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
