"""Each network's difference to the pick, with its interval and the margin of what is as good."""

from __future__ import annotations

import plotly.graph_objects as go

from scaling_search.report.figures.style import (
    BLUE,
    GREEN,
    GREY,
    RED,
    apply_layout,
    network_texts,
)
from scaling_search.verdict.chances import MARGIN
from scaling_search.verdict.verdict import Row, Verdict

_SHOWN = 40  # networks in the figure; more would make it taller than two screens


def words(verdict: Verdict) -> str:
    """Return what stands above the figure."""
    text = (
        "Each network against the pick (the line at 0), with 95% intervals; the band is the margin "
        "within which two networks are as good."
    )
    more = len(verdict.rows) - 1 - _SHOWN
    if more > 0:
        text += f" The best {_SHOWN} are shown, {more} more are in the table."
    return text


def draw(verdict: Verdict, index: dict[str, int]) -> go.Figure:
    """Return the figure of one budget. `index`: network key → row in the table of networks."""
    pick = verdict.pick.candidate.key
    rows = [row for row in verdict.rows if row.candidate.key != pick][:_SHOWN]
    if verdict.baseline is not None:
        rows.append(verdict.baseline)
    rows.reverse()  # plotly's vertical axis begins at the bottom
    tied = [row for row in rows if row.tied]
    others = [row for row in rows if not row.tied]
    figure = go.Figure()
    _add_rows(figure, tied, index, "tied with the best", BLUE, "circle")
    _add_rows(figure, others, index, "not tied", GREY, "circle-open")
    figure.add_vrect(x0=-100 * MARGIN, x1=100 * MARGIN, fillcolor=GREEN, opacity=0.12, line_width=0)
    figure.add_vline(x=0, line_color=RED, line_width=1)
    figure.update_xaxes(title={"text": "points against the pick"})
    figure.update_yaxes(
        categoryorder="array", categoryarray=[_name(row) for row in rows], automargin=True
    )
    return apply_layout(figure, 170 + 22 * len(rows))


def _add_rows(
    figure: go.Figure,
    rows: list[Row],
    index: dict[str, int],
    name: str,
    colour: str,
    symbol: str,
) -> None:
    # `behind`, `low` and `high` say how far the pick is ahead; drawn is the network's own place, so
    # all of them change their sign, and the interval its ends.
    figure.add_scatter(
        x=[-100 * row.behind for row in rows],
        y=[_name(row) for row in rows],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [100 * (row.behind - row.low) for row in rows],
            "arrayminus": [100 * (row.high - row.behind) for row in rows],
            "thickness": 1.5,
            "width": 4,
        },
        mode="markers",
        name=name,
        marker={"color": colour, "size": 9, "symbol": symbol},
        **network_texts([index[row.candidate.key] for row in rows]),
    )


def _name(row: Row) -> str:
    if row.candidate.role == "baseline":
        return f"{row.candidate.label} (baseline)"
    return row.candidate.label
