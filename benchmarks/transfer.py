"""Does a direction found in one place hold in another? From each recorded answer to each other.

    python benchmarks/transfer.py [FOLDER ...] [--lengths]

FOLDER is a recorded study or a run folder (default: every one under studies/); each of its budgets
is a place, and with --lengths each of its lengths. Row: the place whose pick is taken; its
direction is the pick's shares of depth, width and resolution. Column: the place where the nearest
network in shares, and its difference to the pick there with its 95%, in points. A dash: no network
lies within 0.15 of it; "0": it is the pick.

Then, for each place, where its fitted surface is highest, and the parts of the extra cost that the
95% region of that allows for each dimension. The last line counts the transfers that lose more than
half a point for certain, of those that could be asked.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import scaling_search
from scaling_search.study.directions import distance
from scaling_search.study.wording import difference
from scaling_search.verdict.chances import MARGIN
from scaling_search.verdict.lengths import at_length
from scaling_search.verdict.verdict import Row, Verdict, verdicts

STUDIES = Path(__file__).resolve().parent.parent / "studies"
SAME = 0.15  # the farthest that a network may lie from a direction and stand for it


@dataclass(frozen=True)
class Place:
    """An answer and where it was found."""

    name: str
    verdict: Verdict


def places(folder: Path, lengths: bool) -> list[Place]:
    """Return the answers of a study: of each budget, and of each of its lengths."""
    opened = scaling_search.open(folder)
    if not lengths:
        several = len(opened.verdicts) > 1
        return [
            Place(f"{folder.name}, {budget}" if several else folder.name, verdict)
            for budget, verdict in opened.verdicts.items()
        ]
    found = []
    for epochs in opened.study.rungs:
        for verdict in verdicts(*at_length(opened.records, opened.study, epochs)):
            found.append(Place(f"{folder.name}, {verdict.budget}, {epochs} epochs", verdict))
    return found


def stand_in(origin: Place, target: Place) -> Row | None:
    """Return the network of `target` that is nearest to the direction of the pick of `origin`."""
    aim = origin.verdict.pick.candidate.shares
    nearest = min(target.verdict.rows, key=lambda row: distance(row.candidate.shares, aim))
    return nearest if distance(nearest.candidate.shares, aim) <= SAME else None


def region(verdict: Verdict) -> str:
    """Return the highest point of the surface, and what its region allows for each dimension."""
    surface = verdict.surface
    if surface is None:
        return "no surface"
    words = []
    for place, name in enumerate(("depth", "width", "resolution")):
        parts = [point[place] for point in surface.region]
        best = surface.optimum[-1][place]
        words.append(f"{name} {best:.0%} ({min(parts):.0%} to {max(parts):.0%})")
    return ", ".join(words)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--lengths", action="store_true")
    args = parser.parse_args()
    folders = args.folders or sorted(table.parent for table in STUDIES.glob("*/curves.parquet"))
    every = [place for folder in folders for place in places(folder, args.lengths)]
    lost = asked = 0
    for number, origin in enumerate(every, start=1):
        print(f"{number}: {origin.name}; the pick {origin.verdict.pick.candidate.label}")
        print(f"   {region(origin.verdict)}")
    print("\nfrom (row) to (column)")
    print("    " + "".join(f"{number:>22}" for number in range(1, len(every) + 1)))
    for number, origin in enumerate(every, start=1):
        cells = []
        for target in every:
            row = stand_in(origin, target)
            if row is None:
                cells.append("-")
            elif row is target.verdict.pick:
                cells.append("0")
            else:
                cells.append(difference(-row.behind, -row.high, -row.low))
            if row is not None and target is not origin:
                asked += 1
                lost += row.low > MARGIN
        print(f"{number:>3} " + "".join(f"{cell:>22}" for cell in cells))
    print(f"{lost} of {asked} lose more than half a point")
    return 0


if __name__ == "__main__":
    sys.exit(main())
