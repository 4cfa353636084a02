import tomllib
from pathlib import Path

import pytest

from scaling_search import UserError
from scaling_search.study import PRESETS, Study, check, identity_hash, preset_path, read


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_round_trip(name: str) -> None:
    study = read(preset_path(name))
    assert check(tomllib.loads(study.to_toml()), "again") == study
    assert study.network().blocks >= 7


def test_overrides_reach_every_setting() -> None:
    study = read(
        preset_path("quick"),
        {"budgets": ["0.5x", "4x"], "recipe.lr": 0.01, "space.alpha_max": 1.5, "rungs": [1, 3], "baseline.blocks": 11},
    )
    assert study.recipe.lr == 0.01 and study.rungs == (1, 3) and study.network().blocks == 11
    assert [str(b) for b in study.parsed_budgets()] == ["0.5x", "4x"]


def test_identity_holds_what_determines_results() -> None:
    a = check({"recipe": {"lr": 0.01}, "data": {"source": "a"}}, "test")
    b = check({"recipe": {"lr": 0.01}, "data": {"source": "elsewhere"}}, "test")
    assert a.identity("digest") == b.identity("digest") == {"recipe.lr": 0.01, "data.digest": "digest", "schema": 1}
    assert identity_hash(a.identity("digest")) != identity_hash(a.identity("other"))
    # a default written out is no difference
    assert check({"seed": 0}, "test").identity("d") == Study().identity("d")
    assert identity_hash(check({"seed": 1}, "test").identity("d")) != identity_hash(Study().identity("d"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budgets": ["abc"]}, "budget 'abc': a budget is a ratio"),
        ({"budgets": []}, "budgets"),
        ({"budgets": ["2x", "2.0x"]}, "the same budget twice"),
        ({"space": {"alpha_max": 0.5}}, "space.alpha_max: should be greater than or equal to 1, not 0.5"),
        ({"space": {"alhpa_max": 2}}, "space.alhpa_max: no such setting"),
        ({"recipe": {"lr": -1.0}}, r"recipe.lr = -1.0: must be above 0"),
        ({"recipe": {"lr": "fast"}}, "recipe.lr: should be a valid number"),
        ({"recipe": {"learning": 1}}, "recipe.learning: no such setting"),
        ({"recipe": {"optimizer": "lion"}}, "recipe.optimizer: should be 'adamw' or 'sgd'"),
        ({"rungs": [4, 2]}, "rungs: whole numbers of epochs above 0 that increase"),
        ({"rungs": [0]}, "rungs"),
        ({"baseline": {"name": "resnet"}}, "unknown baseline 'resnet': known are b0"),
        ({"baseline": {"blocks": 3}}, "baseline.blocks: should be greater than or equal to 7"),
        ({"threads": 0}, "threads"),
        ({"recipe": {"batch": 1}}, "recipe.batch = 1: must be at least 2"),
        ({"colour": "red"}, "colour: no such setting"),
    ],
)
def test_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check(settings, "here")
    assert str(caught.value).startswith("here: ") and "\n" not in str(caught.value)


def test_file_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("rungs = [1,")
    with pytest.raises(UserError, match="bad.toml"):
        read(tmp_path / "bad.toml")
    (tmp_path / "s.toml").write_text("rungs = [1]")
    with pytest.raises(UserError, match="command line: rungs.x"):
        read(tmp_path / "s.toml", {"rungs.x": 1})
