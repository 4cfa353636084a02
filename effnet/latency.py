"""What networks take on one device: the times of blocks and networks measured there, and a model
of those that were not. No torch; nn/timing.py measures.

A block's time is modelled as a sum over its layers: a constant, and what grows with multiply-adds,
elements moved and weights, by kind of layer, no coefficient below 0. A network's is its blocks',
each a little longer or shorter in company, and a constant, fitted to whole networks. (Blocks that
are measured one by one and added up: nn-Meter, MobiSys 2021; once-for-all, arXiv 1908.09791.)
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from effnet.arch import Network, network_from_dict
from effnet.blocks import Block, Op, blocks, ops
from effnet.cost import Precision
from effnet.custom import CustomArch

Device = Literal["", "cpu", "cuda"]
DEVICES: tuple[Device, ...] = ("", "cpu", "cuda")
Array = np.ndarray[Any, np.dtype[np.float64]]

# Channels that a vector unit takes at once: what is left over of them costs as much as all.
_LANES = 16
_KINDS = ("dense", "pointwise", "depthwise", "vector")
_PER_KIND = 4  # coefficients
_FEWEST_NETWORKS = 4  # from so many on, what networks take more than their blocks is fitted
# Measured networks whose depth, width and side differ by no more than this fraction or so are
# taken to err alike; one of them is believed by 1 / (1 + _CAUTION).
_NEAR, _CAUTION = 0.1, 0.2


@dataclass(frozen=True, slots=True)
class Inference:
    """How a network is used where its latency counts: a forward pass of `batch` images in
    `precision`, on `threads` threads of a CPU. `hardware` is the device's own name."""

    device: Device
    batch: int = 1
    precision: Precision = "fp32"
    threads: int = 1
    hardware: str = ""


@dataclass(frozen=True)
class Times:
    """What is known of one device: nanoseconds of blocks (of one repeat) and of whole networks; of
    any other network an estimate. `exponents`: the powers of depth, width and resolution with which
    the latency of the study's networks grows. `is_final`: no network is to be measured any more, so
    that those that were are all there are to compare."""

    inference: Inference
    blocks: Mapping[Block, float] = field(default_factory=dict)
    networks: Mapping[Network, float] = field(default_factory=dict)
    exponents: tuple[float, float, float] = (1.0, 2.0, 2.0)
    is_final: bool = False

    def may_be_compared(self, arch: Network) -> bool:
        """Whether the network's latency is measured, or may still be."""
        return not self.is_final or arch in self.networks

    def latency(self, arch: Network) -> int:
        """Nanoseconds of a forward pass: as measured, else as estimated."""
        measured = self.networks.get(arch)
        return round(self.estimate(arch) if measured is None else measured)

    def estimate(self, arch: Network) -> float:
        """Nanoseconds of a forward pass by the model, put right by the measured networks around
        it."""
        return self._sum(arch) * float(np.exp(self._correction(arch)))

    def _sum(self, arch: Network) -> float:
        """Nanoseconds by what was fitted alone."""
        return float(self._network_features(arch) @ self._network_coefficients)

    def _correction(self, arch: Network) -> float:
        """The mean log error of the fit at the networks nearby, 0 where there are none."""
        positions, errors = self._errors
        if not len(errors):
            return 0.0
        squared = ((positions - _position(arch)) ** 2).sum(1)
        weights = np.exp(-squared / (2 * _NEAR**2))
        return float(weights @ errors / (weights.sum() + _CAUTION))

    @cached_property
    def _errors(self) -> tuple[Array, Array]:
        positions = [_position(arch) for arch in self.networks]
        errors = [np.log(time / self._sum(arch)) for arch, time in self.networks.items()]
        return np.array(positions), np.array(errors)

    def block_estimate(self, block: Block) -> float:
        """Nanoseconds of one repeat of a block by the model."""
        known = self._estimates.get(block)
        if known is None:
            features = _block_features(block, self.inference.batch)
            known = self._estimates[block] = float(features @ self._block_coefficients)
        return known

    @cached_property
    def _estimates(self) -> dict[Block, float]:
        return {}

    @cached_property
    def _block_coefficients(self) -> Array:
        rows = [_block_features(block, self.inference.batch) for block in self.blocks]
        return _fit(np.array(rows), np.array(list(self.blocks.values())))

    @cached_property
    def _network_coefficients(self) -> Array:
        rows = [self._network_features(arch) for arch in self.networks]
        if len(rows) < _FEWEST_NETWORKS:
            return np.array([1.0, 0.0, 0.0])  # as long as their blocks
        return _fit(np.array(rows), np.array(list(self.networks.values())))

    def _network_features(self, arch: Network) -> Array:
        """What a network's time is a sum of: of an Arch its blocks' times, their number and 1; of
        a function's network multiply-adds and elements moved, depth and 1."""
        if isinstance(arch, CustomArch):
            counts, batch = arch.counts, self.inference.batch
            return np.array(
                [batch * counts.macs, batch * counts.acts, counts.params, arch.depth, 1.0]
            )
        total = count = 0.0
        for block in blocks(arch):
            total += block.repeats * self.block_estimate(block._replace(repeats=1))
            count += block.repeats
        return np.array([total, count, 1.0])


def _position(arch: Network) -> Array:
    """Where a network lies among others of its baseline: logarithms of depth, width and side."""
    if isinstance(arch, CustomArch):
        return np.log([arch.depth, arch.width, arch.resolution])
    widths = sum(stage.width for stage in arch.stages)
    return np.log([arch.blocks, widths, arch.resolution])


def _fit(features: Array, times: Array) -> Array:
    """Coefficients of at least 0 with the smallest squares of relative error."""
    from scipy.optimize import nnls  # takes a moment to import, which other budgets need not spend

    # one scale for all columns, and every row's time 1
    scaled = features / times[:, None]
    largest = scaled.max(0)
    largest[largest == 0] = 1.0
    coefficients, _ = nnls(scaled / largest, np.ones(len(times)))
    return np.asarray(coefficients / largest)


# ---- what a block's time grows with


def _block_features(block: Block, batch: int) -> Array:
    """Per kind of layer: how many, their multiply-adds, elements in and out, weights; then the same
    of what has no weights: sums, gates and means over maps."""
    row = np.zeros(_PER_KIND * len(_KINDS) + 3)
    for op in ops(block):
        first = _PER_KIND * _KINDS.index(_kind(op))
        area_in, area_out = _areas(op, block)
        if op.kind == "shortcut":
            area_in = block.side_in**2
        lanes_in, lanes_out = _padded(op.c_in), _padded(op.c_out)
        weights = op.c_in // op.groups * op.c_out * op.kernel**2
        padded = lanes_out * op.kernel**2
        if op.groups == 1:
            padded *= lanes_in
        row[first] += 1
        row[first + 1] += batch * padded * area_out
        row[first + 2] += batch * (op.c_in * area_in + op.c_out * area_out)
        row[first + 3] += weights
        if op.kind == "squeeze":  # a mean over the maps before it, and its gate over them after
            row[-2] += batch * op.c_in * block.side_out**2
        if op.kind == "classifier":
            row[-1] += batch * op.c_in * block.side_in**2
    if block.shortcut:
        row[-3] += batch * block.c_out * block.side_out**2
    return row


def _kind(op: Op) -> str:
    if op.side == "one":
        return "vector"
    if op.groups > 1:
        return "depthwise"
    return "pointwise" if op.kernel == 1 else "dense"


def _areas(op: Op, block: Block) -> tuple[int, int]:
    """Elements of a map that a layer reads and writes, per channel."""
    if op.side == "one":
        return 1, 1
    if op.side == "in":
        return block.side_in**2, block.side_in**2
    return (block.side_out * op.stride) ** 2, block.side_out**2


def _padded(channels: int) -> int:
    return -(-channels // _LANES) * _LANES


# ---- a table of times as a file

_SHAPE = (
    "operator", "side", "c_in", "expanded", "squeezed", "c_out", "kernel", "stride", "shortcut",
)  # fmt: skip
_PLACE = ("hardware", "device", "batch", "precision", "threads")
_COLUMNS = (*_PLACE, *_SHAPE, "network", "ms")
_WANTED = (
    "wanted is a CSV table with a row for each block and the columns operator, side, c_in, "
    "expanded, squeezed, c_out, kernel, stride and ms, as search --latency-table writes it"
)


class TableError(ValueError):
    """A file that is no table of times, and why."""


@dataclass
class Table:
    """Times as they are kept in a file: of blocks and of networks [ns]."""

    inference: Inference
    blocks: dict[Block, float] = field(default_factory=dict)
    networks: dict[Network, float] = field(default_factory=dict)

    def text(self) -> str:
        """The table as CSV, one row a block or a network (as JSON)."""
        output = io.StringIO()
        writer = csv.DictWriter(output, _COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        place = {name: getattr(self.inference, name) for name in _PLACE}
        for block, time in self.blocks.items():
            shape = {name: getattr(block, name) for name in _SHAPE if name != "side"}
            writer.writerow({**place, **shape, "side": block.side_in, "ms": _milliseconds(time)})
        for arch, time in self.networks.items():
            network = json.dumps(arch.as_dict())
            writer.writerow({**place, "network": network, "ms": _milliseconds(time)})
        return output.getvalue()


def as_recorded(nanoseconds: float) -> float:
    """A time as it is read back from a table: by either the same networks are planned."""
    return 1e6 * float(_milliseconds(nanoseconds))


def _milliseconds(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e6:.9f}"


def read_table(path: Path, otherwise: Inference) -> Table:
    """The table in a file, as `parse_table` reads it. Raises TableError."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"{path}: cannot be read: {error}") from error
    return parse_table(text, otherwise, str(path))


def parse_table(text: str, otherwise: Inference, name: str) -> Table:
    """The table of a CSV text; what its rows do not say of the device is as in `otherwise`, but for
    the hardware's name. `name` is for errors. Raises TableError."""
    reader = csv.DictReader(io.StringIO(text))
    names = set(reader.fieldnames or ())
    missing = {"ms"} - names
    if "network" not in names:
        missing |= set(_SHAPE) - {"shortcut"} - names
    if missing:
        raise TableError(f"{name}: no column {', '.join(sorted(missing))}; {_WANTED}")
    table: Table | None = None
    for number, row in enumerate(reader, 2):
        where = f"{name}, line {number}"
        try:
            inference = _inference_of(row, otherwise)
            if table is None:
                table = Table(inference)
            if inference != table.inference:
                raise TableError(f"{where}: of another device, batch or precision than line 2")
            _add_row(table, row)
        except TableError:
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise TableError(f"{where}: {error}; {_WANTED}") from error
    if table is None:
        raise TableError(f"{name}: no rows; {_WANTED}")
    return table


def _inference_of(row: Mapping[str, str], otherwise: Inference) -> Inference:
    return Inference(
        device=row.get("device") or otherwise.device,  # type: ignore[arg-type]
        batch=int(row.get("batch") or otherwise.batch),
        precision=row.get("precision") or otherwise.precision,  # type: ignore[arg-type]
        threads=int(row.get("threads") or otherwise.threads),
        hardware=row.get("hardware") or "another device",
    )


def _whole(name: str, text: str) -> int:
    """A whole number, 0 for none; 20.0 is one too, as spreadsheets write them. Raises
    ValueError."""
    number = float(text or 0)
    if number != int(number):
        raise ValueError(f"{name} = {text}: must be a whole number")
    return int(number)


def _add_row(table: Table, row: Mapping[str, str]) -> None:
    """Put a row into the table. Raises ValueError."""
    nanoseconds = 1e6 * float(row["ms"])
    if not 0 < nanoseconds < 1e12:
        raise ValueError(f"ms = {row['ms']}: a time above 0")
    if row.get("network"):
        table.networks[network_from_dict(json.loads(row["network"]))] = nanoseconds
        return
    numbers = {}
    for name in _SHAPE:
        if name not in ("operator", "shortcut"):
            numbers[name] = _whole(name, row[name])
    side, stride = numbers.pop("side"), numbers["stride"]
    if min(side, stride, numbers["c_in"], numbers["c_out"], numbers["kernel"]) < 1:
        raise ValueError("side, stride, kernel, c_in and c_out must be at least 1")
    side_out = 1 if row["operator"] == "head" else -(-side // stride)
    block = Block(
        repeats=1,
        side_in=side,
        side_out=side_out,
        operator=row["operator"],
        shortcut=row.get("shortcut") or "",  # type: ignore[arg-type]
        **numbers,
    )
    ops(block)  # raises KeyError for an operator that there is not
    table.blocks[block] = nanoseconds
