"""Does a family follow its direction as far as it goes? Its networks against the best that a search
at their own cost found.

    python benchmarks/family.py [STUDY [FAMILY]]

STUDY is a recorded study of several budgets or its run folder (default: studies/transfer), FAMILY
the runs of `scaling-search family STUDY --train` (default: STUDY/family). Each network of the
family is held against the pick of the budget that is nearest to it in cost, after the study's
longest runs, seed by seed: a family trains with the study's own seeds. The deviation of one run is
that of all of the budget's networks, so that the t interval of a difference has their degrees of
freedom; three differences alone would have two. The pick was chosen by the runs that it is judged
by here, which flatter it: the family's difference is too low by that, if anything.

A network that costs more than 3% otherwise than its budget is named and not compared. The last line
is the worst difference that is certain: the upper end of the lowest interval, in points.
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
from scaling_search.study.candidate import Candidate
from scaling_search.study.wording import difference, spent
from scaling_search.verdict.lengths import run_deviation
from scaling_search.verdict.verdict import Verdict

SAME_COST = 0.03


def accuracies(records: Sequence[Record], epochs: int) -> dict[str, dict[int, float]]:
    """Return {network: {seed: validation accuracy, a fraction}} of the finished runs of one
    length."""
    of_network: dict[str, dict[int, float]] = {}
    for r in records:
        if r.done and r.epochs == epochs:
            of_network.setdefault(r.candidate.key, {})[r.seed] = r.val_acc
    return of_network


def against(
    own: dict[int, float], pick: dict[int, float], others: Sequence[dict[int, float]]
) -> tuple[float, float, int]:
    """Return how far a network lies above the pick in the seeds that both have, half the width of
    the 95% interval of that, and the number of seeds. `others` are accuracies by seed of the
    networks that say how one run varies. Raises UserError where no seed is common to them all."""
    seeds = sorted(set(own) & set(pick))
    known = [seed for seed in seeds if all(seed in one for one in others)]
    if len(known) < 2:
        raise UserError(f"two seeds that every network has are needed at least; {len(known)} found")
    table = np.array([[one[seed] for seed in known] for one in others])
    deviation, free = run_deviation(table)
    mean = float(np.mean([own[seed] - pick[seed] for seed in seeds]))
    half = float(student.ppf(0.975, free)) * deviation * math.sqrt(2 / len(seeds))
    return mean, half, len(seeds)


def nearest(candidate: Candidate, verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict whose pick costs most nearly what `candidate` does."""
    cost = math.log(candidate.ratio)
    return min(verdicts, key=lambda v: abs(math.log(v.pick.candidate.ratio) - cost))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", nargs="?", type=Path, default=STUDIES / "transfer")
    parser.add_argument("family", nargs="?", type=Path)
    args = parser.parse_args()
    opened = scaling_search.open(args.study)
    family = scaling_search.open(args.family or args.study / "family")
    longest = opened.study.rungs[-1]
    known = accuracies(opened.records, longest)
    trained = accuracies(family.records, longest)
    networks = {r.candidate.key: r.candidate for r in family.records}
    certain = []
    for key, candidate in networks.items():
        if candidate.role != "candidate" or key not in trained:
            continue
        verdict = nearest(candidate, list(opened.verdicts.values()))
        pick = verdict.pick.candidate
        words = f"{candidate.label} ({candidate.ratio:.2f}x)"
        if candidate.shares is not None:
            words += f", {spent(candidate.shares)}"
        print(words)
        if abs(candidate.ratio / pick.ratio - 1) > SAME_COST:
            print(f"    no budget of the study costs that: nearest {verdict.budget}")
            continue
        if key == pick.key:
            print(f"    is the pick of {verdict.budget}")
            certain.append(0.0)
            continue
        others = [known[r.candidate.key] for r in verdict.rows if r.candidate.key in known]
        mean, half, seeds = against(trained[key], known[pick.key], others)
        certain.append(mean + half)
        print(
            f"    against the pick of {verdict.budget}, {pick.label}: "
            f"{difference(mean, mean - half, mean + half)} points over {seeds} seeds"
        )
    if not certain:
        raise UserError(f"{args.study}: its family has no network of one of its budgets")
    print(f"{100 * min(certain):+.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
