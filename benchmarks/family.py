"""Does a family follow its direction as far as it goes? Its networks against the best that a search
at their own cost found.

    python benchmarks/family.py [STUDY [FAMILY]]

STUDY is a recorded study of several budgets or its run folder (default: studies/transfer), FAMILY
the runs of `scaling-search family STUDY --train` (default: STUDY/family). Each network of the
family is held against the pick of its own budget, after the study's longest runs, seed by seed: a
family trains with the study's own seeds. The deviation of one run is that of all of the budget's
networks, so that the t interval of a difference has their degrees of freedom; three differences
alone would have two. The pick was chosen by the runs that it is judged by here, which flatter it:
the family's difference is too low by that, if anything.

A network whose budget the study lacks is named and not compared, nor is one without two finished
runs. The last line is the lowest of the intervals' upper ends, in points: what the worst network of
the family loses for certain, where it is below 0.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import t as student

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import scaling_search
from benchmarks.recorded import STUDIES, guarded
from scaling_search import UserError
from scaling_search.results.record import Record
from scaling_search.study.wording import difference, spent
from scaling_search.verdict.chances import CONFIDENCE
from scaling_search.verdict.lengths import run_deviation


def accuracies(records: Sequence[Record], epochs: int) -> dict[str, dict[int, float]]:
    """Return {network: {seed: validation accuracy, a fraction}} of the finished runs of one
    length."""
    of_network: dict[str, dict[int, float]] = {}
    for r in records:
        if r.done and r.epochs == epochs:
            of_network.setdefault(r.candidate.key, {})[r.seed] = r.val_acc
    return of_network


def above(
    network: dict[int, float], pick: dict[int, float], budget: Sequence[dict[int, float]]
) -> tuple[float, float, int]:
    """Return how far a network lies above the pick in the seeds that both have, half the width of
    the 95% interval of that, and the number of seeds. `budget`: accuracies by seed of the networks
    that say how one run varies. Raises UserError where fewer than two seeds are common to all."""
    paired = sorted(set(network) & set(pick))
    common = [seed for seed in paired if all(seed in of_one for of_one in budget)]
    if len(common) < 2:
        raise UserError(f"seeds that all of its budget's networks have: {len(common)}, not two")
    table = np.array([[of_one[seed] for seed in common] for of_one in budget])
    deviation, free = run_deviation(table)
    mean = float(np.mean([network[seed] - pick[seed] for seed in paired]))
    quantile = float(student.ppf((1 + CONFIDENCE) / 2, free))
    return mean, quantile * deviation * math.sqrt(2 / len(paired)), len(paired)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", nargs="?", type=Path, default=STUDIES / "transfer")
    parser.add_argument("family", nargs="?", type=Path)
    args = parser.parse_args()
    searched = scaling_search.open(args.study)
    family = scaling_search.open(args.family or args.study / "family")
    longest = searched.study.rungs[-1]
    of_search = accuracies(searched.records, longest)
    of_family = accuracies(family.records, longest)
    members = {r.candidate.key: r.candidate for r in family.records}
    upper_ends = []
    for key, member in members.items():
        if member.role != "candidate":
            continue
        direction = f", {spent(member.shares)}" if member.shares else ""
        print(f"{member.label} ({member.ratio:.2f}x){direction}")
        verdict = searched.verdicts.get(str(member.budget))
        if verdict is None:
            print(f"    not compared: {member.budget} is no budget of the study")
            continue
        pick = verdict.pick.candidate
        if key == pick.key:
            print(f"    is the pick of {verdict.budget}")
            upper_ends.append(0.0)
            continue
        keys = [row.candidate.key for row in verdict.rows]
        budget = [of_search[key] for key in keys if key in of_search]
        try:
            mean, half, seeds = above(of_family.get(key, {}), of_search[pick.key], budget)
        except UserError as error:
            print(f"    not compared: {error}")
            continue
        upper_ends.append(mean + half)
        print(
            f"    against the pick of {verdict.budget}, {pick.label}: "
            f"{difference(mean, mean - half, mean + half)} points over {seeds} seeds"
        )
    if not upper_ends:
        raise UserError(f"{args.study}: its family has no finished network of one of its budgets")
    print(f"{100 * min(upper_ends):+.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
