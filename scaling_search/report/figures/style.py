"""What the figures share: colours, the names of the axes, the layout, the texts under the mouse."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from scaling_search.report.page import Page
from scaling_search.results.record import Record

# Okabe and Ito's colours, which the colour-blind can tell from one another
# (https://jfly.uni-koeln.de/color/).
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY = "#CC79A7", "#56B4E9"
GREY = "#7A7A7A"
INK = "#808080"  # outlines, which have to show on a light and on a dark page

# The costs that a reader can choose as the horizontal axis: key of the column in the table of
# networks → title.
AXES = {
    "macs": "FLOPs (multiply-adds) per image",
    "params": "parameters",
    "acts": "activations (output elements) per image",
    "image_ms": "training time per image, ms, here",
    "seconds": "training seconds of a run, here",
}
# Of a study under a latency budget.
LATENCY_AXIS = {"latency_ms": "latency of a forward pass, ms"}


def axes_of(page: Page) -> dict[str, str]:
    """Return the costs that a study's networks can be drawn by, its budgets' measure first."""
    known = {**LATENCY_AXIS, **AXES} if page.axis in LATENCY_AXIS else AXES
    return {page.axis: known[page.axis], **known}


def accuracy_title(*metrics: str) -> str:
    """Return the title of an axis of accuracies by these metrics."""
    balanced = "balanced " if set(metrics) == {"balanced"} else ""
    return f"{balanced}validation accuracy, %"


def apply_layout(figure: go.Figure, height: int, **more: Any) -> go.Figure:
    """Set the height [px], the margins and the legend under the figure; return the figure.

    Fonts and colours are the page's to give, since they change with light and dark."""
    return figure.update_layout(
        template=None,
        height=height,
        margin={"l": 60, "r": 20, "t": 40, "b": 60},
        legend={
            "orientation": "h",
            # 72 px under the axis, in parts of the plot's height, so that the title has room.
            "y": -72 / (height - 110),
            "yanchor": "top",
            "x": 0,
        },
        **more,
    )


def network_texts(rows: Sequence[int], **meta: Any) -> dict[str, Any]:
    """Return the properties of a trace whose points are networks, by their rows in the table.

    The page's script writes the text under the mouse from that table."""
    return {"meta": {"rows": list(rows), **meta}, "hovertemplate": "%{text}<extra></extra>"}


def run_kind(record: Record) -> str:
    """Return the group that a run is drawn in: the role of its network, or 'failed'."""
    return record.candidate.role if record.done else "failed"


def epoch_count(epochs: int) -> str:
    """Return '1 epoch' or '4 epochs'."""
    return "1 epoch" if epochs == 1 else f"{epochs} epochs"


def escape(text: object) -> str:
    """Return a text of a study, a data set or a name as plotly shows it literally.

    In its texts plotly reads some tags of HTML, such as <b> and <a href>, and the entities of `<`,
    `>` and `&`, but not that of a quotation mark."""
    return html.escape(str(text), quote=False)
