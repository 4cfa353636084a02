"""Records CUDA graphs on a given device; a capture that fails leaves the process as it was."""

from __future__ import annotations

import functools
import gc
import warnings
from collections.abc import Callable

import torch

from effnet.messages import first_line

_a_capture_failed = False


def process_is_spoiled() -> bool:
    """Whether a capture has failed in this process. Before torch 2.12 the memory that it had taken
    never comes back, so such a worker should end after its run."""
    return _a_capture_failed


def capture(
    device: torch.device, work: Callable[[], object]
) -> tuple[torch.cuda.CUDAGraph | None, str]:
    """Return the graph of the kernels that `work` launches, none of which runs now; or None and the
    reason why there is none.

    Run `work` a few times before: libraries choose their kernels and take their workspaces then.
    Where memory was short the caller may then run `work` eagerly: what it held is released.
    Other exceptions of `work` than RuntimeError are raised, after the capture has ended."""
    # torch's own context manager, torch.cuda.graph, will not do: it captures on the current device,
    # whatever device `work` is for, and after a refusal it leaves the capture stream current and
    # the random generator in the middle of a capture.
    device = torch.device(
        "cuda", torch.cuda.current_device() if device.index is None else device.index
    )
    stream = _capture_stream(device)
    graph = torch.cuda.CUDAGraph()
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()  # what eager steps have left would lie idle beside the graph's memory
    seed = torch.cuda.default_generators[device.index].initial_seed()
    refusal = ""
    ended = False
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.device(device), torch.cuda.stream(stream):
            # thread_local: a thread that reads data ahead may allocate pinned memory meanwhile
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                work()
            except RuntimeError as error:
                refusal = first_line(error)
            finally:
                refusal = _end(graph, refusal)
        ended = True
    finally:
        torch.cuda.current_stream(device).wait_stream(stream)
        if refusal or not ended:  # not ended: `work` raised something else, a signal's say
            _recover(device, graph, seed)
    return (None, refusal) if refusal else (graph, "")


def _end(graph: torch.cuda.CUDAGraph, refusal: str) -> str:
    """End the capture; return the first reason for which there is no graph, or ""."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            graph.capture_end()
        except RuntimeError as error:
            return refusal or first_line(error)
    if not refusal and any("graph is empty" in str(w.message).lower() for w in caught):
        return "it launched nothing on the device that it was captured on"
    return refusal


def _recover(device: torch.device, graph: torch.cuda.CUDAGraph, seed: int) -> None:
    """Leave the process as it was before a capture that failed."""
    global _a_capture_failed
    _a_capture_failed = True
    generator = torch.cuda.default_generators[device.index]
    # before torch 2.12 a generator that was part of a failed capture refuses to draw
    generator.graphsafe_set_state(torch.Generator(device).graphsafe_get_state())
    generator.manual_seed(seed)
    graph.reset()
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream to capture on, one for each device and process: torch never gives a stream back,
    and each keeps memory of its own."""
    return torch.cuda.Stream(device)
