"""The recorded studies, and the runs that benchmarks draw their own studies from."""

from __future__ import annotations

from pathlib import Path

from scaling_search.results.curves import TABLE, read
from scaling_search.results.record import Record
from scaling_search.study.settings import Study
from scaling_search.verdict.verdict import FRESH

STUDIES = Path(__file__).resolve().parent.parent / "studies"


def folders() -> list[Path]:
    """The folder of every recorded study, by name."""
    return sorted(table.parent for table in STUDIES.glob(f"*/{TABLE}"))


def recorded(folder: Path, roles: tuple[str, ...] = ("candidate",)) -> tuple[Study, list[Record]]:
    """A study, and the runs of its networks of these roles in all tables of its folder. Its fresh
    seeds, which only some networks have, are left out."""
    tables = [read(path) for path in sorted(folder.glob("*.parquet"))]
    study = tables[0].study
    runs = []
    for table in tables:
        for run in table.records():
            is_fresh = FRESH <= run.seed - study.seed < 2 * FRESH
            if run.candidate.role in roles and not is_fresh:
                runs.append(run)
    return study, runs
