import dataclasses
import json
import tomllib
from pathlib import Path

import pytest
import tomli_w

import effnet
from effnet.definition import baseline_settings, baseline_table, parse_baseline, read_baseline
from effnet.families import BASELINES
from effnet.solve import fit
from scaling_search.study.settings import check

B0 = """
name = "mine"
resolution = 224
dropout_percent = 20
stem_width = 32
stem_stride = 2
head_width = 1280
stages = [
    { operator = "mbconv", expand = 1, kernel = 3, stride = 1, width = 16, repeats = 1 },
    { operator = "mbconv", expand = 6, kernel = 3, stride = 2, width = 24, repeats = 2 },
    { operator = "mbconv", expand = 6, kernel = 5, stride = 2, width = 40, repeats = 2 },
    { operator = "mbconv", expand = 6, kernel = 3, stride = 2, width = 80, repeats = 3 },
{ operator = "mbconv", expand = 6, kernel=5, stride=1, width = 112, repeats = 3, se_percent = 25 },
    { operator = "mbconv", expand = 6, kernel = 5, stride = 2, width = 192, repeats = 4 },
    { operator = "mbconv", expand = 6, kernel = 3, stride = 1, width = 320, repeats = 1 },
]
"""
RESNET = """
resolution = 224
rounding = "nearest"
activation = "relu"
stem_width = 64
stem_kernel = 7
stem_stride = 2
stem_pool = 2
head_width = 0
dropout_percent = 0
stages = [
    { operator = "bottleneck", expand = 4, kernel = 3, stride = 1, width = 256, repeats = 3 },
    { operator = "bottleneck", expand = 4, kernel = 3, stride = 2, width = 512, repeats = 4 },
    { operator = "bottleneck", expand = 4, kernel = 3, stride = 2, width = 1024, repeats = 6 },
    { operator = "bottleneck", expand = 4, kernel = 3, stride = 2, width = 2048, repeats = 3 },
]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "net.toml"
    path.write_text(text)
    return path


def test_the_published_tables_can_be_written_down(tmp_path: Path) -> None:
    path = written(tmp_path, B0)
    assert read_baseline(path).stages == BASELINES["b0"].stages
    assert effnet.arch(str(path)) == effnet.arch("b0")
    assert effnet.arch(str(path)).name == "mine"
    assert effnet.arch(str(path), width=1.1, depth=1.2, resolution=260) == effnet.arch(
        "b0", width=1.1, depth=1.2, resolution=260
    )
    path = written(tmp_path, RESNET)
    assert effnet.arch(str(path)) == effnet.arch("resnet50")
    assert read_baseline(path).name == "net"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "kernel = 5, stride = 2, width = 40",
            "kernel = 4, stride = 2, width = 40",
            "stage 3: kernel = 4: must be odd",
        ),
        (
            "repeats = 3, se",
            "repeats = 0, se",
            "stage 5: repeats = 0: must be a whole number from 1",
        ),
        ("width = 24, repeats = 2", "repeats = 2", "stage 2: width is missing"),
        ("width = 24,", "widht = 24,", "stage 2: unknown key widht; did you mean width?"),
        (
            '"mbconv", expand = 1',
            '"mbcon", expand = 1',
            "stage 1: operator = 'mbcon': known are mbconv",
        ),
        ('"mbconv", expand = 1', "[1], expand = 1", "stage 1: operator = [1]: known are mbconv"),
        (
            '"mbconv", expand = 1',
            '"fused", se_percent = 25, expand = 1',
            "stage 1: se_percent = 25: must be 0",
        ),
        ("stride = 1, width = 320", "stride = -1, width = 320", "stage 7: stride = -1: must be"),
        ("stride = 1, width = 320", 'stride = "1", width = 320', "stage 7: stride = '1': must be"),
        (
            "stride = 1, width = 320",
            "stride = 64, width = 320",
            "total stride of 2048 leaves no pixels; at least 1024",
        ),
        (
            "se_percent = 25",
            "se_percent = 0.25",
            "stage 5: se_percent = 0.25: must be a whole number from 0",
        ),
        (
            "dropout_percent = 20",
            "dropout_percent = 200",
            "dropout_percent = 200: must be a whole number from 0 to 99",
        ),
        (
            "dropout_percent = 20",
            "dropout = 0.2",
            "unknown key dropout; did you mean dropout_percent?",
        ),
        ("dropout_percent = 20", "rounding = 'up'", "rounding = 'up': known are official"),
        ("dropout_percent = 20", "rounding = [1]", "rounding = [1]: known are official"),
        (
            "dropout_percent = 20",
            "width = 'wide'",
            "width = 'wide': must be a finite number above 0",
        ),
        ("dropout_percent = 20", "activation = 3", "activation = 3: known are silu, relu, relu6"),
        ('name = "mine"', "name = 3", "name = 3: must be a string"),
        ("stem_width = 32", "stem_width = '32'", "stem_width = '32': must be a whole number"),
        ("stem_width = 32", "", "stem_width is missing"),
        ("stem_stride = 2", "stem_stride = 2\nstem_kernel = 2", "stem_kernel = 2: must be odd"),
        ("resolution = 224", "", "resolution is missing"),
        ("resolution = 224", "resolution = 1e3", "resolution = 1000.0: must be a whole number"),
        ("resolution = 224", "resolution = ", "not TOML"),
        ("stages = [", "stages = 7\nrows = [", "unknown key rows"),
    ],
)
def test_a_wrong_definition_names_row_and_key(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert B0.count(old) == 1
    path = written(tmp_path, B0.replace(old, new))
    with pytest.raises(ValueError) as caught:
        read_baseline(path)
    text = str(caught.value)
    assert message in text
    assert str(path) in text
    assert "\n" not in text


def test_a_study_of_ones_own_network_keeps_its_identity() -> None:
    """How layers train came later than the first studies: it is in the identity where it is stated
    and no default."""
    table = tomllib.loads(B0)
    settings = {"baseline": {"name": "mine", "definition": table, "divisor": 8}}
    recorded = check(settings, "x").identity("digest")
    later = {"bn_eps", "bn_momentum", "initialisation", "drop_path_rule"}
    assert not later & recorded["baseline.definition"].keys()
    settings["baseline"]["definition"] = {**table, "bn_eps": 1e-3}
    assert check(settings, "x").identity("digest") == recorded
    settings["baseline"]["definition"] = {**table, "bn_eps": 1e-5}
    own = check(settings, "x").identity("digest")["baseline.definition"]
    assert own == {**recorded["baseline.definition"], "bn_eps": 1e-5}


def test_rows_that_are_none(tmp_path: Path) -> None:
    for rows, message in (
        ("7", "at least one row"),
        ("[]", "at least one row"),
        ("[1]", "stage 1: 1: must be a table"),
    ):
        text = (
            f"resolution = 64\nstem_width = 8\nstem_stride = 2\nhead_width = 0\nstages = {rows}\n"
        )
        with pytest.raises(ValueError, match=message):
            read_baseline(written(tmp_path, text))
    with pytest.raises(ValueError, match="No such file"):
        read_baseline(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not TOML"):
        read_baseline(tmp_path / "bytes.toml")


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_is_written_as_a_table_and_read_back(name: str, tmp_path: Path) -> None:
    changes = {"width": 0.3, "rounding": "spread", "divisor": 2}
    for base in (BASELINES[name], dataclasses.replace(BASELINES[name], **changes).at("96x160")):
        text = tomli_w.dumps(baseline_table(base))
        assert parse_baseline(tomllib.loads(text), "test") == base
        assert parse_baseline(json.loads(json.dumps(baseline_table(base))), "test") == base
        config = {"arch": effnet.arch(base).as_dict(), "baseline": baseline_table(base)}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert effnet.baseline(str(tmp_path)) == base


def test_a_known_name_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("b0").mkdir()
    assert effnet.arch("b0").name == "b0"
    Path("mine").mkdir()
    with pytest.raises(ValueError, match=r"mine: no run folder, which has"):
        effnet.arch("mine")
    with pytest.raises(ValueError, match="unknown network 'nothing'.*a run folder"):
        effnet.arch("nothing")


def test_the_baseline_of_a_pick_has_its_channels_and_classes(tmp_path: Path) -> None:
    base = effnet.baseline("b0-s4").at(28)
    pick = effnet.arch(base, width=0.25, resolution=28, num_classes=10, in_channels=1)
    config = {"arch": pick.as_dict(), "baseline": baseline_settings(base)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    solved = fit(str(tmp_path), "0.1x", resolution=28).arch
    assert (solved.in_channels, solved.num_classes) == (1, 10)


def test_sides_that_are_equal_are_a_square() -> None:
    table = baseline_table(effnet.baseline("b0-s4"))
    square = parse_baseline({**table, "resolution": "96x96"}, "test")
    assert square == parse_baseline({**table, "resolution": 96}, "test")


def test_a_config_is_read_back_or_refused(tmp_path: Path) -> None:
    net = effnet.solve("b0", budget="2x", depth=1.2, resolution=257)
    (tmp_path / "config.json").write_text(json.dumps({"arch": net.as_dict(), "macs": 1}))
    assert effnet.read_config(tmp_path / "config.json") == net
    assert effnet.read_config(tmp_path) == net == effnet.arch(str(tmp_path))
    wider = effnet.arch(str(tmp_path), resolution="96x160", num_classes=5, in_channels=1)
    assert wider.sides == (96, 160)
    assert (wider.num_classes, wider.in_channels, wider.stages) == (5, 1, net.stages)
    for scaled in ({"width": 1.1}, {"alpha": 1.2}, {"stages": {1: {"kernel": 5}}}):
        with pytest.raises(ValueError, match=r"scaled already: scale .*baseline.toml"):
            effnet.arch(str(tmp_path), **scaled)
    with pytest.raises(ValueError, match="leaves no pixels"):
        effnet.arch(str(tmp_path), resolution=4)
    with pytest.raises(ValueError, match="does not say which baseline"):
        effnet.solve(str(tmp_path), "2x", width=1)
    for text in ("", "[]", "{}", '{"arch": 1}', '{"arch": {"stages": []}}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config.json: not a config.json with an arch: "):
            effnet.read_config(tmp_path / "config.json")
    with pytest.raises(ValueError, match="No such file"):
        effnet.read_config(tmp_path / "absent.json")
