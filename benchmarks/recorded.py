"""The recorded studies, and the runs that benchmarks draw their own studies from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from scaling_search import UserError
from scaling_search.cli import stop_writing
from scaling_search.results.curves import TABLE, read
from scaling_search.results.record import Record
from scaling_search.study.settings import Study
from scaling_search.verdict.verdict import FRESH

STUDIES = Path(__file__).resolve().parent.parent / "studies"


def guarded(main: Callable[[], int]) -> int:
    """Run a script's `main`; what a user can mend is one line and exit status 2."""
    try:
        return main()
    except BrokenPipeError:
        return stop_writing()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def folders() -> list[Path]:
    """The folder of every recorded study, by name."""
    return sorted(table.parent for table in STUDIES.glob(f"*/{TABLE}"))


def recorded(folder: Path, roles: tuple[str, ...] = ("candidate",)) -> tuple[Study, list[Record]]:
    """A study, and the runs of its networks of these roles in all tables of its folder. Its fresh
    seeds, which only some networks have, are left out. Raises UserError."""
    tables = [read(path) for path in sorted(folder.glob("*.parquet"))]
    if not tables:
        raise UserError(f"{folder}: no table of curves there; give the folder of a recorded study")
    study = tables[0].study
    runs = []
    for table in tables:
        for run in table.records():
            is_fresh = FRESH <= run.seed - study.seed < 2 * FRESH
            if run.candidate.role in roles and not is_fresh:
                runs.append(run)
    return study, runs
