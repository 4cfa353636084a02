"""benchmarks/gpu.py where there is no GPU: its small versions, what it imports, what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import effnet
from benchmarks import gpu
from scaling_search.study.plan import plan
from scaling_search.study.settings import check, preset_path, read
from tests.cuda_stub import stub

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = str(ROOT / "benchmarks" / "gpu.py")

# What a machine with a bare GPU does not have, and timm, whose import takes long.
ABSENT = ("optuna", "ray", "plotly", "pandas", "pydantic", "rich", "scipy", "timm")
WITHOUT_THEM = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT}))  # importing one of them raises ImportError
sys.argv[0] = {SCRIPT!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The script's exit status, in this process."""
    monkeypatch.setattr(sys, "argv", [SCRIPT, *arguments])
    return gpu.main()


def test_every_section_runs_on_a_cpu_with_torch_and_numpy_alone() -> None:
    command = [sys.executable, "-c", WITHOUT_THEM, "--device", "cpu", "--seconds", "600"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "this project's modules in a plain loop (timm: " in done.stdout
    for begin in ("small, 12 px ", "B0 at 32 px, batch 2 ", "2 processes "):
        assert f"\n{begin}" in done.stdout, begin
    assert "failed" not in done.stdout.lower()
    assert done.stdout.splitlines()[-1] == "no target could be measured here"


def test_rows_without_time_are_named_and_fail_a_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(monkeypatch, "--device", "cpu", "--seconds", "0", "--check") == 1
    output = capsys.readouterr().out
    assert "no time was left for: standard; b0; processes; streams; memory" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "cuda:99"), "--device cuda:99: "),
        (("--device", "gpu"), "--device gpu: cpu, cuda and cuda:N are known"),
        (("--device", "cpu", "--timm", "nowhere"), "--timm nowhere: holds no folder timm"),
        (("--device", "cpu", "--seconds", "nan"), "--seconds nan: "),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"gpu.py: {message}")
    assert error.count("\n") == 1


def test_a_missed_target_fails_a_check(tmp_path: Path) -> None:
    bench = gpu.Bench(gpu.torch.device("cuda"), False, gpu.ON_A_GPU, 1.0, tmp_path, None)  # type: ignore[arg-type]
    assert bench.judge(3.3, 3.0) == "at least 3: met"
    assert gpu.conclude(bench, check=True) == 0
    assert bench.judge(4.0, 3.0, below=True) == "at most 3: MISSED"
    assert gpu.conclude(bench, check=True) == 1
    assert gpu.conclude(bench, check=False) == 0
    assert bench.margins == pytest.approx([1.1, 0.75])


def test_a_failed_row_is_said_and_fails_a_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = gpu.Bench(gpu.torch.device("cuda"), False, gpu.ON_A_GPU, 1e9, tmp_path, None)  # type: ignore[arg-type]
    bench.judge(3.3, 3.0)
    with gpu.row(bench, "b0", "B0 at 32 px"):
        raise RuntimeError("CUDA out of memory.\nTried to allocate")
    assert "B0 at 32 px: FAILED, RuntimeError: CUDA out of memory.\n" in capsys.readouterr().out
    assert gpu.conclude(bench, check=True) == 1


@stub.needs_stub
def test_every_section_runs_on_the_stand_in() -> None:
    """Captured steps, their nodes, streams and memory; nodes and memory are real there, rates
    not."""
    sections = ("standard", "streams", "memory")
    output = stub.check(SCRIPT, "--seconds", "600", "--check", "--only", *sections, timeout=300)
    assert "a stand-in for CUDA: times and rates below mean nothing" in output
    assert "at most 1000: met" in output
    assert "at most 700: met" in output
    assert "\n2 streams " in output
    assert "at most 1.25: met" in output
    assert float(output.splitlines()[-1]) >= 1


def test_networks_are_those_of_the_standard_preset() -> None:
    preset = read(preset_path("standard"))
    for side in (20, 22):
        settings = {**preset.settings(), "device": "cpu"}
        settings["baseline"] = {**settings["baseline"], "resolution": side}
        todo = plan(check(settings, "test"), gpu.CLASSES, 32)
        deepest = max(todo.candidates, key=lambda candidate: candidate.arch.blocks)
        widest = max(todo.candidates, key=lambda candidate: candidate.beta)
        rows = [row for row in gpu.NETWORKS if row[3] == side]
        expected = [todo.baseline.key, deepest.key, widest.key]
        assert [gpu.network(*row[1:]).key for row in rows] == expected
    assert gpu.network(16, 1.0, 20) == effnet.arch(
        "b0-s4", width=0.5, resolution=20, num_classes=gpu.CLASSES
    )
