"""Does a direction found in one place hold in another? From each recorded answer to each other.

    python benchmarks/transfer.py [FOLDER ...] [--lengths]

FOLDER is a recorded study or a run folder (default: every one under studies/); each of its budgets
is a place, and with --lengths each of its lengths. Row: the place whose pick is taken; its
direction is the pick's shares of depth, width and resolution. Column: the place where the network
nearest to it in shares is compared with the pick there: its difference in points with the 95%,
unless it is the pick itself. One that lies farther than 0.15 from the direction goes another way:
it is shown in brackets and not counted. Studies of networks of unequal cost are left out.

Then, for each place, where its fitted surface is highest, and the parts of the extra cost that the
95% region of that allows for each dimension. The last line counts the transfers that lose more than
half a point for certain, of those that could be compared.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import scaling_search
from benchmarks.recorded import folders, guarded
from scaling_search.study.directions import distance
from scaling_search.study.wording import difference
from scaling_search.verdict.chances import MARGIN
from scaling_search.verdict.correlation import SAME_DIRECTION
from scaling_search.verdict.lengths import at_length
from scaling_search.verdict.narration import length_words
from scaling_search.verdict.verdict import Row, Verdict, verdicts


@dataclass(frozen=True)
class Place:
    """An answer and where it was found."""

    name: str
    verdict: Verdict


def places(folder: Path, lengths: bool) -> list[Place]:
    """Return the answers of a study: of each budget, or of each budget and length."""
    opened = scaling_search.open(folder)
    if opened.study.space.mode == "nominal":
        print(f"left out: {folder.name}, whose networks are of unequal cost")
        return []
    if not lengths:
        several = len(opened.verdicts) > 1
        return [
            Place(f"{folder.name}, {budget}" if several else folder.name, verdict)
            for budget, verdict in opened.verdicts.items()
        ]
    every = []
    for epochs in opened.study.rungs:
        for verdict in verdicts(*at_length(opened.records, opened.study, epochs)):
            length = length_words(opened.study, epochs)
            every.append(Place(f"{folder.name}, {verdict.budget}, {length}", verdict))
    return every


def stand_in(origin: Place, target: Place) -> tuple[Row, float]:
    """Return the network of `target` that is nearest to the direction of the pick of `origin`, and
    how far it lies from it."""
    aim = origin.verdict.pick.candidate.shares
    nearest = min(target.verdict.rows, key=lambda row: distance(row.candidate.shares, aim))
    return nearest, distance(nearest.candidate.shares, aim)


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
    every: list[Place] = []
    for folder in args.folders or folders():
        every += places(folder, args.lengths)
    for number, origin in enumerate(every, start=1):
        print(f"{number}: {origin.name}; the pick {origin.verdict.pick.candidate.label}")
        print(f"   {region(origin.verdict)}")
    print("\nfrom (row) to (column)")
    print("    " + "".join(f"{number:>24}" for number in range(1, len(every) + 1)))
    lost = compared = 0
    for number, origin in enumerate(every, start=1):
        line = f"{number:>3} "
        for target in every:
            row, away = stand_in(origin, target)
            cell = "the pick"
            if row is not target.verdict.pick:
                cell = difference(-row.behind, -row.high, -row.low)
            if away > SAME_DIRECTION:
                cell = f"[{cell}]"
            elif target is not origin:
                compared += 1
                lost += row.low > MARGIN
            line += f"{cell:>24}"
        print(line)
    print(f"{lost} of {compared} lose more than half a point for certain")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
