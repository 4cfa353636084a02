"""Several studies on one page: their fronts in one figure, the map of each."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from scaling_search.report.columns import verdict_rows
from scaling_search.report.figures import map as share_map
from scaling_search.report.figures.style import (
    AXES,
    BLUE,
    GREEN,
    GREY,
    OLIVE,
    ORANGE,
    PURPLE,
    RED,
    accuracy_title,
    apply_layout,
    escape,
    interval_bars,
)
from scaling_search.report.front import front_of_table
from scaling_search.report.page import Page
from scaling_search.verdict.verdict import Verdict

_COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, OLIVE, GREY)
_SYMBOLS = ("circle", "square", "diamond", "cross")


def fronts(pages: Sequence[Page]) -> str:
    """Return the fronts of several studies in one figure, each in its own colour and mark, as
    JSON."""
    figure = go.Figure()
    for number, page in enumerate(pages):
        _add_study(figure, page, number)
    figure.update_xaxes(title={"text": AXES["macs"]}, type="log")
    figure.update_yaxes(title={"text": accuracy_title(*(page.study.metric for page in pages))})
    text: str = apply_layout(figure, 520).to_json()
    return text


def _add_study(figure: go.Figure, page: Page, number: int) -> None:
    """Add a study's front as a line and its networks as marks, the chosen ones as stars."""
    rows = sorted(verdict_rows(page).values(), key=lambda row: row.candidate.cost.macs)
    macs = [row.candidate.cost.macs for row in rows]
    accuracies = [100 * row.mean for row in rows]
    symbols, sizes = [], []
    for row in rows:
        is_pick = row.candidate.key in page.picks
        symbols.append("star" if is_pick else _SYMBOLS[number % len(_SYMBOLS)])
        sizes.append(15 if is_pick else 8)
    colour = _COLOURS[number % len(_COLOURS)]
    title = escape(page.title)
    on_front = front_of_table(pd.DataFrame({"macs": macs, "mean": accuracies}))
    figure.add_scatter(
        x=on_front["macs"],
        y=on_front["mean"],
        mode="lines",
        line={"color": colour, "shape": "hv", "width": 1},
        legendgroup=str(number),
        showlegend=False,
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=macs,
        y=accuracies,
        mode="markers",
        name=title,
        legendgroup=str(number),
        error_y=interval_bars(rows),
        marker={"color": colour, "symbol": symbols, "size": sizes},
        text=[escape(row.candidate.label) for row in rows],
        hovertemplate="%{text}: %{y:.1f} %<extra>" + title + "</extra>",
    )


def maps(page: Page) -> list[tuple[Verdict, str]]:
    """Return the map of each budget as JSON.

    The page has no table of networks to take the texts under the mouse from, so they are written
    here: label and accuracy."""
    drawn = []
    for verdict in page.verdicts:
        index = {row.candidate.key: number for number, row in enumerate(verdict.rows)}
        texts = [f"{escape(row.candidate.label)}: {100 * row.mean:.1f} %" for row in verdict.rows]
        figure = json.loads(share_map.draw(verdict, index, page.powers).to_json())
        for trace in figure["data"]:
            meta = trace.pop("meta", {})
            if "rows" in meta:
                trace["text"] = [texts[number] for number in meta["rows"]]
        drawn.append((verdict, json.dumps(figure)))
    return drawn
