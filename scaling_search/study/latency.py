"""Latency budgets: what is measured before a study's networks are chosen, and again after it.

Some hundred blocks and a few whole networks make a model of the space; the networks that it leads
to are measured themselves, and those that miss the budget make room for others, until all that are
compared meet it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np

from effnet.arch import Arch, Baseline, Network, scale
from effnet.blocks import Block, blocks
from effnet.budget import Budget
from effnet.latency import (
    Inference,
    Table,
    TableError,
    Times,
    as_recorded,
    parse_table,
    read_table,
)
from effnet.latency_model import FEWEST_NETWORKS
from effnet.nn.timing import Stopwatch, TimingError
from scaling_search import UserError
from scaling_search.study.context import ScalingContext
from scaling_search.study.measured import Progress, reach
from scaling_search.study.plan import Plan, plan, scaling_context
from scaling_search.study.settings import Study

logger = logging.getLogger(__name__)

_BLOCKS, _NETWORKS = 100, 10  # measured for the model
# How often networks are chosen, measured, and chosen again.
_CHOICES = 16


@dataclass
class Bench:
    """The latencies of one device, by a table: what it lacks is measured here and put into it, or
    stays unknown where there is no `stopwatch`, as for a table of another device. `name` of the
    table is for messages. `is_settled`: networks that a study compares are in it, measured
    twice, and nothing in it changes any more."""

    table: Table
    name: str
    stopwatch: Stopwatch | None
    is_settled: bool = False

    def __enter__(self) -> Bench:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.stopwatch:
            self.stopwatch.__exit__(kind, error, trace)

    def blocks(self, arch: Arch, shapes: Sequence[Block]) -> dict[Block, float]:
        """Nanoseconds of blocks; without a stopwatch of those in the table, all of them."""
        if self.stopwatch is None:
            return dict(self.table.blocks)
        missing = [shape for shape in shapes if shape not in self.table.blocks]
        if missing:
            measured = _explained(lambda watch: watch.blocks(arch, missing), self.stopwatch)
            self.table.blocks.update(zip(missing, map(as_recorded, measured), strict=True))
        return {shape: self.table.blocks[shape] for shape in shapes}

    def networks(
        self, baseline: Network, archs: Sequence[Network], *, anew: bool = False
    ) -> dict[Network, float]:
        """Nanoseconds of networks; without a stopwatch of those in the table alone. `anew`: those
        that are known are measured once more, and take the mean of what they were and are.

        The baseline is measured with them, in turns: where it is faster or slower than it was, the
        machine is, and all are put in proportion."""
        known = self.table.networks
        wanted = [arch for arch in dict.fromkeys(archs) if anew or arch not in known]
        if wanted and self.stopwatch:
            measured = self.measure(baseline, wanted)
            first = known.setdefault(baseline, as_recorded(measured[baseline]))
            pace = first / measured[baseline]
            for arch in wanted:
                now = pace * measured[arch]
                known[arch] = as_recorded(math.sqrt(known.get(arch, now) * now))
        return {arch: known[arch] for arch in archs if arch in known}

    def measure(self, baseline: Network, archs: Sequence[Network]) -> dict[Network, float]:
        """Nanoseconds of networks and of the baseline, measured now. Raises UserError."""
        if self.stopwatch is None:
            raise UserError(f"{self.name}: of another device, where nothing can be measured")
        together = list(dict.fromkeys([baseline, *archs]))
        measured = _explained(lambda watch: watch.networks(together), self.stopwatch)
        return dict(zip(together, measured, strict=True))


def _explained(measure: Callable[[Stopwatch], list[float]], stopwatch: Stopwatch) -> list[float]:
    """What `measure` returns. Raises UserError for what the device cannot run."""
    try:
        return measure(stopwatch)
    except TimingError as error:
        raise UserError(str(error)) from error


def open_bench(study: Study, recorded: str | None, given: Path | None, measures: bool) -> Bench:
    """The latencies of a study's device: those that were `recorded` (a table as CSV) when the study
    began, else those in the file that the user has `given`, where it is there; and what is measured
    here, where it `measures`, unless the table is of another device.

    Raises UserError for a file that is no such table, and for a device that is not here."""
    budget = study.budgets[0]
    wanted = inference_of(study)
    table, name = None, "of this study"
    try:
        if recorded is not None:
            table = parse_table(recorded, wanted, name)
        elif given is not None and given.exists():
            name = str(given)
            table = read_table(given, wanted)
    except TableError as error:
        raise UserError(f"latency table {error}") from error
    if table is None and not measures:
        raise UserError(f"budget {budget}: no latencies were recorded; give --latency-table")
    if table and replace(table.inference, hardware="") != wanted:
        raise UserError(
            f"latency table {name}: it is of {in_words(table.inference)}; the budget {budget} is "
            f"of {in_words(wanted)}"
        )
    if table and not measures:
        return Bench(table, name, None)
    try:
        stopwatch = Stopwatch(wanted)
    except TimingError as error:
        raise UserError(f"budget {budget}: {error}") from error
    if table is None:
        return Bench(Table(stopwatch.inference), name, stopwatch)
    is_settled = recorded is not None
    if table.inference != stopwatch.inference:
        with stopwatch:  # of another device: the table is all there is
            logger.info("latency table %s is of %s", name, table.inference.hardware)
        return Bench(table, name, None, is_settled)
    return Bench(table, name, stopwatch, is_settled)


def inference_of(study: Study) -> Inference:
    """What a study's latency budgets are of, but for the hardware."""
    budget = study.budgets[0]
    return Inference(budget.device, budget.batch, budget.precision, study.latency_threads)


def in_words(inference: Inference) -> str:
    """What is measured: "1 image in fp32 on cpu, 1 thread"."""
    images = "1 image" if inference.batch == 1 else f"{inference.batch} images"
    threads = "1 thread" if inference.threads == 1 else f"{inference.threads} threads"
    words = f"{images} in {inference.precision} on {inference.device}"
    return f"{words}, {threads}" if inference.device == "cpu" else words


def with_times(study: Study, times: Times) -> Study:
    """The study whose budgets measure by these times."""
    budgets = tuple([replace(budget, times=times) for budget in study.budgets])
    return study.model_copy(update={"budgets": budgets})


def plan_by_latency(
    study: Study,
    classes: int,
    native: int,
    kept: Sequence[str],
    bench: Bench,
    progress: Progress,
) -> tuple[Study, Plan]:
    """The study with the times that it goes by, and the plan of networks that meet its budget as
    measured; without a stopwatch, as estimated. Raises UserError."""
    context = scaling_context(study, classes, native)
    baseline = scale(context.base, num_classes=classes)
    times = _model(study, context, baseline, bench, progress)
    for last in [*[False] * (_CHOICES - 1), True]:
        study = with_times(study, replace(times, is_final=last and bench.stopwatch is not None))
        todo = plan(study, classes, native, kept, progress)
        networks = [candidate.arch for candidate in todo.everything]
        unknown = [arch for arch in networks if arch not in times.networks]
        if last or bench.stopwatch is None or (not unknown and bench.is_settled):
            break
        progress(f"measuring the latency of {len(unknown) or len(networks)} networks")
        if unknown:
            bench.networks(baseline, unknown)
        else:
            bench.networks(baseline, networks, anew=True)
            bench.is_settled = True
        times = replace(times, networks=dict(bench.table.networks))
    return study, replace(todo, notes=(*todo.notes, _source_words(bench, times)))


def _source_words(bench: Bench, times: Times) -> str:
    """Where the latencies come from, in a sentence."""
    inference = times.inference
    words = f"latency is of {in_words(inference)} ({inference.hardware})"
    if bench.stopwatch is None:
        table = f"the latency table {bench.name}"
        return f"{words}, estimated from {len(times.blocks)} blocks of {table}, not measured here"
    return f"{words}, of every network compared as measured, the median of rounds with the baseline"


def again(bench: Bench, todo: Plan) -> str:
    """Measure every network of the budget again, as after the study; what came of it, in a
    sentence. Raises UserError."""
    baseline = todo.baseline.arch
    measured = bench.measure(baseline, [candidate.arch for candidate in todo.candidates])
    base_before, base_now = todo.baseline.latency or 1, measured[baseline]
    offs, drifts = [], []
    for candidate in todo.candidates:
        # a ratio is held against the ratio, an absolute budget against the time
        before, now = candidate.latency or 1, measured[candidate.arch]
        offs.append(candidate.budget.off(round(now), round(base_now)))
        drifts.append((now / base_now) / (before / base_before) - 1)
    pace = base_now / base_before - 1
    return (
        f"Latency measured again after training: the networks compared lie {min(offs):+.1%} to "
        f"{max(offs):+.1%} off the budget; against the baseline they changed by at most "
        f"{max(map(abs, drifts)):.1%}, and the baseline itself by {pace:+.1%}"
    )


# ---- the model


def _model(
    study: Study, context: ScalingContext, baseline: Network, bench: Bench, progress: Progress
) -> Times:
    """The times of the space's blocks and of some of its networks. Raises UserError."""
    base = context.base
    progress("measuring the latency of the baseline")
    known = dict(bench.table.blocks)
    first = Times(bench.table.inference, known, bench.networks(baseline, [baseline]))
    if bench.stopwatch is None and isinstance(base, Baseline):
        _check_operators(known, baseline, bench)
    like = max(with_times(study, first).budgets, key=lambda budget: budget.value)
    sides, depths, widths = reach(replace(context, times=first), study.space, like)
    corners = _spread(sides, depths, widths)
    if isinstance(base, Baseline):
        progress(f"measuring the latency of {_BLOCKS} blocks")
        assert isinstance(baseline, Arch)
        known = bench.blocks(baseline, _shapes(base, context, corners))
    progress(f"measuring the latency of {_NETWORKS} networks")
    samples: list[Network] = [baseline]
    for depth, width, side in corners[:_NETWORKS]:
        samples.append(scale(base, depth, width, side, num_classes=context.classes))
    bench.networks(baseline, samples)
    networks = bench.table.networks
    if not known and len(networks) < FEWEST_NETWORKS:
        raise UserError(f"latency table {bench.name}: none of its rows are of {base.name}")
    times = Times(bench.table.inference, known, dict(networks))
    return replace(times, exponents=_powers(times, context, like, (sides, depths, widths)))


def _spread(
    sides: list[int], depths: list[float], widths: tuple[float, float]
) -> list[tuple[float, float, int]]:
    """Settings of the three dials spread over their ranges, a Sobol sequence of them."""
    from scipy.stats import qmc

    points = qmc.Sobol(3, scramble=False).random(16)
    settings = []
    for depth, width, side in points:
        settings.append(
            (
                depths[int(depth * len(depths))],
                round(widths[0] + width * (widths[1] - widths[0]), 3),
                sides[int(side * len(sides))],
            )
        )
    return settings


def _shapes(
    base: Baseline, context: ScalingContext, settings: Sequence[tuple[float, float, int]]
) -> list[Block]:
    """The blocks to measure: those of the baseline, and of networks over the space, evenly."""
    shapes: dict[Block, None] = {}
    classes = context.classes
    for block in blocks(scale(base, num_classes=classes)):
        shapes[block._replace(repeats=1)] = None
    others: dict[Block, None] = {}
    for depth, width, side in settings:
        for block in blocks(scale(base, depth, width, side, num_classes=classes)):
            others[block._replace(repeats=1)] = None
    left = [block for block in others if block not in shapes]
    count = min(len(left), max(0, _BLOCKS - len(shapes)))
    for i in range(count):
        shapes[left[i * len(left) // count]] = None
    return list(shapes)


def _check_operators(known: Iterable[Block], baseline: Network, bench: Bench) -> None:
    """Raises UserError where the table has no block of an operator that the networks have."""
    assert isinstance(baseline, Arch)
    missing = {block.operator for block in blocks(baseline)} - {block.operator for block in known}
    if missing:
        raise UserError(
            f"latency table {bench.name}: no row of {', '.join(sorted(missing))}, which the "
            f"networks of {baseline.name} have"
        )


def _powers(
    times: Times,
    context: ScalingContext,
    like: Budget,
    ranges: tuple[list[int], list[float], tuple[float, float]],
) -> tuple[float, float, float]:
    """The powers of depth, width and resolution with which latency grows, from the baseline to the
    ends of the ranges."""
    sides, depths, widths = ranges
    base, classes = context.base, context.classes
    outward = like.ratio(context.base_cost(like)) >= 1
    depth = depths[-1] if outward else depths[0]
    width = widths[1] if outward else widths[0]
    side = sides[-1] if outward else sides[0]
    least = times.model.estimate(scale(base, num_classes=classes))
    ends = (
        (depth, scale(base, depth, num_classes=classes)),
        (width, scale(base, width=width, num_classes=classes)),
        (side / base.resolution, scale(base, resolution=side, num_classes=classes)),
    )
    powers = []
    for factor, arch in ends:
        grown = (
            0.0 if factor == 1 else math.log(times.model.estimate(arch) / least) / math.log(factor)
        )
        powers.append(float(np.clip(grown, 0.05, 4.0)))
    return powers[0], powers[1], powers[2]


# ---- from a record


def recorded_times(study: Study, table: str, powers: Sequence[float]) -> Times:
    """The times that a study went by, of its recorded table and powers. Raises UserError."""
    try:
        known = parse_table(table, inference_of(study), "of this study")
    except TableError as error:
        raise UserError(f"latency table {error}") from error
    depth, width, resolution = powers
    return Times(known.inference, known.blocks, known.networks, (depth, width, resolution))
