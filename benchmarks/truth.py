"""Were they right? The answers of finished studies, against other runs of the same networks.

    python benchmarks/truth.py RUN [RUN ...] --truth FOLDER [--longer FOLDER]

RUN is the folder of a study. FOLDER holds curves (.parquet tables) of the same networks with other
seeds, at the same length; that of --longer, of longer runs. Of each study:

- regret: how far the pick lies below the best of the budget on the means of those seeds, which is
  too large, since the best of noisy means lies above the best network; its loss bound, and whether
  it held;
- worse: the networks that are called worse than the pick, the baseline among them, and how many of
  them have a lower mean than the pick.

Last, Kendall's tau between the networks' means at the two lengths.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scaling_search.results.curves import read
from scaling_search.results.reading import open_results
from scaling_search.results.record import Record
from scaling_search.study.settings import check
from scaling_search.verdict.correlation import network_means, rank
from scaling_search.verdict.verdict import Verdict, verdicts


@dataclass(frozen=True)
class Judged:
    """One study's answer; `regret` and `bound` in points."""

    regret: float
    bound: float
    worse: int  # networks that it calls worse
    right: int  # of these, with a lower mean than the pick

    @property
    def held(self) -> bool:
        return self.regret <= self.bound


def means(folder: Path) -> dict[str, float]:
    """Each network's mean accuracy in points at the last rung, by its key."""
    runs: list[Record] = []
    for path in sorted(folder.glob("*.parquet")):
        table = read(path)
        runs += [r for r in table.records() if r.done and r.epochs == table.study.rungs[-1]]
    return network_means(runs, lambda run: 100 * run.val_acc)


def answer(folder: Path) -> Verdict:
    with open_results(folder) as reader:
        study = check(reader.fact("settings"), str(folder))
        return verdicts(reader.records(), study)[0]


def judge(v: Verdict, truth: dict[str, float]) -> Judged:
    pick = truth[v.pick.candidate.key]
    of_budget = [truth[row.candidate.key] for row in v.rows if row.candidate.key in truth]
    others = [*v.rows, *([v.baseline] if v.baseline else [])]
    worse = [row.candidate.key for row in others if row.standing == "worse"]
    known = [truth[key] for key in worse if key in truth]
    return Judged(max(of_budget) - pick, 100 * v.bound, len(known), sum(x < pick for x in known))


def report(name: str, answers: Sequence[tuple[Path, Verdict]], truth: dict[str, float]) -> str:
    """Print a line a study; return the sum in words."""
    print(f"\n{name}: {len(truth)} networks")
    print("study             regret  bound  held  worse  of them worse  the pick")
    judged = []
    for folder, v in answers:
        j = judge(v, truth)
        judged.append(j)
        held = "yes" if j.held else "no"
        print(
            f"{folder.name:16} {j.regret:7.2f} {j.bound:6.2f}  {held:>4} {j.worse:6} "
            f"{j.right:14}  {v.pick.candidate.label}"
        )
    regret = np.mean([j.regret for j in judged])
    held, right, worse = (sum(getattr(j, of) for j in judged) for of in ("held", "right", "worse"))
    return (
        f"{name}: mean regret {regret:.2f} points, the bound held in {held} of {len(judged)}, "
        f"{right} of {worse} called worse are"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--longer", type=Path)
    args = parser.parse_args()
    answers = [(folder, answer(folder)) for folder in args.runs]
    truth = means(args.truth)
    said = [report("the same length", answers, truth)]
    if args.longer is not None:
        longer = means(args.longer)
        said.append(report("longer", answers, longer))
        candidates = {row.candidate.key for _, v in answers for row in v.rows}
        both = sorted(truth.keys() & longer.keys() & candidates)
        tau = rank([truth[key] for key in both], [longer[key] for key in both])
        said.append(
            f"Kendall's tau between the lengths {tau.tau:.2f} (95%: {tau.low:.2f} to "
            f"{tau.high:.2f}, {tau.n} networks)"
        )
    print()
    print("; ".join(said))


if __name__ == "__main__":
    main()
