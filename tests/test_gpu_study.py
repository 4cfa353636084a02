"""Whole studies on the stand-in for CUDA: on one device and on two, with several workers.

Their accuracies mean nothing. That every run ends is what a GPU's user needs first.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import write_images
from tests.cuda_stub import stub

pytestmark = stub.needs_stub

# The standard preset, with a network so small that its runs take a second each.
ARGUMENTS = (
    *("run_search.py", "--preset", "standard", "--candidates", "2", "--extra", "0"),
    *("--confirm", "0", "--epochs", "1", "--allocation", "flat"),
    *("--blocks", "7", "--width", "0.1", "--divisor", "2", "--resolution", "12"),
    *("--batch", "16", "--train-images", "48", "--val-images", "20"),
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two classes."""
    folder = tmp_path_factory.mktemp("images") / "shapes"
    for seed, name in enumerate(("circle", "square")):
        write_images(folder / name, 60, seed=seed)
    return folder


# One device alone, one that is shared, two that are shared.
@pytest.mark.parametrize(("gpus", "workers"), [(1, 1), (1, 2), (2, 4)])
def test_every_run_of_a_study_on_gpus_is_done(
    gpus: int, workers: int, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "study"
    arguments = (*ARGUMENTS, "--data", str(images), "--workers", str(workers), "--out", str(out))
    ledger = tmp_path / "ledger"
    blank = {"FAKE_CUDA_BLANK": "1"}
    told = stub.check(*arguments, gpus=gpus, ledger=ledger, timeout=400, variables=blank)
    assert "Triton's kernels are not used, since a check failed (" in " ".join(told.split()), (
        "no kernel computes here"
    )
    table = pd.read_csv(out / "results.csv")
    assert len(table) >= 4, "the baseline, two networks and references"
    assert set(table["status"]) == {"done"}, table[["network", "status", "note"]].to_string()
    notes = table["note"].dropna().tolist()
    assert not any("eager" in note for note in notes), notes
    assert (table["peak_memory"] > 0).all()
    assert (out / "report.html").exists(), told
    devices_used = [peak > 0 for peak in stub.memory_peaks(ledger)]
    assert devices_used == [True] * gpus + [False] * (16 - gpus)
