import io
from pathlib import Path

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from scaling_search.report import columns
from scaling_search.report.front import front_of_table
from scaling_search.results import curves
from scaling_search.results.record import Record
from scaling_search.results.tables import COLUMNS, csv_text, table
from scaling_search.training.trial import Outcome
from tests.records import TODO, dominates, record


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), max_size=30))
def test_front_is_the_non_dominated_set(rows: list[tuple[int, int]]) -> None:
    kept = front_of_table(pd.DataFrame(rows, columns=["macs", "mean"]))
    brute = {row for row in rows if not any(dominates(other, row) for other in rows)}
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
    back = pd.read_csv(io.StringIO(csv_text(records)))
    assert back["macs"].tolist() == [TODO.baseline.cost.macs, TODO.candidates[0].cost.macs]
    assert abs(sum(back.loc[1, ["share_depth", "share_width", "share_resolution"]]) - 1) < 1e-9
    assert back["alpha"].tolist() == [TODO.baseline.alpha, TODO.candidates[0].alpha], (
        "floats in full"
    )


def test_the_speed_of_a_run_that_shared_its_gpu_is_left_empty(tmp_path: Path) -> None:
    """0 on record is no speed: an empty cell in results.csv and in the report."""
    shared = record(TODO.candidates[0], 0, 0.5, speed=0.0)
    back = pd.read_csv(io.StringIO(csv_text([shared])))
    assert back["images_per_s"].isna().all()
    assert back["val_acc"].tolist() == [0.5]
    rows = columns.runs([shared], {shared.candidate.key: 0})["rows"]
    assert rows["images_per_s"] == [None]
    curves.write(tmp_path / "curves.parquet", [shared], {})
    (again,) = curves.read(tmp_path / "curves.parquet").records()
    assert again.outcome is not None
    assert again.outcome.images_per_s == 0.0


def test_failed_run_keeps_its_note() -> None:
    failed = Record(0, TODO.baseline, 0, 1, Outcome("out-of-memory", note="3 GiB, and then some"))
    assert table([failed])["note"].tolist() == ["3 GiB, and then some"]
