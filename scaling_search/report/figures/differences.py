"""Every network against the pick: its difference with its 95%, and what is as good."""

from __future__ import annotations

import plotly.graph_objects as go

from scaling_search.report.figures.style import (
    BASELINE,
    COULD_BE_BEST,
    GREEN,
    GROUP_NAMES,
    OTHER,
    PICK,
    REFERENCE,
    apply_layout,
    escape,
    network_texts,
    role_name,
)
from scaling_search.verdict.chances import MARGIN
from scaling_search.verdict.verdict import Row, Verdict

# Networks in the figure; more would make it taller than two screens.
_SHOWN = 40
# Heights, px: of a network's line, whose name has two lines of text, and of axis and legend.
_LINE, _AROUND = 36, 190


def words(verdict: Verdict) -> str:
    """Return what stands above the figure."""
    text = (
        "Points of validation accuracy against the pick, with 95% intervals. Filled: could be the "
        "best. Hollow: all together less likely than 5% to hold the best. In the green band, half "
        "a point, two networks are as good."
    )
    more = len(verdict.rows) - _SHOWN
    if more > 0:
        text += f" The best {_SHOWN} are shown, {more} more are in the table."
    return text


def draw(verdict: Verdict, index: dict[str, int]) -> go.Figure:
    """Return the figure of one budget. `index`: network key → row in the table of networks."""
    pick = verdict.pick.candidate.key
    rows = list(verdict.rows[:_SHOWN])
    if verdict.pick not in rows:
        rows.append(verdict.pick)
    if verdict.baseline is not None:
        rows.append(verdict.baseline)
    rows += verdict.references
    rows.sort(key=lambda row: row.mean)  # plotly's vertical axis begins at the bottom

    chosen = [row for row in rows if row.candidate.key == pick]
    tied = [row for row in rows if row.tied and row.candidate.key != pick]
    compared = [row for row in rows if row.candidate.role == "candidate"]
    others = [row for row in compared if not row.tied and row.candidate.key != pick]
    base = [row for row in rows if row.candidate.role == "baseline" and row.candidate.key != pick]
    references = [row for row in rows if row.candidate.role == "reference"]
    names = _names(rows, pick)
    figure = go.Figure()
    figure.add_vrect(x0=-100 * MARGIN, x1=100 * MARGIN, fillcolor=GREEN, opacity=0.15, line_width=0)
    figure.add_vline(x=0, line_color=PICK, line_width=1)
    groups = [
        ("pick", chosen, PICK, "star", 14),
        ("tied", tied, COULD_BE_BEST, "circle", 9),
        ("other", others, OTHER, "circle-open", 9),
        ("baseline", base, BASELINE, "square-open", 9),
        ("reference", references, REFERENCE, "diamond-open", 10),
    ]
    for group, members, colour, symbol, size in groups:
        if members:
            marker = {"color": colour, "symbol": symbol, "size": size}
            _add_rows(figure, members, index, GROUP_NAMES[group], marker, names)
    figure.update_xaxes(title={"text": "points against the pick"}, zeroline=False, side="top")
    figure.update_yaxes(
        categoryorder="array",
        categoryarray=[names[row.candidate.key] for row in rows],
        automargin=True,
        ticklen=4,
    )
    return apply_layout(figure, _AROUND + _LINE * len(rows))


def _add_rows(
    figure: go.Figure,
    rows: list[Row],
    index: dict[str, int],
    name: str,
    marker: dict[str, object],
    names: dict[str, str],
) -> None:
    # `behind`, `low` and `high` say how far the pick is ahead; drawn is the network's own place, so
    # all of them change their sign, and the interval its ends.
    figure.add_scatter(
        x=[-100 * row.behind for row in rows],
        y=[names[row.candidate.key] for row in rows],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [100 * (row.behind - row.low) for row in rows],
            "arrayminus": [100 * (row.high - row.behind) for row in rows],
            "thickness": 2,
            "width": 0,
        },
        mode="markers",
        name=name,
        marker=marker,
        **network_texts([index[row.candidate.key] for row in rows]),
    )


def _names(rows: list[Row], pick: str) -> dict[str, str]:
    """Return the name of each network by its key, widths with as few digits as tell them apart:
    those of one name would share a line."""
    for digits in (3, 4, 9):
        names = {row.candidate.key: _name(row, pick, digits) for row in rows}
        if len(set(names.values())) == len(names):
            break
    return names


def _name(row: Row, pick: str, digits: int) -> str:
    """Return '<b>paper</b><br>7 blocks, 18 px, width 1.1': its role, and what it is in short."""
    net = row.candidate.arch
    size = f"depth {row.candidate.alpha:g}"
    if net.blocks is not None:
        size = f"{net.blocks} blocks"
    label = f"{size}, {net.px}, width {row.candidate.beta:.{digits}g}"
    role = role_name(row, pick)
    return f"<b>{escape(role)}</b><br>{escape(label)}" if role else escape(label)
