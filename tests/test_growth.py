"""Finished studies that are asked for more runs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from scaling_search import UserError
from scaling_search.cli import main
from scaling_search.results.reader import StoreReader
from scaling_search.study.growth import Addition, grown
from scaling_search.study.plan import plan
from scaling_search.study.settings import Study, check
from tests.conftest import write_images
from tests.records import read_records


def test_what_there_is_more_of(study: Study) -> None:
    space = study.space.model_copy(update={"candidates": 4})
    recorded = study.model_copy(update={"space": space, "extra": 2, "rungs": (1,)})
    more = recorded.model_copy(update={"extra": 6, "rungs": (1, 3), "confirm": 1})
    all_networks = {"space": space.model_copy(update={"candidates": None})}
    assert grown(recorded, recorded, ()) == (check(recorded.settings(), "x"), (), ())
    goes_on, additions, kept = grown(more.model_copy(update=all_networks), recorded, ())
    assert kept == ()
    assert goes_on.extra == 6
    assert goes_on.space.candidates is None
    assert additions == (
        "extra: 2, now 6",
        "confirm: 0, now 1",
        "space.candidates: 4, now all networks",
        "rungs: 1, now 1,3",
    )


def test_less_stays_as_it_is_unless_it_was_asked_for(study: Study) -> None:
    recorded = study.model_copy(update={"extra": 6, "seeds": 3, "rungs": (1, 2)})
    goes_on, additions, kept = grown(study, recorded, ("recipe.lr",))
    assert kept == (
        "extra: 6, as the run folder has it, and not 2",
        "seeds: 3, as the run folder has it, and not 1",
        "rungs: 1,2, as the run folder has it, and not 1",
    )
    assert (goes_on.extra, goes_on.seeds, goes_on.rungs) == (6, 3, (1, 2))
    assert additions == ()
    with pytest.raises(UserError, match=r"--extra 2: the run folder holds 6, .* 6 or more"):
        grown(study, recorded, ("extra",))
    with pytest.raises(UserError, match=r"--epochs 3: .* holds 1,2, .* 1,2 and longer"):
        grown(study.model_copy(update={"rungs": (3,)}), recorded, ("rungs",))
    # other rungs are other runs, wherever they come from
    with pytest.raises(UserError, match=r"--epochs 3: .* holds 1,2, .* 1,2 and longer"):
        grown(study.model_copy(update={"rungs": (3,)}), recorded, ())


def test_networks_are_added_between_those_there_are(study: Study) -> None:
    few = study.model_copy(update={"space": study.space.model_copy(update={"candidates": 4})})
    more = study.model_copy(update={"space": study.space.model_copy(update={"candidates": 6})})
    before = plan(few, 10, 64).candidates
    kept = [candidate.key for candidate in before]
    after = plan(more, 10, 64, kept).candidates
    assert len(after) == 6
    assert {c.key: c.directions for c in before}.items() <= {
        c.key: c.directions for c in after
    }.items()
    assert [c.key for c in plan(more, 10, 64, [c.key for c in after]).candidates] == [
        c.key for c in after
    ]


def test_an_addition_is_stored_as_it_is() -> None:
    addition = Addition("2026-11-26 10:00", ("extra: 2, now 6",), (("abc", 0, 2), ("def", 1, 2)))
    assert Addition.from_dict(addition.as_dict()) == addition
    assert str(addition) == "2026-11-26 10:00, after 2 runs: extra: 2, now 6"


SMALL = """
extra = 1
rungs = [1]
references = []
device = "cpu"
[baseline]
blocks = 7
width = 0.1
divisor = 2
resolution = 12
[space]
candidates = 4
[data]
train_images = 64
val_images = 30
[recipe]
base = "proxy"
batch = 16
bn_images = 32
"""


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A study of seven trainings of a second each, on images of one's own."""
    for name in ("cat", "dog", "cow"):
        write_images(tmp_path / "pets" / name, 60)
    (tmp_path / "small.toml").write_text(SMALL)
    study, data = str(tmp_path / "small.toml"), str(tmp_path / "pets")
    return ["search", "--study", study, "--data", data, "--workers", "1"]


def test_a_finished_study_goes_on_with_more_of_everything(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    words += ["--out", str(folder)]

    def trained(*more: str, status: int = 0) -> pd.DataFrame:
        """What is in the folder once the study has gone on with `more`."""
        assert main([*words, *more]) == status
        return pd.read_csv(folder / "results.csv")

    first = trained()
    assert len(first) == 4 + 1 + 2  # the extra run's seed is the baseline's too
    capsys.readouterr()

    second = trained("--extra", "3", "--seeds", "2")
    said = capsys.readouterr().out
    assert "more      extra: 1, now 3" in said
    assert "more      seeds: 1, now 2" in said
    keys = ["network", "seed", "epochs"]
    pd.testing.assert_frame_equal(second.iloc[: len(first)][keys], first[keys])
    assert (second["seed"] >= 2).sum() >= 3
    assert second[second["seed"] == 1]["network"].nunique() == 5

    # the command that began it, and the one that added to it, find nothing left
    for again in ([], ["--extra", "3", "--seeds", "2"]):
        assert len(trained(*again)) == len(second)
        said = capsys.readouterr().out
        assert "left to train" in said
        assert ("kept      extra: 3, as the run folder has it, and not 1" in said) == (not again)

    third = trained("--extra", "3", "--seeds", "2", "--candidates", "5")
    assert third["network"].nunique() == 6
    assert trained("--candidates", "5", "--epochs", "1,2")["epochs"].max() == 2
    report = (folder / "report.html").read_text()
    assert "The study grew on " in report
    assert "space.candidates: 4, now 5" in report
    with StoreReader.open(folder) as reader:
        assert len(reader.fact("additions")) == 3
        assert reader.fact("settings")["rungs"] == [1, 2]
    capsys.readouterr()

    assert main([*words, "--candidates", "3"]) == 2
    assert "--candidates 3: the run folder holds 5, and a study only grows" in (
        capsys.readouterr().err
    )
    assert main([*words, "--extra", "9", "--lr", "0.01"]) == 2
    assert "belongs to a different study: recipe.lr" in capsys.readouterr().err
    assert all(record.outcome for record in read_records(folder))


def test_interrupted_while_it_grows_it_ends_the_same(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = []
    for name in ("whole", "stopped"):
        folder = tmp_path / name
        command = [*words, "--out", str(folder)]
        assert main(command) == 0
        if name == "stopped":
            with monkeypatch.context() as patch:
                patch.setattr("scaling_search.driver.search.Search._train_extra", _interrupt)
                assert main([*command, "--seeds", "2", "--extra", "4"]) == 130
        assert main([*command, "--seeds", "2", "--extra", "4"]) == 0
        table = pd.read_csv(folder / "results.csv")
        tables.append(table.drop(columns=["seconds", "images_per_s", "peak_memory", "note"]))
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)


def _interrupt(*args: object) -> None:
    raise KeyboardInterrupt


def test_a_study_of_rungs_that_grows_promotes_the_networks_of_before(
    words: list[str], tmp_path: Path
) -> None:
    """More extra runs change what the model thinks of the short ones, and not who went on."""
    folder = tmp_path / "run"
    words += ["--out", str(folder), "--allocation", "rungs", "--epochs", "1,2"]

    def long_runs(seed: int, *more: str) -> set[str]:
        assert main([*words, *more]) == 0
        table = pd.read_csv(folder / "results.csv")
        long = table[(table["epochs"] == 2) & (table["seed"] == seed)]
        return set(long["network"])

    long_runs(0, "--extra", "0")
    table = pd.read_csv(folder / "results.csv")
    first = set(table[(table["epochs"] == 2) & (table["seed"] == 0)]["network"])
    assert len(first) == 3, "half of four, and the baseline"
    assert long_runs(1, "--extra", "0", "--seeds", "2") == first
