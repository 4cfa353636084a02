"""The paper's own procedure, repeated: the nominal lattice, official rounding, one run a point, the
best accuracy wins.

    python benchmarks/nominal.py [FOLDER]

FOLDER is a recorded study of mode nominal (default: studies/paper-nominal), whose every seed is one
repetition of the search. It prints:

- of each repetition, the winner: its coefficients, its real cost, its rank in the other repetitions
  and how far below their best it is there;
- of each two repetitions, how far apart their winners are in nominal shares, and Kendall's tau of
  all networks' accuracies;
- the order and the cost: the part of the variance between the networks' means that the logarithm of
  real cost explains, the shares beside it, and both together; and the slope of a doubling;
- the field, beside NNI's (facts of its picture: best wide and shallow, worst deep and narrow, the
  paper's point in the middle): mean percentile of the networks of each region, 100 the best.

The last line is the mean rank of a repetition's winner in the others, in per cent of the networks.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import scaling_search
from effnet.arch import Scaling
from effnet.shares import Shares, nominal_shares
from scaling_search.study.candidate import Candidate
from scaling_search.study.directions import distance
from scaling_search.verdict.correlation import rank

Array = NDArray[np.float64]
STUDIES = Path(__file__).resolve().parent.parent / "studies"

# Regions of NNI's picture (microsoft/nni, examples/trials/efficientnet), by nominal coefficients.
REGIONS: dict[str, Callable[[Candidate], bool]] = {
    "wide and shallow: beta 1.15 to 1.4, alpha at most 1.2 (NNI's best)": (
        lambda c: 1.15 <= c.beta <= 1.4 and c.alpha <= 1.2
    ),
    "deep and narrow: alpha at least 1.6, beta at most 1.05 (NNI's worst)": (
        lambda c: c.alpha >= 1.6 and c.beta <= 1.05
    ),
    "large images: gamma at least 1.3": lambda c: c.gamma >= 1.3,
    "near the paper's: within 0.1 of 1.2, 1.1, 1.15 (NNI's middle)": (
        lambda c: max(abs(c.alpha - 1.2), abs(c.beta - 1.1), abs(c.gamma - 1.15)) <= 0.1001
    ),
}


def accuracies(folder: Path) -> tuple[list[Candidate], list[int], Array]:
    """Return the networks, the seeds, and accuracies [networks, seeds] in per cent, of the networks
    that finished with every seed."""
    opened = scaling_search.open(folder)
    study = opened.study
    if study.space.mode != "nominal":
        raise SystemExit(f"{folder}: a study of mode nominal is wanted, not {study.space.mode}")
    values: dict[str, dict[int, float]] = {}
    candidates: dict[str, Candidate] = {}
    for r in opened.records:
        if r.done and r.candidate.role == "candidate" and r.epochs == study.rungs[-1]:
            values.setdefault(r.candidate.key, {})[r.seed] = 100 * r.val_acc
            candidates[r.candidate.key] = r.candidate
    seeds = sorted({seed for of_network in values.values() for seed in of_network})
    keys = [key for key, of_network in values.items() if len(of_network) == len(seeds)]
    table = np.array([[values[key][seed] for seed in seeds] for key in keys])
    return [candidates[key] for key in keys], seeds, table


def coefficients(c: Candidate) -> str:
    return f"{c.alpha:.2f}, {c.beta:.2f}, {c.gamma:.2f}"


def shares(c: Candidate) -> Shares:
    """The nominal shares of a network's coefficients."""
    return nominal_shares(Scaling(c.alpha, c.beta, c.gamma))


def winners(networks: Sequence[Candidate], seeds: Sequence[int], table: Array) -> list[float]:
    """Print each repetition's winner; return its mean rank in the others, in per cent."""
    print(
        f"{'repetition':<12}{'alpha, beta, gamma':<20}{'network':<34}{'real cost':>10}"
        f"{'its rank in the others':>24}{'below their best':>24}"
    )
    ranks = []
    for i, seed in enumerate(seeds):
        winner = int(table[:, i].argmax())
        others = [j for j in range(len(seeds)) if j != i]
        places = [int((table[:, j] > table[winner, j]).sum()) + 1 for j in others]
        behind = [table[:, j].max() - table[winner, j] for j in others]
        network = networks[winner]
        print(
            f"{seed:<12}{coefficients(network):<20}{network.label:<34}{network.ratio:>9.2f}x"
            f"{', '.join(map(str, places)):>24}{', '.join(f'{b:.1f}' for b in behind):>24}"
        )
        ranks.append(100 * float(np.mean(places)) / len(networks))
    return ranks


def between(networks: Sequence[Candidate], seeds: Sequence[int], table: Array) -> None:
    """Print how far the repetitions agree."""
    for i, j in itertools.combinations(range(len(seeds)), 2):
        one, other = networks[int(table[:, i].argmax())], networks[int(table[:, j].argmax())]
        agreement = rank(table[:, i].tolist(), table[:, j].tolist())
        apart = distance(shares(one), shares(other))
        print(
            f"{seeds[i]} and {seeds[j]}: winners {apart:.2f} apart in nominal shares; "
            f"tau {agreement.tau:.2f} ({agreement.low:.2f} to {agreement.high:.2f})"
        )


def explained(columns: Array, values: Array) -> float:
    """Return the part of the variance of `values` that a linear fit on `columns` explains, adjusted
    for their number."""
    design = np.column_stack([np.ones(len(values)), columns])
    fit, *_ = np.linalg.lstsq(design, values, rcond=None)
    rest = values - design @ fit
    free = len(values) - design.shape[1]
    return float(1 - (rest @ rest / free) / values.var(ddof=1))


def cost_and_order(networks: Sequence[Candidate], table: Array) -> None:
    """Print how much of the order is cost."""
    means = table.mean(1)
    cost = np.log2([[c.ratio] for c in networks])
    directions = np.array([shares(c)[:2] for c in networks])
    spread = means.std(ddof=1)
    noise = np.nan
    if table.shape[1] > 1:
        rest = table - means[:, None] - table.mean(0) + table.mean()
        degrees = (table.shape[0] - 1) * (table.shape[1] - 1)
        noise = math.sqrt((rest**2).sum() / degrees)
    ratios = [c.ratio for c in networks]
    print(f"real cost {min(ratios):.2f}x to {max(ratios):.2f}x, mean {np.mean(ratios):.2f}x")
    print(f"networks' means differ by {spread:.2f} points (deviation); one run by {noise:.2f}")
    print(f"explained by real cost alone  {explained(cost, means):.0%}")
    print(f"by nominal shares alone       {explained(directions, means):.0%}")
    print(f"by both                       {explained(np.hstack([cost, directions]), means):.0%}")
    slope = np.polyfit(cost[:, 0], means, 1)[0]
    print(f"a doubling of real cost goes with {slope:+.1f} points")


def field(networks: Sequence[Candidate], table: Array) -> None:
    """Print where the networks of each region stand."""
    means = table.mean(1)
    percentile = 100 * (means.argsort().argsort() + 0.5) / len(means)
    for name, inside in REGIONS.items():
        chosen = [i for i, c in enumerate(networks) if inside(c)]
        if chosen:
            cost = np.mean([networks[i].ratio for i in chosen])
            print(
                f"{name:<70}{len(chosen):>4} networks, mean percentile "
                f"{np.mean(percentile[chosen]):.0f}, real cost {cost:.2f}x"
            )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=STUDIES / "paper-nominal")
    networks, seeds, table = accuracies(parser.parse_args().folder)
    print(f"{len(networks)} networks, {len(seeds)} repetitions\n")
    ranks = winners(networks, seeds, table)
    print()
    between(networks, seeds, table)
    print()
    cost_and_order(networks, table)
    print()
    field(networks, table)
    print(f"{np.mean(ranks):.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
