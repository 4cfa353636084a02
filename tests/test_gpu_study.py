"""Whole studies on the stand-in for CUDA: on one device and on two, with several workers.

Their accuracies mean nothing. That every run ends is what a GPU's user needs first.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests import functions
from tests.cuda_stub import stub

pytestmark = stub.needs_stub

# The standard preset, with a network so small that its runs take a second each.
ARGUMENTS = (
    *("run_search.py", "--preset", "standard", "--candidates", "2", "--extra", "0"),
    *("--confirm", "0", "--epochs", "1", "--allocation", "flat"),
    *("--blocks", "7", "--width", "0.1", "--divisor", "2", "--resolution", "12"),
    *("--batch", "16", "--train-images", "48", "--val-images", "20"),
)


def test_a_function_trains_on_a_gpu(pets: str, tmp_path: Path) -> None:
    place = functions.write(tmp_path)
    out = tmp_path / "study"
    output = stub.check(
        *("run_search.py", "--preset", "standard", "--candidates", "3", "--extra", "0"),
        *("--confirm", "0", "--epochs", "1", "--allocation", "flat", "--no-check"),
        *("--baseline", place, "--set", "references=[]", "--batch", "16", "--train-images", "48"),
        *("--val-images", "20", "--workers", "1", "--data", pets, "--out", str(out)),
        gpus=1,
        ledger=tmp_path / "ledger",
        timeout=400,
        variables={"FAKE_CUDA_BLANK": "1"},
    )
    assert "a function's modules train as torch runs them" in " ".join(output.split())
    table = pd.read_csv(out / "results.csv")
    assert set(table["status"]) == {"done"}, table[["network", "status", "note"]].to_string()
    notes = table["note"].dropna().tolist()
    assert not any("eager" in note for note in notes), notes


# One device alone, its numbers checked first (15 s); two devices, each shared by two trainings. No
# kernel computes on the stand-in.
@pytest.mark.parametrize(
    ("gpus", "workers", "options", "reason"),
    [
        (1, 1, (), "Triton's kernels are not used, since a check failed ("),
        (2, 4, ("--no-check",), "Triton's kernels are not checked, for --no-check"),
    ],
)
def test_every_run_of_a_study_on_gpus_is_done(
    gpus: int, workers: int, options: tuple[str, ...], reason: str, pets: str, tmp_path: Path
) -> None:
    out = tmp_path / "study"
    arguments = (*ARGUMENTS, *options, "--workers", str(workers))
    arguments = (*arguments, "--data", pets, "--out", str(out))
    ledger = tmp_path / "ledger"
    blank = {"FAKE_CUDA_BLANK": "1"}
    output = stub.check(*arguments, gpus=gpus, ledger=ledger, timeout=400, variables=blank)
    assert reason in " ".join(output.split())
    table = pd.read_csv(out / "results.csv")
    assert len(table) >= 4, "the baseline, two networks and references"
    assert set(table["status"]) == {"done"}, table[["network", "status", "note"]].to_string()
    notes = table["note"].dropna().tolist()
    assert not any("eager" in note for note in notes), notes
    assert (table["peak_memory"] > 0).all()
    assert (out / "report.html").exists(), output
    devices_used = [peak > 0 for peak in stub.memory_peaks(ledger)]
    assert devices_used == [True] * gpus + [False] * (16 - gpus)
