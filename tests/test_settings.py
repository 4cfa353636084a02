import dataclasses
import tomllib
from pathlib import Path

import pytest

from scaling_search import UserError
from scaling_search.study.settings import (
    PRESETS,
    Study,
    check,
    differences,
    identity_hash,
    preset_path,
    read,
)
from scaling_search.training.recipe import RECIPES


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_round_trip(name: str) -> None:
    study = read(preset_path(name))
    assert check(tomllib.loads(study.to_toml()), "again") == study
    assert study.network().blocks >= 6


def test_overrides_reach_every_setting() -> None:
    study = read(
        preset_path("quick"),
        {
            "budgets": ["0.5x", "4x"],
            "recipe.lr": 0.01,
            "space.alpha_max": 1.5,
            "rungs": [1, 3],
            "baseline.blocks": 11,
        },
    )
    assert study.recipe.lr == 0.01
    assert study.rungs == (1, 3)
    assert study.network().blocks == 11
    assert [str(b) for b in study.budgets] == ["0.5x", "4x"]


def test_another_network_than_the_presets_is_thinned_as_the_preset_says() -> None:
    own = read(preset_path("quick"))
    assert (own.baseline.name, own.baseline.width, own.network().blocks) == ("v2-s4", 0.625, 6)
    assert read(preset_path("quick"), {"baseline.name": "v2-s4"}) == own
    named = read(preset_path("quick"), {"baseline.name": "mobilenetv2", "baseline.width": 0.3})
    spec = named.baseline
    assert (spec.blocks, spec.width, spec.divisor, spec.resolution) == (8, 0.3, 2, 20)


def test_recipes_by_name(tmp_path: Path) -> None:
    """A name, or a table that starts from one; what was read says everything."""
    assert check({"recipe": "paper"}, "x").recipe == RECIPES["paper"]
    own = check({"recipe": {"base": "paper", "lr": 0.5}}, "x")
    assert own.recipe == dataclasses.replace(RECIPES["paper"], lr=0.5)
    faster = dataclasses.replace(RECIPES["proxy"], lr=0.5)
    assert check({"recipe": {"lr": 0.5}}, "x").recipe == faster
    assert check(tomllib.loads(own.to_toml()), "x") == own
    file = tmp_path / "s.toml"
    file.write_text('recipe = "paper"\n')
    smaller = dataclasses.replace(RECIPES["paper"], batch=64)
    assert read(file, {"recipe.batch": 64}).recipe == smaller
    file.write_text("[recipe]\nlr = 0.5\n")
    another = read(file, {"recipe.base": "paper"})
    assert another.recipe == RECIPES["paper"], "the file's numbers are not put over it"
    assert read(preset_path("paper")).recipe.optimizer == "rmsprop"
    # which recipe it came from is not in a study's identity, its numbers are
    assert own.identity("d") == check({"recipe": dataclasses.asdict(own.recipe)}, "x").identity("d")


def test_identity_holds_what_determines_results() -> None:
    a = check({"recipe": {"lr": 0.01}, "data": {"source": "a"}}, "test")
    b = check({"recipe": {"lr": 0.01}, "data": {"source": "elsewhere"}}, "test")
    assert a.identity("digest") == {"recipe.lr": 0.01, "data.digest": "digest", "schema": 1}
    assert b.identity("digest") == a.identity("digest")
    assert identity_hash(a.identity("digest")) != identity_hash(a.identity("other"))
    # a default written out is no difference
    default = Study().identity("d")
    assert check({"seed": 0, "extra_batch": 4}, "test").identity("d") == default
    for changes in ({"seed": 1}, {"extra_batch": 8}):
        changed = check(changes, "test").identity("d")
        assert identity_hash(changed) != identity_hash(default)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budgets": ["abc"]}, "budget 'abc': a budget is a ratio"),
        ({"budgets": []}, "budgets"),
        ({"budgets": ["2x", "2.0x"]}, "the same budget twice"),
        (
            {"space": {"alpha_max": 0.5}},
            "space.alpha_max: should be greater than or equal to 1, not 0.5",
        ),
        ({"space": {"alhpa_max": 2}}, "space.alhpa_max: no such setting"),
        ({"recipe": {"lr": -1.0}}, r"recipe.lr = -1.0: must be above 0"),
        ({"recipe": {"lr": "fast"}}, "recipe.lr: should be a valid number"),
        ({"recipe": {"learning": 1}}, "recipe.learning: no such setting"),
        (
            {"recipe": {"optimizer": "lion"}},
            "recipe.optimizer: should be 'adamw', 'sgd' or 'rmsprop'",
        ),
        ({"rungs": [4, 2]}, "rungs: whole numbers of epochs from 1 to 100,000 that increase"),
        ({"rungs": [0]}, "rungs"),
        ({"rungs": [1e9]}, "rungs: whole numbers of epochs from 1 to 100,000"),
        ({"rungs": [True]}, "rungs: must not be true"),
        ({"recipe": {"lr": True}}, "recipe.lr: must not be true"),
        ({"space": {"tolerance": True}}, "space.tolerance: should be less than 0.5"),
        ({"extra": False}, "extra: must not be false"),
        ({"baseline": {"blocks": 100_000}}, "baseline.blocks: should be less than or equal to"),
        ({"data": {"channels": 17}}, "data.channels: should be less than or equal to 16"),
        ({"baseline": {"name": "resnet"}}, "unknown baseline 'resnet': did you mean resnet50"),
        ({"baseline": {"blocks": 3}}, "3 blocks: at least one for each of the 7 stages"),
        (
            {"budgets": ["5M params"], "space": {"mode": "nominal"}},
            "budget 5M params: the paper's nominal lattice is of multiply-adds",
        ),
        ({"budgets": ["2x", "2x params"]}, "budgets: 2x, 2x params are of different measures"),
        ({"equal": "training"}, "equal: training takes data.epoch_images"),
        (
            {"equal": "training", "data": {"epoch_images": 64}},
            "equal: networks of equal multiply-adds cost the same to train",
        ),
        ({"baseline": {"function": "0"}}, "baseline.function goes with a function"),
        ({"equal": "cost"}, "equal: should be 'images' or 'training'"),
        (
            {
                "baseline": {"name": "net.py:build", "function": "0", "resolution": 12},
                "budgets": ["8GiB@64"],
            },
            "budget 8GiB@64/fp32: the memory of a function's networks is too rough",
        ),
        ({"baseline": {"definition": {"resolution": 32}}}, "b0-s4: name is missing"),
        ({"threads": 0}, "threads"),
        ({"recipe": "fast"}, "recipe: recipe 'fast': known are proxy, paper"),
        ({"recipe": {"base": 3}}, "recipe: recipe 3: known are"),
        ({"recipe": {"cutout": 1.0}}, "recipe.cutout = 1.0: must be from 0 to below 1"),
        ({"recipe": {"ema": -0.1}}, "recipe.ema = -0.1"),
        ({"deadline": 0}, "deadline: should be greater than 0"),
        ({"recipe": {"batch": 1}}, "recipe.batch = 1: must be at least 2"),
        ({"colour": "red"}, "colour: no such setting"),
    ],
)
def test_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check(settings, "here")
    assert str(caught.value).startswith("here: ")
    assert "\n" not in str(caught.value)


def test_file_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("rungs = [1,")
    with pytest.raises(UserError, match="bad.toml"):
        read(tmp_path / "bad.toml")
    (tmp_path / "s.toml").write_text("rungs = [1]")
    with pytest.raises(UserError, match="command line: rungs.x"):
        read(tmp_path / "s.toml", {"rungs.x": 1})


def test_how_a_study_of_grey_images_of_before_goes_on_is_said() -> None:
    """They were trained with three channels."""
    wanted = check({"data": {"channels": 1}}, "here").identity("digest")
    recorded = {name: value for name, value in wanted.items() if name != "data.channels"}
    assert differences(recorded, wanted) == ["data.channels is 3 (--channels 3) there, 1 here"]
    again = check({"data": {"channels": 3}}, "here").identity("digest")
    assert again == recorded


def test_a_file_that_begins_with_a_mark(tmp_path: Path) -> None:
    """As editors of Windows write UTF-8."""
    (tmp_path / "s.toml").write_text("rungs = [3]", encoding="utf-8-sig")
    assert read(tmp_path / "s.toml").rungs == (3,)


OWN = """
resolution = 16
divisor = 4
width = 0.5
stem_width = 16
stem_stride = 1
head_width = 64
stages = [
    { operator = "mbconv", expand = 1, kernel = 3, stride = 2, width = 16, repeats = 2 },
    { operator = "fused", expand = 2, kernel = 3, stride = 2, width = 32, repeats = 3 },
]
"""


def test_a_baseline_of_ones_own_becomes_part_of_the_study(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(OWN)
    mine = {"baseline.name": str(tmp_path / "mine.toml"), "baseline.blocks": 5}
    study = read(preset_path("quick"), mine)
    base = study.network()
    assert (study.baseline.name, base.blocks, base.divisor, base.width, base.rounding) == (
        "mine", 5, 4, 0.5, "spread"
    )  # fmt: skip
    assert [s.operator for s in base.stages] == ["mbconv", "fused"]
    # written out and read back without the file: the same study
    (tmp_path / "mine.toml").unlink()
    (tmp_path / "study.toml").write_text(study.to_toml())
    again = read(tmp_path / "study.toml")
    assert again == study
    assert again.network() == base
    assert again.identity("x") == study.identity("x")
    # spelled otherwise, it is the same study; with another kernel, another
    (tmp_path / "mine.toml").write_text(OWN + "stem_kernel = 3\n")
    spelled = read(preset_path("quick"), mine)
    assert spelled.identity("x") == study.identity("x")
    (tmp_path / "mine.toml").write_text(OWN + "stem_kernel = 5\n")
    other = read(preset_path("quick"), mine)
    assert other.identity("x") != study.identity("x")
    # another baseline given on the command line replaces it
    named = read(tmp_path / "study.toml", {"baseline.name": "b0-s4", "baseline.blocks": 8})
    assert named.baseline.definition is None
    second_row = "kernel = {}, stride = 2, width = 32"
    broken = OWN.replace(second_row.format(3), second_row.format(2))
    (tmp_path / "mine.toml").write_text(broken)
    with pytest.raises(UserError, match="mine.toml: stage 2: kernel = 2: must be odd"):
        read(preset_path("quick"), {"baseline.name": str(tmp_path / "mine.toml")})


@pytest.mark.parametrize("name", ["mobilenetv2", "resnet50", "v2-s", "lite", "mobilenetv1"])
def test_any_family_can_be_searched(name: str) -> None:
    from scaling_search.study.plan import plan

    study = check(
        {
            "baseline": {"name": name, "width": 0.25, "resolution": 64},
            "space": {"candidates": 8},
            "device": "cpu",
        },
        "test",
    )
    todo = plan(study, 10, 160)
    assert len(todo.candidates) >= 8
    assert all(abs(c.ratio - 2) <= 0.04 for c in todo.candidates)


@pytest.mark.parametrize("others", ["others = 5", "[baseline.others]\nblockz = 8"])
def test_others_that_are_no_table_of_a_baseline_are_refused(others: str, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(f'[baseline]\nname = "b0-s4"\n{others}\n')
    with pytest.raises(UserError, match=r"baseline.others: a table of name, .* blocks"):
        read(path)
