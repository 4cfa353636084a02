import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from effnet.budget import Budget
from scaling_search.driver.allocation import half, most_telling, next_runs, promoted
from scaling_search.study.plan import plan
from scaling_search.study.settings import check
from tests.records import STUDY, TODO, TWO, record
from tests.replays import OWN, replay, synthetic


def test_never_fewer_than_half_go_on() -> None:
    assert [half(n) for n in (1, 2, 3, 11, 12)] == [1, 1, 2, 6, 6]


def test_a_run_is_most_telling_where_it_may_change_the_pick() -> None:
    """Two leaders that may be either way round, one that is known, one far behind: the leader that
    is known less; of equal ones, the cheaper; never one that may take no run."""
    rng = np.random.default_rng(0)
    means, deviations = np.array([0.60, 0.60, 0.59, 0.50]), np.array([0.02, 0.01, 0.001, 0.02])
    seen = (means + deviations * rng.standard_normal((4096, 4)))[:, :, None]
    noise = np.full((1, 1), 0.01**2)
    equal, left = np.ones(4), dict.fromkeys(range(4), 9)
    assert most_telling(seen, noise, equal, left, 1) == [0]
    assert set(most_telling(seen, noise, equal, left, 6)) == {0, 1}
    assert most_telling(seen, noise, equal, {**left, 0: 0}, 2) == [1, 1]
    assert most_telling(seen, noise, np.array([9.0, 1, 1, 1]), left, 1) == [1]
    assert most_telling(seen, noise, equal, {0: 1, 1: 1}, 4) == [0, 1]


def test_where_the_bound_is_0_a_run_goes_where_it_may_change_the_pick() -> None:
    """Of rivals that are known alike the nearest; a farther one that is known less; the pick, where
    that is what is not known."""
    normal = np.random.default_rng(0).standard_normal((4096, 4))
    means = np.array([0.64, 0.70, 0.60, 0.50])
    noise = np.full((1, 1), 0.01**2)

    def chosen(*deviations: float) -> list[int]:
        seen = (means + np.array(deviations) * normal)[:, :, None]
        return most_telling(seen, noise, np.ones(4), dict.fromkeys(range(4), 9), 1)

    assert chosen(0.005, 0.001, 0.005, 0.005) == [0]
    assert chosen(0.001, 0.001, 0.008, 0.001) == [2]
    assert chosen(0.001, 0.005, 0.001, 0.001) == [1]


def test_next_runs_go_to_the_leaders_and_repeat_nothing() -> None:
    rng = np.random.default_rng(1)
    good = {c.key for c in TODO.candidates[:3]}
    records = [
        record(c, s, (0.75 if c.key in good else 0.5) + rng.normal(0, 0.005))
        for c in TODO.candidates
        for s in range(2)
    ]
    free = {c.key: list(range(2, 10)) for c in TODO.candidates}
    runs = next_runs(records, STUDY, Budget.parse("2x"), free, 4)
    assert len(runs) == 4 == len(set(runs))
    assert {key for key, _ in runs} <= good
    assert all(seed not in free[key] for key, seed in runs)
    again = next_runs(
        records[::-1],
        STUDY,
        Budget.parse("2x"),
        {c.key: list(range(2, 10)) for c in TODO.candidates},
        4,
    )
    assert again == runs  # whatever the order in which they ended


@pytest.mark.parametrize(("extra_batch", "decisions"), [(4, 1), (1, 4)])
def test_the_study_says_how_many_extra_runs_are_decided_at_once(
    extra_batch: int, decisions: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each decision is made from all results before it, and is one step of the study."""
    settings = {**OWN, "confirm": 0, "extra_batch": extra_batch}
    synthetic(tmp_path / "table.parquet", settings, range(8))
    study = check({**settings, "device": "cpu"}, "test")
    with caplog.at_level(logging.INFO, "scaling_search.driver"):
        assert replay(study, tmp_path / "table.parquet", tmp_path / "run") == 0
    baseline = plan(study, 10, 64).baseline.key
    table = pd.read_csv(tmp_path / "run" / "results.csv")
    extra = table[(table["seed"] >= study.seeds) & (table["network"] != baseline)]
    assert len(extra) == study.extra
    steps = [r.getMessage() for r in caplog.records if "more runs where" in r.getMessage()]
    assert len(steps) == decisions


def test_next_runs_ends_where_no_seed_is_left() -> None:
    records = [record(c, 0, 0.7) for c in TODO.candidates[:3]]
    free = {TODO.candidates[0].key: [1], TODO.candidates[1].key: [], TODO.candidates[5].key: [1]}
    assert next_runs(records, STUDY, Budget.parse("2x"), free, 4) == [(TODO.candidates[0].key, 1)]
    assert next_runs([], STUDY, Budget.parse("2x"), free, 4) == []


def test_promotion_leaves_out_what_failed() -> None:
    records = [record(c, 0, 0.5 + 0.02 * k, epochs=1) for k, c in enumerate(TODO.candidates[:-1])]
    records.append(record(TODO.candidates[-1], 0, None, epochs=1))
    chosen = promoted(records, list(TODO.candidates), TWO)
    assert len(chosen) == half(len(TODO.candidates))
    assert TODO.candidates[-1] not in chosen
    assert TODO.candidates[-2] in chosen
    assert TODO.candidates[0] not in chosen
