"""How many networks there are at 2.00x ± 2%.

python benchmarks/space.py [--check]

Whole blocks 16-32 spread over the stages, every pixel from r0 to floor(1.45 r0), width multiplier
1-1.5 in steps of .001, channels to the nearest multiple of the divisor, nearest width per cell, 10
classes. The last line is how many rows agree with the numbers recorded below; `--check` exits 1
unless all do."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import sys

from effnet.arch import scale
from effnet.budget import Budget
from effnet.cost import macs
from effnet.families import BASELINES
from effnet.shares import waste
from effnet.solve import nearest_width

# baseline, base px, width of the baseline, divisor, and the numbers that were recorded before this
# code was written: MACs, cells, of waste <= 8%
ROWS = (
    ("b0", 224, 1.0, 8, 384_547_552, 509, 312),
    ("b0", 128, 1.0, 8, 125_997_568, 273, 79),
    ("b0", 96, 1.0, 8, 71_153_632, 201, 33),
    ("b0-s16", 112, 1.0, 8, 384_547_552, 262, 178),
    ("b0-s16", 112, 0.5, 8, 119_418_384, 282, 203),
    ("b0-s16", 96, 0.5, 8, 87_779_712, 228, 145),
    ("b0-s8", 32, 1.0, 8, 116_167_168, 76, 25),
    ("b0-s4", 24, 0.25, 4, 19_381_744, 62, 48),
    ("b0-s4", 20, 0.25, 4, 13_472_632, 54, 42),
    ("b0-s4", 16, 0.25, 4, 8_637_904, 41, 27),
)


def cells(name: str, px: int, width: float, divisor: int) -> tuple[int, int, int]:
    """The baseline's MACs, the cells within 2% of twice that, and those of waste at most 8%."""
    base = dataclasses.replace(
        BASELINES[name], resolution=px, width=width, divisor=divisor, rounding="spread"
    )
    base_macs, budget = macs(scale(base, num_classes=10)), Budget.parse("2x")
    sides = range(px, math.floor(1.45 * px) + 1)
    wastes = waste(base, sides, 10)
    met = []
    for blocks, side in itertools.product(range(16, 33), sides):
        depth = blocks / base.blocks
        nearest = nearest_width(base, 2 * base_macs, depth, side, 10, (1.0, 1.5))
        arch = scale(base, depth, nearest, side, num_classes=10)
        if budget.met(macs(arch), base_macs):
            met.append(side)
    return base_macs, len(met), sum(wastes[side] <= 0.08 for side in met)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    dials = f"{'baseline':10}{'px':>5}{'width':>7}{'divisor':>9}"
    print(f"{dials}{'MACs':>14}{'cells':>7}{'waste<=8%':>11}  recorded")
    agree = 0
    for name, px, width, divisor, *recorded in ROWS:
        counted = cells(name, px, width, divisor)
        equal = list(counted) == recorded
        agree += equal
        base_macs, within, lean = counted
        dials = f"{name:10}{px:5}{width:7g}{divisor:9}"
        comparison = "equal" if equal else f"differ: {recorded}"
        print(f"{dials}{base_macs:14,}{within:7}{lean:11}  {comparison}")
    print(f"{agree}/{len(ROWS)}")
    return 1 if args.check and agree < len(ROWS) else 0


if __name__ == "__main__":
    sys.exit(main())
