"""Latency budgets: what is measured before a study's networks are chosen, and again after it.

Some hundred blocks and a few whole networks make a model of the space; the networks that it leads
to are measured themselves, and those that miss the budget make room for others, until all that are
compared meet it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from effnet import atomic
from effnet.arch import Arch, Network, scale
from effnet.blocks import Block, blocks
from effnet.budget import Budget
from effnet.cost import macs
from effnet.custom import CustomArch
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
from effnet.shares import exponents
from scaling_search import UserError
from scaling_search.study.context import ScalingContext
from scaling_search.study.measured import Progress, reach
from scaling_search.study.plan import Plan, check_ratio, plan, scaling_context
from scaling_search.study.settings import Study

logger = logging.getLogger(__name__)

_BLOCKS, _NETWORKS = 100, 10  # measured for the model
# Times a budget's ratio of the baseline's multiply-adds: no network of the model has more
HEAVIEST = 8
# A baseline that is so many times slower or faster than its table says was not measured here.
_OTHER_PACE = 3
# How often networks are chosen, measured, and chosen again; how often those that all are known
# are measured once more; and how far from the budget they may lie until the last choice.
_CHOICES, _REPEATS, _AIM = 20, 3, 0.012


@dataclass
class Bench:
    """The latencies of one device, by a table: what it lacks is measured here and put into it, or
    stays unknown where there is no `stopwatch`, as for a table of another device. `name` of the
    table is for messages. `is_settled`: networks that a study compares are in it, measured
    several times, and nothing in it changes any more."""

    table: Table
    name: str
    stopwatch: Stopwatch | None
    is_settled: bool = False

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
            if not self.is_settled and not 1 / _OTHER_PACE < pace < _OTHER_PACE:
                raise UserError(
                    f"latency table {self.name}: it says {first / 1e6:.3g} ms for the baseline, "
                    f"which takes {measured[baseline] / 1e6:.3g} ms here: it is of another machine "
                    "(its column hardware should say so), or not in milliseconds"
                )
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


@contextmanager
def open_bench(study: Study, recorded: Table | None, given: Path | None) -> Iterator[Bench]:
    """The latencies of a study's device: those that were `recorded` when the study began, else
    those in the file that the user has `given`, where it is there; and what is measured here,
    unless the table is of another device.

    Raises UserError for a file that is no such table, and for a device that is not here."""
    wanted = inference_of(study)
    table, name = recorded, "of this study"
    if given is not None and given.exists():
        in_file = read_given(given, study)
        if recorded is None:
            table, name = in_file, str(given)
        elif in_file.inference != recorded.inference:
            raise UserError(
                f"latency table {given}: of {in_file.inference.hardware or 'a device unnamed'}; "
                f"the study's own is of {recorded.inference.hardware}, and it goes on by that: "
                "leave --latency-table out"
            )
    with ExitStack() as stack:
        stopwatch = None
        try:
            stopwatch = stack.enter_context(Stopwatch(wanted))
        except TimingError as error:
            if table is None:
                raise UserError(f"budget {study.budgets[0]}: {error}") from error
        if table is None and stopwatch:
            table = Table(stopwatch.inference)
        assert table is not None
        if stopwatch and table.inference != stopwatch.inference:
            # of another device: the table is all there is
            logger.info("latency table %s is of %s", name, table.inference.hardware)
            stack.close()
            stopwatch = None
        is_settled = stopwatch is not None and recorded is not None
        yield Bench(table, name, stopwatch, is_settled)


def read_given(path: Path, study: Study) -> Table:
    """The table in a file, of what the study's budget is of. Raises UserError."""
    wanted = inference_of(study)
    try:
        table = read_table(path, wanted)
    except TableError as error:
        raise UserError(f"latency table {error}") from error
    if replace(table.inference, hardware="") != wanted:
        raise UserError(
            f"latency table {path}: it is of {in_words(table.inference)}; the budget "
            f"{study.budgets[0]} is of {in_words(wanted)}"
        )
    return table


def save_given(path: Path, study: Study, table: Table) -> None:
    """Write a table into the file that the user has given, beside what that holds already. Raises
    UserError."""
    if path.exists():
        earlier = read_given(path, study)
        table = Table(
            table.inference,
            {**earlier.blocks, **table.blocks},
            {**earlier.networks, **table.networks},
        )
    try:
        atomic.write(path, table.text().encode())
    except OSError as error:
        raise UserError(f"--latency-table {path}: {error.strerror}") from error


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
    repeats = _REPEATS if not bench.is_settled else 0
    for last in [*[False] * (_CHOICES - 1), True]:
        study = with_times(study, replace(times, is_final=last and bench.stopwatch is not None))
        try:
            aim = study if last or bench.stopwatch is None else _aimed(study)
            todo = plan(aim, classes, native, kept, progress)
        except UserError:  # too few are that near: those within the study's own tolerance then
            todo = plan(study, classes, native, kept, progress)
        networks = [candidate.arch for candidate in todo.everything]
        unknown = [arch for arch in networks if arch not in times.networks]
        if last or bench.stopwatch is None or (not unknown and not repeats):
            break
        progress(f"measuring the latency of {len(unknown) or len(networks)} networks")
        if unknown:
            bench.networks(baseline, unknown)
        else:
            bench.networks(baseline, networks, anew=True)
            repeats -= 1
        times = replace(times, networks=_of_kind(bench.table.networks, baseline))
    return study, replace(todo, notes=(*todo.notes, _source_words(bench, times)))


def _aimed(study: Study) -> Study:
    """The study with the tolerance that its networks are looked for within: what measures within it
    now is within the study's own when it is measured again."""
    budgets = []
    for budget in study.budgets:
        budgets.append(replace(budget, tolerance=min(_AIM, budget.tolerance)))
    return study.model_copy(update={"budgets": tuple(budgets)})


def _source_words(bench: Bench, times: Times) -> str:
    """Where the latencies come from, in a sentence."""
    inference = times.inference
    words = f"latency is of {in_words(inference)} ({inference.hardware})"
    if bench.stopwatch is None:
        if not inference.hardware:
            words = f"latency is taken to be of {in_words(inference)}, which its table does not say"
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
    words = (
        f"measured again after training, the networks compared lie {min(offs):+.1%} to "
        f"{max(offs):+.1%} off the budget; against the baseline they changed by at most "
        f"{max(map(abs, drifts)):.1%}, and the baseline itself by {pace:+.1%}"
    )
    tolerance = todo.candidates[0].budget.tolerance
    if max(map(abs, offs)) > tolerance:
        words += (
            f" (within {tolerance:.0%} before: what the machine does meanwhile is not the same)"
        )
    return words


# ---- the model


def _model(
    study: Study, context: ScalingContext, baseline: Network, bench: Bench, progress: Progress
) -> Times:
    """The times of the space's blocks and of some of its networks. Raises UserError."""
    base = context.base
    progress("measuring the latency of the baseline")
    bench.networks(baseline, [baseline])
    blocks_known = dict(bench.table.blocks)
    if bench.stopwatch is None:
        _check_table(bench, baseline)
    first = Times(bench.table.inference, blocks_known, _of_kind(bench.table.networks, baseline))
    context = replace(context, times=first)
    budgets = with_times(study, first).budgets
    for budget in budgets:
        check_ratio(context, budget)
    like = max(budgets, key=lambda budget: budget.value)
    ranges = reach(context, study.space, like)
    settings = _settings(context, ranges, context.ratio(like))
    if isinstance(baseline, Arch):
        progress(f"measuring the latency of {_BLOCKS} blocks")
        blocks_known = bench.blocks(baseline, _shapes(baseline, context, settings))
    progress(f"measuring the latency of {_NETWORKS} networks")
    samples = []
    for depth, width, side in settings[:_NETWORKS]:
        samples.append(scale(base, depth, width, side, num_classes=context.classes))
    bench.networks(baseline, samples)
    networks = _of_kind(bench.table.networks, baseline)
    times = Times(bench.table.inference, blocks_known, networks)
    return replace(times, exponents=_powers(times, context, like, ranges))


def _of_kind(networks: Mapping[Network, float], baseline: Network) -> dict[Network, float]:
    """Those of a table's networks that are of the baseline's kind: of its function, or of its rows.
    A file may hold those of several studies."""
    return {arch: time for arch, time in networks.items() if _kind(arch) == _kind(baseline)}


def _kind(arch: Network) -> tuple[object, ...]:
    """What all networks of a baseline have in common."""
    if isinstance(arch, CustomArch):
        return arch.function.digest, arch.in_channels
    rows = [(s.operator, s.expand, s.kernel, s.stride, s.se_percent) for s in arch.stages]
    return tuple(rows), arch.stem_stride, arch.in_channels, arch.activation


def _settings(
    context: ScalingContext,
    ranges: tuple[list[int], list[float], tuple[float, float]],
    ratio: float,
) -> list[tuple[float, float, int]]:
    """Sixteen settings of depth, width and side spread over their ranges, by a Sobol sequence;
    none that is far heavier than any network of such a ratio."""
    from scipy.stats import qmc

    sides, depths, widths = ranges
    most = HEAVIEST * max(1.0, ratio) * context.base_macs
    settings = []
    for at_depth, at_width, at_side in qmc.Sobol(3, scramble=False).random(256):
        depth = depths[int(at_depth * len(depths))]
        width = round(widths[0] + at_width * (widths[1] - widths[0]), 3)
        side = sides[int(at_side * len(sides))]
        arch = scale(context.base, depth, width, side, num_classes=context.classes)
        if macs(arch) <= most:
            settings.append((depth, width, side))
        if len(settings) == 16:
            break
    return settings


def _shapes(
    baseline: Arch, context: ScalingContext, settings: Sequence[tuple[float, float, int]]
) -> list[Block]:
    """The blocks to measure: those of the baseline, and of networks over the space, evenly."""
    shapes: dict[Block, None] = {}
    for block in blocks(baseline):
        shapes[block._replace(repeats=1)] = None
    others: dict[Block, None] = {}
    for depth, width, side in settings:
        arch = scale(context.base, depth, width, side, num_classes=context.classes)
        assert isinstance(arch, Arch)
        for block in blocks(arch):
            others[block._replace(repeats=1)] = None
    left = [block for block in others if block not in shapes]
    count = min(len(left), max(0, _BLOCKS - len(shapes)))
    for i in range(count):
        shapes[left[i * len(left) // count]] = None
    return list(shapes)


def _check_table(bench: Bench, baseline: Network) -> None:
    """Raises UserError where a table that is all there is says too little of such networks."""
    if isinstance(baseline, CustomArch):
        if len(_of_kind(bench.table.networks, baseline)) < FEWEST_NETWORKS:
            raise UserError(
                f"latency table {bench.name}: of the networks of {baseline.name} it has fewer than "
                f"{FEWEST_NETWORKS}, and a function's are known by no blocks"
            )
        return
    known = {block.operator for block in bench.table.blocks}
    missing = {block.operator for block in blocks(baseline)} - known
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


# ---- what a study records


@dataclass(frozen=True)
class Recorded:
    """What a study of a latency went by: its table, the powers of the dimensions, its plan."""

    table: Table
    powers: tuple[float, float, float]
    plan: Plan

    @classmethod
    def of(cls, study: Study, todo: Plan, table: Table) -> Recorded:
        """Of a study that has been planned."""
        return cls(table, exponents(study.budgets[0]), todo)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "table": self.table.text(),
            "powers": list(self.powers),
            "plan": self.plan.as_dict(),
        }

    @classmethod
    def read(cls, data: dict[str, Any], study: Study) -> Recorded:
        """Of recorded plain data. Raises UserError."""
        try:
            depth, width, resolution = data["powers"]
            table = parse_table(data["table"], inference_of(study), "of this study")
            return cls(table, (depth, width, resolution), Plan.from_dict(data["plan"]))
        except (TableError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"the recorded latencies of this study cannot be read: {error}"
            ) from error

    @property
    def times(self) -> Times:
        """The times that the study's budgets measure by."""
        return Times(self.table.inference, self.table.blocks, self.table.networks, self.powers)


def grown_plan(
    study: Study, recorded: Recorded, classes: int, native: int, bench: Bench, progress: Progress
) -> tuple[Study, Plan]:
    """The plan of a study that is to compare more networks than it did: those that were there, as
    they were, and new ones. Raises UserError where those cannot be measured."""
    was = recorded.plan
    if bench.stopwatch is None and any(c.arch in recorded.table.networks for c in was.candidates):
        raise UserError(
            f"more --candidates: their latency is measured on {recorded.table.inference.hardware}, "
            "as that of the others was; go on there"
        )
    kept = [candidate.key for candidate in was.candidates]
    study, todo = plan_by_latency(study, classes, native, kept, bench, progress)
    new = [candidate for candidate in todo.candidates if candidate.key not in kept]
    if study.space.candidates is not None:
        new = new[: max(0, study.space.candidates - len(kept))]
    return study, replace(was, candidates=(*was.candidates, *new), notes=todo.notes)
