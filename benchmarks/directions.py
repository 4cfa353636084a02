"""What do the named directions give, against the baseline and against each other?

    python benchmarks/directions.py [FOLDER ...]

FOLDER is a recorded study or a run folder (default: every recorded studies/single-dimension-*). For
each of its budgets it prints the network that stands for each direction (depth, width and
resolution alone, the paper's, EfficientNet-X's, the study's own), the best after the longest runs
first: how many points it lies above the baseline and above the paper's direction, over the seeds
that both have, with a t interval (95%) whose deviation of one run is that of all of the budget's
networks. A network may stand for several directions, and has a row for each. Fresh seeds, which
only confirm a verdict, are left out. Below are the pairs that are told apart, each by its own 95%:
of twenty pairs of equals one would be.

This compares plain means over seeds, which no model has touched. In a flat study without extra runs
no network was chosen by them, so that luck flatters none more than others; in another study it may.
What could be best, and by how much, is the verdict's to say (`scaling-search report FOLDER`).

Last comes the order of depth, width and resolution alone at each budget. A direction without two
finished runs is left out, and a difference has a dash where fewer than two seeds are common to all
of the budget's networks. The last line counts the pairs of directions that are told apart, of all
that could be compared.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import scaling_search
from benchmarks.paired import above, accuracies
from benchmarks.recorded import folders, guarded
from scaling_search import UserError
from scaling_search.opening import StudyResults
from scaling_search.study.candidate import Candidate
from scaling_search.study.directions import NAMED, SINGLE
from scaling_search.study.wording import difference, spent
from scaling_search.verdict.verdict import Verdict, searched

Accuracies = dict[int, float]  # of a network, by seed


@dataclass(frozen=True)
class Standing:
    """The network that stands for a direction."""

    direction: str
    network: Candidate
    own: Accuracies

    @property
    def mean(self) -> float:
        return sum(self.own.values()) / len(self.own)


def standings(verdict: Verdict, of_network: dict[str, Accuracies]) -> list[Standing]:
    """Return the directions of a budget that a network with two finished runs stands for, the best
    first."""
    found = []
    for name in (*NAMED, *verdict.directions):
        row = verdict.named(name)
        own = of_network.get(row.candidate.key, {}) if row else {}
        if row and len(own) > 1:
            found.append(Standing(name, row.candidate, own))
    return sorted(found, key=lambda standing: -standing.mean)


def gap(
    own: Accuracies, other: Accuracies, budget: list[Accuracies]
) -> tuple[float, float, float] | None:
    """Return how far one network lies above another and the ends of the 95% of that; None where too
    few seeds are common to the budget's networks."""
    try:
        mean, half, _ = above(own, other, budget)
    except UserError:
        return None
    return mean, mean - half, mean + half


def compared(own: Accuracies, other: Accuracies | None, budget: list[Accuracies]) -> str:
    """Return how far one network lies above another, in words; a dash where nothing says."""
    if own is other:
        return "0"
    between = None if other is None else gap(own, other, budget)
    return "–" if between is None else difference(*between)


def pairs(found: list[Standing], budget: list[Accuracies]) -> tuple[list[str], int]:
    """Return the pairs of directions that are told apart, in words, and how many were compared."""
    apart = []
    count = 0
    for better, worse in itertools.combinations(found, 2):
        if better.network.key == worse.network.key:
            continue
        between = gap(better.own, worse.own, budget)
        if between is None:
            continue
        count += 1
        _, low, high = between
        if low > 0 or high < 0:
            words = f"{better.direction} against {worse.direction}"
            apart.append(f"{words}: {difference(*between)}")
    return apart, count


def show(folder: Path, opened: StudyResults, verdict: Verdict) -> tuple[str, int, int]:
    """Print the directions of a budget. Return the order of the single dimensions in words, and how
    many pairs of directions are told apart, of how many."""
    runs = searched(opened.records, opened.study)
    of_network = accuracies(runs, opened.study.rungs[-1])
    keys = [row.candidate.key for row in verdict.rows]
    budget = [of_network[key] for key in keys if len(of_network.get(key, {})) > 1]
    found = standings(verdict, of_network)
    by_name = {standing.direction: standing.own for standing in found}
    baseline = of_network.get(verdict.baseline.candidate.key) if verdict.baseline else None
    place = f"{folder.name}, {verdict.budget}"
    print(f"{place}: {len(budget)} networks")
    print(
        f"{'direction':<18}{'network':<32}{'depth, width, resolution':<38}{'seeds':>6}{'mean':>7}"
        f"{'above the baseline':>24}{'above the paper':>22}"
    )
    for s in found:
        print(
            f"{s.direction:<18}{s.network.label:<32}{spent(s.network.shares or (0, 0, 0)):<38}"
            f"{len(s.own):>6}{100 * s.mean:>7.1f}{compared(s.own, baseline, budget):>24}"
            f"{compared(s.own, by_name.get('paper'), budget):>22}"
        )
    apart, count = pairs(found, budget)
    for words in apart:
        print(f"    {words}")
    print()
    order = " > ".join(
        f"{s.direction.removesuffix(' only')} {100 * s.mean:.1f}"
        for s in found
        if s.direction in SINGLE
    )
    return f"{place}: {order}", len(apart), count


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path)
    chosen = parser.parse_args().folders
    if not chosen:
        chosen = [folder for folder in folders() if folder.name.startswith("single-dimension-")]
    orders = []
    apart = every = 0
    for folder in chosen:
        opened = scaling_search.open(folder)
        for verdict in opened.verdicts.values():
            order, told, count = show(folder, opened, verdict)
            orders.append(order)
            apart, every = apart + told, every + count
    if not every:
        raise UserError("no two directions with two finished runs each")
    print("\n".join(orders))
    print(f"{apart} of {every} pairs of directions are told apart")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
