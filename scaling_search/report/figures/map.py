"""The map of shares: a triangle whose corners spend all of the extra cost on one dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from effnet.shares import Exponents, Shares
from scaling_search.report.figures.style import INK, RED, apply_layout, escape, network_texts
from scaling_search.study.directions import NAMED, by_measure
from scaling_search.verdict.verdict import Surface, Verdict

WORDS = (
    "Where each network's extra cost goes: a corner spends all of it on one dimension, an edge on "
    "two of them, the middle on all three alike. Colour is expected validation accuracy, squares "
    "the smooth surface fitted through all runs; ringed squares hold 95% of the probability of its "
    "highest point, crosses go from where it was after the shortest runs to where it is after the "
    "longest. Hollow: the paper's coefficients as printed (nominal shares, never trained as such), "
    "EfficientNet-X's and the pure directions."
)


def draw(verdict: Verdict, index: dict[str, int], powers: Exponents) -> go.Figure:
    """Return the figure of one budget. `index`: network key → row in the table of networks;
    `powers` of the dimensions with which the budget's measure grows."""
    networks = [row for row in verdict.rows if row.candidate.shares is not None]
    accuracies = [100 * row.mean for row in networks]
    heights: list[float] = []
    if verdict.surface is not None:
        # The surface's height is relative: it is hung at the best network's mean.
        top = max(row.mean for row in verdict.rows)
        heights = [100 * (top + height) for height in verdict.surface.height]
    scale = _colour_scale([*accuracies, *heights])

    figure = go.Figure()
    if verdict.surface is not None:
        _add_surface(figure, verdict.surface, heights, scale)
        _add_optimum(figure, verdict.surface)
    symbols, sizes = [], []
    for row in networks:
        is_pick = row.candidate.key == verdict.pick.candidate.key
        symbols.append("star" if is_pick else "circle")
        sizes.append(20 if is_pick else 13)
    figure.add_scatterternary(
        **_places([row.candidate.shares for row in networks if row.candidate.shares]),
        mode="markers",
        cliponaxis=False,
        name="trained networks (star: chosen)",
        marker={
            **scale,
            "color": accuracies,
            "showscale": True,
            "size": sizes,
            "symbol": symbols,
            "line": {"color": INK, "width": 1},
        },
        **network_texts([index[row.candidate.key] for row in networks]),
    )
    pure = {name: aim for name, aim in NAMED.items() if name != "paper"}
    paper = {"paper": NAMED["paper"]}
    groups = [
        ("the paper's direction (nominal)", "diamond-open", paper),
        ("pure scalings, EfficientNet-X", "triangle-up-open", pure),
        ("the study's own directions", "square-open", verdict.directions),
    ]
    for name, symbol, directions in groups:
        reached = by_measure(directions, powers)
        if reached:
            _add_directions(figure, name, symbol, reached)
    return _with_axes(figure)


def _colour_scale(percents: Sequence[float]) -> dict[str, Any]:
    """Return the marker's properties by which one accuracy has one colour in every trace.

    Each trace has the whole scale, where plotly's shared `coloraxis` would do: plotly.js (4.1)
    forgets a shared scale when it draws the legend, paints its marks black and warns "Invalid color
    specifier: number ..." in the console."""
    low, high = min(percents, default=0.0), max(percents, default=0.0)
    if low == high:  # of one network alone; a scale needs some height
        low, high = low - 0.5, high + 0.5
    return {
        "colorscale": "Viridis",
        "cmin": low,
        "cmax": high,
        "colorbar": {"title": {"text": "val %"}, "thickness": 14, "len": 0.8},
    }


def _places(shares: Sequence[tuple[float, float, float]]) -> dict[str, list[float]]:
    """Return plotly's three coordinates: depth at the top, width on the left, then resolution."""
    return {
        "a": [depth for depth, _, _ in shares],
        "b": [width for _, width, _ in shares],
        "c": [resolution for _, _, resolution in shares],
    }


def _add_surface(
    figure: go.Figure, surface: Surface, heights: list[float], scale: dict[str, Any]
) -> None:
    """Add the fitted surface, a square for each point of its grid."""
    region = set(surface.region)
    figure.add_scatterternary(
        **_places(surface.points),
        mode="markers",
        name="fitted surface (ringed: 95% region of its optimum)",
        marker={
            **scale,
            "color": heights,
            "symbol": "square",
            "size": 7,
            "opacity": 0.75,
            "line": {
                "color": RED,
                "width": [1.5 if point in region else 0 for point in surface.points],
            },
        },
        hoverinfo="skip",
    )


def _add_optimum(figure: go.Figure, surface: Surface) -> None:
    """Add where the surface is highest, from the first rung to the last, whose cross is larger."""
    path = list(dict.fromkeys(surface.optimum))  # each place once
    name = "the surface's optimum"
    if len(path) > 1:
        name = "optimum, from the first rung to the last"
    figure.add_scatterternary(
        **_places(path),
        mode="lines+markers",
        cliponaxis=False,
        name=name,
        line={"color": RED, "width": 2},
        marker={"color": RED, "symbol": "x", "size": [6] * (len(path) - 1) + [12]},
        hoverinfo="skip",
    )


def _add_directions(
    figure: go.Figure, name: str, symbol: str, directions: Mapping[str, Shares]
) -> None:
    """Add named directions, hollow: nothing was trained there."""
    texts = []
    for direction, (depth, width, resolution) in directions.items():
        texts.append(
            f"{escape(direction)}: depth {depth:.0%}, width {width:.0%}, "
            f"resolution {resolution:.0%}"
        )
    figure.add_scatterternary(
        **_places(list(directions.values())),
        mode="markers",
        cliponaxis=False,
        name=name,
        marker={"symbol": symbol, "size": 17, "color": RED, "line": {"width": 2}},
        text=texts,
        hovertemplate="%{text}<extra></extra>",
    )


def _with_axes(figure: go.Figure) -> go.Figure:
    sides = {}
    for side, name in (("aaxis", "depth"), ("baxis", "width"), ("caxis", "resolution")):
        sides[side] = {"title": {"text": name}, "min": 0, "tickformat": ".0%"}
    figure = apply_layout(figure, 560, ternary=sides)
    return figure.update_layout(margin={"l": 50, "r": 30, "t": 60, "b": 80})
