"""Does the direction that short trainings favour hold for long ones? From a study whose networks
all ran at several lengths.

    python benchmarks/lengths.py [FOLDER ...]

FOLDER is a recorded study or a run folder (default: studies/length). Of each budget:

- of each length alone: the pick; how far it could lie below the best of that length (bound, 95%);
  where the fitted surface is highest; how far that pick is expected to lie below the best at the
  longest length, with what that does not exceed in 95% of cases, by the posterior of the longest
  length alone and of all lengths together (verdict/lengths.py says what is wrong with each);
- the same of every subset of the seeds at each length: what its pick loses at the longest, its
  bound, and how often the loss lies within the bound, which was stated of the shorter runs;
- accuracy's slope along each share, in points for the whole of the extra cost, by least squares
  over the networks' means, with 95%;
- the networks' means, each against the mean of all, and how much of one run's variance is its
  network's (reliability);
- Kendall's tau of each two lengths: of means over different seeds, since the lengths of one seed
  share its luck, and (in brackets after it) of the means over all seeds. A length against itself is
  what its own noise lets any order agree with it.

Of several budgets, a table of the shortest against the longest length of each comes after them:
tau, what all of the extra cost in resolution is worth in points (against the mean of the three
dimensions), and what the short runs' pick loses.

The last line says the tau of the shortest with the longest length, over different seeds; of several
budgets, in how many of them the loss lies within the bound that the short runs stated.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import scaling_search
from benchmarks.recorded import STUDIES, guarded
from effnet.budget import Budget
from scaling_search import UserError
from scaling_search.opening import StudyResults
from scaling_search.results.record import Record
from scaling_search.study.candidate import Candidate
from scaling_search.study.settings import Study
from scaling_search.verdict.chances import half_widths
from scaling_search.verdict.correlation import Rank, between_lengths, rank
from scaling_search.verdict.lengths import (
    Length,
    Means,
    Regret,
    answers,
    at_length,
    means_by_length,
    regrets,
)
from scaling_search.verdict.narration import length_words
from scaling_search.verdict.posterior import Array
from scaling_search.verdict.verdict import model, searched, verdicts

FEWEST = 5  # networks that a slope is fitted to


@dataclass(frozen=True)
class Ends:
    """Of a study's budget: the shortest length against the longest. `pixels` is what all of the
    extra cost in resolution is worth at each, in points with half its 95% interval, None of too few
    networks; `loss` and `bound` are of the shortest's pick."""

    name: str
    lengths: str
    tau: Rank
    pixels: tuple[tuple[float, float] | None, ...]
    loss: Regret
    bound: float

    @property
    def held(self) -> bool:
        return lies_within(self.loss.expected, self.bound)


def lies_within(loss: float, bound: float) -> bool:
    """Whether the loss that is expected lies within the bound, to a hundredth of a point: that of
    the best network is a hair above 0. The loss is a mean, and not known for certain: of many
    studies the count says more than one answer does."""
    return round(100 * loss, 2) <= round(100 * bound, 2)


def slopes(means: Means, networks: Mapping[str, Candidate]) -> tuple[Array, Array] | None:
    """Return accuracy's slopes [3] along the shares of depth, width and resolution, each against
    the mean of the three, and half their 95% intervals, in points; None of too few networks, or of
    networks that do not span the map.

    Shares sum to 1, so a fit without an intercept has one value at each corner; a slope is a
    corner's value minus the mean of the corners."""
    keys = [key for key in means.means if networks[key].shares]
    shares = np.array([networks[key].shares for key in keys])
    if len(keys) < FEWEST or np.linalg.matrix_rank(shares) < 3:
        return None
    values = 100 * np.array([means.means[key] for key in keys])
    corners, *_ = np.linalg.lstsq(shares, values, rcond=None)
    free = len(keys) - 3
    rest = values - shares @ corners
    centred = np.eye(3) - 1 / 3
    covariance = rest @ rest / free * np.linalg.inv(shares.T @ shares)
    errors = np.sqrt(np.diag(centred @ covariance @ centred))
    return centred @ corners, half_widths(free) * errors


def report_answers(records: Sequence[Record], study: Study, budget: Budget) -> list[Length]:
    """Print the answer of each length; return them."""
    print(
        f"\n{'length':<16}{'pick':<34}{'bound':>6}{'regret at the longest':>23}"
        f"{'by all lengths':>23}   optimum d, w, r"
    )
    every = answers(records, study, budget)
    for length in every:
        surface = length.verdict.surface
        optimum = "-"
        if surface is not None:
            optimum = ", ".join(f"{share:.2f}" for share in surface.optimum[-1])
        print(
            f"{length_words(study, length.epochs):<16}{length.verdict.pick.candidate.label:<34}"
            f"{100 * length.verdict.bound:>6.1f}{_regret(length.regret):>23}"
            f"{_regret(length.joint_regret):>23}   {optimum}"
        )
    return every


def _regret(regret: Regret | None) -> str:
    if regret is None:
        return "-"
    return f"{100 * regret.expected:.1f} (at most {100 * regret.bound:.1f})"


def report_subsets(records: Sequence[Record], study: Study, budget: Budget) -> None:
    """Print what answers from some of the seeds lose at the longest length, by all of its runs."""
    seeds = sorted({r.seed for r in searched(records, study)})
    longest = regrets(model(*at_length(records, study, study.rungs[-1], budget), budget))
    if not longest or len(seeds) < 2:
        return
    print(f"\n{'answers from':<16}{'seeds':>6}{'lose':>6}{'bound':>7}   within it")
    for epochs in study.rungs[:-1]:
        for count in range(1, len(seeds) + 1):
            losses, bounds = [], []
            for chosen in itertools.combinations(seeds, count):
                runs = [r for r in records if r.seed in chosen]
                for verdict in verdicts(*at_length(runs, study, epochs, budget)):
                    regret = longest.get(verdict.pick.candidate.key)
                    if regret is not None:
                        losses.append(regret.expected)
                        bounds.append(verdict.bound)
            held = sum(map(lies_within, losses, bounds))
            print(
                f"{length_words(study, epochs):<16}{count:>6}{100 * np.mean(losses):>6.2f}"
                f"{100 * np.mean(bounds):>7.2f}   {held} of {len(losses)}"
            )


def report_slopes(
    every: Sequence[Means], networks: Mapping[str, Candidate], study: Study
) -> list[tuple[Array, Array] | None]:
    """Print the slopes of each length; return them."""
    of_length = []
    print(
        f"\n{'points for all of the extra cost in':<36}{'depth':>14}{'width':>14}{'resolution':>14}"
    )
    for means in every:
        line = f"{length_words(study, means.epochs):<36}"
        fitted = slopes(means, networks)
        of_length.append(fitted)
        if fitted is None:
            print(f"{line}{'-':>14}")
            continue
        for value, half in zip(*fitted, strict=True):
            cell = f"{value:+.1f} ± {half:.1f}"
            line += f"{cell:>14}"
        print(line)
    return of_length


def report_means(every: Sequence[Means], networks: Mapping[str, Candidate], study: Study) -> None:
    lengths = "".join(f"{length_words(study, means.epochs):>16}" for means in every)
    print(f"\n{'against the mean of all':<52}{lengths}")
    last = every[-1].means
    differences = [means.against_all for means in every]
    for key in sorted(last, key=lambda key: -last[key]):
        name = f"{networks[key].label} ({networks[key].stands_for})".removesuffix(" ()")
        line = f"{name[:51]:<52}"
        for difference in differences:
            line += f"{100 * difference[key]:>+16.1f}"
        print(line)
    middles = [100 * np.mean(list(means.means.values())) for means in every]
    print(f"{'the mean of all, %':<52}" + "".join(f"{middle:>16.1f}" for middle in middles))
    for name, value in (
        ("95% of a difference, ±", lambda m: f"{100 * m.half:.1f}"),
        ("one run varies by", lambda m: f"{100 * m.run:.2f}"),
        ("of its variance, its network has", lambda m: f"{m.reliability:.0%}"),
    ):
        # one seed says none of these
        values = [value(means) if means.seeds > 1 else "-" for means in every]
        print(f"{name:<52}" + "".join(f"{word:>16}" for word in values))
    print(f"{'seeds':<52}" + "".join(f"{means.seeds:>16}" for means in every))


def report_order(
    every: Sequence[Means], records: Sequence[Record], study: Study, budget: Budget
) -> Rank | None:
    """Print how the lengths agree; return the agreement of the shortest with the longest."""
    print("\nKendall's tau of means over different seeds (95%) [of means over all seeds]")
    ends = None
    for first, second in itertools.combinations_with_replacement(every, 2):
        short, long = first.epochs, second.epochs
        agreement = between_lengths(records, study, budget, short, long)
        if agreement is None or (short == long and first.seeds < 2):
            continue
        over = agreement.rank
        line = f"{length_words(study, short):>16} and {length_words(study, long):>16}: "
        line += f"{over.tau:5.2f} ({over.low:.2f} to {over.high:.2f})"
        if short != long:
            keys = list(first.means)
            all_seeds = rank([first.means[k] for k in keys], [second.means[k] for k in keys])
            line += f" [{all_seeds.tau:.2f} ({all_seeds.low:.2f} to {all_seeds.high:.2f})]"
        print(line)
        if (short, long) == (study.rungs[0], study.rungs[-1]):
            ends = over
    return ends


def report(opened: StudyResults, name: str, budget: Budget) -> Ends | None:
    """Print all of a budget; return its ends, None where they cannot be compared."""
    study, records = opened.study, opened.records
    networks = {r.candidate.key: r.candidate for r in records}
    print(f"{name}: {study.baseline.name} on {study.data.source}, {budget}")
    of_length = report_answers(records, study, budget)
    report_subsets(records, study, budget)
    every = means_by_length(records, study, budget)
    if not every:
        return None
    fitted = report_slopes(every, networks, study)
    report_means(every, networks, study)
    tau = report_order(every, records, study, budget)
    loss = of_length[0].regret
    if tau is None or loss is None:
        return None
    ends = every[0], every[-1]
    lengths = " to ".join(length_words(study, means.epochs) for means in ends)
    pixels = tuple(
        None if slope is None else (float(slope[0][2]), float(slope[1][2]))
        for slope in (fitted[0], fitted[-1])
    )
    return Ends(f"{name}, {budget}", lengths, tau, pixels, loss, of_length[0].verdict.bound)


def report_ends(every: Sequence[Ends]) -> None:
    print(
        f"\n{'the shortest against the longest':<36}{'lengths':<34}{'tau (95%)':<22}"
        f"{'resolution, short':<19}{'long':<13}{'the pick loses':<22}bound"
    )
    for row in every:
        tau = f"{row.tau.tau:.2f} ({row.tau.low:.2f} to {row.tau.high:.2f})"
        short, long = ["-" if p is None else f"{p[0]:+.1f} ± {p[1]:.1f}" for p in row.pixels]
        print(
            f"{row.name:<36}{row.lengths:<34}{tau:<22}{short:<19}{long:<13}"
            f"{_regret(row.loss):<22}{100 * row.bound:.1f}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, default=[STUDIES / "length"])
    args = parser.parse_args()
    compared = []
    asked = 0
    for folder in args.folders:
        opened = scaling_search.open(folder)
        if len(opened.study.rungs) < 2:
            raise UserError(f"{folder}: its runs are of one length; give a study of several")
        for budget in opened.study.budgets:
            asked += 1
            ends = report(opened, folder.name, budget)
            if ends is not None:
                compared.append(ends)
    if asked > 1:
        report_ends(compared)
        held = sum(ends.held for ends in compared)
        print(f"within the bound of the short runs: {held} of {len(compared)}, of {asked} asked")
    else:
        tau = f"{compared[0].tau.tau:.2f}" if compared else "-"
        print(f"tau of the shortest with the longest: {tau}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
