"""The command `train`, in this process: one network on a data set of one's own."""

import re
import shlex
from pathlib import Path

import pytest

from scaling_search.cli import main

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
