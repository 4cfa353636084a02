"""A wheel and an sdist hold all that is needed, and what is installed from them works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import torch

from scaling_search import __version__
from tests.conftest import one_process_at_a_time

ROOT = Path(__file__).parent.parent
PACKAGES = ("effnet", "scaling_search")
NAME = f"scaling_search-{__version__}"


def hatchling(folder: Path, out: Path, *targets: str) -> None:
    """Build what `python -m build` would, with the hatchling that is installed here."""
    chosen = [word for target in targets for word in ("-t", target)]
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out), *chosen]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of this checkout; once for all of pytest's
    processes."""
    pytest.importorskip("hatchling")
    with one_process_at_a_time(tmp_path_factory, "built") as folder:
        if not folder.exists():
            hatchling(ROOT, folder, "sdist", "wheel")
    return folder


def wheel_names(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as wheel:
        return set(wheel.namelist())


def test_the_wheel_holds_the_packages_and_the_presets_alone(built: Path) -> None:
    wanted = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and path.parent.name != "__pycache__":
                wanted.add(str(path.relative_to(ROOT)))
    for path in (ROOT / "studies").glob("*.toml"):
        wanted.add(f"scaling_search/studies/{path.name}")
    names = wheel_names(built / f"{NAME}-py3-none-any.whl")
    found = {name for name in names if not name.startswith(f"{NAME}.dist-info/")}
    assert found == wanted

    assert {f"{package}/py.typed" for package in PACKAGES} <= found
    assert {
        f"scaling_search/studies/{name}.toml" for name in ("quick", "standard", "paper")
    } <= found
    assert any(name.endswith(".html.j2") for name in found)
    assert "scaling_search/report/assets/report.js" in found
    assert f"{NAME}.dist-info/licenses/LICENSE" in names


def test_the_version_is_that_of_the_package(built: Path) -> None:
    with zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl") as wheel:
        metadata = message_from_bytes(wheel.read(f"{NAME}.dist-info/METADATA"))
    assert metadata["Version"] == __version__
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None
    assert cited[1] == __version__
    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_sdist_is_lean_and_builds_the_same_wheel(built: Path, tmp_path: Path) -> None:
    path = built / f"{NAME}.tar.gz"
    # the curve bank makes up most of it; the next to grow it may have to leave tables out
    assert path.stat().st_size < 6e6, "large recorded studies: leave them out in pyproject.toml"
    with tarfile.open(path) as sdist:
        sdist.extractall(tmp_path, filter="data")
    for path in ROOT.iterdir():
        if path.suffix in (".md", ".cff", ".yml"):
            assert (tmp_path / NAME / path.name).is_file(), path.name
    for name in ("LICENSE", "tests/conftest.py", "docs/cli.md", "studies/quick.toml"):
        assert (tmp_path / NAME / name).is_file(), name

    hatchling(tmp_path / NAME, tmp_path / "again", "wheel")
    wheel = f"{NAME}-py3-none-any.whl"
    assert wheel_names(tmp_path / "again" / wheel) == wheel_names(built / wheel)


def installed(wheel: Path, folder: Path) -> Path:
    """The `bin` of a new environment: the wheel in its own site-packages, its dependencies those
    of this environment.

    The wheel is installed first, while nothing else is in sight, and comes first on the path. A
    folder named in a .pth file is searched but its own .pth files are not read: an editable install
    of the checkout has no effect."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install"]
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, *options, str(wheel)], check=True, capture_output=True)
    [packages] = folder.glob("lib/python*/site-packages")
    dependencies = Path(torch.__file__).parent.parent
    (packages / "dependencies.pth").write_text(f"{dependencies}\n")
    return folder / "bin"


@pytest.mark.parametrize("source", ["wheel", "sdist"])
def test_what_is_installed_works_in_an_empty_folder(
    built: Path, tmp_path: Path, source: str
) -> None:
    wheel = built / f"{NAME}-py3-none-any.whl"
    if source == "sdist":
        with tarfile.open(built / f"{NAME}.tar.gz") as sdist:
            sdist.extractall(tmp_path, filter="data")
        hatchling(tmp_path / NAME, tmp_path / "wheels", "wheel")
        wheel = tmp_path / "wheels" / wheel.name
    programs = installed(wheel, tmp_path / "venv")
    empty = tmp_path / "empty"
    empty.mkdir()
    surroundings = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

    def run(*command: str) -> str:
        done = subprocess.run(
            [programs / command[0], *command[1:]],
            cwd=empty,
            env=surroundings,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = run(
        "python", "-c", "import effnet, scaling_search as s; print(effnet.__file__, s.__file__)"
    )
    assert all(path.startswith(str(tmp_path / "venv")) for path in where.split())
    assert run("scaling-search", "--version").strip() == f"scaling-search {__version__}"
    assert "search" in run("scaling-search", "--help")
    assert "b0" in run("scaling-search", "list")
    if source == "sdist":
        return  # its wheel's files are the same, as another test finds
    tiny = ["--epoch-images", "64", "--val-images", "60", "--candidates", "3", "--extra", "0"]
    tiny += ["--set", "data.test_images=50", "--set", "references=[]"]
    tiny += ["--device", "cpu", "--workers", "1", "--out", "run"]
    run("scaling-search", "search", "--preset", "quick", "--data", "shapes", *tiny)
    assert "<html" in (empty / "run" / "report.html").read_text()
