"""The referees: fvcore and torch's counter beside our own numbers, per operator kind; latency and
peak memory of the built module on this device."""

from __future__ import annotations

import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import effnet
from effnet.arch import Arch
from effnet.cost import Cost, Precision, cost, cost_by_kind
from effnet.nn import cuda
from effnet.nn.model import ConvNet

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # fvcore decorates with the deprecated torch.jit.script
    from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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


def compare(arch: Arch) -> Report:
    """Build `arch`, trace it once on the CPU in eval mode, and compare kind by kind."""
    model = _bare(arch)
    image = torch.zeros(1, arch.in_channels, arch.resolution, arch.resolution)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("fvcore").setLevel(logging.ERROR)
        flops = FlopCountAnalysis(model, image).unsupported_ops_warnings(False)
        acts = ActivationCountAnalysis(model, image).unsupported_ops_warnings(False)
        flops_by, acts_by, by_operator = flops.by_module(), acts.by_module(), flops.by_operator()
    with FlopCounterMode(display=False) as counter, torch.device("meta"), torch.no_grad():
        # on meta tensors only shapes are computed
        model.to("meta")(torch.zeros_like(image, device="meta"))
    torch_by = counter.get_flop_counts()
    ours = cost_by_kind(arch)
    theirs = dict.fromkeys(ours, Cost(0, 0, 0))
    halved = dict.fromkeys(ours, 0)
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        kind = next(part for part in reversed(name.split(".")) if not part.isdigit())
        params = sum(p.numel() for p in module.parameters())
        parent, _, leaf = name.rpartition(".")
        if (
            leaf == "0"
        ):  # the convolution of a ConvNorm: the batch norm after it is part of the operator
            params += sum(p.numel() for p in modules[f"{parent}.1"].parameters())
        theirs[kind] += Cost(int(flops_by[name]), params, int(acts_by[name]))
        halved[kind] += sum(torch_by[f"{type(model).__name__}.{name}"].values()) // 2
    rows = [Comparison(kind, ours[kind], theirs[kind], halved[kind]) for kind in ours]
    counted = int(by_operator["conv"] + by_operator["linear"])
    whole = Cost(counted, sum(p.numel() for p in model.parameters()), int(acts.total()))
    rows.append(Comparison("total", cost(arch), whole, counter.get_total_flops() // 2))
    extras = {
        str(op): int(n) for op, n in by_operator.items() if op not in ("conv", "linear") and n
    }
    return Report(tuple(rows), int(flops.total()), extras)


def _bare(arch: Arch) -> ConvNet:
    """In eval mode with weights left as memory has them: counters read shapes, and drawing weights
    takes longer."""
    with torch.device("meta"):
        model = effnet.build(arch)
    return model.to_empty(device="cpu").eval()


# ---- this device


def _on(device: str | torch.device | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def latency(
    arch: Arch,
    batch: int = 1,
    precision: Precision = "fp32",
    *,
    device: str | None = None,
    runs: int = 20,
) -> float:
    """Median seconds of one forward pass of `batch` images in eval mode, after three unmeasured
    ones.

    On CUDA the pass is captured as a graph, as a network in use would be: launched one by one, its
    kernels' launches would be measured. Weights and images are in `precision` there; on a CPU
    autocast casts them."""
    place = _on(device)
    model = effnet.build(arch).eval().to(place).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = _images(arch, batch, place)
    autocast = torch.autocast(
        place.type, _DTYPES[precision], enabled=place.type == "cpu" and precision != "fp32"
    )
    with torch.inference_mode(), autocast:
        if place.type == "cuda":
            model, images = model.to(_DTYPES[precision]), images.to(_DTYPES[precision])
        forward = (
            _captured(lambda: model(images), place)
            if place.type == "cuda"
            else lambda: model(images)
        )
        seconds = []
        for _ in range(runs + 3):
            start = time.perf_counter()
            forward()
            if place.type == "cuda":
                torch.cuda.synchronize(place)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:])


def _captured(work: Callable[[], object], place: torch.device) -> Callable[[], object]:
    """`work` as one graph launch; as it is, with a warning, where it cannot be captured."""
    for _ in range(3):
        work()
    graph, refusal = cuda.capture(place, work)
    if graph is None:
        warnings.warn(
            f"latency is that of single launches, which a graph would not have: {refusal}",
            stacklevel=3,
        )
        return work
    return graph.replay


def peak_training_memory(
    arch: Arch, batch: int = 32, precision: Precision = "fp32", *, device: str | None = None
) -> int:
    """Peak bytes that torch's allocator holds for tensors during a training step (SGD with
    momentum): the second step, when the optimizer's states exist. The truth beside
    `cost.training_memory`."""
    place = _on(device)
    model = effnet.build(arch).train().to(place).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images = _images(arch, batch, place)

    def step() -> None:
        with torch.autocast(place.type, _DTYPES[precision], enabled=precision != "fp32"):
            loss = model(images).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
        step()
        return torch.cuda.max_memory_allocated(place)
    held = sum(
        t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers(), images)
    )
    held += sum(
        s.numel() * s.element_size() for state in optimizer.state.values() for s in state.values()
    )
    return held + _cpu_growth(step)


def _images(arch: Arch, batch: int, place: torch.device) -> Tensor:
    images = torch.randn(batch, arch.in_channels, arch.resolution, arch.resolution, device=place)
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
        events = [
            e["args"]
            for e in json.loads(path.read_text())["traceEvents"]
            if e.get("name") == "[memory]"
        ]
    before = events[0]["Total Allocated"] - events[0]["Bytes"]
    return max(e["Total Allocated"] for e in events) - before
