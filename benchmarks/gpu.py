"""What a GPU study costs on this card: steps, set-up, evaluation, memory, several trainings at
once.

    python benchmarks/gpu.py [--device cuda] [--only standard b0 ...] [--seconds 450] [--timm
    FOLDER] [--mps] [--check]

It needs torch, numpy and this checkout; timm, where it can be imported, is the rival, else the
project's own modules in the same plain loop, and the table says which. No new row begins after
--seconds, so that 450 end within eight minutes; the most important rows come first.

standard   the standard preset's networks at 20 and 22 px, with their data: a step captured with
           plain modules and with Triton's kernels, beside eager; set-up, graph nodes, evaluation
b0         B0 at batch 128, captured, beside the rival in a plain loop (contiguous fp32, SGD,
           torch's defaults) and tuned (channels_last, bf16 autocast, fused SGD)
processes  several trainings on the card, each in a process of its own; again under MPS with --mps
streams    several captured trainings in one process, each on a stream of its own; their rates
           count, their numbers do not
memory     a run's peak as it is reported, beside what the card lost meanwhile
batches    B0 again at batch 512, at 224 px 256

Ours has its data in the step (standard, processes, streams) or its normalisation (b0); the rival's
batch lies ready on the device. Contenders train one after the other on an otherwise empty card,
there and back (A B C C B A), and every figure is a median over both passes. `set-up` is from the
uint8 images in memory to the end of the sixth step, by when a step has been captured.

The last line is the least ratio of a figure to its target: at 1 or more all are met. --check exits
1 where a target is missed or a measurement failed, or where no target could be measured. On a CPU
and on the tests' stand-in for CUDA everything runs in a small version: rates have no targets there,
and on the stand-in they mean nothing. Of a real card, one
minute of `--only standard` has been run, on an H100 (results/gpu.txt)."""

from __future__ import annotations

import time

BEGAN = time.perf_counter()  # before torch is imported, which --seconds is to hold

import argparse
import ctypes
import dataclasses
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import effnet
from effnet.arch import Arch
from effnet.messages import first_line
from effnet.nn.cuda import why_no_triton
from scaling_search import UserError
from scaling_search.data.dataset import CacheWriter, Dataset
from scaling_search.data.images import free_memory
from scaling_search.training import memory, train
from scaling_search.training.evaluation import evaluate
from scaling_search.training.preparation import Ready, prepare
from scaling_search.training.recipe import RECIPES, Recipe
from scaling_search.training.step import Step
from scaling_search.training.trial import Outcome, Trial

MIB = 2**20
CLASSES = 10
SETTLED = 6  # steps after which a training is settled: eager ones and the capture come before
BLOCK = 0.1  # s of steps between two waits: an eager rival may run ahead, as it does in a training

# Of the studies that `scaling_search.study.plan` makes of the standard preset at 20 and at 22 px:
# the baseline, the 2x network of most blocks and the 2x network of largest width.
#           label       blocks  width  px
NETWORKS = (
    ("baseline", 16, 1.0, 20),
    ("deepest 2x", 30, 1.04, 20),
    ("widest 2x", 17, 1.46, 20),
    ("baseline", 16, 1.0, 22),
    ("deepest 2x", 30, 1.04, 22),
    ("widest 2x", 17, 1.457, 22),
)

# Targets. Of the rates: at the best batch of each, over the tuned rival (px: times).
B0_RATIOS = {32: 3.0, 64: 3.0, 128: 2.0, 224: 1.3}
NODES = {"torch": 1000, "triton": 700}  # at most, of the baseline at 20 px
SETUP = 3.0  # s at most, the median of the standard networks with plain modules
LOST = 1.25  # times the reported peak that a card may lose at most


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    networks: tuple[tuple[str, int, float, int], ...]  # as NETWORKS; the first is the baseline
    images: int  # of the data set; a fifth of them validates
    batch: int  # of the standard networks
    b0: tuple[tuple[int, int], ...]  # (px, batch)
    b0_larger: tuple[tuple[int, int], ...]
    levels: tuple[int, ...]  # trainings at a time
    seconds: float  # of steps, for each contender and pass
    together: float  # s for which several processes train


ON_A_GPU = Size(
    networks=NETWORKS,
    images=50_000,
    batch=128,
    b0=((32, 128), (64, 128), (128, 128), (224, 128)),
    b0_larger=((32, 512), (64, 512), (128, 512), (224, 256)),
    levels=(1, 2, 4, 8),
    seconds=0.6,
    together=4.0,
)
# For tests. The stand-in keeps networks and batch, because the nodes of a graph depend on them.
ON_THE_STAND_IN = Size(
    networks=NETWORKS[:1],
    images=800,
    batch=128,
    b0=((32, 8),),
    b0_larger=((32, 16),),
    levels=(1, 2),
    seconds=0.05,
    together=0.2,
)
ON_A_CPU = dataclasses.replace(
    ON_THE_STAND_IN,
    networks=(("small", 7, 0.2, 12),),
    images=200,
    batch=8,
    b0=((32, 2),),
    b0_larger=(),
    levels=(2,),
)


@dataclass
class Bench:
    """Where and how much is measured, and what has come of it."""

    device: torch.device
    stand_in: bool
    size: Size
    seconds: float  # of the whole script
    folder: Path  # for data and checkpoints
    data: Dataset
    margins: list[float] = field(default_factory=list)  # figure over target; 1 or more meets it
    failures: list[str] = field(default_factory=list)
    not_measured: list[str] = field(default_factory=list)
    longest: dict[str, float] = field(default_factory=dict)  # s of a row, by section

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def kernels(self) -> tuple[str, ...]:
        """Those that captured steps are measured with."""
        if not self.cuda:
            return ()
        return ("torch",) if why_no_triton() else ("torch", "triton")

    def left(self) -> float:
        """Seconds for which rows may still begin."""
        return self.seconds - (time.perf_counter() - BEGAN)

    def judge(self, value: float, target: float, below: bool = False, speed: bool = True) -> str:
        """`value` beside its target, as text. The margin is kept, but for speeds that are
        not a GPU's."""
        if not self.cuda or (speed and self.stand_in):
            return "no target here"
        margin = target / value if below else value / target
        self.margins.append(margin)
        bound = "at most" if below else "at least"
        return f"{bound} {target:g}: {'met' if margin >= 1 else 'MISSED'}"

    def fail(self, name: str, error: BaseException) -> None:
        """Say that a measurement failed, and why."""
        self.failures.append(name)
        print(f"  {name}: FAILED, {first_line(error, named=True)[:160]}", flush=True)


@contextmanager
def row(bench: Bench, section: str, name: str) -> Iterator[bool]:
    """Within, one row is measured where time is left for it (yields True): as long as the longest
    of its section has taken. A failure within is said and kept; memory is given back after it."""
    measured = bench.left() > bench.longest.get(section, 0.0)
    if not measured:
        bench.not_measured.append(name)
    began = time.perf_counter()
    try:
        yield measured
    except (RuntimeError, OSError, MemoryError, UserError) as error:
        bench.fail(name, error)
    memory.release()
    if measured:
        spent = time.perf_counter() - began
        bench.longest[section] = max(bench.longest.get(section, 0.0), spent)


def heading(text: str, first: str, columns: Sequence[str]) -> None:
    print(f"\n{text}\n{first:<26}" + "".join(f"{column:>12}" for column in columns), flush=True)


def line(name: str, cells: Sequence[str]) -> None:
    print(f"{name:<26}" + "".join(f"{cell:>12}" for cell in cells), flush=True)


def number(value: float | None, form: str, unit: str = "") -> str:
    """ "-" for None."""
    return "-" if value is None else f"{value:{form}}{unit}"


# ---- contenders: a function that builds one, trains its first six steps, and returns its step

Contender = Callable[[], Callable[[], object]]


@dataclass(frozen=True)
class Rate:
    """Seconds of a step, the median; seconds of the set-up, the last pass's."""

    step: float
    setup: float


def compare(bench: Bench, contenders: Mapping[str, Contender], name: str) -> dict[str, Rate]:
    """What each takes, in two passes, there and back; those that fail are left out, and it is
    said."""
    steps: dict[str, list[float]] = {}
    setups: dict[str, float] = {}
    failed: set[str] = set()
    for key in (*contenders, *reversed(list(contenders))):
        if key in failed:
            continue
        try:
            setups[key], times = one_pass(bench, contenders[key])
            steps.setdefault(key, []).extend(times)
        except (RuntimeError, MemoryError) as error:
            failed.add(key)
            bench.fail(f"{name}, {key}", error)
        memory.release()
    return {
        key: Rate(statistics.median(times), setups[key])
        for key, times in steps.items()
        if key not in failed
    }


def one_pass(bench: Bench, contender: Contender) -> tuple[float, list[float]]:
    """Seconds of the set-up, and of a step in each block."""
    began = time.perf_counter()
    step = contender()
    memory.synchronize(bench.device)
    setup = time.perf_counter() - began
    return setup, blocks(step, bench.device, bench.size.seconds)


def blocks(step: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    """Seconds of a step in each of at least three blocks, after each of which the device is waited
    for."""
    length, times = 1, list[float]()
    memory.synchronize(device)
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        for _ in range(length):
            step()
        memory.synchronize(device)
        spent = time.perf_counter() - began
        if length == 1 and spent < min(BLOCK, seconds / 3):
            # the first step tells how many make a block, and is not counted itself
            length = max(2, min(100, round(min(BLOCK, seconds / 3) / spent)))
            continue
        times.append(spent / length)
    return times


def trial_of(bench: Bench, net: Arch, kernels: str = "", **changes: Any) -> Trial:
    """A run of the standard preset's recipe on random images."""
    recipe = dataclasses.replace(
        RECIPES["proxy"], lr=3e-3, batch=bench.size.batch, warmup_steps=200
    )
    whole = Trial(
        arch=net,
        data_digest=bench.data.digest,
        data_folder=str(bench.data.folder),
        recipe=recipe,
        seed=0,
        epochs=1,
        train_images=None,
        val_images=None,
        device=str(bench.device),
        threads=1,
        checkpoints=tempfile.mkdtemp(dir=bench.folder),
        kernels=kernels,
    )
    return dataclasses.replace(whole, **changes)


def training(trial: Trial, data: Dataset, eager: bool = False) -> tuple[Ready, Callable[[], None]]:
    """A run that is ready, its first six steps behind it, and its next step with its data.

    Raises RuntimeError where a step on CUDA should be captured and is not."""
    ready = prepare(trial, data)
    ready.step.model.train()
    if eager:
        ready.step.stay_eager()
    position = itertools.count()

    def step() -> None:
        at = next(position)
        ready.batches.seek(at)
        ready.step(ready.batches.load, trial.recipe.lr, at)

    for _ in range(SETTLED):
        step()
    if ready.images.device.type == "cuda" and not eager:
        require_capture(ready.step)
    return ready, step


def require_capture(step: Step) -> None:
    if not step.captured:
        raise RuntimeError(f"the step is not captured: {step.eager or 'no capture was tried'}")


# ---- the standard preset's networks


def network(blocks: int, width: float, side: int) -> Arch:
    """A network of the standard preset's space: multiples of its baseline, b0-s4 at width 0.5."""
    base = effnet.baseline("b0-s4")
    base = dataclasses.replace(base, width=0.5 * base.width, resolution=side, rounding="spread")
    depth = blocks / base.blocks
    return effnet.arch(base, depth=depth, width=width, resolution=side, num_classes=CLASSES)


@dataclass(frozen=True)
class Aside:
    """What is measured beside a standard network's steps: its graph's nodes by kernels, and
    evaluation's seconds and share of an epoch."""

    name: str
    rates: dict[str, Rate]
    nodes: dict[str, int]
    evaluation: float | None
    share: float | None


def standard(bench: Bench) -> None:
    asides = list[Aside]()
    heading(
        f"standard preset, batch {bench.size.batch}: ms of a step with its data; images/s",
        "",
        ("eager", "torch", "images/s", "triton", "images/s", "best/eager"),
    )
    if bench.cuda and why_no_triton():
        print(f"  no Triton kernels: {why_no_triton()}")
    for label, blocks_, width, side in bench.size.networks:
        name = f"{label}, {side} px"
        with row(bench, "standard", name) as measured:
            if measured:
                net = network(blocks_, width, side)
                rates = compare(bench, standard_contenders(bench, net), name)
                line(name, standard_cells(bench, rates))
                asides.append(aside(bench, net, name, rates))
    if asides and bench.cuda:
        print_asides(bench, asides)


def standard_contenders(bench: Bench, net: Arch) -> dict[str, Contender]:
    def contender(kernels: str, eager: bool) -> Contender:
        return lambda: training(trial_of(bench, net, kernels), bench.data, eager)[1]

    captured = {kernels: contender(kernels, False) for kernels in bench.kernels}
    return {"eager": contender("torch" if bench.cuda else "", True), **captured}


def standard_cells(bench: Bench, rates: dict[str, Rate]) -> list[str]:
    cells = [number(milliseconds(rates.get("eager")), ".2f")]
    for kernels in ("torch", "triton"):
        rate = rates.get(kernels)
        cells.append(number(milliseconds(rate), ".2f"))
        cells.append(number(images_per_s(rate, bench.size.batch), ",.0f"))
    ratio = None
    captured = [rates[k].step for k in ("torch", "triton") if k in rates]
    if captured and "eager" in rates:
        ratio = rates["eager"].step / min(captured)
    return [*cells, number(ratio, ".2f", "x")]


def milliseconds(rate: Rate | None) -> float | None:
    return None if rate is None else 1000 * rate.step


def images_per_s(rate: Rate | None, batch: int) -> float | None:
    return None if rate is None else batch / rate.step


def aside(bench: Bench, net: Arch, name: str, rates: dict[str, Rate]) -> Aside:
    nodes: dict[str, int] = {}
    evaluation = share = None
    for kernels in rates.keys() & set(bench.kernels):
        ready, step = training(trial_of(bench, net, kernels), bench.data)
        nodes[kernels] = graph_nodes(ready)
        if kernels == "torch":
            evaluation = evaluation_seconds(ready)
            steps = ready.batches.per_epoch * rates[kernels].step
            share = evaluation / (evaluation + steps)
        del ready, step
        memory.release()
    return Aside(name, rates, nodes, evaluation, share)


def graph_nodes(ready: Ready) -> int:
    """Nodes of a captured step with its data: kernels, copies and fills. It is captured once more,
    and never runs."""
    step, batches = ready.step, ready.batches
    step.model.train()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step.backward(step.loss(*batches.load()))
        step.update()
    library = ctypes.CDLL("libcuda.so.1")
    try:
        get_nodes = library.cuGraphGetNodes
    except AttributeError:  # the stand-in answers for the runtime's function alone
        get_nodes = library.cudaGraphGetNodes
    count = ctypes.c_size_t()
    status = get_nodes(ctypes.c_void_p(graph.raw_cuda_graph()), None, ctypes.byref(count))
    if status:
        raise RuntimeError(f"cuGraphGetNodes answered {status}")
    return count.value


def evaluation_seconds(ready: Ready) -> float:
    """Of an evaluation as it ends each epoch, the second of two: the first one's memory is new."""
    for _ in range(2):
        memory.synchronize(ready.images.device)
        began = time.perf_counter()
        evaluate(ready)
        seconds = time.perf_counter() - began
    return seconds


def print_asides(bench: Bench, asides: list[Aside]) -> None:
    heading(
        "the same networks: set-up to the sixth step; nodes of the graph; evaluation",
        "",
        ("torch s", "triton s", "nodes", "triton", "evaluation", "of epoch"),
    )
    for it in asides:
        setups = [number(it.rates[k].setup if k in it.rates else None, ".2f") for k in NODES]
        counts = [number(it.nodes.get(k), ",d") for k in NODES]
        shares = [number(it.evaluation, ".2f", " s"), number(it.share, ".0%")]
        line(it.name, [*setups, *counts, *shares])
    for it in asides:
        if "torch" in it.rates and "triton" in it.rates:
            ratio = it.rates["torch"].step / it.rates["triton"].step
            print(f"{it.name}: Triton's kernels {ratio:.2f}x torch's")
    for kernels, target in NODES.items():
        if kernels in asides[0].nodes:
            count = asides[0].nodes[kernels]
            verdict = bench.judge(count, target, below=True, speed=False)
            print(f"nodes of the {asides[0].name}, kernels of {kernels}: {count:,}, {verdict}")
    setups_s = [it.rates["torch"].setup for it in asides if "torch" in it.rates]
    if setups_s:
        median = statistics.median(setups_s)
        verdict = bench.judge(median, SETUP, below=True)
        print(f"set-up, median, kernels of torch: {median:.2f} s, {verdict}")


# ---- B0 beside a rival


@dataclass(frozen=True)
class Rival:
    """B0 as its users have it: a function that builds it, and whose it is."""

    build: Callable[[Arch], nn.Module]
    name: str


def rival_of(folder: str) -> Rival:
    """timm's B0, from `folder` where one is given; where timm cannot be imported, the project's own
    modules."""
    if folder:
        sys.path.insert(0, folder)
    try:
        import timm
    except ImportError as error:
        return Rival(own_modules, f"this project's modules in a plain loop (timm: {error})")

    def build(net: Arch) -> nn.Module:
        return timm.create_model("efficientnet_b0", num_classes=CLASSES)

    return Rival(build, f"timm {timm.__version__}")


def own_modules(net: Arch) -> nn.Module:
    return effnet.build(net, dropout=0.0, drop_path=0.0)


def b0(bench: Bench, rival: Rival, cases: Sequence[tuple[int, int]], section: str) -> B0Rates:
    """Images/s of every case's contenders."""
    heading(
        f"B0, images/s; the rival: {rival.name}",
        "",
        ("torch", "triton", "eager", "rival", "tuned", "best/tuned")
        if bench.cuda
        else ("", "", "ours", "rival", "tuned", "ours/tuned"),
    )
    rates: B0Rates = {}
    for side, batch in cases:
        name = f"B0 at {side} px, batch {batch}"
        with row(bench, section, name) as measured:
            if measured:
                times = compare(bench, b0_contenders(bench, rival, side, batch), name)
                rates[side, batch] = {key: batch / rate.step for key, rate in times.items()}
                line(name, b0_cells(rates[side, batch]))
    return rates


B0Rates = dict[tuple[int, int], dict[str, float]]  # (px, batch): images/s by contender
OURS = ("torch", "triton", "eager")


def b0_cells(rates: dict[str, float]) -> list[str]:
    cells = [number(rates.get(key), ",.0f") for key in (*OURS, "plain", "tuned")]
    ours, tuned = best_of(rates), rates.get("tuned")
    return [*cells, number(ours / tuned if ours and tuned else None, ".2f", "x")]


def best_of(rates: dict[str, float]) -> float | None:
    """Ours at its best."""
    return max((rates[key] for key in OURS if key in rates), default=None)


def b0_contenders(bench: Bench, rival: Rival, side: int, batch: int) -> dict[str, Contender]:
    net = effnet.arch("b0", resolution=side, num_classes=CLASSES)
    generator = torch.Generator().manual_seed(side)
    shape = (batch, 3, side, side)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (batch,), generator=generator)
    images, labels = images.to(bench.device), labels.to(bench.device)

    def ours(kernels: str, eager: bool = False) -> Contender:
        return lambda: our_b0(net, images, labels, kernels == "triton", eager)

    if bench.cuda:
        contenders = {kernels: ours(kernels) for kernels in bench.kernels}
    else:
        contenders = {"eager": ours("", eager=True)}
    return {
        **contenders,
        "plain": lambda: rival_step(rival.build(net), images, labels, tuned=False),
        "tuned": lambda: rival_step(rival.build(net), images, labels, tuned=True),
    }


def normalise(images: Tensor) -> Tensor:
    """As the project's data are: float32, channels_last."""
    return images.contiguous(memory_format=torch.channels_last).float().mul_(1 / 64).sub_(2)


def our_b0(
    net: Arch, images: Tensor, labels: Tensor, fused: bool, eager: bool
) -> Callable[[], object]:
    recipe = Recipe(optimizer="sgd", lr=1e-3)
    ours = Step(own_modules(net).train(), recipe, images.device, normalise, fused=fused)  # type: ignore[arg-type]
    if eager:
        ours.stay_eager()
    position = itertools.count()

    def step() -> None:
        ours(lambda: (images, labels), recipe.lr, next(position))

    for _ in range(SETTLED):
        step()
    if not eager:
        require_capture(ours)
    return step


def rival_step(
    model: nn.Module, images: Tensor, labels: Tensor, tuned: bool
) -> Callable[[], object]:
    device = images.device
    model = model.train().to(device)
    x = images.float().mul_(1 / 64).sub_(2)
    if tuned:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-3, momentum=0.9, fused=True if tuned else None
    )
    # torch emulates bf16 on older cards, slowly
    half = tuned and device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()

    for _ in range(SETTLED):
        step()
    return step


def judge_b0(bench: Bench, rates: B0Rates) -> None:
    """At each resolution, the best batch of ours over the rival's best; then kernel against
    kernel."""
    print("\nB0, the best batch of each over the tuned rival")
    for side in dict.fromkeys(side for side, _ in rates):
        at_side = [of_case for (px, _), of_case in rates.items() if px == side]
        ours = [best for best in map(best_of, at_side) if best]
        tuned = [of_case["tuned"] for of_case in at_side if "tuned" in of_case]
        if ours and tuned:
            ratio = max(ours) / max(tuned)
            print(f"{side:>4} px {ratio:6.2f}x, {bench.judge(ratio, B0_RATIOS[side])}")
    for (side, batch), of_case in rates.items():
        if "torch" in of_case and "triton" in of_case:
            ratio = of_case["triton"] / of_case["torch"]
            print(f"B0 at {side} px, batch {batch}: Triton's kernels {ratio:.2f}x torch's")


# ---- several trainings on one card


def processes(bench: Bench, mps: bool) -> None:
    columns = ("images/s", "of one", "memory", "sixth step")
    heading(
        "baseline, 20 px: trainings in processes of their own, all together; from nothing to the"
        " sixth step",
        "",
        columns,
    )
    process_rows(bench, "", {})
    if mps and bench.cuda:
        try:
            with mps_server(bench.folder) as environment:
                process_rows(bench, ", MPS", environment)
        except UserError as error:  # says nothing of the card, so --check does not fail for it
            print(f"  MPS: {error}")
    if "triton" in bench.kernels:
        with row(bench, "processes", "a process with Triton's kernels") as measured:
            if measured:
                several = together(bench, 1, "triton", {})
                line("1 with Triton's kernels", process_cells(several, several.images_per_s))


def process_rows(bench: Bench, suffix: str, environment: dict[str, str]) -> None:
    alone = 0.0
    for count in bench.size.levels:
        name = f"{count} process{'es' if count > 1 else ''}{suffix}"
        with row(bench, "processes", name) as measured:
            if measured:
                several = together(bench, count, "torch" if bench.cuda else "", environment)
                alone = alone or several.images_per_s
                line(name, process_cells(several, alone))


@dataclass(frozen=True)
class Together:
    """Of several trainings at once: images/s of all, bytes that the card lost (None on a CPU), and
    seconds from nothing to the last one's sixth step."""

    images_per_s: float
    memory: int | None
    sixth_step: float


def process_cells(several: Together, alone: float) -> list[str]:
    return [
        f"{several.images_per_s:,.0f}",
        f"{several.images_per_s / alone:.2f}x",
        number(None if several.memory is None else several.memory / MIB, ",.0f", " MiB"),
        f"{several.sixth_step:.1f} s",
    ]


def together(bench: Bench, count: int, kernels: str, environment: dict[str, str]) -> Together:
    """Train the baseline in `count` processes for the same seconds. Raises RuntimeError where one
    fails, or all of them take too long."""
    free_before = free_memory(bench.device)
    spec = {
        "folder": str(bench.data.folder),
        "device": str(bench.device),
        "kernels": kernels,
        "batch": bench.size.batch,
        "seconds": bench.size.together,
        "network": bench.size.networks[0],
        "began": time.time(),
    }
    command = [sys.executable, __file__, "--worker", json.dumps(spec)]
    variables = {**os.environ, **environment}
    workers = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
        )
        for _ in range(count)
    ]
    limit = threading.Timer(max(5.0, bench.left()) + 10, kill, [workers])
    limit.start()
    try:
        ready = [report(worker) for worker in workers]
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("begin\n")
            worker.stdin.flush()
        done = [report(worker) for worker in workers]
    except BaseException:
        kill(workers)
        raise
    finally:
        limit.cancel()
        for worker in workers:
            worker.communicate()  # its input ends, and so does it
    return Together(
        images_per_s=sum(of_one["images_per_s"] for of_one in done),
        memory=free_before - int(min(d["free"] for d in done)) if bench.cuda else None,
        sixth_step=max(of_one["sixth_step"] for of_one in ready),
    )


def kill(workers: Sequence[subprocess.Popen[str]]) -> None:
    for worker in workers:
        worker.kill()


def report(worker: subprocess.Popen[str]) -> dict[str, float]:
    """A worker's next line. Raises RuntimeError where it failed or was killed."""
    assert worker.stdout is not None
    text = worker.stdout.readline()
    if not text:
        raise RuntimeError(f"a process of several ended with status {worker.wait()}")
    answer: dict[str, Any] = json.loads(text)
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer


def work(spec: dict[str, Any]) -> None:
    """One of several trainings: it says when it is settled, begins with the others, says what it
    did, and stays until all have been counted."""
    device = memory.activate(spec["device"])
    data = Dataset.open(Path(spec["folder"]))
    with tempfile.TemporaryDirectory() as folder:
        size = dataclasses.replace(ON_A_CPU, batch=spec["batch"])
        bench = Bench(device, False, size, 0.0, Path(folder), data)
        _, blocks_, width, side = spec["network"]
        trial = trial_of(bench, network(blocks_, width, side), spec["kernels"])
        ready, step = training(trial, data)
        memory.synchronize(device)
        say({"sixth_step": time.time() - spec["began"]})
        sys.stdin.readline()
        steps = 0
        began = time.perf_counter()
        while time.perf_counter() - began < spec["seconds"]:
            for _ in range(10):
                step()
            memory.synchronize(device)
            steps += 10
        seconds = time.perf_counter() - began
        say({"images_per_s": steps * ready.batches.size / seconds, "free": free_memory(device)})
        sys.stdin.readline()


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


@contextmanager
def mps_server(folder: Path) -> Iterator[dict[str, str]]:
    """Variables that put a process under an MPS server of our own, which ends afterwards.

    Raises UserError where it does not start."""
    variables = {}
    for name, sub in (("CUDA_MPS_PIPE_DIRECTORY", "mps"), ("CUDA_MPS_LOG_DIRECTORY", "mps-log")):
        (folder / sub).mkdir()
        variables[name] = str(folder / sub)
    control: dict[str, Any] = {"env": {**os.environ, **variables}, "text": True, "timeout": 20}
    try:
        started = subprocess.run(
            ["nvidia-cuda-mps-control", "-d"], capture_output=True, check=False, **control
        )
    except FileNotFoundError as error:
        raise UserError("nvidia-cuda-mps-control is not installed here: leave --mps out") from error
    if started.returncode:
        reason = " ".join((started.stdout + started.stderr).split())
        raise UserError(f"the server does not start here ({reason}): leave --mps out")
    try:
        yield variables
    finally:
        subprocess.run(["nvidia-cuda-mps-control"], input="quit\n", check=False, **control)


def streams(bench: Bench) -> None:
    """Captured trainings of one process: each keeps its network, its data and its stream.

    They show what a card does, not how to train. All of a process's graphs are captured on one
    stream (effnet.nn.cuda.capture), and torch keeps a cuBLAS workspace for each stream: replayed at
    the same time, they may write to one workspace, and their losses and weights may be wrong. The
    kernels and their sizes are right, and so are the rates."""
    if not bench.cuda:
        return
    heading(
        "baseline, 20 px: captured trainings of one process, each on its stream (rates alone: they "
        "may share a workspace)",
        "",
        ("images/s", "of one", "memory"),
    )
    memory.release()
    free_before = free_memory(bench.device)
    steps = list[Callable[[], None]]()
    alone = 0.0
    for count in bench.size.levels:
        name = f"{count} stream{'s' if count > 1 else ''}"
        with row(bench, "streams", name) as measured:
            if measured:
                while len(steps) < count:
                    steps.append(on_its_stream(bench, seed=len(steps)))
                seconds = statistics.median(
                    blocks(lambda: each(steps), bench.device, 2 * bench.size.seconds)
                )
                total = count * bench.size.batch / seconds
                alone = alone or total
                lost = (free_before - free_memory(bench.device)) / MIB
                line(name, [f"{total:,.0f}", f"{total / alone:.2f}x", f"{lost:,.0f} MiB"])


def on_its_stream(bench: Bench, seed: int) -> Callable[[], None]:
    _, blocks_, width, side = bench.size.networks[0]
    stream = torch.cuda.Stream(bench.device)
    with torch.cuda.stream(stream):
        trial = trial_of(bench, network(blocks_, width, side), "torch", seed=seed)
        _, step = training(trial, bench.data)
    stream.synchronize()

    def on_stream() -> None:
        with torch.cuda.stream(stream):
            step()

    return on_stream


def each(steps: Sequence[Callable[[], None]]) -> None:
    for step in steps:
        step()


# ---- memory


def peaks(bench: Bench) -> None:
    if not bench.cuda:
        return
    heading("memory of a run, MiB", "", ("reported", "card lost", "ratio"))
    for label, blocks_, width, side in bench.size.networks[:3]:
        name = f"{label}, {side} px"
        with row(bench, "memory", name) as measured:
            if measured:
                net = network(blocks_, width, side)
                for _ in range(2):  # in the first, CUDA itself may still load kernels
                    reported, lost = run_memory(bench, net)
                verdict = bench.judge(lost / reported, LOST, below=True, speed=False)
                cells = [f"{reported / MIB:,.0f}", f"{lost / MIB:,.0f}", f"{lost / reported:.2f}"]
                line(name, [*cells, f"  {verdict}"])


def run_memory(bench: Bench, net: Arch) -> tuple[int, int]:
    """Bytes of a short run: its peak as reported, and by how much the card's free memory fell, as
    far as this can be seen between two steps and after an epoch.

    Raises RuntimeError where the run does not end well."""
    memory.release()
    before = free_memory(bench.device)
    lowest = before
    trial = trial_of(bench, net, "torch", train_images=20 * bench.size.batch, val_images=2000)
    for event in train.run(trial, bench.data):
        if not isinstance(event, Outcome):
            lowest = min(lowest, free_memory(bench.device))
    assert isinstance(event, Outcome)
    if event.status != "done":
        raise RuntimeError(f"the run ended as {event.status}: {event.note}")
    return event.peak_memory, before - lowest


# ---- the script


def device_of(name: str) -> torch.device:
    """Raises UserError for a GPU that is not here."""
    if not name:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: cpu, cuda and cuda:N are known")
    if device.type == "cpu":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise UserError(
            f"--device {name}: torch {torch.__version__} can use no GPU here; see that nvidia-smi "
            "lists one and that torch is a CUDA build, or use --device cpu"
        )
    if (device.index or 0) >= count:
        raise UserError(f"--device {name}: this machine has cuda:0 to cuda:{count - 1}")
    return memory.activate(name)


def is_stand_in(device: torch.device) -> bool:
    """Whether a CUDA device is a stand-in for one, whose name says so."""
    if device.type != "cuda":
        return False
    name = torch.cuda.get_device_name(device).lower()
    return "stand-in" in name or "fake" in name


def random_data(folder: Path, count: int) -> Dataset:
    """Images of 32 px that mean nothing."""
    generator = np.random.default_rng(0)

    def draw(n: int) -> tuple[Any, Any]:
        images = generator.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        return images, generator.integers(0, CLASSES, n)

    names = tuple(map(str, range(CLASSES)))
    with CacheWriter(folder / "random") as writer:
        return writer.commit("random", "generated", names, *draw(count), draw(100))


SECTIONS = ("standard", "b0", "processes", "streams", "memory", "batches")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="", help="cuda, cuda:N or cpu (default: a GPU if any)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--seconds", type=float, default=450.0, help="after which no row begins")
    parser.add_argument("--timm", default="", metavar="FOLDER", help="that holds the package timm")
    parser.add_argument("--mps", action="store_true", help="also several processes under MPS")
    parser.add_argument("--check", action="store_true", help="exit status 1 for a missed target")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def describe(device: torch.device, stand_in: bool) -> None:
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores")
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        triton = why_no_triton() or sys.modules["triton"].__version__
        print(
            f"{card.name}, {card.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}, "
            f"cuDNN {torch.backends.cudnn.version()}, Triton {triton}"
        )
    if stand_in:
        print("a stand-in for CUDA: times and rates below mean nothing")


def measure(bench: Bench, args: argparse.Namespace) -> None:
    """Every section that is wanted, and what is to be said of B0's rates at the end."""
    rates: B0Rates = {}
    for section in args.only:
        if section == "batches" and not bench.size.b0_larger:
            continue
        if bench.left() <= 0:
            bench.not_measured.append(section)
        elif section in ("b0", "batches"):
            cases = bench.size.b0 if section == "b0" else bench.size.b0_larger
            rates |= b0(bench, rival_of(args.timm), cases, section)
        elif section == "standard":
            standard(bench)
        elif section == "processes":
            processes(bench, args.mps)
        elif section == "streams":
            streams(bench)
        elif section == "memory":
            peaks(bench)
    if rates:
        judge_b0(bench, rates)


def main() -> int:
    args = parse()
    if args.worker:
        try:
            work(json.loads(args.worker))
        except Exception as error:  # it is the parent that says it
            say({"error": f"{type(error).__name__}: {error}"})
        return 0
    try:
        device = device_of(args.device)
        if args.timm and not (Path(args.timm) / "timm").is_dir():
            raise UserError(f"--timm {args.timm}: holds no folder timm; give the one it lies in")
        if not args.seconds >= 0:
            raise UserError(
                f"--seconds {args.seconds}: a number of seconds, such as 450, is wanted"
            )
    except UserError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return 2
    stand_in = is_stand_in(device)
    size = ON_A_CPU
    if device.type == "cuda":
        size = ON_THE_STAND_IN if stand_in else ON_A_GPU
    describe(device, stand_in)
    with tempfile.TemporaryDirectory(prefix="gpu-benchmark-") as folder:
        data = random_data(Path(folder), size.images)
        bench = Bench(device, stand_in, size, args.seconds, Path(folder), data)
        bench.longest["processes"] = 5 * size.together  # most of a first row is their start
        measure(bench, args)
    return conclude(bench, args.check)


def conclude(bench: Bench, check: bool) -> int:
    """Print what counts, and return the exit status."""
    print()
    if bench.not_measured:
        print(f"no time was left for: {'; '.join(bench.not_measured)}")
    if bench.failures:
        print(f"failed: {'; '.join(bench.failures)}")
    print(f"{time.perf_counter() - BEGAN:.0f} s; the least ratio of a figure to its target:")
    print(f"{min(bench.margins):.2f}" if bench.margins else "no target could be measured here")
    met = bool(bench.margins) and min(bench.margins) >= 1 and not bench.failures
    return int(check and not met)


if __name__ == "__main__":
    sys.exit(main())
