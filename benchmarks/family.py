"""Does a family follow its direction as far as it goes? Its networks against the best that a search
at their own cost found.

    python benchmarks/family.py [STUDY [FAMILY]]

STUDY is a recorded study of several budgets or its run folder (default: studies/transfer), FAMILY
the runs of `scaling-search family STUDY --train` (default: STUDY/family). Each network of the
family is held against the pick of its own budget, after the study's longest runs, seed by seed: a
family trains with the study's own seeds; the deviation of one run is that of all of the budget's
networks. The pick was chosen by the runs that it is judged by here, which flatter it: the family's
difference is too low by that, if anything.

A network whose budget the study lacks is named and not compared, nor is one without two finished
runs. The last line is the lowest of the intervals' upper ends, in points: what the worst network of
the family loses for certain, where it is below 0.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import scaling_search
from benchmarks.paired import above, accuracies
from benchmarks.recorded import STUDIES, guarded
from scaling_search import UserError
from scaling_search.study.wording import difference, spent


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
