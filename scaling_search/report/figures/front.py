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
    BASELINE,
    COULD_BE_BEST,
    GREEN,
    GREY,
    GROUP_NAMES,
    ORANGE,
    OTHER,
    PICK,
    REFERENCE,
    accuracy_title,
    apply_layout,
    axes_of,
    escape,
    interval_bars,
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
# The one public run of the paper's grid: 108 nominal networks of B0, five epochs of ImageNet each.
# Its accuracies as read from its picture (microsoft/nni, examples/trials/efficientnet), which is
# all there is; what those networks really cost, as a multiple of B0's.
_GRID_ACCURACIES, _GRID_RATIOS = (36.6, 43.2), (1.93, 3.33)
# Group of networks → its colour, mark, size [px].
_GROUPS = {
    "other": (OTHER, "circle-open", 9),
    "tied": (COULD_BE_BEST, "circle", 9),
    "reference": (REFERENCE, "diamond-open", 11),
    "baseline": (BASELINE, "square-open", 11),
    "pick": (PICK, "star", 16),
}
# Part of the height of the budget's networks that is left free above and under them.
_AIR = 0.08


def words(page: Page) -> str:
    """Return what stands above the figure."""
    text = "Each point is a network, with the 95% of its accuracy. "
    if page.study.space.mode == "nominal":
        text += "The budget is nominal, so these networks differ in cost: compare along the front."
    elif len(page.study.budgets) > 1:
        text += "The shaded bands are the budgets. The dotted line is the front: best at each cost."
    else:
        text += (
            f"The networks of {page.study.budgets[0]} cost the same by the budget's measure; here "
            "they stand by another, which you can change. The dotted line is the front: best at "
            "each cost."
        )
    low, high = _heights(page)
    for row in page.verdicts[0].references:
        if not low <= 100 * row.mean <= high:
            text += (
                f" The reference of {row.candidate.ratio:.2g}x, {100 * row.mean:.1f}%, is outside."
            )
    if page.classes > 1 and not low <= 100 / page.classes <= high:
        text += f" Chance is {100 / page.classes:.1f}%, below the figure."
    return text


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
    shown = next(iter(axes_of(page)))
    bands = _bands(page) if shown == page.axis else {}
    for budget, target in bands.items():
        figure.add_vrect(
            x0=target * (1 - tolerance),
            x1=target * (1 + tolerance),
            fillcolor=COULD_BE_BEST,
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
    _add_networks(figure, page, row_index(table), table["rows"][shown])
    if _is_imagenet(page):
        _add_published(figure, shown)
        _add_public_grid(figure, shown)
    if page.family:
        _add_family(figure, page.family, shown)
    low, high = _heights(page)
    if page.classes > 1 and low <= 100 / page.classes <= high:
        figure.add_hline(
            y=100 / page.classes, line={"color": GREY, "dash": "dash"}, annotation_text="chance"
        )
    figure.update_xaxes(title={"text": axes_of(page)[shown]}, type="log")
    figure.update_yaxes(title={"text": accuracy_title(page.study.metric)}, range=[low, high])
    return apply_layout(figure, 480)


def _heights(page: Page) -> tuple[float, float]:
    """Return the vertical axis's ends, per cent: those of the budgets' networks, and of the family
    and the published ones that lie over them."""
    ends = []
    for verdict in page.verdicts:
        rows = [*verdict.rows]
        if verdict.baseline is not None:
            rows.append(verdict.baseline)
        for row in rows:
            ends += [100 * end for end in row.interval]
    ends += [100 * record.val_acc for record in page.family]
    if _is_imagenet(page):
        ends += [*_PUBLISHED.values(), *_GRID_ACCURACIES]
    low, high = min(ends), max(ends)
    air = max(_AIR * (high - low), 0.2)
    return max(low - air, 0.0), min(high + air, 100.0)


def _is_imagenet(page: Page) -> bool:
    return page.dataset.replace("_", "-").lower() in ("imagenet", "imagenet-1k")


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
        group: str = row.candidate.role
        if group == "candidate":
            group = "tied" if row.tied else "other"
        groups["pick" if key in page.picks else group].append(row)
    for group, rows in groups.items():
        if not rows:
            continue
        colour, symbol, size = _GROUPS[group]
        bars: dict[str, Any] | None = interval_bars(rows)
        if len(rows) > _MANY:
            bars, size = None, 5
        figure.add_scatter(
            x=[costs[index[row.candidate.key]] for row in rows],
            y=[100 * row.mean for row in rows],
            error_y=bars,
            mode="markers",
            name=GROUP_NAMES[group],
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


def _add_public_grid(figure: go.Figure, shown: str) -> None:
    """Add the field in which the public run of the paper's grid lies, along multiply-adds."""
    base = cost(arch("b0")).macs
    (left, right), (low, high) = _GRID_RATIOS, _GRID_ACCURACIES
    by_axis = {"macs": [base * ratio for ratio in (left, right, right, left, left)]}
    figure.add_scatter(
        x=by_axis.get(shown, []),
        y=[low, low, high, high, low],
        mode="lines",
        fill="toself",
        opacity=0.5,
        name="NNI's run of the paper's grid, 5 epochs each (field, from its picture)",
        line={"color": ORANGE, "width": 1},
        hoverinfo="skip",
        meta={"costs": by_axis},
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
        colour=PICK,
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
