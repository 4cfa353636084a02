"""Accuracy against cost: every network at its exact cost, and the front, the best at each cost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import fmean
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from effnet.cost import Cost, cost
from effnet.families import arch
from scaling_search.report.columns import row_index, verdict_rows
from scaling_search.report.figures.style import (
    AXES,
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    RED,
    accuracy_title,
    apply_layout,
    axes_of,
    escape,
    network_texts,
)
from scaling_search.report.front import front_of_table
from scaling_search.report.page import Page
from scaling_search.results.record import Record, by_network_key
from scaling_search.verdict.verdict import Row

# With more networks than these, error bars and large marks would cover one another.
_MANY = 400
# EfficientNet on ImageNet, fully trained: top-1 accuracy, % (arXiv 1905.11946 v5, table 2).
_PUBLISHED = {
    "b0": 77.1,
    "b1": 79.1,
    "b2": 80.1,
    "b3": 81.6,
    "b4": 82.9,
    "b5": 83.6,
    "b6": 84.0,
    "b7": 84.3,
}
# Group of networks → its name in the legend, colour, mark, size [px].
_GROUPS = {
    "candidate": ("networks of the budget", BLUE, "circle", 9),
    "pick": ("chosen", RED, "star", 16),
    "baseline": ("baseline", INK, "square", 11),
    "reference": ("references along the paper's direction", ORANGE, "diamond", 11),
}


def words(page: Page) -> str:
    """Return what stands above the figure."""
    if _bands(page):
        band = (
            "The shaded band is the budget. Networks outside it (baseline and references) cost "
            "less or more, and are there for the line, not to be compared with those inside."
        )
    elif page.targets:
        band = "The budget is training memory, which is no axis here."
    else:
        band = (
            "The budget is nominal, so these networks differ in real cost: compare along the front."
        )
    return f"Each point is a network at its exact cost; bars are one standard deviation. {band}"


def _bands(page: Page) -> dict[str, float]:
    """Return each budget's target on the axis; none of a budget that is no axis."""
    of = page.study.budgets[0].of
    if of == "memory":
        return {}
    nanoseconds = of == "latency"
    return {b: target / 1e6 if nanoseconds else target for b, target in page.targets.items()}


def draw(page: Page, table: dict[str, Any]) -> go.Figure:
    """Return the figure. `table` is the table of networks (`columns.networks`), whose rows the
    traces refer to."""
    figure = go.Figure()
    tolerance = page.study.space.tolerance
    for budget, target in _bands(page).items():
        figure.add_vrect(
            x0=target * (1 - tolerance),
            x1=target * (1 + tolerance),
            fillcolor=BLUE,
            opacity=0.15,
            line_width=0,
        )
        figure.add_annotation(
            x=math.log10(target),  # an annotation's place on a logarithmic axis is the logarithm
            xanchor="right",
            y=1,
            yref="paper",
            yanchor="top",
            text=escape(budget),
            showarrow=False,
        )
    figure.add_scatter(
        mode="lines",
        line={"color": GREY, "shape": "hv", "width": 1, "dash": "dot"},
        name="front (best at each cost)",
        hoverinfo="skip",
        meta={"front": fronts(table, axes_of(page))},
    )
    _add_networks(figure, page, row_index(table), table["rows"][page.axis])
    if page.dataset.replace("_", "-").lower() in ("imagenet", "imagenet-1k"):
        _add_published(figure, page.axis)
    if page.family:
        _add_family(figure, page.family, page.axis)
    figure.update_xaxes(title={"text": axes_of(page)[page.axis]}, type="log")
    figure.update_yaxes(title={"text": accuracy_title(page.study.metric)})
    return apply_layout(figure, 480)


def fronts(table: dict[str, Any], axes: Iterable[str] = AXES) -> dict[str, list[int]]:
    """Return, for each cost, the rows of the front in order of that cost."""
    names = [*axes, "mean"]
    frame = pd.DataFrame({name: table["rows"][name] for name in names}).astype(float)
    return {axis: [int(row) for row in front_of_table(frame, axis).index] for axis in axes}


def _add_networks(
    figure: go.Figure, page: Page, index: dict[str, int], costs: list[float | None]
) -> None:
    """Add the networks that have a finished run, a trace for each group of them. `index`: network
    key → its row in the table; `costs` on the axis, by row."""
    groups: dict[str, list[Row]] = {group: [] for group in _GROUPS}
    for key, row in verdict_rows(page).items():
        groups["pick" if key in page.picks else row.candidate.role].append(row)
    for group, rows in groups.items():
        if not rows:
            continue
        name, colour, symbol, size = _GROUPS[group]
        bars: dict[str, Any] | None = {
            "type": "data",
            "array": [100 * row.error for row in rows],
            "thickness": 1,
            "width": 3,
        }
        if len(rows) > _MANY:
            bars, size = None, 5
        figure.add_scatter(
            x=[costs[index[row.candidate.key]] for row in rows],
            y=[100 * row.mean for row in rows],
            error_y=bars,
            mode="markers",
            name=name,
            marker={"color": colour, "symbol": symbol, "size": size},
            **network_texts([index[row.candidate.key] for row in rows], axis=True),
        )


def _add_published(figure: go.Figure, shown: str) -> None:
    """Add EfficientNet's published networks, which only ImageNet's accuracies can stand beside."""
    _add_line(
        figure,
        name="EfficientNet as published, fully trained",
        costs=[cost(arch(member)) for member in _PUBLISHED],
        accuracies=list(_PUBLISHED.values()),
        texts=[f"EfficientNet-{member.upper()}" for member in _PUBLISHED],
        colour=GREEN,
        shown=shown,
    )


def _add_family(figure: go.Figure, family: tuple[Record, ...], shown: str) -> None:
    """Add the networks trained by `scaling-search family --train`, by the mean of their runs."""
    by_cost = sorted(family, key=lambda record: record.candidate.cost.macs)
    groups = by_network_key(by_cost).values()
    members = [records[0].candidate for records in groups]
    _add_line(
        figure,
        name="its family, mean of own runs",
        costs=[member.cost for member in members],
        accuracies=[100 * fmean(record.val_acc for record in records) for records in groups],
        texts=[member.label for member in members],
        colour=RED,
        shown=shown,
    )


def _add_line(
    figure: go.Figure,
    *,
    name: str,
    costs: list[Cost],
    accuracies: list[float],
    texts: list[str],
    colour: str,
    shown: str,
) -> None:
    """Add networks that are no part of the study, joined by a line, at first on the axis `shown`.
    They have no measured times, so the axes of time leave them out."""
    by_axis = {axis: [getattr(c, axis) for c in costs] for axis in ("macs", "params", "acts")}
    figure.add_scatter(
        x=by_axis.get(shown, []),
        y=accuracies,
        mode="lines+markers",
        name=name,
        line={"color": colour, "width": 1},
        marker={"symbol": "circle-open", "size": 9},
        text=[escape(text) for text in texts],
        hovertemplate="%{text}: %{y:.1f} %<extra></extra>",
        meta={"costs": by_axis},
    )
