"""The arithmetic of the benchmarks that read recorded studies, where the truth is known."""

import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import scaling_search
from benchmarks import directions, halves, lengths, nominal, paired, transfer
from benchmarks.recorded import STUDIES, folders, recorded
from scaling_search import UserError
from scaling_search.data.dataset import FOLDS
from scaling_search.study.directions import distance
from scaling_search.verdict.lengths import Means
from scaling_search.verdict.verdict import FRESH
from tests.records import TODO

NETWORKS = {c.key: c for c in TODO.candidates}


def test_slopes_are_those_that_accuracies_were_made_of() -> None:
    corners = np.array([0.60, 0.63, 0.69])  # depth, width, resolution
    means = {}
    for key, candidate in NETWORKS.items():
        assert candidate.shares is not None
        means[key] = float(corners @ candidate.shares)
    fitted = lengths.slopes(Means(1, 3, means, 0.0, 0.0), NETWORKS)
    assert fitted is not None
    values, halves_of = fitted
    assert values == pytest.approx([-4.0, -1.0, 5.0])
    assert halves_of == pytest.approx([0.0] * 3, abs=1e-6)


def test_the_best_network_lies_within_a_bound_of_0() -> None:
    assert lengths.lies_within(0.00004, 0.0)
    assert not lengths.lies_within(0.0002, 0.0)


def test_no_slope_of_four_networks() -> None:
    few = dict(list(NETWORKS.items())[:4])
    means = dict.fromkeys(few, 0.5)
    assert lengths.slopes(Means(1, 3, means, 0.0, 0.0), few) is None


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_what_cost_explains_is_free_of_the_runs_noise(noise: float) -> None:
    """Half of the variance between networks is the column's; noise of the runs would hide it."""
    random = np.random.default_rng(0)
    networks = 2000  # so many that chance plays no part
    column = random.standard_normal((networks, 1))
    truth = column[:, 0] + random.standard_normal(networks)
    table = truth[:, None] + noise * random.standard_normal((networks, 3))
    assert nominal.explained(column, table) == pytest.approx(0.5, abs=0.05)
    assert math.isfinite(nominal.explained(column, table))


def test_rank_and_distance_to_the_best() -> None:
    values = np.array([70.0, 72.0, 71.5])
    assert nominal.standing(1, values) == (1, 0.0)
    assert nominal.standing(2, values) == (2, 0.5)


def test_seeds_of_a_fold_stay_in_one_half() -> None:
    seeds = range(100, 106)  # 100 and 105 validate on the same fold
    for half in halves.halves(seeds):
        other = set(seeds) - set(half)
        assert half and other
        assert not {s % FOLDS for s in half} & {s % FOLDS for s in other}


def test_a_clear_order_holds_for_the_other_half() -> None:
    """The recorded study's runs with a network lifted by ten points, which every half sees."""
    (experiment,) = halves.experiments(STUDIES / "quick-cifar10-seeds")
    best = experiment.runs[0].candidate
    if best.role != "candidate":
        best = next(r.candidate for r in experiment.runs if r.candidate.role == "candidate")
    lifted = []
    for run in experiment.runs:
        assert run.outcome is not None
        epochs = run.outcome.epochs
        if run.candidate.key == best.key:
            epochs = (*epochs[:-1], replace(epochs[-1], val_acc=epochs[-1].val_acc + 0.1))
        lifted.append(replace(run, outcome=replace(run.outcome, epochs=epochs)))
    experiment = replace(experiment, runs=tuple(lifted), seeds=experiment.seeds[:3])
    for bound, tied in halves.judge(experiment):
        assert bound.held == bound.by_all == 1.0
        assert tied.held == tied.by_all == 1.0
        assert bound.expected > 0.99


def test_the_nearest_network_stands_in() -> None:
    (origin,) = transfer.places(STUDIES / "quick-cifar10-seeds", lengths=False)
    (target,) = transfer.places(STUDIES / "quick-cifar10-long", lengths=False)
    row, away = transfer.stand_in(origin, target)
    aim = origin.verdict.pick.candidate.shares
    every = [distance(row.candidate.shares, aim) for row in target.verdict.rows]
    assert away == min(every)
    # both studies have the same networks
    assert row.candidate.key == origin.verdict.pick.candidate.key


def test_networks_are_compared_seed_by_seed_with_every_networks_noise() -> None:
    """A network a point below the pick with every seed; runs vary by half a point around theirs."""
    random = np.random.default_rng(0)
    table = 0.7 + 0.005 * random.standard_normal((400, 3))  # so many that chance plays no part
    budget = [dict(enumerate(row)) for row in table.tolist()]
    pick = budget[0]
    own = {seed: accuracy - 0.01 for seed, accuracy in pick.items()}
    mean, half, seeds = paired.above(own, pick, budget)
    assert (mean, seeds) == (pytest.approx(-0.01), 3)
    assert half == pytest.approx(1.96 * 0.005 * math.sqrt(2 / 3), rel=0.05)
    with pytest.raises(UserError, match="have: 1, not two"):
        paired.above(own, {0: 0.7}, budget)


def test_directions_are_compared_in_the_seeds_of_the_search(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """cifar10-2x has five more seeds of its finalists, which only confirm its verdict."""
    folder = STUDIES / "cifar10-2x"
    opened = scaling_search.open(folder)
    order, apart, count = directions.show(folder, opened, opened.verdicts["2x"])
    assert order.startswith("cifar10-2x, 2x: resolution ")
    assert 0 < apart < count <= 6 * 5 / 2
    rows = [line for line in capsys.readouterr().out.splitlines() if "blocks, width" in line]
    assert len(rows) == 6
    runs = pd.read_csv(folder / "results.csv")
    runs = runs[(runs.epochs == runs.epochs.max()) & (runs.seed < opened.study.seed + FRESH)]
    for row in rows:
        found = re.search(r"(\d+) blocks, width ([\d.]+), (\d+) px .*% +(\d+) +([\d.]+)", row)
        assert found is not None
        blocks, width, side, seeds, mean = map(float, found.groups())
        of_network = (runs.blocks == blocks) & (runs.resolution == side)
        own = runs[of_network & np.isclose(runs.width, width)].val_acc
        assert len(own) == seeds == 3
        assert mean == pytest.approx(100 * own.mean(), abs=0.051)


def test_recorded_studies_leave_fresh_seeds_out() -> None:
    assert len(folders()) >= 7
    study, runs = recorded(STUDIES / "imagenette-24px-2x")
    assert study.seeds == 3
    # the grid and the held-out seeds; 500 to 504 confirmed the pick
    assert {r.seed for r in runs} == {0, 1, 2, 1000, 1001, 1002}
