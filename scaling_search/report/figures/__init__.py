"""The report's figures, one file each. Only this package imports plotly.

A trace's `meta` names what the page's script (assets/report.js) fills in from the table of
networks, so that each text is on the page once:

    rows    the networks of its points, by their rows in the table: the texts under the mouse
    axis    its x is the cost that the reader has chosen, of the same rows
    costs   its x by the chosen cost, for networks that are not in the table
    front   the rows of the front along each cost
    curves  the runs of its lines by their rows in the table of runs, `points` the epochs of each
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plotly.offline import get_plotlyjs

from scaling_search.report.columns import row_index
from scaling_search.report.figures import curves, differences, front, progress, time
from scaling_search.report.figures import map as share_map
from scaling_search.report.page import Page


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure as the page takes it. `figure` is plotly's JSON, `words` the text above it; with
    `control`, the page offers a choice of the cost axis."""

    anchor: str
    heading: str
    words: str
    figure: str
    control: bool = False


def figures(page: Page, table: dict[str, Any]) -> list[Figure]:
    """Return every figure that the runs so far can fill. `table` is the table of networks
    (`columns.networks`)."""
    drawn = []
    if page.verdicts:
        drawn.append(
            Figure(
                "front",
                "Accuracy against cost",
                front.words(page),
                front.draw(page, table).to_json(),
                control=True,
            )
        )
    drawn += _of_each_budget(page, row_index(table))
    ended = [record for record in page.records if record.outcome is not None]
    if any(record.outcome and record.outcome.epochs for record in ended):
        figure = curves.draw(page.records, page.study.metric).to_json()
        drawn.append(Figure("curves", "Learning curves", curves.words(page), figure))
    if len(ended) > 1:
        figure = progress.draw(page).to_json()
        drawn.append(Figure("progress", "What the search has bought", progress.WORDS, figure))
        figure = time.draw(ended).to_json()
        drawn.append(Figure("time", "Where the time went", time.WORDS, figure))
    return drawn


def _of_each_budget(page: Page, index: dict[str, int]) -> list[Figure]:
    """Return the map of every budget, then the differences of every budget."""
    maps, comparisons = [], []
    for number, verdict in enumerate(page.verdicts):
        suffix = ""
        map_heading = "Where the budget went"
        differences_heading = "Differences to the pick"
        if len(page.verdicts) > 1:
            suffix = f"-{number}"
            budget = str(verdict.budget)
            map_heading = f"Where the budget {budget} went"
            differences_heading = f"Differences to the pick of {budget}"
        figure = share_map.draw(verdict, index, page.powers).to_json()
        maps.append(Figure(f"map{suffix}", map_heading, share_map.WORDS, figure))
        if len(verdict.rows) > 1:
            words = differences.words(verdict)
            figure = differences.draw(verdict, index).to_json()
            comparisons.append(Figure(f"behind{suffix}", differences_heading, words, figure))
    return maps + comparisons


def script() -> str:
    """Return plotly.js, whole."""
    text: str = get_plotlyjs()
    return text
