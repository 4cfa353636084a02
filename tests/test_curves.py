"""Tables of curves: a study replayed from one gives what training gave; a truth of one's own is
found."""

import json
import shutil
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scaling_search import UserError, session
from scaling_search.cli import main
from scaling_search.data.dataset import Facts
from scaling_search.report import answer
from scaling_search.results import curves
from scaling_search.results.reading import open_results
from scaling_search.results.record import Record
from scaling_search.results.store import Store
from scaling_search.results.tables import csv_text
from scaling_search.study.plan import plan
from scaling_search.study.settings import Study, check
from scaling_search.training.trial import Epoch, Outcome
from scaling_search.verdict.verdict import FRESH, verdicts
from tests.replays import OWN, RECORDED, replay, synthetic


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "curves.parquet"
    synthetic(path, OWN, range(8))
    return path


def test_round_trip(tmp_path: Path, table: Path) -> None:
    """Every record and fact comes back as it went, failed runs too."""
    source = curves.read(table)
    failed = Record(
        0, source.records()[0].candidate, 99, 1, Outcome("diverged", note="loss not finite")
    )
    epochs = (Epoch(1, 2.0, 1.9, 0.3, 0.1, losses=(2.1, 1.9)), Epoch(2, 1.8, 1.7, 0.4, 0.1))
    detailed = Record(0, failed.candidate, 98, 2, Outcome("done", epochs))
    records = [*source.records(), failed, detailed]
    rows = curves.write(tmp_path / "again.parquet", records, source.facts())
    back = curves.read(tmp_path / "again.parquet")
    assert rows == sum(len(r.outcome.epochs) or 1 for r in records if r.outcome)
    assert [replace(r, number=0) for r in back.records()] == [replace(r, number=0) for r in records]
    assert back.facts() == source.facts()


def test_a_table_reads_well_with_pandas(tmp_path: Path, table: Path) -> None:
    """One meaning a name, and no column of JSON or hex."""
    source = curves.read(table)
    (first, *_) = (r for r in source.records() if r.epochs == 2)
    failed = Record(0, first.candidate, 99, 1, Outcome("diverged", note="loss not finite"))
    detailed = replace(first, seed=98)
    assert detailed.outcome is not None
    epochs = tuple(replace(epoch, losses=(2.0, 1.0)) for epoch in detailed.outcome.epochs)
    detailed = replace(detailed, outcome=replace(detailed.outcome, epochs=epochs))
    curves.write(tmp_path / "t.parquet", [first, failed, detailed], source.facts())
    frame = pd.read_parquet(tmp_path / "t.parquet")
    assert list(frame["epoch"].dropna()) == [1, 2, 1, 2]
    assert first.outcome is not None
    assert list(frame["val_acc"].dropna()[:2]) == [e.val_acc for e in first.outcome.epochs]
    assert "epoch_val_acc" not in frame
    assert list(frame["status"].unique()) == ["done", "diverged"]
    assert {"network", "seed", "epochs", "share_width", "macs", "role", "budget"} <= set(frame)
    shown = frame.iloc[:, [*range(10), *range(-10, 0)]]  # by head() in a notebook
    assert not any(isinstance(cell, (list, tuple)) for cell in shown.to_numpy().ravel())
    texts = frame.select_dtypes(["object", "str"]).drop(columns="losses").to_numpy().ravel()
    assert max(len(text) for text in texts if isinstance(text, str)) <= len("loss not finite")


def test_the_weight_of_a_balanced_accuracy_is_kept(tmp_path: Path, table: Path) -> None:
    """And no column of it where accuracies count images alike."""
    recorded = curves.read(table)
    assert "effective_images" not in pq.read_schema(table).names
    records = []
    for record in recorded.records():
        assert record.outcome is not None
        records.append(replace(record, outcome=replace(record.outcome, effective_images=41)))
    curves.write(tmp_path / "balanced.parquet", records, recorded.facts())
    again = curves.read(tmp_path / "balanced.parquet").records()
    assert {r.outcome.effective_images for r in again if r.outcome} == {41}


def test_recorded_tables_of_the_older_form_are_read(tmp_path: Path) -> None:
    """Nothing of them is lost in the newer form, which is written the same each time."""
    for name in ("curves.parquet", "heldout.parquet"):
        source = curves.read(RECORDED / name)
        assert "epoch_val_acc" in pq.read_schema(RECORDED / name).names
        for target in ("again.parquet", "once-more.parquet"):
            curves.write(tmp_path / target, source.records(), source.facts())
            source = curves.read(tmp_path / target)
        recorded = pd.read_parquet(RECORDED / name)
        frame = pd.read_parquet(tmp_path / "again.parquet")
        assert frame["val_acc"].equals(recorded["epoch_val_acc"])
        for column in set(frame) & set(recorded) - {"val_acc", "val_loss"}:
            pd.testing.assert_series_equal(frame[column], recorded[column], check_dtype=False)
        first = source.records()[0]
        assert first.outcome is not None
        assert first.outcome.right == recorded["right"][0]
        assert first.outcome.versions == json.loads(recorded["versions"][0])
        assert first.candidate.as_dict() == json.loads(recorded["candidate"][0])
        again, once_more = (tmp_path / n for n in ("again.parquet", "once-more.parquet"))
        assert again.read_bytes() == once_more.read_bytes()
    text = csv_text(curves.read(RECORDED / "curves.parquet").records())
    assert text.encode() == (RECORDED / "results.csv").read_bytes()


def test_the_truth_of_a_synthetic_table_is_found(tmp_path: Path) -> None:
    truth = synthetic(tmp_path / "t.parquet", OWN, range(8), noise=0.002, seed=3)
    assert replay(check(OWN, "test"), tmp_path / "t.parquet", tmp_path / "run") == 0
    with open_results(tmp_path / "run") as results:
        (v,) = verdicts(results.records(), Study.model_validate(results.fact("settings")))
    best = max((r.candidate.key for r in v.rows), key=lambda key: truth[key])
    assert best in {r.candidate.key for r in v.tied}
    assert truth[best] - truth[v.pick.candidate.key] <= v.bound
    results = pd.read_csv(tmp_path / "run" / "results.csv")
    assert not results.duplicated(["network", "seed", "epochs"]).any()
    assert (results["seed"] >= FRESH).sum() == 2 * len({r.candidate.key for r in v.finalists})


def test_a_replay_ends_where_its_table_does(tmp_path: Path) -> None:
    """Extra runs are asked for only where the table has them."""
    synthetic(tmp_path / "t.parquet", OWN, range(3))
    more = check({**OWN, "extra": 100}, "test")
    assert replay(more, tmp_path / "t.parquet", tmp_path / "run") == 0
    results = pd.read_csv(tmp_path / "run" / "results.csv")
    assert results.loc[results["seed"] < FRESH, "seed"].max() == 2
    assert len(results[(results["seed"] == 2) & (results["epochs"] == 2)]) >= len(
        plan(more, 10, 64).candidates
    )


@pytest.mark.parametrize(
    "change", [{"allocation": "rungs"}, {"space": {"candidates": 9, "sampler": "tpe"}}]
)
def test_other_ways_of_spending(change: dict, tmp_path: Path) -> None:
    settings = {**OWN, **change}
    synthetic(tmp_path / "t.parquet", {**settings, "space": {"candidates": 99}}, range(8))
    assert replay(check(settings, "test"), tmp_path / "t.parquet", tmp_path / "run") == 0
    results = pd.read_csv(tmp_path / "run" / "results.csv")
    assert not results.duplicated(["network", "seed", "epochs"]).any()
    assert (results["status"] == "done").all()
    low = results[(results["epochs"] == 1) & (results["seed"] == 0)]
    high = results[(results["epochs"] == 2) & (results["seed"] == 0)]
    assert len(high) < len(low) if "allocation" in change else len(high) >= len(low)


def test_a_study_replays_from_its_own_export(tmp_path: Path) -> None:
    """TPE proposed only some of the pool; what it never trained is not asked for. Data were given
    as a path."""
    settings = {**OWN, "space": {"candidates": 5, "sampler": "tpe"}}
    synthetic(tmp_path / "t.parquet", {**settings, "space": {"candidates": 99}}, range(8))
    assert replay(check(settings, "test"), tmp_path / "t.parquet", tmp_path / "run") == 0
    answer.export(tmp_path / "run", tmp_path / "own.parquet")
    moved = check(
        {**settings, "data": {**settings["data"], "source": "/somewhere/else/shapes"}}, "test"
    )
    assert replay(moved, tmp_path / "own.parquet", tmp_path / "again") == 0
    tables = [pd.read_csv(tmp_path / name / "results.csv") for name in ("run", "again")]
    # extra runs come from what the table has, which is fewer seeds now
    first, second = (t[t["seed"] < 2].reset_index(drop=True) for t in tables)
    pd.testing.assert_frame_equal(first, second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"rungs": "many"}}, "t.parquet: rungs: "),
        ({"settings": {"rung": [1]}}, "t.parquet: rung: no such setting"),
        ({"data facts": {"name": "shapes", "colour": 3}}, "not a table of curves .TypeError"),
    ],
)
def test_facts_of_another_release_are_one_line(change: dict, message: str, tmp_path: Path) -> None:
    source, table = curves.read(RECORDED / "curves.parquet"), tmp_path / "t.parquet"
    curves.write(table, source.records()[:3], {**source.facts(), **change})
    with pytest.raises(UserError, match=message):
        replay(check(OWN, "test"), table, tmp_path / "run")


def test_a_table_that_lacks_a_fact_is_one_line(tmp_path: Path) -> None:
    source, table = curves.read(RECORDED / "curves.parquet"), tmp_path / "t.parquet"
    for name in ("settings", "data facts"):
        facts = source.facts()
        del facts[name]
        curves.write(table, source.records()[:3], facts)
        with pytest.raises(UserError, match=f"not a table of curves .KeyError: '{name}'"):
            replay(check(OWN, "test"), table, tmp_path / "run")


def test_rungs_that_the_table_lacks_are_one_line(tmp_path: Path) -> None:
    settings = {**OWN, "allocation": "rungs", "seeds": 1}
    synthetic(tmp_path / "t.parquet", settings, range(2))
    for more, lacks in (
        (
            {"seeds": 4},
            r"lacks \d+ runs that the study asks for, the first of .+, seed \d+, 1 epoch: ",
        ),
        (
            {"rungs": [1, 2, 4]},
            r"lacks \d+ runs that the study asks for, the first of .+, seed \d+, 4 epochs: ",
        ),
    ):
        with pytest.raises(UserError, match=lacks):
            replay(
                check({**settings, **more}, "test"),
                tmp_path / "t.parquet",
                tmp_path / f"run{len(more)}",
            )


def test_recorded_study_gives_its_verdict_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """studies/imagenette-24px-2x: the record alone, and replayed, name the network of the
    README."""
    for name in ("curves.parquet", "study.toml"):
        (tmp_path / name).write_bytes((RECORDED / name).read_bytes())
    assert main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert (tmp_path / "results.csv").read_bytes() == (RECORDED / "results.csv").read_bytes()
    assert "choose    10 blocks, 32 px, " in said
    report = (tmp_path / "report.html").read_text()
    sees = "which sees accuracies and, of runs of full length, validation loss and training loss"
    assert sees in report
    assert "confirm   on the test split, over fresh seeds" in said
    assert "11 blocks, width 1.03, 32 px: test 57.3% over 5 seeds" in said
    assert (tmp_path / "report.html").stat().st_size > 1_000_000
    # of another user's folder, say: to another file, and nothing into the folder
    kept = sorted(path.name for path in tmp_path.iterdir())
    elsewhere = tmp_path.parent / f"{tmp_path.name}.html"
    assert main(["report", str(tmp_path), "--to", str(elsewhere)]) == 0
    elsewhere_said = capsys.readouterr().out
    assert elsewhere_said.replace(str(elsewhere), str(tmp_path / "report.html")) == said
    assert elsewhere.read_bytes() == (tmp_path / "report.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    words = [
        "search",
        "--study",
        str(RECORDED / "study.toml"),
        "--replay",
        str(tmp_path / "curves.parquet"),
    ]
    assert main([*words, "--out", str(tmp_path / "again")]) == 0
    again = capsys.readouterr().out
    answers = [text[text.index("choose ") : text.index("\nuse ")] for text in (said, again)]
    assert answers[0] == answers[1]


def refused(
    table: Path, words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> str:
    toml = tmp_path / "study.toml"
    toml.write_text(check(OWN, "test").to_toml())
    assert (
        main(
            [
                "search",
                "--study",
                str(toml),
                "--replay",
                str(table),
                "--out",
                str(tmp_path / "run"),
                *words,
            ]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()
    return error


def test_wrong_tables(table: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    frame = pq.read_table(table)
    meta = frame.schema.metadata
    first = plan(check(OWN, "test"), 10, 64).candidates[0]
    lacking = frame.filter(
        pa.compute.not_equal(frame["network"], first.key)
    ).replace_schema_metadata(meta)
    pq.write_table(lacking, tmp_path / "lacking.parquet")
    error = refused(tmp_path / "lacking.parquet", [], capsys, tmp_path)
    assert "lacks 1 of the study's 9 networks" in error
    assert first.label in error
    assert "lacks 9 of the study's 9 networks" in refused(
        table, ["--seeds", "20"], capsys, tmp_path
    )
    error = refused(table, ["--lr", "0.5"], capsys, tmp_path)
    assert "trained otherwise: recipe.lr is" in error
    assert "0.5 here" in error
    assert "its runs are of shapes, the study's data are cifar10" in refused(
        table, ["--data", "cifar10"], capsys, tmp_path
    )
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "other.parquet")
    assert "not a table of curves" in refused(tmp_path / "other.parquet", [], capsys, tmp_path)
    assert "no such file" in refused(tmp_path / "absent.parquet", [], capsys, tmp_path)
    (tmp_path / "text.parquet").write_text("nothing of the kind")
    assert "not a table of curves" in refused(tmp_path / "text.parquet", [], capsys, tmp_path)


def test_tables_put_together_are_refused(
    table: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The same rows twice, and the same runs under other numbers."""
    rows = pq.read_table(table)
    pq.write_table(pa.concat_tables([rows, rows.slice(0, 2)]), tmp_path / "rows.parquet")
    error = refused(tmp_path / "rows.parquet", [], capsys, tmp_path)
    assert "2 rows are of an epoch that another row has" in error
    column = rows.schema.get_field_index("run")
    renumbered = pa.compute.add(rows["run"], 1000)
    others = rows.set_column(column, rows.schema.field("run"), renumbered)
    pq.write_table(pa.concat_tables([rows, others]), tmp_path / "runs.parquet")
    assert "is there twice" in refused(tmp_path / "runs.parquet", [], capsys, tmp_path)


def test_export_says_nothing_of_this_machine(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = curves.read(table)
    facts = source.facts()
    facts["settings"]["data"]["source"] = "/home/me/shapes"
    facts["command"] = "python run_search.py --data /home/me/shapes"
    (tmp_path / "run").mkdir()
    curves.write(tmp_path / "run" / "curves.parquet", source.records(), facts)
    assert main(["export", str(tmp_path / "run"), "--to", str(tmp_path / "out.parquet")]) == 0
    assert "epochs" in capsys.readouterr().out
    meta = pq.read_schema(tmp_path / "out.parquet").metadata
    assert b"/home/me" not in meta[b"scaling-search"]
    assert b"/home/me" not in zlib.decompress(meta[b"scaling-search runs"])
    assert main(["export", str(tmp_path / "nowhere"), "--to", str(tmp_path / "out.parquet")]) == 2
    assert "no such run folder" in capsys.readouterr().err


def test_a_folder_of_trained_runs_takes_no_replay(table: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "study.db").write_bytes(b"")
    with pytest.raises(UserError, match="holds trained runs, not to be mixed with replayed ones"):
        replay(check(OWN, "test"), table, tmp_path / "run")


def test_the_table_of_a_recorded_study_is_not_written_over(table: Path, tmp_path: Path) -> None:
    """By a replay of it, nor by a study that is trained in its folder; a replay's own is."""
    folder = tmp_path / "recorded"
    folder.mkdir()
    shutil.copy(table, folder / "curves.parquet")
    with pytest.raises(UserError, match="table of a recorded study, which a replay would write"):
        replay(check({**OWN, "seeds": 1}, "test"), folder / "curves.parquet", folder)
    with pytest.raises(UserError, match="no database of runs; .* go on with --known"):
        session._check_folder(folder, None, session.Place())
    session._check_folder(folder, None, session.Place(store="postgresql://server/db"))
    (folder / "store").write_text("postgresql://server/db\n")
    with pytest.raises(UserError, match="holds trained runs, not to be mixed"):
        session._check_folder(folder, curves.read(table), session.Place())
    assert (folder / "curves.parquet").read_bytes() == table.read_bytes()
    for seeds in (2, 1):
        assert replay(check({**OWN, "seeds": seeds}, "test"), table, tmp_path / "run") == 0


# ---- runs that are known


def taken(table: Path, settings: dict[str, Any]) -> list[Record]:
    study = check({**settings, "device": "cpu"}, "test")
    facts = replace(curves.read(table).data, folder="")
    return session._runs_of_study(curves.read(table), study, facts, plan(study, 10, 64))


def test_known_runs_are_of_the_networks_of_the_study(table: Path) -> None:
    """With the budget that the study knows them by, whatever they were trained for."""
    recorded = curves.read(table)
    (target,) = recorded.fact("targets").values()
    as_absolute = {**OWN, "budgets": [f"{target / 1e6:.6f}M"]}
    runs = taken(table, as_absolute)
    study = check({**as_absolute, "device": "cpu"}, "test")
    networks = {c.key: c for c in plan(study, 10, 64).everything}
    assert {run.candidate.key for run in runs} == networks.keys()
    assert all(run.candidate == networks[run.candidate.key] for run in runs)
    assert {str(r.candidate.budget) for r in runs if r.candidate.role == "candidate"} == {
        str(study.budgets[0])
    }
    # of a longer table the rungs of the study
    assert {run.epochs for run in taken(table, {**OWN, "rungs": [1]})} == {1}


def test_runs_that_are_not_the_studys(table: Path) -> None:
    wider = {**OWN, "baseline": {**OWN["baseline"], "width": 0.31}}
    with pytest.raises(UserError, match="none of its .* runs is of a network of this study"):
        taken(table, wider)
    data = {**OWN["data"], "epoch_images": 96}
    by_cost = {**OWN, "data": data, "budgets": ["2x params"], "equal": "training"}
    with pytest.raises(UserError, match="trained otherwise: .*equal"):
        curves.check_known(curves.read(table), check(by_cost, "test"), "digest")


def test_taking_known_runs_goes_on_where_it_was_interrupted(table: Path, tmp_path: Path) -> None:
    runs = taken(table, OWN)
    runs = [replace(r, outcome=replace(r.outcome, versions={"kernels": "a"})) for r in runs]
    with Store.create(tmp_path / "run", {"study": "test"}, {}) as store:
        session._take(store, runs[:3])
        # interrupted between the run's beginning and its end
        store.start(runs[3].candidate, runs[3].seed, runs[3].epochs)
    with Store.create(tmp_path / "run", {"study": "test"}, {}) as store:
        assert store.fact("kernels") == "a"
        session._take(store, runs)
        assert {r.key for r in store.records() if r.outcome} == {r.key for r in runs}
        assert len(store.records()) == len(runs)
    study = check({**OWN, "device": "cpu"}, "test")
    recorded = session._Recorded(study, (), kernels="b")
    session._check_kernels(curves.read(table), runs, None)
    with pytest.raises(UserError, match=r"with several kernels \(a, b\)"):
        session._check_kernels(curves.read(table), runs, recorded)


def test_facts_are_plain() -> None:
    assert Facts(**json.loads(json.dumps(asdict(Facts("a", "b", "", 10, 28, "line"))))).native == 28


def test_a_table_without_losses_is_judged_by_its_accuracies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without their columns, and with columns that are empty."""
    frame = pq.read_table(RECORDED / "curves.parquet")
    names = ["train_loss", "epoch_val_loss"]
    empty = frame
    for name in names:
        empty = empty.set_column(
            empty.column_names.index(name), name, pa.nulls(len(frame), pa.float64())
        )
    for i, table in enumerate((frame.drop_columns(names), empty)):
        folder = tmp_path / str(i)
        folder.mkdir()
        pq.write_table(table, folder / "curves.parquet")
        assert main(["report", str(folder)]) == 0
        report = (folder / "report.html").read_text()
        assert "which sees accuracies alone, since no losses are on record" in report
