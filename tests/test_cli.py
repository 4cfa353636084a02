"""The command line as people use it: one real study, and everything a person might get wrong."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import effnet
from scaling_search import without_secrets
from scaling_search.cli import main
from scaling_search.results.reading import open_results
from tests.conftest import write_images

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of class folders of one's own."""
    root = tmp_path_factory.mktemp("own") / "pets"
    for name in ("cat", "dog", "<b>"):
        write_images(root / name, 60)
    return str(root)


# A study of eight trainings of a second each.
SMALL = shlex.split(
    f"--study {ROOT}/studies/quick-b0-s4.toml "
    "--blocks 7 --width 0.1 --resolution 12 --candidates 4 --extra 1 --train-images 64 "
    "--val-images 30 --epochs 1 --batch 16 --workers 2 --device cpu --set recipe.bn_images=32"
)


def run(*words: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "run_search.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **kwargs)


def test_a_recorded_study_goes_on(
    pets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a table's runs none is trained again; what is missing is, to the same numbers."""
    options = ["--budget", "2x", "--data", pets, *SMALL, "--extra", "0"]
    whole = tmp_path / "whole"
    assert run(*options, "--seeds", "2", "--out", str(whole)).returncode == 0
    part = tmp_path / "part"
    assert run(*options, "--seeds", "1", "--out", str(part)).returncode == 0
    table = tmp_path / "part.parquet"
    assert main(["export", str(part), "--to", str(table)]) == 0

    on = tmp_path / "on"
    words = [*options, "--seeds", "2", "--known", str(table), "--out", str(on)]
    first = run(*words)
    assert first.returncode == 0, first.stderr
    recorded = len(pd.read_csv(part / "results.csv"))
    assert f"resume    {recorded} runs are recorded" in first.stdout
    columns = ["network", "seed", "epochs", "val_acc", "val_loss"]
    rows = [pd.read_csv(folder / "results.csv")[columns] for folder in (whole, on)]
    ordered = [frame.sort_values(columns[:3]).reset_index(drop=True) for frame in rows]
    pd.testing.assert_frame_equal(*ordered)
    # the same command again: the folder has them
    assert run(*words).returncode == 0

    capsys.readouterr()
    other = ["search", *options, "--known", str(table), "--out", str(tmp_path / "other")]
    assert main([*other, "--batch", "8"]) == 2
    assert "its runs were trained otherwise: recipe.batch" in capsys.readouterr().err
    assert main([*other, "--replay", str(table)]) == 2
    assert "--known" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_study_from_start_to_finish(
    pets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--budget", "2x", "--data", pets, "--out", str(tmp_path / "run"), *SMALL]
    first = run(*words)
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    lines = first.stdout.splitlines()
    assert lines[0].startswith("data      pets (folder pets, a tenth held out as test) · ")
    assert any(line.startswith("choose ") for line in lines)
    assert lines[-1].startswith("report ")
    files = {p.name for p in (tmp_path / "run").iterdir()}
    assert {
        "study.toml",
        "study.db",
        "results.csv",
        "config.json",
        "report.html",
        "checkpoints",
    } <= files
    table = pd.read_csv(tmp_path / "run" / "results.csv")
    # what was said is what effnet builds
    chosen = effnet.read_config(tmp_path / "run" / "config.json")
    assert f"choose    {chosen.blocks} blocks" in first.stdout
    assert chosen.key in set(table["network"])
    assert effnet.cost(chosen).macs == table[table["network"] == chosen.key]["macs"].iloc[0]
    assert (table["status"] == "done").all()
    assert not list((tmp_path / "run").glob("*.partial"))

    # in this process, which spares the imports
    assert main(["search", *words]) == 0
    again = capsys.readouterr().out
    assert "left to train: every run of this study is recorded" in again
    assert "\nrun " not in again
    # the resolved study is the same study
    resolved = ["--study", str(tmp_path / "run" / "study.toml"), "--out", str(tmp_path / "run")]
    assert main(["search", *resolved]) == 0
    assert "left to train" in capsys.readouterr().out

    assert main(["export", str(tmp_path / "run"), "--to", "curves.csv"]) == 2
    assert "the curves of a run folder go to a file.parquet" in capsys.readouterr().err

    (tmp_path / "run" / "report.html").unlink()
    assert main(["report", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").stat().st_size > 1_000_000
    capsys.readouterr()

    assert main(["search", *words, "--lr", "0.01"]) == 2
    different = capsys.readouterr()
    assert "\nrun " not in different.out
    assert "belongs to a different study: recipe.lr is 0.008 there, 0.01 here" in different.err


def test_networks_of_equal_parameters(
    pets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["--budget", "2x params", "--equal", "training", "--data", pets, "--out", str(out)]
    words += [*SMALL, "--set", "data.epoch_images=64"]
    assert main(["search", *words]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "resolution costs no parameters, so all networks are at" in said
    assert "these networks are equal in parameters; their FLOPs (multiply-adds) are" in said
    assert "make the training cost the same" in said
    with open_results(out) as store:
        records = store.records()
    base = next(r.candidate.cost.params for r in records if r.candidate.role == "baseline")
    for record in records:
        if record.candidate.role == "candidate":
            assert abs(record.candidate.cost.params / base / 2 - 1) <= 0.02
    page = (out / "report.html").read_text()
    axes = re.search(r'"axes":{(.*?)}', page)
    assert axes
    # the budget's own measure, which all have alike, comes last
    assert re.findall(r'"(\w+)":', axes[1])[-1] == "params"


def test_images_of_several_bands_and_classes_of_unlike_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From files to report; its own study.toml is the same study."""
    rng = np.random.default_rng(0)
    for name, count in (("rare", 30), ("usual", 330)):
        (tmp_path / "fields" / name).mkdir(parents=True)
        for i in range(count):
            bands = rng.integers(0, 120, (16, 16, 5), dtype=np.uint8)
            bands[..., 3] += 100 * (name == "rare")
            np.save(tmp_path / "fields" / name / f"{i}.npy", bands)
    run = tmp_path / "run"
    words = ["search", "--data", str(tmp_path / "fields"), "--metric", "balanced", *SMALL]
    assert main([*words, "--out", str(run)]) == 0
    said = capsys.readouterr().out
    assert "2 classes (rare, usual)" in said
    assert "5 channels, 16 × 16 px" in said
    assert "the classes are unbalanced: usual has" in said
    assert "Balanced validation accuracy " in said
    assert effnet.read_config(run / "config.json").in_channels == 5
    assert "balanced validation accuracy, %" in (run / "report.html").read_text()
    with open_results(run) as results:
        counts = {r.outcome.effective_images for r in results.records() if r.outcome}
    assert 0 < min(counts) <= max(counts) < 60, "as of the rare class, of which a fold has few"
    assert main(["search", "--study", str(run / "study.toml"), "--out", str(run)]) == 0
    assert "left to train: every run of this study is recorded" in capsys.readouterr().out
    assert main([*words, "--out", str(run), "--metric", "accuracy"]) == 2
    assert "metric is balanced there, the default here" in capsys.readouterr().err


def living(group: int) -> list[str]:
    """Processes of a group that are not zombies (whoever adopted those may not reap them)."""
    processes = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(pgrp) == group and state != "Z":
            processes.append(stat.parent.name)
    return processes


def wait_until_gone(group: int) -> None:
    """Wait for the end of a group's processes; a minute or two means that one is left behind."""
    for _ in range(1200):
        if not living(group):
            return
        time.sleep(0.1)
    assert living(group) == [], "no worker is left behind"


def test_stopped_in_the_middle_and_gone_on(
    pets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By Ctrl-C in its first session, by a batch system in its second; the third ends it."""
    words = ["--data", pets, "--out", str(tmp_path / "run"), *SMALL, "--train-images", "140"]
    command = [sys.executable, str(ROOT / "run_search.py"), *words]
    for signum, status, runs in ((signal.SIGINT, 130, 2), (signal.SIGTERM, 143, 1)):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert process.stdout is not None
        finished = 0
        for line in process.stdout:
            finished += line.startswith("run ")
            if finished == runs:
                break
        if signum == signal.SIGINT:  # a terminal sends it to the whole group
            os.killpg(process.pid, signum)
        else:
            process.send_signal(signum)
        output = process.stdout.read()
        assert process.wait(120) == status
        if signum == signal.SIGINT:
            assert "the same command goes on from here" in output
        wait_until_gone(process.pid)

    assert main(["search", *words]) == 0
    again = capsys.readouterr().out
    finished = int(re.search(r"resume    (\d+) runs are recorded", again)[1])
    assert finished >= 3
    table = pd.read_csv(tmp_path / "run" / "results.csv")
    assert not table.duplicated(["network", "seed", "epochs"]).any()
    assert (table["status"] == "done").all()
    trained_now = len(re.findall(r"^run ", again, re.MULTILINE))
    assert finished + trained_now == len(table)


# ---- bad input: before any training, one line on stderr, status 2, nothing written


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    status = main(["search", "--device", "cpu", *words])
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    assert "run  " not in captured.out
    return captured.err


@pytest.mark.parametrize("budget", ["abc", "-2x", "0x", "nan", "1e99x", "2x,abc", ""])
def test_wrong_budget(
    budget: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = refused(["--budget", budget], capsys)
    assert "a budget is a ratio such as 2x or 0.5x, or multiply-adds such as 400M or 1.2G" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--alpha-max 0.5", "space.alpha_max: should be greater than or equal to 1, not 0.5"),
        (
            "--data fashion",
            "unknown data 'fashion': known are auto, fashion-mnist, cifar10, shapes",
        ),
        ("--data EMPTY", "no image in any class folder; wanted is a folder for each class"),
        ("--data ONE", "only one class folder (cat)"),
        ("--data BROKEN", "dog/3.png: not a readable image"),
        ("--data TEXT.parquet", "no image column"),
        (
            "--data PETS --budget 8x --alpha-max 1 --beta-max 1 --gamma-max 1",
            "the nearest is",
        ),
        ("--data PETS --resolution 64", "above the images' native 24 px"),
        ("--preset fast", "known are quick, standard, paper"),
        ("--study absent.toml", "absent.toml: No such file or directory"),
        ("--epochs many", "--epochs many: whole numbers above 0"),
        ("--epochs ²", "--epochs ²: whole numbers above 0"),
        ("--workers 0", "--workers 0: at least 1"),
        ("--candidates ten", "invalid int value: 'ten'"),
        ("--set recipe.lr", "wanted is NAME=VALUE"),
        ("--set recipe.rate=1", "recipe.rate: no such setting"),
        ("--colour red", "unrecognized arguments: --colour red"),
        ("--executor slurm", "invalid choice: 'slurm'"),
        ("--time 1s", "--time 1s: a study needs at least 60 s"),
        ("--time soon", "--time soon: wanted is 30m, 90s or 1h30m"),
        ("--seeds 0", "seeds: should be greater than or equal to 1, not 0"),
        ("--extra -1", "extra: should be greater than or equal to 0, not -1"),
        ("--epochs 4,2", "rungs: whole numbers of epochs from 1 to 100,000 that increase"),
        ("--epochs 2,2", "rungs: whole numbers of epochs from 1 to 100,000 that increase"),
        ("--allocation halving", "allocation: should be 'flat' or 'rungs', not 'halving'"),
        ("--sampler grid", "space.sampler: should be 'lattice', 'sobol' or 'tpe', not 'grid'"),
        ("--sampler tpe --allocation rungs", "take allocation flat with it"),
        (
            "--data PETS --budget 1.02x",
            "distinct networks within 2%; a search takes at least 3",
        ),
        ("--replay absent.parquet", "absent.parquet: no such file"),
        ("--mode exact", "space.mode: should be 'measured' or 'nominal', not 'exact'"),
        ("--data ''", "data is empty; known are auto"),
        ("--data PETS --channels 0", "data.channels: should be greater than or equal to 1, not 0"),
        ("--data PETS --out FILE/run", "choose one that can be written with --out"),
    ],
)
def test_bad_input(
    words: str,
    message: str,
    pets: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    Path("EMPTY").mkdir()
    write_images(Path("ONE/cat"), 20)
    for name in ("cat", "dog"):
        write_images(Path("BROKEN") / name, 20)
    Path("BROKEN/dog/3.png").write_bytes(b"\x89PNG nonsense")
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), "TEXT.parquet")
    Path("FILE").write_text("")
    before = sorted(tmp_path.rglob("*"))
    error = refused(shlex.split(words.replace("PETS", pets)), capsys)
    assert message in error
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"


def test_no_traceback_from_the_shell_either() -> None:
    refusal = run("--budget", "-2x", "--device", "cpu")
    assert refusal.returncode == 2
    assert refusal.stderr.count("\n") == 1
    assert refusal.stderr.startswith("run_search.py: ")


def test_debug_shows_an_errors_cause_before_its_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["search", "--study", str(tmp_path / "absent.toml"), "--debug"]) == 2
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("Traceback")
    assert last.startswith("scaling-search: study ")
    assert "absent.toml: No such file" in last


# ---- the other commands


def test_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "b0", "--check"]) == 0
    out = capsys.readouterr().out
    assert "385,814,752" in out
    assert "equal to fvcore" in out
    assert "depthwise" in out
    assert main(["cost", "b0", "--alpha", "1.2", "--beta", "1.1", "--gamma", "1.15"]) == 0
    assert "23 blocks, 258 px" in capsys.readouterr().out
    assert main(["cost", "b9"]) == 2
    assert "unknown network 'b9'" in capsys.readouterr().err
    assert main(["cost", "b0", "--width", "-1"]) == 2
    assert "must be a finite number above 0" in capsys.readouterr().err


def test_check_fails_on_a_difference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import effnet

    other, build = effnet.arch("b0", width=0.5, resolution=32), effnet.build
    monkeypatch.setattr("effnet.nn.measure.effnet.build", lambda net: build(other))
    assert main(["cost", "b0", "--width", "0.25", "--resolution", "32", "--check"]) == 1
    assert "NOT equal" in capsys.readouterr().out


def test_report_of_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such folder; give the folder of a run" in capsys.readouterr().err
    assert main([]) == 2
    assert main(["serach"]) == 2


def test_readmes_python_runs() -> None:
    import effnet

    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(block, names)
    assert names["cost"] == effnet.cost(names["net"])
    assert names["model"].arch == names["net"]


def test_the_documented_own_baseline(tmp_path: Path) -> None:
    import effnet

    models = (ROOT / "docs" / "models.md").read_text()
    (block,) = re.findall(r"```toml\n(.*?)```", models, re.DOTALL)
    (tmp_path / "mine.toml").write_text(block)
    assert [s.operator for s in effnet.read_baseline(tmp_path / "mine.toml").stages] == [
        "fused",
        "mbconv",
    ]


def test_readme_and_ci_say_the_same() -> None:
    """.ci/run calls the README's test command; before it, it installs the server that some tests
    would skip without."""
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    commands = re.findall(r"^python3 -m venv .*$", readme, re.MULTILINE)
    assert len(commands) == 2
    assert "run_search.py --budget 2x" in commands[0]
    assert "pytest" in commands[1]
    steps = [line for line in ci.splitlines() if line and not line.startswith(("#", "set ", "cd "))]
    assert steps[-1] == commands[1]
    assert all("apt-get install" in step and "postgresql" in step for step in steps[:-1])


def test_a_second_signal_stops_at_once(pets: str, tmp_path: Path) -> None:
    words = ["--data", pets, "--out", str(tmp_path / "run"), *SMALL, "--epochs", "400"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run_search.py"), *words],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list((tmp_path / "run").glob("checkpoints/*/*")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    output = process.stdout.read() if process.stdout else ""
    # of two signals that are there together, Python sees the lower number first
    assert process.wait(120) in (130, 143)
    assert "\nstopped " not in output
    assert "\nreport " not in output
    wait_until_gone(process.pid)


def test_passwords_are_not_written_into_results() -> None:
    for text, shown in (
        ("--store=postgresql://me:p/a@ss@host/db", "--store=postgresql://me:***@host/db"),
        ("postgresql://host/db?user=me&password=secret", "postgresql://host/db?***"),
        ("s3://key:se%20cret@bucket/x?region=y", "s3://key:***@bucket/x?***"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("a:b@c?d", "a:b@c?d"),
    ):
        assert without_secrets(text) == shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--ray-address auto", "--ray-address auto: takes --executor ray with it"),
        (
            "--store mysql://u:secret@h/d",
            "--store mysql://u:***@h/d: wanted is postgresql://user@host/database",
        ),
        ("--storage s9://x/y", "--storage s9://x/y: "),
        ("--executor slurm", "invalid choice: 'slurm'"),
    ],
)
def test_wrong_places(
    words: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--data", "shapes", "--out", str(tmp_path / "run"), *shlex.split(words)]
    error = refused(places, capsys)
    assert says in error
    assert "secret" not in error
