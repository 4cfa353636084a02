import io

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from scaling_search.analysis import COLUMNS, front, table, write_csv
from scaling_search.store import Record
from scaling_search.trial import Outcome
from tests.test_verdict import TODO, record


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), max_size=30))
def test_front_is_the_non_dominated_set(rows: list[tuple[int, int]]) -> None:
    kept = front(pd.DataFrame(rows, columns=["macs", "mean"]))
    brute = {(c, v) for c, v in rows if not any((c2 <= c and v2 >= v) and (c2 < c or v2 > v) for c2, v2 in rows)}
    assert set(zip(kept["macs"], kept["mean"], strict=True)) == brute
    assert len(kept) == len(brute) and kept["macs"].is_monotonic_increasing


def test_front_leaves_out_what_has_no_value() -> None:
    rows = pd.DataFrame({"macs": [1, 2, 3], "mean": [None, 0.5, 0.4]})
    assert front(rows)["macs"].tolist() == [2]
    assert front(rows.iloc[:0]).empty


def test_table_has_the_columns_of_the_design() -> None:
    assert COLUMNS[:7] == ["network", "alpha", "beta", "gamma", "blocks", "width", "resolution"]
    records = [
        record(TODO.baseline, 0, 0.5, 0.4),
        record(TODO.candidates[0], 0, None),
        Record(2, TODO.candidates[1], 0, 1, None),
    ]
    rows = table(records)
    assert list(rows.columns) == COLUMNS and len(rows) == 2
    base, failed = rows.iloc[0], rows.iloc[1]
    assert (base["alpha"], base["beta"], base["gamma"]) == (1, 1, 1) and pd.isna(base["share_depth"])
    assert (base["val_acc"], base["test_acc"], base["status"]) == (0.5, 0.4, "done")
    assert failed["status"] == "diverged" and pd.isna(failed["val_acc"])
    back = pd.read_csv(io.StringIO(write_csv(records)))
    assert back["macs"].tolist() == [TODO.baseline.cost.macs, TODO.candidates[0].cost.macs]
    assert abs(sum(back.loc[1, ["share_depth", "share_width", "share_resolution"]]) - 1) < 1e-9
    assert back["alpha"].tolist() == [TODO.baseline.alpha, TODO.candidates[0].alpha], "floats in full"


def test_failed_run_keeps_its_note() -> None:
    failed = Record(0, TODO.baseline, 0, 1, Outcome("out-of-memory", note="3 GiB, and then some"))
    assert table([failed])["note"].tolist() == ["3 GiB, and then some"]
