"""Does the direction that short trainings favour hold for long ones? From a study whose networks
all ran at several lengths.

    python benchmarks/lengths.py [FOLDER ...]

FOLDER is a recorded study or a run folder (default: studies/length). Of each budget:

- of each length alone: the pick, how far it could lie below the best of that length (bound), where
  the fitted surface is highest, and how far that pick is expected to lie below the best at the
  longest length, with what that does not exceed in 95% of cases (by the posterior of the longest
  length: the best of noisy means would be better than the best network);
- accuracy's slope along each share, in points for the whole of the extra cost, by least squares
  over the networks' means, ± 95%;
- the networks' means, each against the mean of all;
- Kendall's tau of each two lengths, of means over different seeds: the lengths of one seed share
  its luck.

The last line is the tau of the shortest with the longest length.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import t as student

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import scaling_search
from effnet.budget import Budget
from scaling_search.results.record import Record
from scaling_search.study.candidate import Candidate
from scaling_search.study.settings import Study
from scaling_search.verdict.correlation import Rank, between_lengths
from scaling_search.verdict.lengths import Means, answers, means_by_length

STUDIES = Path(__file__).resolve().parent.parent / "studies"


def slopes(means: Means, networks: dict[str, Candidate]) -> tuple[np.ndarray, np.ndarray]:
    """Return accuracy's slopes [3] along the shares of depth, width and resolution, each against
    the mean of the three, and half their 95% intervals; points.

    Shares sum to 1, so a fit without an intercept has one value at each corner; a slope is a
    corner's value minus the mean of the corners."""
    keys = [key for key in means.means if networks[key].shares]
    shares = np.array([networks[key].shares for key in keys])
    values = 100 * np.array([means.means[key] for key in keys])
    corners, *_ = np.linalg.lstsq(shares, values, rcond=None)
    free = len(keys) - 3
    rest = values - shares @ corners
    centred = np.eye(3) - 1 / 3
    covariance = rest @ rest / free * np.linalg.inv(shares.T @ shares)
    errors = np.sqrt(np.diag(centred @ covariance @ centred))
    return centred @ corners, student.ppf(0.975, free) * errors


def in_words(epochs: int, study: Study) -> str:
    images = study.data.epoch_images
    return f"{epochs} epochs" if images is None else f"{epochs * images:,} images"


def report(records: Sequence[Record], study: Study, budget: Budget) -> Rank | None:
    """Print all of a budget; return the agreement of its shortest with its longest length."""
    networks = {r.candidate.key: r.candidate for r in records}
    print(
        f"\n{'length':<16}{'pick':<34}{'bound':>6}{'regret at the longest':>23}   optimum d, w, r"
    )
    for length in answers(records, study, budget):
        surface = length.verdict.surface
        optimum = "-"
        if surface is not None:
            optimum = ", ".join(f"{share:.2f}" for share in surface.optimum[-1])
        regret = f"{100 * length.regret:.1f} (at most {100 * length.regret_bound:.1f})"
        print(
            f"{in_words(length.epochs, study):<16}{length.verdict.pick.candidate.label:<34}"
            f"{100 * length.verdict.bound:>6.1f}{regret:>23}   {optimum}"
        )
    every = means_by_length(records, study, budget)
    if not every:
        return None
    print(
        f"\n{'points for all of the extra cost in':<36}{'depth':>14}{'width':>14}{'resolution':>14}"
    )
    for means in every:
        values, halves = slopes(means, networks)
        cells = "".join(f"{f'{v:+.1f} ± {h:.1f}':>14}" for v, h in zip(values, halves, strict=True))
        print(f"{in_words(means.epochs, study):<36}{cells}")
    lengths = "".join(f"{in_words(means.epochs, study):>16}" for means in every)
    print(f"\n{'against the mean of all':<52}{lengths}")
    middles = [float(np.mean(list(means.means.values()))) for means in every]
    last = every[-1].means
    for key in sorted(last, key=lambda key: -last[key]):
        cells = "".join(
            f"{100 * (means.means[key] - middle):>+16.1f}"
            for means, middle in zip(every, middles, strict=True)
        )
        name = f"{networks[key].label} ({networks[key].stands_for})"
        print(f"{name.removesuffix(' ()')[:50]:<52}{cells}")
    print(f"{'the mean of all, %':<52}" + "".join(f"{100 * middle:>16.1f}" for middle in middles))
    halves_line = "".join(f"{100 * means.half:>16.1f}" for means in every)
    print(f"{'95% of one mean, ±':<52}{halves_line}")
    print("\nKendall's tau of means over different seeds (95%)")
    ends = None
    for short, long in itertools.combinations(study.rungs, 2):
        agreement = between_lengths(records, study, budget, short, long)
        if agreement is None:
            continue
        rank = agreement.rank
        print(
            f"{in_words(short, study):>16} and {in_words(long, study):>16}: {rank.tau:.2f} "
            f"({rank.low:.2f} to {rank.high:.2f})"
        )
        if (short, long) == (study.rungs[0], study.rungs[-1]):
            ends = rank
    return ends


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, default=[STUDIES / "length"])
    args = parser.parse_args()
    ends = None
    for folder in args.folders:
        opened = scaling_search.open(folder)
        print(f"{folder.name}: {opened.study.baseline.name} on {opened.study.data.source}")
        for budget in opened.study.budgets:
            ends = report(opened.records, opened.study, budget)
    print("-" if ends is None else f"{ends.tau:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
