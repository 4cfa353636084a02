"""What a budget is: a target cost with a tolerance, as text such as `2x` and as a value. No torch.

`solve.py` finds the network that meets one."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from effnet.arch import Network
from effnet.cost import PRECISIONS, Precision, cost, macs, training_memory

Measure = Literal["macs", "params", "acts", "memory"]
MEASURES: tuple[Measure, ...] = ("macs", "params", "acts", "memory")
_SIZES = {"K": 1e3, "M": 1e6, "G": 1e9, "KI": 2.0**10, "MI": 2.0**20, "GI": 2.0**30}
_TEXT = re.compile(
    r"(?P<value>\d+(?:\.\d*)?|\.\d+)(?P<unit>x|[KMG](?P<bytes>i?B)?)"
    r"(?:\s*(?P<of>macs|params|acts|memory))?(?:@(?P<batch>\d+))?(?:/(?P<precision>\w+))?",
    re.IGNORECASE,
)
_WANTED = (
    "a budget is a ratio such as 2x or 0.5x, or multiply-adds such as 400M or 1.2G; or either of "
    "something else: 5M params, 2x acts, 8GiB@64 (training memory at batch 64), 2x memory@64/bf16"
)


@dataclass(frozen=True, slots=True)
class Budget:
    """A target with a relative tolerance: a ratio to the baseline's cost (`relative`) or absolute.

    `of` macs [multiply-adds], params, acts [elements], or memory [bytes at the peak of a training
    step of `batch` images in `precision`, estimated]. Raises ValueError for what no budget can
    be."""

    value: float
    relative: bool
    tolerance: float = field(default=0.02, compare=False)  # 2.00x within 1% is no other target
    of: Measure = "macs"
    batch: int = 32
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0 and 0 <= self.tolerance < 1):
            raise ValueError(
                f"budget of {self.value} ± {self.tolerance}: a finite number above 0, and a "
                "tolerance from 0 to below 1"
            )
        if self.of not in MEASURES or self.precision not in PRECISIONS or self.batch < 1:
            raise ValueError(
                f"budget of {self.of} at batch {self.batch}, {self.precision}: "
                f"of {', '.join(MEASURES)}; a batch of at least 1, "
                f"a precision of {' or '.join(PRECISIONS)}"
            )

    @classmethod
    def parse(cls, text: str, tolerance: float = 0.02) -> Budget:
        """The budget that a person typed: `2x`, `0.5x` (ratios), `400M`, `1.2G` (multiply-adds),
        `5M params`, `2x acts`, `8GiB@64`, `2x memory@64/bf16`.

        Raises ValueError for any other text, a ratio outside 0.01 to 1000, and an absolute target
        outside 1K to 1000000G: what lies beyond is a typing error."""
        fields = _read(text)
        low, high, limits = 1e3, 1e15, "from 1K to 1000000G"
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
        if self.of == "memory":
            of = " memory" if self.relative else ""  # bytes say it themselves
            return f"{number}{of}@{self.batch}/{self.precision}"
        return number if self.of == "macs" else f"{number} {self.of}"

    def _unit(self) -> str:
        """The unit to print the target in: x, or the largest of K, M and G that it reaches; of
        memory the binary one where it has no remainder."""
        if self.relative:
            return "x"
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
        """What `arch` costs in this budget's unit."""
        if self.of == "macs":
            return macs(arch)
        if self.of == "memory":
            return training_memory(arch, self.batch, self.precision)
        return int(getattr(cost(arch), self.of))

    @property
    def unit(self) -> str:
        """What it counts, in words."""
        return {"macs": "multiply-adds", "params": "parameters", "acts": "activations"}.get(
            self.of, "bytes of training memory"
        )

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
    relative = match["unit"].upper() == "X"
    in_bytes = match["bytes"] is not None
    of = "memory" if in_bytes else "macs"
    if match["of"]:
        of = match["of"].lower()
    wants_bytes = of == "memory" and not relative
    of_a_step = match["batch"] is not None or match["precision"] is not None
    if in_bytes != wants_bytes or (of_a_step and of != "memory"):
        raise ValueError(
            f"budget {text!r}: memory, and only memory, has bytes, a batch and a precision; "
            f"{_WANTED}"
        )
    return {
        "value": float(match["value"]) * _size(match["unit"]),
        "relative": relative,
        "of": of,
        "batch": int(match["batch"] or 32),
        "precision": (match["precision"] or "fp32").lower(),
    }


def _size(unit: str) -> float:
    """The factor of a unit such as K, MB, GiB; 1 of x."""
    return _SIZES.get(unit.upper().removesuffix("B"), 1.0)


def human(count: float) -> str:
    """A count to three digits: 17275808 → '17.3M'."""
    for unit in ("G", "M", "K"):
        if count >= 0.9995 * _size(unit):  # from here on three digits round up to the unit
            return f"{count / _size(unit):.3g}{unit}"
    return f"{count:g}"
