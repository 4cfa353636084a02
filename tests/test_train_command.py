"""The command `train`, in this process: one network on a data set of one's own."""

import contextlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

import effnet
from scaling_search import UserError
from scaling_search.cli import main
from scaling_search.data.dataset import content_hashes, split
from scaling_search.data.decoding import decode_file
from scaling_search.data.sources import load
from tests.conftest import write_images

ROOT = Path(__file__).parent.parent

SMALL = ["b0-s4", "--width", "0.1", "--resolution", "12", "--batch", "8", "--device", "cpu"]


def test_train_says_each_epoch_and_goes_on(
    pets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", *SMALL, "--data", pets, "--epochs", "2", "--out", str(tmp_path)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert re.search(r"epoch 1 +loss \d\.\d+ train, \d\.\d+ val · val \d+\.\d · \d+\.\d s", out)
    assert "epoch 2" in out
    assert re.search(r"done +\d+\.\d s · [\d,]+ images/s, [\d,]+ MiB at the peak", out)
    assert main(words) == 0
    assert "epoch" not in capsys.readouterr().out, "nothing is trained twice"


def test_profile_splits_an_epoch(pets: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, "--data", pets, "--profile"]) == 0
    out = capsys.readouterr().out
    shares = [
        int(re.search(rf"{part} +\d+\.\d+ +(\d+)%", out)[1])
        for part in ("data", "forward", "backward")
    ]
    assert all(0 <= s < 100 for s in shares)
    assert shares[1] > 0
    assert shares[2] > 0
    assert re.search(r"optimizer .*\n evaluation ", out)
    assert re.search(
        r"[\d.]+ GFLOP/s, \d+\.\d% of the [\d,.]+ that a matrix product reaches here", out
    )


def test_compound_coefficients_keep_the_baselines_resolution(
    pets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resolution is gamma's then, not the images' native side."""
    rows = '{ operator = "mbconv", expand = 1, kernel = 3, stride = 2, width = 8, repeats = 1 }'
    (tmp_path / "mine.toml").write_text(
        f"resolution = 16\nstem_width = 8\nstem_stride = 2\nhead_width = 16\nstages = [{rows}]\n"
    )
    words = [
        "train",
        str(tmp_path / "mine.toml"),
        "--data",
        pets,
        "--batch",
        "8",
        "--device",
        "cpu",
    ]
    assert main([*words, "--out", str(tmp_path / "out"), "--alpha", "2"]) == 0
    assert "mine, 2 blocks, 16 px" in capsys.readouterr().out


def test_a_run_over_its_deadline_has_status_1(
    pets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["train", *SMALL, "--data", pets, "--deadline", "0.001", "--out", str(tmp_path)]) == 1
    )
    assert re.search(r"timeout .*over its deadline of 0.001 s", capsys.readouterr().out)


# ---- the pick of a search

QUICKLY = shlex.split(
    f"--study {ROOT}/studies/quick-b0-s4.toml --budget 2x --blocks 7 --width 0.1 --resolution 12 "
    "--candidates 4 --extra 0 --train-images 64 --val-images 30 --epochs 1 --batch 16 --workers 1 "
    "--device cpu --set recipe.bn_images=32 --set references=[] --set data.epoch_images=64"
)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which a search ran, of photos in folders, as runs/photos-2x; and what it said."""
    home = tmp_path_factory.mktemp("home")
    for name in ("cat", "dog"):
        write_images(home / "photos" / name, 60)
    patch = pytest.MonkeyPatch()
    patch.chdir(home)
    try:
        said = _said(["search", "--data", "photos", "--out", "runs/photos-2x", *QUICKLY])
    finally:
        patch.undo()
    return home, said


def _said(words: list[str]) -> str:
    """What a command prints; it must succeed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(words) == 0
    return printed.getvalue()


def test_after_the_answer_stands_a_command_that_trains_the_pick(
    searched: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, said = searched
    monkeypatch.chdir(home)
    (line,) = [line for line in said.splitlines() if line.startswith("use ")]
    command = shlex.split(line, comments=True)[1:]
    assert command[:3] == ["scaling-search", "train", "runs/photos-2x"]
    out = _said(command[1:])
    pick = effnet.read_config("runs/photos-2x/config.json")
    assert out.startswith(f"network   the pick of runs/photos-2x, {pick.blocks} blocks, {pick.px}")
    assert "recipe and metric are those of the search" in out
    assert "10 of its epochs of 64 images" in out
    assert "epoch 10 " in out
    assert "photos (folder photos" in out
    trained = Path(command[command.index("--to") + 1])
    assert effnet.read_config(trained) == pick


def test_the_six_lines_of_the_tutorial_classify_as_the_run_did(
    searched: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, _ = searched
    monkeypatch.chdir(home)
    # on all of one fold, as the limit on validation images is the search's own
    said = _said(["train", "runs/photos-2x", "--epochs", "3", "--to", "runs/trained"])
    (accuracy,) = re.findall(r"epoch 3 .* val (\d+\.\d) ", said)
    page = (ROOT / "docs" / "tutorial.md").read_text()
    (lines,) = re.findall(r"```python\n(from effnet.nn import weights\n.*?)```", page, re.DOTALL)
    assert len([line for line in lines.splitlines() if line]) == 6
    shutil.copy("photos/cat/0.png", "church.jpg")  # Pillow looks at the content
    names: dict[str, object] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(lines, names)
    assert re.fullmatch(r"(cat|dog) \d+%\n", printed.getvalue())

    model, prepare = names["model"], names["prepare"]
    data = load("photos")
    validation = {int(data.train_hashes[i]) for i in split(data.train_hashes, 0)[1]}
    right = []
    for file in sorted(Path("photos").rglob("*.png")):
        pixels = decode_file(file, *prepare.decoded, prepare.channels, prepare.deepest)
        if int(content_hashes(pixels[None])[0]) in validation:
            answer = prepare.classes[int(model(prepare(file)).argmax())]
            right.append(answer == file.parent.name)
    assert f"{100 * sum(right) / len(right):.1f}" == accuracy


def test_a_pick_on_other_data(
    searched: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, _ = searched
    monkeypatch.chdir(home)
    for name in ("a", "b", "c"):
        write_images(tmp_path / "three" / name, 40)
    words = ["train", "runs/photos-2x/config.json", "--data", str(tmp_path / "three")]
    said = _said([*words, "--out", str(tmp_path / "out"), "--to", str(tmp_path / "net")])
    assert "it was searched for on 2 classes; these data have 3, and it ends in as many" in said
    assert effnet.read_config(tmp_path / "net").num_classes == 3

    # a config.json that came alone, without its study
    shutil.copy("runs/photos-2x/config.json", tmp_path / "pick.json")
    alone = ["train", str(tmp_path / "pick.json")]
    assert "its study.toml is not beside it" in _refused(alone)
    options = ["--data", "photos", "--batch", "16", "--out", str(tmp_path / "out")]
    assert "the recipe is this command's own" in _said([*alone, *options])


def test_multipliers_of_a_study_are_said_to_be_of_its_own_baseline(
    searched: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers of a report, on the table of the baseline's name, make another network: `train`
    says which first of all. On the study's own baseline they make the pick."""
    home, _ = searched
    monkeypatch.chdir(home)
    config = json.loads(Path("runs/photos-2x/config.json").read_text())
    pick, by = effnet.read_config("runs/photos-2x"), config["coefficients"]
    rebuilt = effnet.arch(
        "runs/photos-2x/baseline.toml",
        depth=by["alpha"],
        width=by["beta"],
        resolution=pick.resolution,
        num_classes=2,
    )
    assert rebuilt == pick
    dials = [f"--width={by['beta']}", f"--resolution={pick.resolution}", "--data", "photos"]
    said = _said(["train", "b0-s4", *dials, "--batch", "16", "--train-images", "32"])
    first = said.splitlines()[0]
    assert first.startswith(f"network   b0-s4, 16 blocks, {pick.resolution} px, channels ")
    assert first.endswith("multiples of b0-s4 itself")
    assert "scale its search's baseline instead, runs/photos-2x/baseline.toml" in _refused(
        ["train", "runs/photos-2x", *dials]
    )


def test_a_run_folder_is_taken_wherever_a_network_is(
    searched: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, _ = searched
    monkeypatch.chdir(home)
    pick = effnet.read_config("runs/photos-2x")
    for name in ("runs/photos-2x", "runs/photos-2x/", "runs/photos-2x/config.json"):
        assert effnet.arch(name) == pick
        said = _said(["cost", name])
        assert f"{pick.blocks} blocks, {pick.px}, 2 classes" in said
        assert f"{effnet.cost(pick).macs:,}" in said
        assert "5 classes" in _said(["cost", name, "--resolution", "20", "--classes", "5"])
        # multiples of the search's own baseline, and of its cost
        solved = _said(["solve", name, "--budget", "3x", "--resolution", "18"])
        base = "runs/photos-2x/baseline.toml"
        assert solved == _said(
            ["solve", base, "--budget", "3x", "--resolution", "18", "--classes", "2"]
        )
        assert main(["family", name, "--budgets", "3x"]) in (0, 2)  # 2: no direction to follow
    for suffix in (".safetensors", ".pt2", ""):
        assert _said(["export", "runs/photos-2x", "--to", str(tmp_path / f"pick{suffix}")])
    assert effnet.read_config(tmp_path / "pick") == pick
    assert _said(["export", "runs/photos-2x", "--to", str(tmp_path / "curves.parquet")])


def _refused(words: list[str]) -> str:
    """The one line with which a command is refused."""
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
        assert main(words) == 2
    (line,) = printed.getvalue().splitlines()
    return line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("cost runs/absent", "runs/absent: no such run folder, and no config.json either"),
        ("cost photos", "photos: no run folder, which has a study.toml and a config.json"),
        ("cost BROKEN", "config.json: not a config.json with an arch"),
        ("cost SEVERAL", "each of 2 budgets; give SEVERAL/config-2x.json, SEVERAL/config-16x.json"),
        (
            "train SEVERAL",
            "each of 2 budgets; give SEVERAL/config-2x.json, SEVERAL/config-16x.json",
        ),
        ("solve OLD --budget 2x --width 1", "does not say which baseline its network was scaled"),
        ("search --baseline runs/photos-2x", "its own baseline is runs/photos-2x/baseline.toml"),
        ("cost runs/photos-2x --stage 1.kernel=5", "is a pick, scaled already"),
        ("cost b0 --baseline net.py:build", "goes with a search's pick, which b0 is not"),
        ("cost runs/photos-2x --baseline net.py:build", "is of a table, and takes no function"),
        ("train runs/photos-2x --to net.onnx", "a folder, or a file that ends in .safetensors"),
        ("train runs/photos-2x --to no/such/net", "there is no folder no/such"),
        ("train runs/photos-2x --to net --profile", "trains nothing that could be written"),
    ],
)
def test_wrong_run_folders(
    words: str,
    message: str,
    searched: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home, _ = searched
    monkeypatch.chdir(home)
    arch = json.loads(Path("runs/photos-2x/config.json").read_text())["arch"]
    for folder, names in {
        "BROKEN": ["config"],
        "OLD": ["config"],
        "SEVERAL": ["config-2x", "config-16x"],
    }.items():
        Path(folder).mkdir(exist_ok=True)
        for name in names:
            text = '{"arch": ' if folder == "BROKEN" else json.dumps({"arch": arch})
            Path(folder, f"{name}.json").write_text(text)
    assert message in _refused(shlex.split(words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--recipe papr", "recipe: recipe 'papr': known are proxy, paper"),
        ("--epochs 0", "rungs: whole numbers of epochs from 1 to"),
        ("--batch 1", "recipe.batch = 1: must be at least 2"),
        ("--deadline -1", "deadline: should be greater than 0"),
        ("--threads 0", "threads: should be greater than or equal to 1"),
        ("--data nowhere", "unknown data 'nowhere'"),
        ("--width -1", "width"),
        ("--resolution 0", "resolution"),
        ("--device cuda:zero", "--device cuda:zero: wanted is auto, cpu, cuda"),
    ],
)
def test_bad_input(words: str, message: str, pets: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, "--data", pets, *shlex.split(words)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_weights_of_another_network_are_not_overwritten(tmp_path: Path) -> None:
    from effnet import arch, build
    from effnet.nn import weights
    from scaling_search.cli.train import _check_other_network

    small, other = (arch("b0", width=0.25, resolution=side, num_classes=3) for side in (32, 48))
    weights.save(build(small), tmp_path / "trained")
    _check_other_network(tmp_path / "trained", small)
    _check_other_network(tmp_path / "nowhere", other)
    with pytest.raises(UserError, match="holds the weights of another network"):
        _check_other_network(tmp_path / "trained", other)
