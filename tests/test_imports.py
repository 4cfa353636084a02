"""Imports run one way: effnet knows nothing of studies, each library has one door, training needs torch alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("effnet/**/*.py"), *ROOT.glob("scaling_search/**/*.py")])


def imported(path: Path) -> set[str]:
    """Modules named by any import statement of the file, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def test_effnet_knows_nothing_of_studies() -> None:
    for path in ROOT.glob("effnet/**/*.py"):
        assert "scaling_search" not in tops(path), path


@pytest.mark.parametrize(
    "name", ["__init__", "rounding", "arch", "blocks", "definition", "families", "cost", "budget", "shares"]
)
def test_descriptions_need_no_torch(name: str) -> None:
    allowed = sys.stdlib_module_names | {"effnet"}
    assert tops(ROOT / "effnet" / f"{name}.py") <= allowed


def test_describing_and_costing_load_no_torch() -> None:
    """Not even through each other."""
    code = (
        "import sys, effnet; effnet.cost(effnet.arch('b3')); effnet.fit('b0', '2x', along='paper');"
        "sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("library", "door"),
    [
        ("optuna", "scaling_search/store.py"),
        ("plotly", "scaling_search/figures/"),
        ("ray", "scaling_search/executors/ray.py"),
        ("fvcore", "effnet/measure.py"),
        ("llvmlite", "effnet/lanes.py"),
        ("safetensors", "effnet/weights.py"),
        ("onnxscript", "effnet/weights.py"),
        ("triton", "effnet/nn/cuda/kernels.py"),
    ],
)
def test_each_library_has_one_door(library: str, door: str) -> None:
    users = [str(p.relative_to(ROOT)) for p in FILES if library in tops(p)]
    assert users and all(user == door or (door[-1] == "/" and user.startswith(door)) for user in users), users


def test_only_the_kernels_know_numba() -> None:
    assert {p.name for p in FILES if "numba" in tops(p)} == {"kernels.py", "lanes.py"}


def test_arrows_do_not_turn_round() -> None:
    order = ["study", "space", "store", "search", "run", "cli"]
    assert not imported(ROOT / "scaling_search" / "networks.py") & {f"scaling_search.{n}" for n in order}
    for i, name in enumerate(order):
        later = {f"scaling_search.{n}" for n in order[i + 1 :]}
        assert not imported(ROOT / "scaling_search" / f"{name}.py") & later, name
    order = ["rounding", "arch", "definition", "families", "budget", "shares"]
    order_of_modules = ["arch", "blocks", "cost", "budget", "shares"], ["arch", "blocks", "model", "measure"]
    for names in (order, *order_of_modules, ["model", "fast"], ["model", "weights"]):
        for i, name in enumerate(names):
            later = {f"effnet.{n}" for n in names[i + 1 :]}
            assert not imported(ROOT / "effnet" / f"{name}.py") & later, name


def test_training_imports_torch_and_numpy_alone() -> None:
    names = "train", "trial", "recipe", "batches", "randaugment", "step", "memory", "data", "checkpoint"
    for name in (*names, "__init__"):
        assert not tops(ROOT / "scaling_search" / f"{name}.py") & {
            "optuna", "ray", "plotly", "pandas", "pydantic", "rich", "pyarrow", "PIL", "fvcore", "tomli_w",
            "torchvision",
        }, name  # fmt: skip
