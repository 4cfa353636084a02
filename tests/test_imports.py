"""Imports run one way: from folder to folder, each library through one door, training on torch
alone."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("effnet/**/*.py"), *ROOT.glob("scaling_search/**/*.py")])

# Each folder (or file) of scaling_search may import those before it. What lies beside them (the
# package itself: its version, its errors) is there for all.
ORDER = [
    "data", "training", "study", "results", "verdict", "driver", "report", "opening", "session",
    "cli",
]  # fmt: skip

# The one place that may import a library: a file, or a folder that is about it.
DOORS = {
    "optuna": "scaling_search/results/",
    "plotly": "scaling_search/report/figures/",
    "jinja2": "scaling_search/report/render.py",
    "ray": "scaling_search/driver/executors/ray/",
    "numba": "effnet/nn/cpu/",
    "llvmlite": "effnet/nn/cpu/",
    "triton": "effnet/nn/cuda/kernels.py",
    "fvcore": "effnet/nn/measure.py",
    "safetensors": "effnet/nn/weights.py",
    "datasets": "scaling_search/data/hub.py",
    "huggingface_hub": "scaling_search/data/hub.py",
    "tifffile": "scaling_search/data/decoding.py",
    "onnxscript": "effnet/nn/weights.py",
}


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imported(path: Path, at_import: bool = False) -> Iterator[str]:
    """Modules named by any import statement of the file, inside functions too; with `at_import`
    only by those that run when the file itself is imported."""
    tree = ast.parse(path.read_text())
    for node in tree.body if at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


def libraries(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def place(module: str) -> int:
    """The place of a module's folder in ORDER; -1 for what all may import."""
    parts = module.split(".")
    if parts[0] != "scaling_search" or len(parts) == 1:
        return -1
    return ORDER.index(parts[1])


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("scaling_search.")])
def test_a_folder_imports_those_before_it(module: str) -> None:
    later = [name for name in imported(MODULES[module]) if place(name) > place(module)]
    assert not later


def test_no_circle() -> None:
    graph = {}
    for module, path in MODULES.items():
        # what the package itself has for all does not import within; only its `open` does, later
        names = imported(path, at_import=module == "scaling_search")
        graph[module] = {name for name in names if name in MODULES and name != module}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names them


def test_any_module_may_be_imported_first() -> None:
    """To import a module is to import its packages before it: no circle among these either, but for
    imports inside functions, which run later."""
    graph = {}
    for module, path in MODULES.items():
        graph[module] = set()
        for name in imported(path, at_import=True):
            packages = {parent for parent in MODULES if name.startswith(f"{parent}.")}
            # A module's own packages are being imported already.
            graph[module] |= {parent for parent in packages if not module.startswith(parent)}
            if name in MODULES and name != module:
                graph[module].add(name)
    tuple(TopologicalSorter(graph).static_order())


def test_effnet_knows_nothing_of_studies() -> None:
    for path in ROOT.glob("effnet/**/*.py"):
        assert "scaling_search" not in libraries(path), path


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_one_door(library: str) -> None:
    users = [str(path.relative_to(ROOT)) for path in FILES if library in libraries(path)]
    assert users
    assert all(user.startswith(DOORS[library]) for user in users), users


def test_describing_and_costing_load_no_torch() -> None:
    code = (
        "import sys, effnet; effnet.cost(effnet.arch('b3')); effnet.fit('b0', '2x', along='paper');"
        "sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_training_needs_torch_and_numpy_alone() -> None:
    """Every module of training/ is imported where no other library can be; nor does an optimizer's
    step load torch's compiler, which takes seconds."""
    modules = [name for name in MODULES if name.startswith("scaling_search.training")]
    code = f"""
import importlib, sys
import numpy, torch
allowed = set(sys.modules) | sys.stdlib_module_names | {{"effnet", "scaling_search"}}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {{m.split(".")[0] for m in allowed}}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
for module in {modules!r}:
    importlib.import_module(module)

from scaling_search.training.optimizer import optimizer
from scaling_search.training.recipe import Recipe

for name in ("adamw", "sgd", "rmsprop"):
    weights = torch.ones(4)
    weights.grad = torch.ones(4)
    made = optimizer([(weights, True)], Recipe(optimizer=name))
    made.step()
    made.load_state_dict(made.state_dict())
    assert float(weights[0]) < 1, name
assert "torch._dynamo" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
