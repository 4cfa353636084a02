"""Triton's kernels without a GPU: their numbers by Triton's interpreter, and compiled ahead for cards.

Both have processes of their own, since Triton decides at its import what runs its functions.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

ROOT = Path(__file__).parent.parent


def test_numbers_equal_float64() -> None:
    """Each case of tests/triton_numbers.py; on the card where there is one."""
    interpret = "0" if torch.cuda.is_available() else "1"
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "tests/triton_numbers.py"]
    environment = {**os.environ, "TRITON_INTERPRET": interpret}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout


# How many compilations each kernel comes to for all networks of one dtype, whatever their channels
# (of 8), sides and batches: with SiLU, with a residual, with a gate; for 3x3 and 5x5.
COMPILATIONS = {
    "moments": 1, "normalise": 3, "pool": 1, "excite": 1, "gate_gradient": 1,
    "excite_maps_gradient": 1, "excite_weights_gradient": 1, "gradient_sums": 3,
    "gradient_maps": 3, "depthwise_sums": 2, "depthwise_total": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("capability", "dtype", "part"),
    [
        pytest.param(90, "bfloat16", "all", id="sm_90, all uses"),
        pytest.param(80, "bfloat16", "gate", id="sm_80, each kernel"),
        pytest.param(75, "bfloat16", "gate", id="sm_75, each kernel"),
    ],
)
def test_each_kernel_compiles_once_for_all_networks(
    tmp_path: Path, capability: int, dtype: str, part: str
) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "tests.ahead", str(capability), dtype, part]
    run = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    compiled = json.loads(run.stdout)
    wanted = COMPILATIONS if part == "all" else dict.fromkeys(COMPILATIONS, 1)
    assert {name: len(sizes) for name, sizes in compiled.items()} == wanted
    # 48 KiB is what every card gives a program unasked
    assert all(size <= 48 * 1024 for size in itertools.chain(*compiled.values()))
