"""Answers by the length of runs: whether the order that short runs favour holds for long ones."""

from dataclasses import replace

import numpy as np
import pytest

from scaling_search import UserError
from scaling_search.opening import open_study
from scaling_search.report.figures import lengths as figure
from scaling_search.report.page import Page
from scaling_search.results.record import Record
from scaling_search.verdict.lengths import answers, means_by_length
from scaling_search.verdict.verdict import verdicts
from tests.pages import made_up_page
from tests.records import TODO, TWO, record
from tests.replays import RECORDED

FLAT = TWO.model_copy(update={"allocation": "flat", "seeds": 3})
BUDGET = FLAT.budgets[0]


def two_lengths() -> list[Record]:
    """Three seeds at two lengths: after one epoch the first network leads by five points, after two
    the last by five, each with little noise."""
    random = np.random.default_rng(0)
    networks = TODO.candidates[:8]
    runs = []
    for seed in range(FLAT.seed, FLAT.seed + 3):
        for place, network in enumerate((TODO.baseline, *networks), start=-1):
            for epochs, leader in ((1, 0), (2, 7)):
                accuracy = 0.5 + 0.1 * epochs + 0.05 * (place == leader)
                noisy = accuracy + 0.002 * random.normal()
                runs.append(record(network, seed, noisy, epochs=epochs))
    return runs


def test_each_length_answers_for_itself() -> None:
    short, long = answers(two_lengths(), FLAT, BUDGET)
    assert (short.epochs, long.epochs) == (1, 2)
    assert short.verdict.pick.candidate.key == TODO.candidates[0].key
    assert long.verdict.pick.candidate.key == TODO.candidates[7].key
    # what the shorter length's answer costs is the five points that the longer one shows
    assert short.regret is not None and long.regret is not None
    assert short.regret.expected == pytest.approx(0.045, abs=0.01)  # others draw it in a little
    assert short.regret.expected < short.regret.bound < 0.06
    assert long.regret.expected < 0.003
    assert short.joint_regret is not None
    assert short.joint_regret.expected == pytest.approx(0.045, abs=0.01)
    # a verdict of one length sees no run of another
    assert {row.seeds for row in short.verdict.rows} == {3}


def test_what_a_pick_costs_is_not_known_without_the_longest_length() -> None:
    only_short = [run for run in two_lengths() if run.epochs == 1]
    (short,) = answers(only_short, FLAT, BUDGET)
    assert short.verdict.pick.candidate.key == TODO.candidates[0].key
    assert short.regret is None
    assert means_by_length(only_short, FLAT, BUDGET) == []


def test_means_are_of_networks_that_ran_at_every_length_with_every_seed() -> None:
    runs = two_lengths()
    runs.append(record(TODO.candidates[8], FLAT.seed, 0.9, epochs=1))
    short, long = means_by_length(runs, FLAT, BUDGET)
    assert set(short.means) == set(long.means) == {c.key for c in TODO.candidates[:8]}
    key = TODO.candidates[7].key
    own = [run.val_acc for run in runs if run.candidate.key == key and run.epochs == 2]
    assert long.means[key] == pytest.approx(np.mean(own))
    # 0.2 points of noise a run, three runs, t of 14 degrees of freedom: 0.23 points, and what so
    # few leave open
    assert 0.001 < long.half < 0.004
    assert long.seeds == 3
    assert long.run == pytest.approx(0.002, rel=0.5)
    # one network of eight is five points above the others: a deviation of 1.77 between networks
    between = 0.05**2 / 8
    assert long.reliability == pytest.approx(between / (between + long.run**2), abs=0.02)
    assert sum(long.against_all.values()) == pytest.approx(0)


def test_extra_runs_and_an_unfinished_seed_leave_every_network_in() -> None:
    """Extra runs are of networks that looked good: a mean of those alone would be of winners."""
    runs = [r for r in two_lengths() if (r.seed, r.epochs) != (FLAT.seed + 2, 2)]
    runs.append(record(TODO.candidates[0], FLAT.seed + 2, 0.7, epochs=2))
    runs.append(record(TODO.candidates[1], FLAT.seed + 7, 0.9, epochs=2))
    short, long = means_by_length(runs, FLAT, BUDGET)
    assert len(short.means) == len(long.means) == 8
    assert (short.seeds, long.seeds) == (3, 2)


def test_a_seed_that_moves_every_network_is_no_noise_between_them() -> None:
    moved = []
    for run in two_lengths():
        accuracy = run.val_acc + 0.03 * (run.seed - FLAT.seed)
        moved.append(record(run.candidate, run.seed, accuracy, epochs=run.epochs))
    before = means_by_length(two_lengths(), FLAT, BUDGET)
    after = means_by_length(moved, FLAT, BUDGET)
    for one, other in zip(before, after, strict=True):
        assert other.half == pytest.approx(one.half)


@pytest.fixture
def page() -> Page:
    runs = two_lengths()
    page = replace(made_up_page(), study=FLAT, records=runs)
    return replace(page, verdicts=tuple(verdicts(runs, FLAT)))


def test_the_figure_has_every_network_against_the_mean_of_all(page: Page) -> None:
    verdict = page.verdicts[0]
    keys = list(dict.fromkeys(run.candidate.key for run in page.records))
    drawn = figure.draw(page, verdict, {key: place for place, key in enumerate(keys)})
    lines = [trace for trace in drawn.data if trace.meta is not None]
    assert sum(len(trace.meta["curves"]) for trace in lines) == 8
    values = [y for trace in lines for y in trace.y if y is not None]
    assert sum(values) == pytest.approx(0, abs=0.02)
    assert max(values) == pytest.approx(5 - 5 / 8, abs=0.5)
    assert list(drawn.layout.xaxis.tickvals) == [1, 2]
    assert "The order after 2 epochs agrees with that after 1 by " in figure.words(page, verdict)


def test_no_figure_of_networks_that_were_promoted(page: Page) -> None:
    """Those that went on are there for their luck too."""
    promoted = page.study.model_copy(update={"allocation": "rungs"})
    assert figure.lengths_of(page, page.verdicts[0])
    assert not figure.lengths_of(replace(page, study=promoted), page.verdicts[0])


def test_a_study_of_one_length_is_refused_in_words() -> None:
    opened = open_study(RECORDED.parent / "quick-cifar10-seeds")
    with pytest.raises(UserError, match="--epochs 1,4 --allocation flat"):
        opened.figure("lengths")
