"""What the figures share: colours, the names of the axes, the layout, the texts under the mouse."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from scaling_search.report.page import Page
from scaling_search.results.record import Record
from scaling_search.verdict.verdict import Row

# One colour, one meaning, in every figure: the pick, what could be the best, what could not, the
# baseline, references. After Okabe and Ito, whose colours the colour-blind can tell from one
# another (https://jfly.uni-koeln.de/color/), each moved until it has a contrast of 4.5 to white.
RED, BLUE, GREY = "#C44F00", "#0072B2", "#6B6B6B"
ORANGE, GREEN, PURPLE, OLIVE = "#A86400", "#00805E", "#A8558A", "#5F7A00"
INK, PAGE = "#1a1a1a", "#fffffe"  # the page's own, not quite white, so that it can be told
PICK, COULD_BE_BEST, OTHER, BASELINE, REFERENCE, FAILED = RED, BLUE, GREY, INK, ORANGE, PURPLE

# Group of networks → its name in every legend.
GROUP_NAMES = {
    "pick": "the pick",
    "tied": "could be the best",
    "other": "could not be the best",
    "baseline": "baseline, at its own cost",
    "reference": "references, at their own cost",
}

# What the page's script puts in their places on a dark page: a contrast of 6.5 and more to it.
DARK = {
    RED: "#FF8A3D",
    BLUE: "#56B4E9",
    GREY: "#A8B0B8",
    ORANGE: "#E69F00",
    GREEN: "#2FC09A",
    PURPLE: "#E39AC4",
    OLIVE: "#B5CC4A",
    INK: "#e6e6e6",
    PAGE: "#16191c",
}

# The costs that a reader can choose as the horizontal axis: key of the column in the table of
# networks → title.
AXES = {
    "params": "parameters",
    "image_ms": "training time per image, ms, here",
    "acts": "activations (output elements) per image",
    "macs": "FLOPs (multiply-adds) per image",
    "seconds": "training seconds of a run, here",
}
# Of a study under a latency budget.
LATENCY_AXIS = {"latency_ms": "latency of a forward pass, ms"}


def axes_of(page: Page) -> dict[str, str]:
    """Return the costs that a study's networks can be drawn by, the first at first.

    Of several budgets that is their measure. The networks of one budget have all the same of it,
    and would stand in a smear: another cost, in which they differ, comes first."""
    known = {**LATENCY_AXIS, **AXES} if page.axis in LATENCY_AXIS else AXES
    if len(page.study.budgets) > 1 or page.study.space.mode == "nominal":
        return {page.axis: known[page.axis], **known}
    others = {axis: title for axis, title in known.items() if axis != page.axis}
    if not any(record.outcome and record.outcome.images_per_s for record in page.records):
        del others["image_ms"]  # runs that shared their GPU have no speed on record
    return {**others, page.axis: known[page.axis]}


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


def role_name(row: Row, pick: str) -> str:
    """Return what a network is, such as 'the pick', 'baseline', 'nearest to paper'; '' of one that
    stands for nothing. `pick`: key of the network chosen."""
    candidate = row.candidate
    names = [str(d) for d in candidate.directions if d.represents]
    if candidate.role != "candidate":
        names = [candidate.role]
        if candidate.role == "reference":
            names = [f"{candidate.ratio:.2g}x reference"]
    if candidate.key == pick:
        names.insert(0, "the pick")
    return ", ".join(names)


def interval_bars(rows: Sequence[Row]) -> dict[str, Any]:
    """Return plotly's vertical error bars of accuracies, %: the 95% of each, within 0 and 100."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [100 * (row.interval[1] - row.mean) for row in rows],
        "arrayminus": [100 * (row.mean - row.interval[0]) for row in rows],
        "thickness": 1,
        "width": 0,
    }


def run_kind(record: Record) -> str:
    """Return the group that a run is drawn in: the role of its network, or 'failed'."""
    return record.candidate.role if record.done else "failed"


def escape(text: object) -> str:
    """Return a text of a study, a data set or a name as plotly shows it literally.

    In its texts plotly reads some tags of HTML, such as <b> and <a href>, and the entities of `<`,
    `>` and `&`, but not that of a quotation mark."""
    return html.escape(str(text), quote=False)
