import io
import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effnet.budget import Budget
from scaling_search.report import columns
from scaling_search.report.front import front_of_table
from scaling_search.results import curves
from scaling_search.results.record import Record
from scaling_search.results.tables import COLUMNS, table, write_csv
from scaling_search.training.trial import Outcome
from scaling_search.verdict.rank import holds, rank
from scaling_search.verdict.verdict import FRESH
from tests.records import STUDY, TODO, TWO, record


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), max_size=30))
def test_front_is_the_non_dominated_set(rows: list[tuple[int, int]]) -> None:
    kept = front_of_table(pd.DataFrame(rows, columns=["macs", "mean"]))
    brute = {
        (c, v)
        for c, v in rows
        if not any((c2 <= c and v2 >= v) and (c2 < c or v2 > v) for c2, v2 in rows)
    }
    assert set(zip(kept["macs"], kept["mean"], strict=True)) == brute
    assert len(kept) == len(brute)
    assert kept["macs"].is_monotonic_increasing


def test_front_leaves_out_what_has_no_value() -> None:
    rows = pd.DataFrame({"macs": [1, 2, 3], "mean": [None, 0.5, 0.4]})
    assert front_of_table(rows)["macs"].tolist() == [2]
    assert front_of_table(rows.iloc[:0]).empty


def test_table_has_the_columns_of_the_design() -> None:
    assert COLUMNS[:7] == ["network", "alpha", "beta", "gamma", "blocks", "width", "resolution"]
    records = [
        record(TODO.baseline, 0, 0.5, 0.4),
        record(TODO.candidates[0], 0, None),
        Record(2, TODO.candidates[1], 0, 1, None),
    ]
    rows = table(records)
    assert list(rows.columns) == COLUMNS
    assert len(rows) == 2
    base, failed = rows.iloc[0], rows.iloc[1]
    assert (base["alpha"], base["beta"], base["gamma"]) == (1, 1, 1)
    assert pd.isna(base["share_depth"])
    assert (base["val_acc"], base["test_acc"], base["status"]) == (0.5, 0.4, "done")
    assert failed["status"] == "diverged"
    assert pd.isna(failed["val_acc"])
    back = pd.read_csv(io.StringIO(write_csv(records)))
    assert back["macs"].tolist() == [TODO.baseline.cost.macs, TODO.candidates[0].cost.macs]
    assert abs(sum(back.loc[1, ["share_depth", "share_width", "share_resolution"]]) - 1) < 1e-9
    assert back["alpha"].tolist() == [TODO.baseline.alpha, TODO.candidates[0].alpha], (
        "floats in full"
    )


def test_the_speed_of_a_run_that_shared_its_gpu_is_left_empty(tmp_path: Path) -> None:
    """0 on record is no speed: an empty cell in results.csv and in the report."""
    shared = record(TODO.candidates[0], 0, 0.5, speed=0.0)
    back = pd.read_csv(io.StringIO(write_csv([shared])))
    assert back["images_per_s"].isna().all()
    assert back["val_acc"].tolist() == [0.5]
    rows = columns.runs(SimpleNamespace(records=[shared]), {shared.candidate.key: 0})["rows"]
    assert rows["images_per_s"] == [None]
    curves.write(tmp_path / "curves.parquet", [shared], {})
    (again,) = curves.read(tmp_path / "curves.parquet").records()
    assert again.outcome is not None
    assert again.outcome.images_per_s == 0.0


def test_failed_run_keeps_its_note() -> None:
    failed = Record(0, TODO.baseline, 0, 1, Outcome("out-of-memory", note="3 GiB, and then some"))
    assert table([failed])["note"].tolist() == ["3 GiB, and then some"]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=9))
def test_rank_is_kendalls_tau_b(pairs: list[tuple[int, int]]) -> None:
    """Counted pair by pair."""
    signs = [
        (np.sign(a[0] - b[0]), np.sign(a[1] - b[1])) for a, b in itertools.combinations(pairs, 2)
    ]
    moved = [sum(s[i] != 0 for s in signs) for i in (0, 1)]
    expected = sum(x * y for x, y in signs) / math.sqrt(moved[0] * moved[1]) if all(moved) else 0.0
    found = rank(*zip(*pairs, strict=True))
    assert found.tau == pytest.approx(expected)
    assert found.low <= found.tau <= found.high


def test_rank_interval_holds() -> None:
    """Tau of normal pairs is 2/pi arcsin(rho)."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        x = rng.standard_normal(24)
        y = 0.6 * x + 0.8 * rng.standard_normal(24)
        found = rank(x.tolist(), y.tolist())
        inside += found.low <= 2 / math.pi * math.asin(0.6) <= found.high
    assert 0.91 <= inside / 300 <= 0.99
    with pytest.raises(ValueError, match="at least two"):
        rank([1.0], [1.0])


def test_does_it_hold_in_words() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(0, 0.05, len(TODO.candidates))
    records = []
    for k, c in enumerate(TODO.candidates):
        for s in range(2):
            records.append(record(c, s, 0.5 + truth[k] + rng.normal(0, 0.002), epochs=1))
            records.append(record(c, s, 0.6 + truth[k] + rng.normal(0, 0.002), epochs=2))
        if k < 6:
            records.append(record(c, FRESH, 0.6 + truth[k], test=0.55 + truth[k], epochs=2))
    short, test = holds(records, TWO, Budget.parse("2x"))
    assert short.startswith("1 against 2 epochs, different seeds: Kendall's tau 0.")
    assert short.endswith("they agree")
    assert test.startswith("validation against test: Kendall's tau 1.00")
    assert "6 networks" in test
    (same,) = holds([r for r in records if r.seed == 0], TWO, Budget.parse("2x"))
    assert "the same seed, so they share its luck" in same
    assert holds([record(c, 0, 0.5) for c in TODO.candidates], STUDY, Budget.parse("2x")) == []


def test_small_against_large_budgets() -> None:
    from scaling_search.study.plan import plan
    from scaling_search.study.settings import preset_path, read

    study = read(preset_path("quick"), {"budgets": ["2x", "4x"], "rungs": [1]})
    todo = plan(study, 10, 64)
    records = [record(c, 0, 0.5 + 0.1 * (c.shares or (0, 0, 0))[2]) for c in todo.candidates]
    (line,) = holds(records, study, Budget.parse("2x"))
    assert line.startswith("2x against 4x, nearest shares: Kendall's tau 0.")
    assert "networks): they" in line


def test_more_seeds_for_the_leaders_do_not_tilt_their_means() -> None:
    """Seeds that only some networks have: without noise, the order is the truth's."""
    from scaling_search.verdict.rank import _means

    truth = dict(zip(TODO.candidates[:4], (0.60, 0.58, 0.57, 0.50), strict=True))
    records = [
        record(c, s, v + 0.01 * s)
        for c, v in truth.items()
        for s in range(4)
        if s == 0 or v >= 0.58
    ]
    means = _means(records, lambda r: r.val_acc)
    found = [means[c.key] for c in truth]
    assert np.diff(found) == pytest.approx([-0.02, -0.01, -0.07])
