"""Writes the table of every recorded study into studies/README.md.

python docs/bank.py             rebuild each study's verdict from its record, and write the table
python docs/bank.py --check     exit status 1 where it would change

What stands around the table is written by hand. tests/test_bank.py rebuilds the verdicts too, and
allows the last digit of a number to differ, as another machine's arithmetic may make it.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import scaling_search
from benchmarks.recorded import STUDIES, folders
from scaling_search.opening import StudyResults
from scaling_search.report.page import unfinished_words
from scaling_search.results.curves import TABLE, read
from scaling_search.results.record import Record
from scaling_search.study.candidate import Candidate
from scaling_search.study.wording import difference
from scaling_search.verdict.verdict import Row, Verdict

README = STUDIES / "README.md"
BEGIN, END = "<!-- written by docs/bank.py -->", "<!-- to here -->"

_HEAD = (
    "study and its question",
    "data, baseline",
    "networks, runs, hours of one thread",
    "the pick, at most so many points below the best (95%)",
    "the paper's direction against it",
    "the best single dimension",
    "dWr",
)


def rows(folder: Path) -> list[tuple[str, ...]]:
    """The cells of a study: a row for each of its budgets, its question in the first."""
    opened = scaling_search.open(folder)
    return [_row(folder, opened, verdict) for verdict in opened.verdicts.values()]


def _row(folder: Path, opened: StudyResults, verdict: Verdict) -> tuple[str, ...]:
    study = opened.study
    own = [r for r in opened.records if r.candidate.budget == verdict.budget]
    own = [r for r in own if r.candidate.role == "candidate"]
    networks = len({r.candidate.key for r in own})
    shared = [r for r in opened.records if r.candidate.role == "baseline"]
    baseline = shared[0].candidate
    is_first = verdict.budget == study.budgets[0]
    # the baseline's runs serve every budget, and count with the first
    if is_first:
        own += shared
    device = "" if study.device == "cpu" else f", {study.device}"
    cost = "" if verdict.equal_cost else "; of unequal cost"
    unfinished = unfinished_words(read(folder / TABLE).facts(), opened.records)
    state = f" (unfinished: {unfinished})" if unfinished else ""
    name = f"[{folder.name}]({folder.name}/NOTES.md), {verdict.budget}{state}"
    if is_first:
        name += f": {question(folder)}"
    return (
        name,
        f"{study.data.source}; {study.baseline.name}, {_in_short(baseline)}, "
        f"{baseline.cost.macs / 1e6:.3g}M",
        f"{networks}{cost}, {len(own)}, {hours(own):.1f}{device}",
        f"{verdict.pick.candidate.label}; {100 * verdict.bound:.1f}",
        _against(verdict.named("paper"), verdict),
        _single(verdict),
        _against(verdict.named("dWr"), verdict),
    )


def question(folder: Path) -> str:
    """The question of a study in one line: what its notes say in italics below their title."""
    asked = re.match(r"# .+\n\n\*(.+\?)\*\n", (folder / "NOTES.md").read_text())
    assert asked is not None, f"{folder}: notes begin with a title, and with a question in italics"
    return asked[1]


def hours(records: Sequence[Record]) -> float:
    """The hours of training and evaluation of all runs. A run that went on from a shorter one has
    the seconds of both on record, so the longest of a network and a seed counts for them."""
    longest: dict[tuple[str, int], float] = {}
    for r in records:
        if r.outcome is not None:
            key = (r.candidate.key, r.seed)
            longest[key] = max(longest.get(key, 0.0), r.outcome.seconds)
    return sum(longest.values()) / 3600


def _in_short(candidate: Candidate) -> str:
    arch = candidate.arch
    return f"{arch.blocks} blocks, {arch.px}"


def _against(row: Row | None, verdict: Verdict) -> str:
    """A network against the pick; a dash where nothing stands for the direction."""
    if row is None:
        return "–"
    if row is verdict.pick:
        return "is the pick"
    return difference(-row.behind, -row.high, -row.low)


def _single(verdict: Verdict) -> str:
    if verdict.best_single is None:
        return "–"
    name, row = verdict.best_single
    return f"{name.removesuffix(' only')}, {_against(row, verdict)}"


def table() -> str:
    lines = []
    every: list[tuple[str, ...]] = []
    for folder in folders():
        every += rows(folder)
    for cells in (_HEAD, ("---",) * len(_HEAD), *every):
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n")
    return "".join(lines)


def total() -> str:
    """Say how many curves all tables hold: one for each length that a training passed through."""
    curves: set[tuple[Path, str, int, int]] = set()
    for file in STUDIES.rglob("*.parquet"):
        study = STUDIES / file.relative_to(STUDIES).parts[0]
        runs = pd.read_parquet(file, columns=["network", "seed", "epochs"]).drop_duplicates()
        curves |= {(study, *run) for run in runs.itertuples(index=False, name=None)}
    trainings = {(study, network, seed) for study, network, seed, _ in curves}
    return (
        f"In all tables: {len(curves):,} curves of {len(trainings):,} trainings, one for each "
        "length that a training passed through.\n"
    )


def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--check", action="store_true", help="write nothing")
    check = arguments.parse_args().check
    before = README.read_text()
    head, rest = before.split(BEGIN)
    after = f"{head}{BEGIN}\n\n{table()}\n{total()}\n{END}{rest.split(END)[1]}"
    if check:
        return int(after != before)
    README.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
