"""What networks take on one device, measured: the times of blocks and of networks, and the table
that keeps them. No torch; nn/timing.py measures, and latency_model.py estimates what was not
measured."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from effnet.arch import OPERATORS, Network, network_from_dict
from effnet.blocks import Block
from effnet.cost import Precision

if TYPE_CHECKING:
    from effnet.latency_model import LatencyModel

Device = Literal["", "cpu", "cuda"]
DEVICES: tuple[Device, ...] = ("", "cpu", "cuda")


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
        return round(self.model.estimate(arch) if measured is None else measured)

    @cached_property
    def model(self) -> LatencyModel:
        """What estimates the networks that were not measured."""
        from effnet.latency_model import fit  # with numpy, which other budgets do without

        return fit(self.blocks, self.networks, self.inference.batch)


# ---- a table of times as a file

_SHAPE = (
    "operator", "side", "c_in", "expanded", "squeezed", "c_out", "kernel", "stride", "shortcut",
    "across",
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
            shape = {name: getattr(block, name) for name in _SHAPE if name in Block._fields}
            shape |= {"side": block.side_in, "across": block.across_in}
            writer.writerow({**place, **shape, "ms": _milliseconds(time)})
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
    the hardware's name, "" then. `name` is for errors. Raises TableError."""
    reader = csv.DictReader(io.StringIO(text))
    try:
        names = set(reader.fieldnames or ())
        rows = list(enumerate(reader, 2))
    except csv.Error as error:
        raise TableError(f"{name}: {error}; {_WANTED}") from error
    missing = {"ms"} - names
    if "network" not in names:
        missing |= set(_SHAPE) - {"shortcut", "across"} - names
    if missing:
        raise TableError(f"{name}: no column {', '.join(sorted(missing))}; {_WANTED}")
    table: Table | None = None
    for number, row in rows:
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
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
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
        hardware=row.get("hardware") or "",
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
            numbers[name] = _whole(name, row.get(name) or "")
    side, stride = numbers.pop("side"), numbers["stride"]
    across = numbers.pop("across") or side
    if min(side, stride, numbers["c_in"], numbers["c_out"], numbers["kernel"]) < 1:
        raise ValueError("side, stride, kernel, c_in and c_out must be at least 1")
    if numbers["kernel"] % 2 == 0 or min(numbers["expanded"], numbers["squeezed"]) < 0:
        raise ValueError("kernel must be odd, expanded and squeezed at least 0")
    if row["operator"] in OPERATORS and row["operator"] != "separable" and not numbers["expanded"]:
        raise ValueError("expanded = 0: the channels inside the block")
    is_head = row["operator"] == "head"
    block = Block(
        repeats=1,
        side_in=side,
        side_out=1 if is_head else -(-side // stride),
        across_in=across,
        across_out=1 if is_head else -(-across // stride),
        operator=row["operator"],
        shortcut=row.get("shortcut") or "",  # type: ignore[arg-type]
        **numbers,
    )
    if not {block.operator} & {"stem", "head", *OPERATORS}:
        raise ValueError(
            f"operator = {block.operator!r}: known are stem, {', '.join(OPERATORS)}, head"
        )
    if table.blocks.get(block, nanoseconds) != nanoseconds:
        raise ValueError("the same block as in a row before, with another time")
    table.blocks[block] = nanoseconds
