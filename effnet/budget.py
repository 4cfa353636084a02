"""What a budget is: a target cost with a tolerance, as text such as `2x` and as a value. No torch.

`solve.py` finds the network that meets one."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from effnet.arch import Network
from effnet.cost import PRECISIONS, Precision, cost, macs, training_memory
from effnet.latency import DEVICES, Device, Times

Measure = Literal["macs", "params", "acts", "memory", "latency"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
_SIZES = {"K": 1e3, "M": 1e6, "G": 1e9, "KI": 2.0**10, "MI": 2.0**20, "GI": 2.0**30}
_NANOSECONDS = {"us": 1e3, "ms": 1e6, "s": 1e9}
_TEXT = re.compile(
    r"(?P<value>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>x|us|ms|s|[KMG](?P<bytes>i?B)?)"
    r"(?:\s*(?P<of>macs|params|acts|memory|latency))?(?:[@/](?P<step>\w+(?:/\w+)*))?",
    re.IGNORECASE,
)
_WANTED = (
    "a budget is a ratio such as 2x or 0.5x, or multiply-adds such as 400M or 1.2G; or either of "
    "something else: 5M params, 2x acts, 8GiB@64 (training memory at batch 64), 2x memory@64/bf16, "
    "5ms (latency), 2x latency@8/cuda"
)
# How the counts of each measure are named after a number.
_NAMES: dict[Measure, str] = {
    "macs": "FLOPs (multiply-adds)",
    "params": "params",
    "acts": "acts",
    "memory": "bytes of training memory",
}


@dataclass(frozen=True, slots=True)
class Budget:
    """A target with a relative tolerance: a ratio to the baseline's cost (`relative`) or absolute.

    `of` macs [multiply-adds], params, acts [elements]; memory [bytes at the peak of a training step
    of `batch` images in `precision`, estimated]; or latency [nanoseconds of a forward pass of
    `batch` images in `precision` on a `device`, "" where none is settled yet]. What networks take
    there is in `times`, without which a latency budget measures nothing.

    Raises ValueError for what no budget can be."""

    value: float
    relative: bool
    tolerance: float = field(default=0.02, compare=False)  # 2.00x within 1% is no other target
    of: Measure = "macs"
    batch: int = 32
    precision: Precision = "fp32"
    device: Device = ""
    times: Times | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0 and 0 <= self.tolerance < 1):
            raise ValueError(
                f"budget of {self.value} ± {self.tolerance}: a finite number above 0, and a "
                "tolerance from 0 to below 1"
            )
        known = self.of in MEASURES and self.precision in PRECISIONS and self.device in DEVICES
        if not known or self.batch < 1:
            raise ValueError(
                f"budget of {self.of} at batch {self.batch}, {self.precision}: "
                f"of {', '.join(MEASURES)}; a batch of at least 1, "
                f"a precision of {' or '.join(PRECISIONS)}, a device of cpu or cuda"
            )

    @classmethod
    def parse(cls, text: str, tolerance: float = 0.02) -> Budget:
        """The budget that a person typed: `2x`, `0.5x` (ratios), `400M`, `1.2G` (multiply-adds),
        `5M params`, `2x acts`, `8GiB@64`, `2x memory@64/bf16`, `5ms`, `2x latency@8/cuda`.

        Raises ValueError for any other text, a ratio outside 0.01 to 1000, and an absolute target
        outside 1K to 1000000G (1 µs to 11 days): what lies beyond is a typing error."""
        fields = _read(text)
        low, high, limits = 1e3, 1e15, "from 1K to 1000000G, and from 1us"
        if fields["relative"]:
            low, high, limits = 0.01, 1000.0, "from 0.01x to 1000x"
        if not low <= fields["value"] <= high:
            raise ValueError(f"budget {text!r} is out of range ({limits}): {_WANTED}")
        return cls(**fields, tolerance=tolerance)

    @classmethod
    def from_text(cls, text: str) -> Budget:
        """The budget that `str` printed, of any size. Raises ValueError."""
        return cls(**_read(text))

    def __str__(self) -> str:
        """The text that `parse` reads as this target, to twelve digits."""
        unit = self._unit()
        number = f"{self.value / _size(unit):.12g}{unit}"
        if self.of in ("memory", "latency"):
            of = f" {self.of}" if self.relative else ""  # bytes and seconds say it themselves
            step = [f"{self.batch}", self.device, self.precision]
            if self.of == "latency" and self.precision == "fp32":
                step.remove("fp32")
            return f"{number}{of}@{'/'.join(part for part in step if part)}"
        return number if self.of == "macs" else f"{number} {self.of}"

    def _unit(self) -> str:
        """The unit to print the target in: x, or the largest of K, M and G that it reaches, or of
        us, ms and s; of memory the binary one where it has no remainder."""
        if self.relative:
            return "x"
        if self.of == "latency":
            return _unit_of_time(self.value)
        if self.of == "memory":
            for binary in ("GiB", "MiB"):
                if self.value % _size(binary) == 0:
                    return binary
        unit = "K"
        for larger in ("M", "G"):
            if self.value >= _size(larger):
                unit = larger
        return f"{unit}B" if self.of == "memory" else unit

    def measure(self, arch: Network) -> int:
        """What `arch` costs in this budget's unit. Raises ValueError for a latency where no times
        are known."""
        if self.of == "macs":
            return macs(arch)
        if self.of == "memory":
            return training_memory(arch, self.batch, self.precision)
        if self.of == "latency":
            if self.times is None:
                raise ValueError(
                    f"budget {self}: latencies are measured by search, and none are at hand here"
                )
            return self.times.latency(arch)
        return int(getattr(cost(arch), self.of))

    @property
    def unit(self) -> str:
        """What it counts, in words."""
        words = {"macs": "multiply-adds", "params": "parameters", "acts": "activations"}
        return words.get(self.of, "latency" if self.of == "latency" else _NAMES["memory"])

    def quantity(self, cost: float) -> str:
        """A cost by this measure in words: 17.3M MACs, 5.2 ms."""
        if self.of == "latency":
            unit = _unit_of_time(cost)
            return f"{cost / _NANOSECONDS[unit]:.3g} {unit}"
        return f"{human(cost)} {_NAMES[self.of]}"

    @property
    def measured_as(self) -> tuple[str, int, str, str]:
        """What says how a network's cost is found."""
        return self.of, self.batch, self.precision, self.device

    def target(self, base_cost: int) -> float:
        """The target in the budget's unit; `base_cost` is the baseline's cost in it."""
        return self.value * base_cost if self.relative else self.value

    def ratio(self, base_cost: int) -> float:
        """The target as a multiple of `base_cost`."""
        return self.target(base_cost) / base_cost

    def off(self, cost: int, base_cost: int) -> float:
        """Signed relative distance of `cost` from the target."""
        return cost / self.target(base_cost) - 1

    def met(self, cost: int, base_cost: int) -> bool:
        """Whether `cost` is within the tolerance."""
        return abs(self.off(cost, base_cost)) <= self.tolerance


# As many multiply-adds as the baseline has.
BASELINE_MACS = Budget(1, relative=True)


def _read(text: str) -> dict[str, Any]:
    """The fields of a Budget that a text states, all but its tolerance. Raises ValueError."""
    match = _TEXT.fullmatch(text.strip())
    if not match:
        raise ValueError(f"budget {text!r}: {_WANTED}")
    unit = match["unit"].lower()
    relative, in_bytes, in_seconds = unit == "x", match["bytes"] is not None, unit in _NANOSECONDS
    of = "memory" if in_bytes else "latency" if in_seconds else "macs"
    if match["of"]:
        of = match["of"].lower()
    fits = relative or (in_bytes == (of == "memory") and in_seconds == (of == "latency"))
    if not fits:
        raise ValueError(
            f"budget {text!r}: memory, and only memory, has bytes, and latency seconds; {_WANTED}"
        )
    step = _read_step(text, of, (match["step"] or "").lower())
    return {"value": float(match["value"]) * _size(unit), "relative": relative, "of": of, **step}


def _read_step(text: str, of: str, stated: str) -> dict[str, Any]:
    """The batch, device and precision that stand after an @, as in 64/bf16 or 8/cuda. Raises
    ValueError."""
    fields: dict[str, Any] = {"batch": 1 if of == "latency" else 32}
    parts = [part for part in stated.split("/") if part]
    given = set()
    for part in parts:
        if part.isdecimal():
            name, fields["batch"] = "batch", int(part)
        elif part in DEVICES and of == "latency":
            name, fields["device"] = "device", part
        else:
            name, fields["precision"] = "precision", part
        given.add(name)
    if (parts and of not in ("memory", "latency")) or len(given) < len(parts):
        raise ValueError(
            f"budget {text!r}: a batch and a precision go with memory and latency, a device with "
            f"latency, each once; {_WANTED}"
        )
    return fields


def _size(unit: str) -> float:
    """The factor of a unit such as K, MB, GiB, ms; 1 of x."""
    if unit in _NANOSECONDS:
        return _NANOSECONDS[unit]
    return _SIZES.get(unit.upper().removesuffix("B"), 1.0)


def _unit_of_time(nanoseconds: float) -> str:
    """The largest of us, ms and s that it reaches."""
    reached = [unit for unit, size in _NANOSECONDS.items() if nanoseconds >= size]
    return reached[-1] if reached else "us"


def human(count: float) -> str:
    """A count to three digits: 17275808 → '17.3M'."""
    for unit in ("G", "M", "K"):
        if count >= 0.9995 * _size(unit):  # from here on three digits round up to the unit
            return f"{count / _size(unit):.3g}{unit}"
    return f"{count:g}"
