"""The recorded studies: each verdict is rebuilt from its record, and each record replays."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import scaling_search
from benchmarks.recorded import folders
from scaling_search.results.curves import read
from tests.replays import replay

ROOT = Path(__file__).parent.parent
FOLDERS = folders()
NAMES = [folder.name for folder in FOLDERS]
_NUMBER = re.compile(r"[−+]?\d+(?:\.\d+)?")
# Another machine's arithmetic moves a posterior's samples, and the last digit of what is rounded:
# of the bound, after the last semicolon of its cell, and of the differences.
_LAST_DIGIT = 0.11
_BOUND, _DIFFERENCES = 3, (4, 5, 6)


@pytest.fixture(scope="module")
def bank() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bank", ROOT / "docs" / "bank.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers(text: str) -> list[float]:
    return [float(number.replace("−", "-")) for number in _NUMBER.findall(text)]


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_verdicts_are_rebuilt_from_their_records(folder: Path, bank: ModuleType) -> None:
    text = (ROOT / "studies" / "README.md").read_text()
    lines = text.split(bank.BEGIN)[1].split(bank.END)[0].splitlines()
    recorded = [line for line in lines if line.startswith(f"| [{folder.name}](")]
    rebuilt = bank.rows(folder)
    assert len(recorded) == len(rebuilt), "python docs/bank.py writes the table"
    for line, now in zip(recorded, rebuilt, strict=True):
        cells = line.strip("| ").split(" | ")
        assert cells[:_BOUND] == list(now[:_BOUND])
        pick, bound = cells[_BOUND].split("; ")
        assert pick == now[_BOUND].split("; ")[0]
        assert float(bound) == pytest.approx(float(now[_BOUND].split("; ")[1]), abs=_LAST_DIGIT)
        for place in _DIFFERENCES:
            assert _NUMBER.sub("", cells[place]) == _NUMBER.sub("", now[place])
            assert numbers(cells[place]) == pytest.approx(numbers(now[place]), abs=_LAST_DIGIT)


def test_the_curves_are_counted(bank: ModuleType) -> None:
    assert bank.total() in (ROOT / "studies" / "README.md").read_text()


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_records_replay(folder: Path, tmp_path: Path) -> None:
    """The study's own decisions, taken anew, ask for the runs that were made, and conclude alike.
    What was not run cannot be replayed: of a study that was not finished, nothing is asked."""
    table = read(folder / "curves.parquet")
    recorded = scaling_search.open(folder)
    if table.fact("state") != "finished":
        pytest.skip("not finished: its notes say why")
    assert replay(table.study, folder / "curves.parquet", tmp_path / "run") == 0
    replayed = scaling_search.open(tmp_path / "run")
    wanted = {run.key for run in table.records()}
    assert {run.key for run in replayed.records} == wanted
    for budget, verdict in recorded.verdicts.items():
        assert replayed.verdicts[budget].pick.candidate == verdict.pick.candidate
        assert replayed.verdicts[budget].bound == pytest.approx(verdict.bound, abs=1e-9)
