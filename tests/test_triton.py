"""Triton's kernels without a GPU: their numbers by Triton's interpreter, compiled ahead for three
cards, and recorded in a graph on the stand-in for CUDA.

All have processes of their own, since Triton decides at its import what runs its functions.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.cuda_stub import stub

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


def test_each_kernel_compiles_once_for_all_networks(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "tests.ahead"]
    run = subprocess.run(
        command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    compiled = json.loads(run.stdout)
    once = dict.fromkeys(COMPILATIONS, 1)
    for card, wanted in (("90", COMPILATIONS), ("80", once), ("75", once)):
        assert {name: len(sizes) for name, sizes in compiled[card].items()} == wanted
        # 48 KiB is what every card gives a program unasked
        assert max(itertools.chain(*compiled[card].values())) <= 48 * 1024


# ---- on the stand-in: what a CUDA graph records

CAPTURES = """
import json, torch
from effnet.nn.cuda import fused
from tests.cuda_stub import counters

def leaf(*shape, dtype=torch.bfloat16):
    x = torch.zeros(shape, dtype=dtype, device="cuda")
    x = x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x
    return x.requires_grad_()

z, residual, kernel = leaf(8, 24, 8, 8), leaf(8, 24, 8, 8), leaf(24, 1, 3, 3)
norm = leaf(24, dtype=torch.float32), leaf(24, dtype=torch.float32)
layers = leaf(6, 24), leaf(6), leaf(24, 6), leaf(24)
uses = {
    fused.norm_act: (z, *norm, 1e-3, True, residual),
    fused.norm_gate: (z, *norm, 1e-3, *layers),
    fused.depthwise: (z, kernel, 1),
}
dy = torch.zeros_like(z)
nodes = {}
for function, arguments in uses.items():
    leaves = [argument for argument in arguments if torch.is_tensor(argument)]
    def step():
        torch.autograd.grad(function(*arguments), leaves, dy)
    step()
    torch.cuda.synchronize()
    counters.reset()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        step()
    assert not counters.refusals() and counters.count("launches") == 0
    nodes[function.__name__] = counters.captured()
print(json.dumps(nodes))
"""


@stub.needs_stub
def test_a_graph_records_the_launches_that_are_documented() -> None:
    nodes = json.loads(stub.check("-c", CAPTURES))
    norm = ["moments", "normalise", "gradient_sums", "gradient_maps"]
    gate = ["pool", "excite", "gate_gradient", "excite_maps_gradient", "excite_weights_gradient"]
    assert nodes["norm_act"] == dict.fromkeys(norm, 1)
    assert nodes["norm_gate"] == dict.fromkeys([*norm, *gate], 1)
    ours = {name: count for name, count in nodes["depthwise"].items() if "cudnn" not in name}
    assert ours == {"depthwise_sums": 1, "depthwise_total": 1}
