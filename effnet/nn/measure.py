"""Referees for our own numbers: fvcore's and torch's counters beside the exact cost, and what this
device says of latency and memory."""

from __future__ import annotations

import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import effnet
from effnet.arch import Arch, Network
from effnet.cost import Cost, Precision, cost, cost_by_kind
from effnet.custom import CustomArch, FunctionError
from effnet.nn.model import ConvNet
from effnet.nn.timing import DTYPES, WARM_UP, forward_pass, on_device, pass_seconds

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # fvcore decorates with the deprecated torch.jit.script
    from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis

logger = logging.getLogger(__name__)

# Latency is the median of this many passes; where they are slow, of as many (but at least three)
# as begin within the limit: B0 on 32 images takes one CPU core some seconds a pass.
_PASSES, _FEWEST_PASSES, _LIMIT = 20, 3, 10.0  # s
# One pass before the measured ones is enough where it is so slow.
_SLOW_PASS = 1.0  # s


# ---- counters


@dataclass(frozen=True, slots=True)
class Comparison:
    """One operator kind: our cost; what fvcore (MACs, acts) and the module (params) count for it;
    and torch's FlopCounterMode, halved to multiply-adds."""

    kind: str
    ours: Cost
    theirs: Cost
    torch_macs: int

    @property
    def equal(self) -> bool:
        return self.ours == self.theirs and self.ours.macs == self.torch_macs


@dataclass(frozen=True, slots=True)
class Report:
    """`rows` per operator kind and, last, the whole as each referee adds it up (no layer can hide
    between kinds); `fvcore_total` what fvcore's total() prints, and `extras` what it adds to
    convolutions and linear layers."""

    rows: tuple[Comparison, ...]
    fvcore_total: int
    extras: dict[str, int]

    @property
    def equal(self) -> bool:
        return all(row.equal for row in self.rows)

    @property
    def explained(self) -> bool:
        """Whether the whole and the extras together are fvcore's total."""
        return self.rows[-1].theirs.macs + sum(self.extras.values()) == self.fvcore_total


@dataclass(frozen=True, slots=True)
class _Counts:
    """The counters' results by the names of modules, in all, and by fvcore's operators."""

    fvcore_macs: dict[str, float]
    fvcore_acts: dict[str, float]
    by_operator: dict[str, float]
    fvcore_total: int
    total_acts: int
    torch_flops: dict[str, int]
    torch_total: int


def compare(arch: Arch) -> Report:
    """Build `arch`, trace it once on the CPU in eval mode, and compare kind by kind."""
    model = _without_weights(arch)
    counts = _count(model, arch)
    modules = dict(model.named_modules())
    ours = cost_by_kind(arch)
    theirs = dict.fromkeys(ours, Cost(0, 0, 0))
    torch_macs = dict.fromkeys(ours, 0)
    for name, module in modules.items():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        kind = _kind_of(name)
        params = _numel(module)
        parent, _, leaf = name.rpartition(".")
        if leaf == "0":  # the convolution of a ConvNorm, whose batch norm belongs to the operator
            params += _numel(modules[f"{parent}.1"])
        theirs[kind] += Cost(int(counts.fvcore_macs[name]), params, int(counts.fvcore_acts[name]))
        torch_macs[kind] += counts.torch_flops[name] // 2
    rows = [Comparison(kind, ours[kind], theirs[kind], torch_macs[kind]) for kind in ours]

    layers_macs = int(counts.by_operator["conv"] + counts.by_operator["linear"])
    whole = Cost(layers_macs, _numel(model), counts.total_acts)
    rows.append(Comparison("total", cost(arch), whole, counts.torch_total // 2))
    extras = {}
    for operator, count in counts.by_operator.items():
        if operator not in ("conv", "linear") and count:
            extras[str(operator)] = int(count)
    return Report(tuple(rows), counts.fvcore_total, extras)


def _count(model: ConvNet, arch: Arch) -> _Counts:
    """Trace the model by both counters; it lies on the meta device afterwards."""
    image = torch.zeros(1, arch.in_channels, *arch.sides)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("fvcore").setLevel(logging.ERROR)
        flops = FlopCountAnalysis(model, image).unsupported_ops_warnings(False)
        acts = ActivationCountAnalysis(model, image).unsupported_ops_warnings(False)
        fvcore_macs, fvcore_acts = flops.by_module(), acts.by_module()
        by_operator = flops.by_operator()
    # on meta tensors only shapes are computed
    with FlopCounterMode(display=False) as counter, torch.device("meta"), torch.no_grad():
        model.to("meta")(torch.zeros_like(image, device="meta"))
    prefix = f"{type(model).__name__}."
    torch_flops = {}
    for name, by_function in counter.get_flop_counts().items():
        torch_flops[name.removeprefix(prefix)] = sum(by_function.values())
    return _Counts(
        fvcore_macs=fvcore_macs,
        fvcore_acts=fvcore_acts,
        by_operator=by_operator,
        fvcore_total=int(flops.total()),
        total_acts=int(acts.total()),
        torch_flops=torch_flops,
        torch_total=counter.get_total_flops(),
    )


# In the names of operators that have products of matrices, and of which fvcore may count none.
_WITH_PRODUCTS = ("attention", "transformer", "lstm", "gru", "rnn", "::mv", "::dot", "::bilinear")


def fvcore_macs(arch: CustomArch) -> tuple[int, tuple[str, ...]]:
    """What fvcore counts of a function's network in convolutions and matrix products, and the
    operators with such products that it does not count. Raises FunctionError, also where fvcore
    fails on one."""
    with torch.random.fork_rng(devices=[]):
        model = effnet.build(arch).eval()
    images = torch.zeros(1, arch.in_channels, *arch.sides)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # which is one operator for all of an attention, and fvcore counts none of it
    torch.backends.mha.set_fastpath_enabled(False)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("fvcore").setLevel(logging.ERROR)
        analysis = FlopCountAnalysis(model, images).unsupported_ops_warnings(False)
        try:
            by_operator = analysis.by_operator()
        except Exception as error:  # its handlers index and assert as they like
            reason = f"{type(error).__name__}: {error}"
            raise FunctionError(f"{arch.name}: fvcore cannot count it ({reason})") from error
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
        uncounted = analysis.unsupported_ops()
    products = ("conv", "linear", "matmul", "addmm", "bmm", "mm", "einsum")
    total = sum(int(by_operator[operator]) for operator in products)
    left_out = [name for name in uncounted if any(word in name for word in _WITH_PRODUCTS)]
    return total, tuple(sorted(left_out))


def _kind_of(name: str) -> str:
    """The operator kind of a layer: the last part of its name that is no number, such as
    `depthwise` of blocks.3.depthwise.0."""
    parts = [part for part in name.split(".") if not part.isdigit()]
    return parts[-1]


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _without_weights(arch: Arch) -> ConvNet:
    """The module in eval mode with its weights left as memory has them: counters read shapes, and
    drawing weights takes longer."""
    with torch.device("meta"):
        model = effnet.build(arch)
    return model.to_empty(device="cpu").eval()


# ---- this device


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number: the latency of a forward pass [s], or the peak memory of a training step
    [bytes], of `batch` images."""

    name: Literal["latency", "memory"]
    batch: int
    value: float


def measure(
    arch: Network, batch: int = 32, precision: Precision = "fp32", *, device: str | None = None
) -> Iterator[str | Figure]:
    """Measure latency (of one image, of `batch`) and peak training memory on this device, the
    cheap first; `latency` and `peak_training_memory` say how.

    Yields each Figure when it is known, and before each piece of work a line that says what comes
    next, to be shown while it lasts. Raises RuntimeError where memory is short (torch's own), and
    ValueError where a batch norm has one value per channel; the figures yielded before hold."""
    for count in sorted({1, batch}):
        name = "latency of 1 image" if count == 1 else f"latency of {count} images"
        yield f"{name}: building the network, first passes"
        seconds: list[float] = []
        for taken in _passes(arch, count, precision, device, _PASSES):
            seconds.append(taken)
            yield f"{name}: pass {len(seconds)} of {_PASSES} took {1000 * taken:.4g} ms"
        median = statistics.median(seconds)
        logger.info("%s: %.4g s, the median of %d passes", name, median, len(seconds))
        yield Figure("latency", count, median)
    yield f"peak memory of a training step of batch {batch}: two steps"
    peak = peak_training_memory(arch, batch, precision, device=device)
    yield Figure("memory", batch, peak)


def latency(
    arch: Network,
    batch: int = 1,
    precision: Precision = "fp32",
    *,
    device: str | None = None,
    runs: int = _PASSES,
) -> float:
    """Median seconds of one forward pass of `batch` images in eval mode, after unmeasured ones; of
    `runs` passes, or fewer where they are slow.

    timing.forward_pass says how it is run."""
    return statistics.median(_passes(arch, batch, precision, device, runs))


def _passes(
    arch: Network, batch: int, precision: Precision, device: str | None, runs: int
) -> Iterator[float]:
    """Yield the seconds of one forward pass after the other, `runs` at the most."""
    place = _place(device)
    model = effnet.build(arch).eval()
    work = forward_pass(model, _images(arch, batch, place), precision)

    for _ in range(WARM_UP):
        if pass_seconds(work, place) > _SLOW_PASS:
            break
    begin = time.perf_counter()
    for count in range(runs):
        if count >= _FEWEST_PASSES and time.perf_counter() - begin > _LIMIT:
            break
        yield pass_seconds(work, place)


def peak_training_memory(
    arch: Network, batch: int = 32, precision: Precision = "fp32", *, device: str | None = None
) -> int:
    """Peak bytes that torch's allocator holds for tensors during a training step (SGD with
    momentum): of the second step, when the optimizer's states exist. The truth beside
    `cost.training_memory`."""
    place = _place(device)
    model = on_device(effnet.build(arch).train(), place)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images = _images(arch, batch, place)

    def step() -> None:
        with torch.autocast(place.type, DTYPES[precision], enabled=precision != "fp32"):
            loss = model(images).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
        step()
        return torch.cuda.max_memory_allocated(place)
    held = [*model.parameters(), *model.buffers(), images]
    for states in optimizer.state.values():
        held += states.values()
    return sum(tensor.nbytes for tensor in held) + _cpu_growth(step)


def _place(device: str | None) -> torch.device:
    """The device of that name; without one the GPU, where there is one."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def _images(arch: Network, batch: int, place: torch.device) -> Tensor:
    images = torch.randn(batch, arch.in_channels, *arch.sides, device=place)
    return images.to(memory_format=torch.channels_last)


def _cpu_growth(step: Callable[[], None]) -> int:
    """The most bytes that the CPU allocator held during `step` above what it held before: torch
    keeps no such count outside its profiler, whose trace has it."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it prints that there is no GPU
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        trace.export_chrome_trace(str(path))
        content = json.loads(path.read_text())
    allocations = [event for event in content["traceEvents"] if event.get("name") == "[memory]"]
    totals = [event["args"]["Total Allocated"] for event in allocations]
    before = totals[0] - allocations[0]["args"]["Bytes"]  # a total is what came of its event
    return int(max(totals) - before)
