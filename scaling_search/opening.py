"""A study opened from Python: its runs and its verdict as tables, its figures, its answer."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from scaling_search import UserError
from scaling_search.report import FIGURES
from scaling_search.report.page import Page, answer_sentences, page_of
from scaling_search.results import curves, tables
from scaling_search.results.curves import Curves
from scaling_search.results.reading import open_results
from scaling_search.results.record import Record, by_network_key
from scaling_search.study.settings import Study
from scaling_search.study.wording import difference
from scaling_search.verdict.narration import Sentence, accuracy_and_interval, details
from scaling_search.verdict.verdict import Row, Verdict

if TYPE_CHECKING:  # plotly takes a second to import
    from scaling_search.report.figures import static

_BEST = 5  # networks in a notebook's small table


@dataclass(frozen=True)
class StudyResults:
    """A study as it was when it was opened. `print` says its answer; a notebook shows it.

    Runs are read at once. The verdict, which takes seconds, is concluded when it is first asked
    for, and kept. Accuracies and differences are fractions."""

    path: Path  # the run folder, or the table
    _source: Curves = field(repr=False)

    # ---- what was trained

    @property
    def study(self) -> Study:
        """The study's settings. Raises UserError where they are of another release."""
        return self._source.study

    @property
    def records(self) -> list[Record]:
        """Every run with all that is known of it, in the order in which they were started."""
        return self._source.records()

    @cached_property
    def networks(self) -> pd.DataFrame:
        """A row for each network: what it is, costs and stands for; `network` is its key."""
        rows = []
        for records in by_network_key(self.records).values():
            candidate = records[0].candidate
            row = {
                "label": candidate.label,
                "role": candidate.role,
                "budget": str(candidate.budget),
                **tables.network_row(candidate),
                "ratio": candidate.ratio,
                "waste": candidate.waste,
                "stands_for": candidate.stands_for,
            }
            rows.append(row)
        frame = pd.DataFrame(rows)
        if not frame.empty and frame[tables.ACROSS].equals(frame["resolution"]):
            frame = frame.drop(columns=tables.ACROSS)
        return frame.dropna(axis="columns", how="all")

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row for each run that has ended, with the columns of results.csv."""
        return tables.table(self.records)

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """A row for each epoch of each run that has ended, with the columns of curves.parquet."""
        return curves.frame(self.records)

    # ---- what follows from it

    @cached_property
    def _page(self) -> Page:
        folder = self.path if self.path.is_dir() else self.path.parent
        return page_of(self._source, folder)

    @property
    def verdicts(self) -> Mapping[str, Verdict]:
        """{budget: its verdict}, of the budgets that have a finished network."""
        return {str(verdict.budget): verdict for verdict in self._page.verdicts}

    @property
    def verdict(self) -> Verdict:
        """The verdict of a study of one budget: its `pick`, `bound`, `tied` networks, `rows` and
        more. Raises UserError where there is none yet, or one for each of several budgets."""
        return self._of(None)

    def _of(self, budget: str | None) -> Verdict:
        """The verdict of a budget; None: of the only one. Raises UserError."""
        known = self.verdicts
        self._check_verdict()
        if budget is None and len(self.study.budgets) > 1:
            budgets = ", ".join(map(str, self.study.budgets))
            raise UserError(
                f"{self.path}: several budgets, {budgets}: say which, such as the budget "
                f"{next(iter(known))}"
            )
        if budget is None:
            budget = next(iter(known))
        if budget not in known:
            raise UserError(f"{self.path}: no verdict for the budget {budget}: {', '.join(known)}")
        return known[budget]

    def _check_verdict(self) -> None:
        """Raise UserError where there is no verdict yet."""
        if not self.verdicts:
            raise UserError(
                f"{self.path}: no verdict yet, as too few networks of a budget have finished"
            )

    @cached_property
    def table(self) -> pd.DataFrame:
        """What the verdicts say of each network, the best of each budget first, then the baseline
        and the references. Differences are to the pick, below 0 where the network is worse."""
        rows = []
        for budget, verdict in self.verdicts.items():
            others = list(verdict.references)
            if verdict.baseline is not None:
                others.insert(0, verdict.baseline)
            rows += [_verdict_row(budget, row, verdict) for row in (*verdict.rows, *others)]
        return pd.DataFrame(rows)

    def figure(self, name: str, budget: str | None = None) -> static.Plot:
        """The report's figure `front`, `map`, `differences`, `curves` or `lengths`, for plotly. Of
        several budgets all but `front` and `curves` are of one: `budget`, such as "2x". Raises
        UserError."""
        from scaling_search.report.figures import lengths, static

        if name not in FIGURES:
            raise UserError(f"figure {name}: known are {', '.join(FIGURES)}")
        verdict = None
        if name in static.OF_A_BUDGET:
            verdict = self._of(budget)
        elif budget is not None:
            raise UserError(f"figure {name}: of all budgets; leave out the budget {budget}")
        elif name not in static.WITHOUT_VERDICT:
            self._check_verdict()
        if name == "lengths" and not lengths.lengths_of(self._page, self._of(budget)):
            raise UserError(
                f"figure lengths: {self.path} has not every network at several lengths; it takes "
                "--epochs 1,4 --allocation flat, say, and that the study has ended"
            )
        return static.draw(self._page, name, verdict)

    # ---- in words

    @cached_property
    def sentences(self) -> list[Sentence]:
        """The answer, as the terminal and the report have it."""
        return answer_sentences(self._page)

    def __str__(self) -> str:
        return "\n".join(f"{sentence.label:<10}{sentence.text}" for sentence in self.sentences)

    def _repr_html_(self) -> str:
        """The answer for a notebook, the best networks, and what stands behind it, folded."""
        page = self._page
        lines = [f"<h3>{html.escape(page.title)}</h3>", _as_html(self.sentences)]
        for budget, verdict in self.verdicts.items():
            if len(self.verdicts) > 1:
                lines.append(f"<h4>{html.escape(budget)}</h4>")
            lines.append(_small_table(verdict))
            behind = _as_html(details(verdict, page.records, page.study))
            lines.append(f"<details><summary>in detail</summary>{behind}</details>")
        return "\n".join(lines)


def open_study(run: str | Path, store: str | None = None) -> StudyResults:
    """Open a run folder, a recorded study's folder or its curves.parquet; `store`: the address of
    the database that holds the results. Raises UserError."""
    path = Path(run)
    if path.suffix == ".parquet" and not path.is_dir():
        return StudyResults(path, curves.read(path))
    if path.is_file():
        raise UserError(f"{path}: a run folder is wanted, or a table that ends in .parquet")
    if not path.is_dir():
        raise UserError(
            f"{path}: no such folder; give a run folder, such as runs/fashion-mnist-2x, or a table "
            "of curves"
        )
    with open_results(path, store) as source:
        if isinstance(source, Curves):
            return StudyResults(path, source)
        return StudyResults(path, Curves(path, source.facts(), tuple(source.records())))


def _verdict_row(budget: str, row: Row, verdict: Verdict) -> dict[str, Any]:
    candidate = row.candidate
    return {
        "budget": budget,
        "label": candidate.label,
        "role": "pick" if row is verdict.pick else candidate.role,
        "expected_val_acc": row.mean,
        "error": row.error,
        "difference": 0.0 - row.behind,  # the pick's own is 0, not −0
        "difference_low": 0.0 - row.high,
        "difference_high": 0.0 - row.low,
        "standing": row.standing,
        "p_best": row.best,
        "tied": row.tied,
        "runs": row.seeds,
        "test_acc": row.test,
        "macs": candidate.cost.macs,
        "params": candidate.cost.params,
        "network": candidate.key,
    }


def _as_html(sentences: list[Sentence]) -> str:
    lines = []
    for sentence in sentences:
        label = f"<b>{html.escape(sentence.label)}</b> " if sentence.label else ""
        lines.append(f"<p>{label}{html.escape(sentence.text)}</p>")
    return "\n".join(lines)


def _small_table(verdict: Verdict) -> str:
    """The best networks and the baseline: accuracies in %, differences in points, with their
    95%."""
    shown = list(verdict.rows[:_BEST])
    if verdict.baseline is not None:
        shown.append(verdict.baseline)
    rows = []
    for row in shown:
        is_pick = row is verdict.pick
        role = "the pick" if is_pick else row.candidate.role.replace("candidate", "")
        beside = "" if is_pick else difference(-row.behind, -row.high, -row.low)
        rows.append(
            {
                "network": row.candidate.label,
                "role": role,
                "accuracy %": accuracy_and_interval(row),
                "against the pick, points": beside,
                "runs": row.seeds,
            }
        )
    return str(pd.DataFrame(rows).to_html(index=False, border=0))
