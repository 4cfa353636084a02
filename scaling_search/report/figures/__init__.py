"""The report's figures, one file each. Only this package imports plotly.

A trace's `meta` names what the page's script (assets/report.js) fills in from the table of
networks, so that each text is on the page once:

    rows    the networks of its points, by their rows in the table: the texts under the mouse
    axis    its x is the cost that the reader has chosen, of the same rows
    costs   its x by the chosen cost, for networks that are not in the table
    front   the rows of the front along each cost
    curves  the networks of its lines by their rows in the table, `points` the points of each
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from plotly.offline import get_plotlyjs

from scaling_search.report.columns import row_index
from scaling_search.report.figures import (
    budgets,
    curves,
    differences,
    front,
    lengths,
    progress,
    time,
)
from scaling_search.report.figures import map as share_map
from scaling_search.report.page import Page
from scaling_search.verdict.verdict import Verdict

Place = Literal["first", "open", "folded"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure as the page takes it. `figure` is plotly's JSON, `words` the text above it; with
    `control`, the page offers a choice of the cost axis. `place`: the first screen, below it, or
    folded until the reader opens it."""

    anchor: str
    heading: str
    words: str
    figure: str
    control: bool = False
    place: Place = "open"


def figures(page: Page, table: dict[str, Any]) -> list[Figure]:
    """Return every figure that the runs so far can fill. `table` is the table of networks
    (`columns.networks`)."""
    index = row_index(table)
    drawn = []
    if len(page.verdicts) > 1:
        drawn.append(_front(page, table, "first"))
        figure = budgets.draw(page.verdicts).to_json()
        heading = "How the best direction moves with the budget"
        drawn.append(Figure("budgets", heading, budgets.WORDS, figure, place="first"))
    for number, verdict in enumerate(page.verdicts):
        drawn += _of_budget(page, verdict, index, number)
    if len(page.verdicts) == 1:
        drawn.append(_front(page, table, "open"))
    ended = [record for record in page.records if record.outcome is not None]
    if curves.are_drawn(page.records):
        figure = curves.draw(page, index).to_json()
        drawn.append(Figure("curves", "Learning curves", curves.words(page), figure))
    if len(ended) > 1:
        figure = progress.draw(page).to_json()
        heading = "What the search has bought"
        drawn.append(Figure("progress", heading, progress.WORDS, figure, place="folded"))
        figure = time.draw(ended).to_json()
        drawn.append(Figure("time", "Where the time went", time.WORDS, figure, place="folded"))
    return drawn


def _front(page: Page, table: dict[str, Any], place: Place) -> Figure:
    figure = front.draw(page, table).to_json()
    heading = "Accuracy against cost"
    return Figure("front", heading, front.words(page), figure, control=True, place=place)


def _of_budget(page: Page, verdict: Verdict, index: dict[str, int], number: int) -> list[Figure]:
    """Return every network against the pick, the map, and the lengths of runs, of one budget."""
    suffix, of_budget = "", ""
    if len(page.verdicts) > 1:
        suffix, of_budget = f"-{number}", f", {verdict.budget}"
    drawn = []
    if len(verdict.rows) > 1:
        drawn.append(
            Figure(
                f"behind{suffix}",
                f"Every network against the pick{of_budget}",
                differences.words(verdict),
                differences.draw(verdict, index).to_json(),
                place="first",
            )
        )
    figure = share_map.draw(verdict, index, page.powers).to_json()
    heading = f"The map: where the extra cost went{of_budget}"
    drawn.append(Figure(f"map{suffix}", heading, share_map.WORDS, figure, place="first"))
    if lengths.lengths_of(page, verdict):
        figure = lengths.draw(page, verdict, index).to_json()
        heading = f"Does the order hold for longer runs?{of_budget}"
        drawn.append(Figure(f"lengths{suffix}", heading, lengths.words(page, verdict), figure))
    return drawn


def script() -> str:
    """Return plotly.js, whole."""
    text: str = get_plotlyjs()
    return text
