"""Measures what networks and single blocks take on this device, in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor, nn

import effnet
from effnet.arch import Arch, Network
from effnet.blocks import Block
from effnet.cost import Precision
from effnet.latency import Inference
from effnet.messages import first_line
from effnet.nn import cuda
from effnet.nn.model import BlockStyle, block_module
from effnet.processes import end_with_parent

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Passes before the measured ones: libraries choose their kernels in the first.
WARM_UP = 3
# Rounds take turns among all that is measured, so that a machine that is slow for a while is slow
# for all. So many at least, and at most, and in between until each has had its time.
_FEWEST_ROUNDS, _MOST_ROUNDS = 9, 1000
_IN_A_ROW = 3  # passes of one in a round, after an unmeasured one
_SECONDS_EACH, _SECONDS_EACH_BLOCK = 0.4, 0.05
# Of a single block on CUDA so many passes are one launch: a launch takes longer than most blocks.
_PASSES_A_LAUNCH = 10


Result = TypeVar("Result")


class TimingError(RuntimeError):
    """Why something could not be measured."""


class Stopwatch:
    """A process that measures under one Inference, and nothing else; a context manager.

    Raises TimingError for what this device cannot run."""

    def __init__(self, inference: Inference) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(
            1, mp_context=context, initializer=_begin, initargs=(inference.threads,)
        )
        # Ctrl-C is the parent's, which ends this process; ignored from its first moment on
        with _interrupts_ignored():
            description = self._pool.submit(_describe, inference.device)
        try:
            self._process, hardware = self._result(description)
        except TimingError:
            self._pool.shutdown()
            raise
        self.inference = replace(inference, hardware=hardware)

    def __enter__(self) -> Stopwatch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:  # such as Ctrl-C: what is being measured is not waited for
            with suppress(ProcessLookupError):
                os.kill(self._process, signal.SIGKILL)
        self._pool.shutdown(cancel_futures=True)

    def blocks(self, arch: Arch, shapes: Sequence[Block]) -> list[float]:
        """Nanoseconds of one repeat of each block, with the activation and the batch norms of
        `arch`."""
        return self._run(_time_blocks, self.inference, arch, list(shapes))

    def networks(self, archs: Sequence[Network]) -> list[float]:
        """Nanoseconds of a forward pass of each network."""
        return self._run(_time_networks, self.inference, list(archs))

    def _run(self, work: Callable[..., Result], *arguments: object) -> Result:
        return self._result(self._pool.submit(work, *arguments))

    def _result(self, future: Future[Result]) -> Result:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise TimingError("the process that measures latencies was killed") from error


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ignore SIGINT for a moment, as a process that is started then goes on to do. Only the main
    thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _begin(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    end_with_parent(1)


def _describe(device: str) -> tuple[int, str]:
    """This process, and what the device calls itself. Raises TimingError where it is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise TimingError("there is no GPU here that torch can use; @1/cpu is the CPU's latency")
    return os.getpid(), hardware_name(device)


def _time_blocks(inference: Inference, arch: Arch, shapes: list[Block]) -> list[float]:
    style = BlockStyle(arch.activation, False, arch.bn_eps, arch.bn_momentum)
    passes = _PASSES_A_LAUNCH if inference.device == "cuda" else 1
    works = []
    with _explained(inference):
        for shape in shapes:
            module = block_module(shape._replace(repeats=1), style, arch.stem_pool)
            size = (inference.batch, shape.c_in, shape.side_in, shape.across_in)
            works.append(_work(module, size, inference, passes))
        return [each / passes for each in _interleaved(works, inference, _SECONDS_EACH_BLOCK)]


def _time_networks(inference: Inference, archs: list[Network]) -> list[float]:
    works = []
    with _explained(inference):
        for arch in archs:
            size = (inference.batch, arch.in_channels, *arch.sides)
            works.append(_work(effnet.build(arch), size, inference))
        return _interleaved(works, inference, _SECONDS_EACH)


@contextmanager
def _explained(inference: Inference) -> Iterator[None]:
    """Raises TimingError for what a device cannot run, as with too little memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise TimingError(
            f"measuring latency of {inference.batch} images on {inference.device}: "
            f"{first_line(error, named=True)}"
        ) from error


def _work(
    module: nn.Module, size: tuple[int, ...], inference: Inference, passes: int = 1
) -> Callable[[], object]:
    """`passes` forward passes, ready to be called."""
    images = torch.randn(size, device=torch.device(inference.device))
    return forward_pass(module.eval(), images, inference.precision, passes)


def _interleaved(
    works: Sequence[Callable[[], object]], inference: Inference, seconds_each: float
) -> list[float]:
    """The nanoseconds of each: the median over rounds of its part of the round, times the median
    round. Where the machine is slow for a while, all of a round is."""
    place = torch.device(inference.device)

    def timed(work: Callable[[], object]) -> float:
        pass_seconds(work, place)  # brings the weights back into the caches that others have filled
        return statistics.fmean(1e9 * pass_seconds(work, place) for _ in range(_IN_A_ROW))

    for work in works:
        timed(work)
    rounds: list[list[float]] = []
    begin = time.perf_counter()
    while len(rounds) < _MOST_ROUNDS:
        enough = time.perf_counter() - begin > seconds_each * len(works)
        if enough and len(rounds) >= _FEWEST_ROUNDS:
            break
        rounds.append([timed(work) for work in works])
    whole = statistics.median(sum(times) for times in rounds)
    medians = []
    for i in range(len(works)):
        medians.append(whole * statistics.median(times[i] / sum(times) for times in rounds))
    return medians


def pass_seconds(work: Callable[[], object], place: torch.device) -> float:
    """How long `work` takes on its device."""
    start = time.perf_counter()
    work()
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    return time.perf_counter() - start


def forward_pass(
    module: nn.Module, images: Tensor, precision: Precision, passes: int = 1
) -> Callable[[], object]:
    """`passes` forward passes of a module in eval mode, ready to be called, on the images' device.

    On CUDA they are captured as a graph, as a network in use would be: launched one by one, its
    kernels' launches would be measured. Weights and images are in `precision` there; on a CPU
    autocast casts them."""
    place, dtype = images.device, DTYPES[precision]
    on_cuda = place.type == "cuda"
    model = on_device(module, place)
    images = images.to(memory_format=torch.channels_last)
    if on_cuda:
        model, images = model.to(dtype), images.to(dtype)
    casts = place.type == "cpu" and precision != "fp32"

    def forward() -> None:
        # entered for every pass, since a generator must not leave its caller in these modes
        with torch.inference_mode(), torch.autocast(place.type, dtype, enabled=casts):
            for _ in range(passes):
                model(images)

    return _captured(forward, place) if on_cuda else forward


def _captured(work: Callable[[], object], place: torch.device) -> Callable[[], object]:
    """`work` as one graph launch; as it is, with a warning, where it cannot be captured."""
    for _ in range(WARM_UP):
        work()
    graph, refusal = cuda.capture(place, work)
    if graph is None:
        warnings.warn(
            f"latency is that of single launches, which a graph would not have: {refusal}",
            stacklevel=3,
        )
        return work
    return graph.replay


def on_device(model: nn.Module, place: torch.device) -> nn.Module:
    """The model there in channels_last, the layout in which convolutions are fast on both."""
    return model.to(place).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def hardware_name(device: str) -> str:
    """What this machine's device calls itself: the GPU, or the CPU's model."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
