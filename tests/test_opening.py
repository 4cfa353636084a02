"""A study opened from Python."""

import html
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import scaling_search
from scaling_search import UserError
from scaling_search.opening import StudyResults
from scaling_search.report import FIGURES
from scaling_search.results import curves
from scaling_search.results.store import Store
from tests.pages import EVIL
from tests.replays import OWN, RECORDED, synthetic


@pytest.fixture(scope="module")
def recorded() -> StudyResults:
    return scaling_search.open(RECORDED)


@pytest.fixture(scope="module")
def two_budgets(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    path = tmp_path_factory.mktemp("two") / "curves.parquet"
    synthetic(path, {**OWN, "budgets": ["1.5x", "2x"], "space": {"candidates": 5}}, range(2))
    return scaling_search.open(path)


def test_to_import_the_package_loads_no_library() -> None:
    libraries = "{'torch', 'numpy', 'pandas', 'plotly', 'optuna', 'pydantic'}"
    code = f"import sys, scaling_search; sys.exit(bool({libraries} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert set(scaling_search.__all__) <= set(dir(scaling_search))


def test_tables_are_those_of_the_files(recorded: StudyResults, tmp_path: Path) -> None:
    runs = pd.read_csv(RECORDED / "results.csv")
    pd.testing.assert_frame_equal(recorded.runs, runs.fillna({"note": ""}), check_dtype=False)
    curves.write(tmp_path / "t.parquet", recorded.records, {})
    epochs = pd.read_parquet(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(recorded.epochs, epochs, check_dtype=False)
    networks = recorded.networks
    assert len(networks) == runs["network"].nunique()
    assert networks["network"].is_unique
    assert (networks["role"] == "baseline").sum() == 1
    assert "columns" not in networks, "all inputs are square"


def test_the_verdict_as_attributes_and_as_a_table(recorded: StudyResults) -> None:
    verdict = recorded.verdict
    assert verdict.pick.candidate.label == "10 blocks, width 1.087, 32 px"
    assert 0 < verdict.bound < 0.02
    table = recorded.table
    assert list(table["network"][: len(verdict.rows)]) == [r.candidate.key for r in verdict.rows]
    pick = table[table["role"] == "pick"]
    assert str(pick["difference"].item()) == "0.0"
    assert (table["role"] == "baseline").sum() == 1
    assert table["tied"].sum() == len(verdict.tied)
    assert (table["difference_low"] <= table["difference"]).all()
    assert (table["difference"] <= table["difference_high"]).all()
    means = table["expected_val_acc"] - pick["expected_val_acc"].iloc[0]
    assert np.allclose(means, table["difference"])


def test_a_run_folder_a_table_and_a_store_are_opened(
    recorded: StudyResults, tmp_path: Path
) -> None:
    table = scaling_search.open(str(RECORDED / "curves.parquet"))
    pd.testing.assert_frame_equal(table.runs, recorded.runs)
    folder = tmp_path / "run"
    with Store.create(folder, {}, recorded._source.facts()) as store:
        for record in recorded.records[:30]:
            assert record.outcome is not None
            number = store.start(record.candidate, record.seed, record.epochs)
            store.finish(number, record.outcome)
        opened = scaling_search.open(folder)  # while it is written
    assert len(opened.runs) == 30
    assert opened.study == recorded.study
    shutil.rmtree(folder)
    assert opened.verdict.rows, "nothing is read later"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere: no such folder; give a run folder"),
        ("nowhere.parquet", "no such file"),
        ("empty", "no study.db there"),
    ],
)
def test_what_is_no_study_is_one_line(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        scaling_search.open(tmp_path / name)


def test_several_budgets(two_budgets: StudyResults) -> None:
    assert list(two_budgets.verdicts) == ["1.5x", "2x"]
    with pytest.raises(UserError, match=r"several budgets, 1.5x, 2x: say which"):
        _ = two_budgets.verdict
    with pytest.raises(UserError, match="several budgets"):
        two_budgets.figure("map")
    with pytest.raises(UserError, match="figure front: of all budgets"):
        two_budgets.figure("front", "2x")
    with pytest.raises(UserError, match="no verdict for the budget 3x"):
        two_budgets.figure("map", "3x")
    assert set(two_budgets.table["budget"]) == {"1.5x", "2x"}
    assert (two_budgets.table["role"] == "pick").sum() == 2
    assert two_budgets.figure("differences", "1.5x") != two_budgets.figure("differences", "2x")
    assert two_budgets.figure("front").data
    assert "<h4>1.5x</h4>" in two_budgets._repr_html_()


def test_the_answer_in_words(recorded: StudyResults) -> None:
    assert "choose    10 blocks, 32 px, " in str(recorded)
    page = recorded._repr_html_()
    for sentence in recorded.sentences:
        assert html.escape(sentence.text) in page
    assert "<td>10 blocks, width 1.087, 32 px</td>" in page
    assert repr(recorded) == f"StudyResults(path={RECORDED!r})"


def test_names_are_escaped_in_a_notebook(recorded: StudyResults, tmp_path: Path) -> None:
    curves.write(
        tmp_path / "t.parquet",
        recorded.records,
        {**recorded._source.facts(), "dataset": EVIL},
    )
    page = scaling_search.open(tmp_path / "t.parquet")._repr_html_()
    assert html.escape(EVIL) in page
    assert "<script" not in page


def test_without_a_finished_network_there_is_no_verdict(tmp_path: Path) -> None:
    source = scaling_search.open(RECORDED)
    baseline = [r for r in source.records if r.candidate.role == "baseline"]
    curves.write(tmp_path / "t.parquet", baseline, source._source.facts())
    opened = scaling_search.open(tmp_path / "t.parquet")
    with pytest.raises(UserError, match="no verdict yet"):
        _ = opened.verdict
    assert opened.table.empty
    assert "none yet" in opened._repr_html_()
    with pytest.raises(UserError, match="no verdict yet"):
        opened.figure("map")
    assert opened.figure("curves").data


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_complete_on_their_own(name: str, recorded: StudyResults) -> None:
    """Points, texts and colours, none of which the page's script is needed for."""
    figure = recorded.figure(name)
    assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "#ffffff"
    assert figure.layout.font.color
    for trace in figure.data:
        assert trace.meta is None
        points = trace.a if trace.type == "scatterternary" else trace.x
        assert points is not None
        assert len(points) > 0
        if trace.hovertemplate and "%{text}" in trace.hovertemplate:
            assert len(trace.text) == len(points)


def test_the_front_is_drawn_along_its_points(recorded: StudyResults) -> None:
    (front,) = (t for t in recorded.figure("front").data if t.name.startswith("front"))
    assert list(front.x) == sorted(front.x)
    assert list(front.y) == sorted(front.y)
    best = recorded.table["expected_val_acc"].max()
    assert front.y[-1] == pytest.approx(100 * best)


def test_an_unknown_figure_is_one_line(recorded: StudyResults) -> None:
    with pytest.raises(UserError, match="figure fronts: known are front, map, differences, curves"):
        recorded.figure("fronts")
