"""The paper's own procedure, repeated: the nominal lattice, official rounding, one run a point, the
best accuracy wins.

    python benchmarks/nominal.py [FOLDER]

FOLDER is a recorded study of mode nominal (default: studies/paper-nominal), whose every seed is one
repetition of the search. It prints:

- of each repetition, the winner: its coefficients, its real cost, and in the mean of the other
  repetitions its rank and how far it lies below the best of that mean. Beside it the same of the
  network that the mean of all *other* repetitions but one chooses, in the one left out: the other's
  own noise takes that much from any choice;
- of each two repetitions, the distance of their winners in nominal shares, and Kendall's tau of all
  networks' accuracies;
- the order and the cost: the part of the variance between networks that the logarithm of real cost
  explains, the shares, and both together (adjusted for the number of columns, and with the runs'
  noise taken off the variance), with 95% of resamples of networks; and the slope of a doubling;
- the field, beside NNI's (read from its picture: best wide and shallow, worst deep and narrow, the
  paper's point in the middle): mean percentile of the networks of each region, 100 the best.

Repetitions that lack networks are left out, and so are networks that failed in one of the others.
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import scaling_search
from benchmarks.recorded import STUDIES, guarded
from scaling_search import UserError
from scaling_search.study.candidate import Candidate
from scaling_search.study.choice import nominal_position
from scaling_search.study.directions import distance
from scaling_search.verdict.correlation import rank
from scaling_search.verdict.lengths import run_deviation
from scaling_search.verdict.posterior import Array

RESAMPLES = 1000

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
    """Return the networks, the seeds, and accuracies [networks, seeds] in per cent. Raises
    UserError where fewer than two repetitions are complete."""
    opened = scaling_search.open(folder)
    study = opened.study
    if study.space.mode != "nominal":
        raise UserError(f"{folder}: a study of mode nominal is wanted, not {study.space.mode}")
    values: dict[int, dict[str, float]] = {}
    candidates: dict[str, Candidate] = {}
    ended: dict[int, int] = {}
    for r in opened.records:
        if r.candidate.role != "candidate" or r.outcome is None or r.epochs != study.rungs[-1]:
            continue
        candidates[r.candidate.key] = r.candidate
        ended[r.seed] = ended.get(r.seed, 0) + 1
        if r.done:
            values.setdefault(r.seed, {})[r.candidate.key] = 100 * r.val_acc
    seeds = sorted(seed for seed, count in ended.items() if count == len(candidates))
    if len(seeds) < 2:
        raise UserError(f"{folder}: {len(seeds)} complete repetitions; two are needed at least")
    keys = [key for key in candidates if all(key in values[seed] for seed in seeds)]
    table = np.array([[values[seed][key] for seed in seeds] for key in keys])
    return [candidates[key] for key in keys], seeds, table


def coefficients(c: Candidate) -> str:
    return f"{c.alpha:.2f}, {c.beta:.2f}, {c.gamma:.2f}"


def standing(network: int, values: Array) -> tuple[int, float]:
    """Return a network's rank by these values, 1 the best, and how far it lies below the best."""
    return int((values > values[network]).sum()) + 1, float(values.max() - values[network])


def winners(networks: Sequence[Candidate], seeds: Sequence[int], table: Array) -> float:
    """Print each repetition's winner; return its mean rank in the others, in per cent."""
    print(
        f"{'repetition':<12}{'alpha, beta, gamma':<20}{'network':<34}{'real cost':>10}"
        f"{'in the others: rank, below':>28}{'by the mean of others':>24}"
    )
    ranks = []
    for i, seed in enumerate(seeds):
        winner = int(table[:, i].argmax())
        others = [j for j in range(len(seeds)) if j != i]
        place, behind = standing(winner, table[:, others].mean(1))
        steadier = int(table[:, others].mean(1).argmax())
        its_place, its_behind = standing(steadier, table[:, i])
        network = networks[winner]
        in_others, by_mean = f"{place}, {behind:.1f}", f"{its_place}, {its_behind:.1f}"
        print(
            f"{seed:<12}{coefficients(network):<20}{network.label:<34}{network.ratio:>9.2f}x"
            f"{in_others:>28}{by_mean:>24}"
        )
        ranks.append(100 * place / len(networks))
    return float(np.mean(ranks))


def between(networks: Sequence[Candidate], seeds: Sequence[int], table: Array) -> None:
    """Print how far the repetitions agree."""
    for i, j in itertools.combinations(range(len(seeds)), 2):
        one, other = networks[int(table[:, i].argmax())], networks[int(table[:, j].argmax())]
        agreement = rank(table[:, i].tolist(), table[:, j].tolist())
        away = distance(nominal_position(one), nominal_position(other))
        print(
            f"{seeds[i]} and {seeds[j]}: winners {away:.2f} from each other in nominal shares; "
            f"tau {agreement.tau:.2f} ({agreement.low:.2f} to {agreement.high:.2f})"
        )


def explained(columns: Array, table: Array) -> float:
    """Return the part of the variance between networks that a linear fit of their means on
    `columns` explains, adjusted for the number of columns; the runs' noise, which no column can
    explain, is taken off the variance."""
    means = table.mean(1)
    design = np.column_stack([np.ones(len(means)), columns])
    fit, *_ = np.linalg.lstsq(design, means, rcond=None)
    rest = means - design @ fit
    unexplained = float(rest @ rest) / (len(means) - design.shape[1])
    variance = float(means.var(ddof=1))
    noise = run_deviation(table)[0] ** 2 / table.shape[1]
    between_networks = variance - noise
    return (variance - unexplained) / between_networks if between_networks > 0 else math.nan


def interval(value: Callable[[Array], float], networks: int) -> tuple[float, float]:
    """Return 95% of what `value` is of resamples of the networks, each a list of their numbers."""
    random = np.random.default_rng(0)
    drawn = [value(random.integers(0, networks, networks)) for _ in range(RESAMPLES)]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def cost_and_order(networks: Sequence[Candidate], table: Array) -> None:
    """Print how much of the order is cost."""
    means = table.mean(1)
    cost = np.log2([[c.ratio] for c in networks])
    directions = np.array([(nominal_position(c) or (0.0, 0.0, 0.0))[:2] for c in networks])
    deviation, _ = run_deviation(table)
    ratios = [c.ratio for c in networks]
    print(f"real cost {min(ratios):.2f}x to {max(ratios):.2f}x, mean {np.mean(ratios):.2f}x")
    print(f"networks' means differ by {means.std(ddof=1):.2f} points, one run by {deviation:.2f}")
    for name, columns in (
        ("real cost alone", cost),
        ("nominal shares alone", directions),
        ("both", np.hstack([cost, directions])),
    ):
        low, high = interval(
            lambda at, columns=columns: explained(columns[at], table[at]), len(networks)
        )
        print(f"explained by {name:<24}{explained(columns, table):.0%} ({low:.0%} to {high:.0%})")

    def slope(at: Array) -> float:
        return float(np.polyfit(cost[at, 0], means[at], 1)[0])

    low, high = interval(slope, len(networks))
    whole = slope(np.arange(len(networks)))
    print(f"a doubling of real cost goes with {whole:+.1f} points ({low:+.1f} to {high:+.1f})")


def field(networks: Sequence[Candidate], table: Array) -> None:
    """Print where the networks of each region stand."""
    means = table.mean(1)
    percentile = 100 * (means.argsort().argsort() + 0.5) / len(means)
    for name, inside in REGIONS.items():
        chosen = [i for i, c in enumerate(networks) if inside(c)]
        if chosen:
            cost = np.mean([networks[i].ratio for i in chosen])
            values = percentile[chosen]
            print(
                f"{name:<70}{len(chosen):>4} networks, mean percentile {values.mean():.0f} "
                f"({values.min():.0f} to {values.max():.0f}), real cost {cost:.2f}x"
            )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=STUDIES / "paper-nominal")
    networks, seeds, table = accuracies(parser.parse_args().folder)
    print(f"{len(networks)} networks, {len(seeds)} repetitions\n")
    mean_rank = winners(networks, seeds, table)
    print()
    between(networks, seeds, table)
    print()
    cost_and_order(networks, table)
    print()
    field(networks, table)
    print(f"{mean_rank:.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
