"""Several studies in one figure."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from scaling_search.report.columns import told_rows
from scaling_search.report.figures import ternary
from scaling_search.report.figures.style import AXES, BLUE, GREEN, GREY, ORANGE, RED, layout
from scaling_search.report.front import front_of_table
from scaling_search.report.page import Page, escape
from scaling_search.verdict.verdict import Verdict


def compared(pages: Sequence[Page]) -> str:
    """The fronts of several studies in one figure, each in its own colour and mark, as JSON."""
    figure = go.Figure()
    colours, symbols = (
        (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", GREY),
        ("circle", "square", "diamond", "cross"),
    )
    for i, page in enumerate(pages):
        picks = page.picks
        ordered = sorted(told_rows(page).values(), key=lambda r: r.candidate.cost.macs)
        frame = pd.DataFrame(
            {"macs": [r.candidate.cost.macs for r in ordered], "mean": [r.mean for r in ordered]}
        )
        line, colour, name = front_of_table(frame), colours[i % len(colours)], escape(page.title)
        figure.add_scatter(
            x=line["macs"], y=100 * line["mean"], mode="lines", line={"color": colour, "shape": "hv", "width": 1},
            legendgroup=str(i), showlegend=False, hoverinfo="skip",
        ).add_scatter(
            x=frame["macs"], y=100 * frame["mean"], mode="markers", name=name, legendgroup=str(i),
            error_y={"type": "data", "array": [100 * r.error for r in ordered], "thickness": 1, "width": 3},
            marker={
                "color": colour, "symbol": [
                    "star" if r.candidate.key in picks else symbols[i % len(symbols)] for r in ordered
                ],
                "size": [15 if r.candidate.key in picks else 8 for r in ordered],
            },
            text=[escape(r.candidate.label) for r in ordered],
            hovertemplate="%{text}: %{y:.1f} %<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.update_xaxes(title={"text": AXES["macs"]}, type="log")
    figure.update_yaxes(title={"text": "validation accuracy, %"})
    text: str = layout(figure, 520).to_json()
    return text


def maps(page: Page) -> list[tuple[Verdict, str]]:
    """The ternary map of each budget, its networks named by label, as JSON."""
    drawn = []
    for v in page.found:
        index = {row.candidate.key: i for i, row in enumerate(v.rows)}
        figure = json.loads(ternary(v, index).to_json())
        for trace in figure["data"]:
            if rows := trace.pop("meta", {}).get("rows"):
                trace["text"] = [
                    f"{escape(v.rows[i].candidate.label)}: {100 * v.rows[i].mean:.1f} %"
                    for i in rows
                ]
        drawn.append((v, json.dumps(figure)))
    return drawn
