"""The map of shares: a triangle whose corners spend all of the extra cost on one dimension.

It is drawn on plain axes and not on plotly's ternary ones, which have no filled surface."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from scipy.ndimage import gaussian_filter

from effnet.shares import Exponents, Shares
from scaling_search.report.figures.style import (
    GREY,
    INK,
    PAGE,
    PICK,
    apply_layout,
    escape,
    network_texts,
)
from scaling_search.study.directions import NAMED, SINGLE, by_measure
from scaling_search.verdict.verdict import Surface, Verdict

WORDS = (
    "Where each network's extra cost went. A corner spends all of it on one dimension, an edge on "
    "two, the middle on all three alike. Colour is accuracy, and spans what is on this map, which "
    "may be less than the noise; the surface is fitted through all runs. Within the line, where it "
    "is not faded, it may be highest (95%)."
)

_HEIGHT = math.sqrt(3) / 2  # of the triangle, whose sides are 1
# Columns of the surface's picture: a step is 5 px on a wide page.
_COLUMNS = 80
# Columns by which a region's line is smoothed: half a step of the surface's grid of twelfths.
_ROUNDING = 3
# What lies beyond the hull of the surface's points, and farther than this from all of them, stays
# empty: a step of its grid of twelfths.
_EMPTY = 1 / 12

# What covers the picture outside of the triangle: a polygon above its sides, one under it.
_OUT = 0.06
_COVER: tuple[tuple[float, float] | None, ...] = (
    (-_OUT, 0),
    (0, 0),
    (0.5, _HEIGHT),
    (1, 0),
    (1 + _OUT, 0),
    (1 + _OUT, _HEIGHT + _OUT),
    (-_OUT, _HEIGHT + _OUT),
    (-_OUT, 0),
    None,
    (-_OUT, 0),
    (1 + _OUT, 0),
    (1 + _OUT, -_OUT),
    (-_OUT, -_OUT),
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
        heights = [100 * max(top + height, 0.0) for height in verdict.surface.height]
    scale = _colour_scale([*accuracies, *heights])

    figure = go.Figure()
    if verdict.surface is not None:
        _add_surface(figure, verdict.surface, heights, scale)
    _add_triangle(figure)
    if verdict.surface is not None:
        _add_optimum(figure, verdict.surface)
    others = [row for row in networks if row.candidate.key != verdict.pick.candidate.key]
    figure.add_scatter(
        **_places([row.candidate.shares for row in others if row.candidate.shares]),
        mode="markers",
        cliponaxis=False,
        name="networks",
        marker={
            "color": [100 * row.mean for row in others],
            "colorscale": scale["colorscale"],
            "cmin": scale["zmin"],
            "cmax": scale["zmax"],
            "size": 12,
            "line": {"color": INK, "width": 1.5},
        },
        **network_texts([index[row.candidate.key] for row in others]),
    )
    reached = by_measure({n: NAMED[n] for n in NAMED if n not in SINGLE}, powers)
    reached |= by_measure(verdict.directions, powers)
    _add_directions(figure, reached)
    picked = [row for row in networks if row.candidate.key == verdict.pick.candidate.key]
    figure.add_scatter(
        **_places([row.candidate.shares for row in picked if row.candidate.shares]),
        mode="markers",
        cliponaxis=False,
        name="the pick",
        marker={"color": PICK, "symbol": "star", "size": 18, "line": {"color": PAGE, "width": 1}},
        **network_texts([index[row.candidate.key] for row in picked]),
    )
    return _with_axes(figure)


def _colour_scale(percents: Sequence[float]) -> dict[str, Any]:
    """Return the properties by which one accuracy has one colour in every trace.

    Each trace has the whole scale, where plotly's shared `coloraxis` would do: plotly.js (4.1)
    forgets a shared scale when it draws the legend, paints its marks black and warns "Invalid color
    specifier: number ..." in the console."""
    low, high = min(percents, default=0.0), max(percents, default=0.0)
    if low == high:  # of one network alone; a scale needs some height
        low, high = low - 0.5, high + 0.5
    return {"colorscale": "Viridis", "zmin": low, "zmax": high}


def _places(shares: Sequence[Shares]) -> dict[str, list[float]]:
    """Return where shares lie: depth at the top, width on the left, resolution on the right."""
    return {
        "x": [round(resolution + depth / 2, 4) for depth, _, resolution in shares],
        "y": [round(depth * _HEIGHT, 4) for depth, _, _ in shares],
    }


def _add_surface(
    figure: go.Figure, surface: Surface, heights: list[float], scale: dict[str, Any]
) -> None:
    """Add the fitted surface, and the line around the region of its highest point."""
    region = set(surface.region)
    inside = [1.0 if point in region else 0.0 for point in surface.points]
    # a little beyond the triangle, whose outside is covered
    x = np.linspace(-0.02, 1.02, _COLUMNS)
    y = np.linspace(-0.02, _HEIGHT + 0.02, round(_COLUMNS * _HEIGHT))
    bar = {"title": {"text": "accuracy, %", "side": "right"}, "thickness": 12, "len": 0.85}
    figure.add_heatmap(
        x=x.round(4),
        y=y.round(4),
        z=_picture(surface.points, heights, x, y),
        colorbar=bar,
        hoverinfo="skip",
        **scale,
    )
    if len(region) == len(surface.points):  # all of it: there is no line to draw
        return
    region_picture = _blurred(_picture(surface.points, inside, x, y))
    figure.add_heatmap(
        x=x.round(4),
        y=y.round(4),
        z=np.where(region_picture < 0.5, 1.0, np.nan).astype(np.float32),
        colorscale=[[0, PAGE], [1, PAGE]],
        opacity=0.5,
        showscale=False,
        hoverinfo="skip",
    )
    figure.add_contour(
        x=x.round(4),
        y=y.round(4),
        z=region_picture,
        contours={"start": 0.5, "end": 0.5, "size": 1, "coloring": "none"},
        line={"color": PICK, "width": 2.5, "smoothing": 1},
        hoverinfo="skip",
        showscale=False,
        showlegend=False,
    )
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="lines",
        line={"color": PICK, "width": 2.5},
        name="where it may be highest (95%)",
    )


def _picture(
    points: Sequence[Shares], values: Sequence[float], x: NDArray[Any], y: NDArray[Any]
) -> NDArray[Any]:
    """Return the values at the points as a picture [rows, columns]: linear between them, flat for
    a step beyond their hull, NaN farther away."""
    places = _places(points)
    at = np.column_stack([places["x"], places["y"]])
    columns, rows = np.meshgrid(x, y)
    nearest = NearestNDInterpolator(at, np.arange(len(points)))(columns, rows).astype(int)
    distance = np.hypot(columns - at[nearest, 0], rows - at[nearest, 1])
    picture = np.where(distance > _EMPTY, np.nan, np.asarray(values)[nearest])
    if len(points) > 3 and np.linalg.matrix_rank(at - at[0]) == 2:  # not all on one line
        between = LinearNDInterpolator(at, np.asarray(values))(columns, rows)
        picture = np.where(np.isnan(between), picture, between)
    return picture.astype(np.float32)  # as plotly packs it: half the size of text


def _blurred(picture: NDArray[Any]) -> NDArray[Any]:
    """Return the picture of a region with its corners rounded: the region is known in steps of the
    surface's grid, whose hexagons mean nothing."""
    known = gaussian_filter(np.isfinite(picture).astype(float), _ROUNDING)
    blurred = gaussian_filter(np.nan_to_num(picture), _ROUNDING) / np.maximum(known, 1e-9)
    return np.where(np.isfinite(picture), blurred, np.nan).astype(np.float32)


def _add_triangle(figure: go.Figure) -> None:
    """Cover what lies outside of the triangle, and draw its sides and lines at each quarter."""
    figure.add_scatter(
        x=[place[0] if place else None for place in _COVER],
        y=[place[1] if place else None for place in _COVER],
        fill="toself",
        fillcolor=PAGE,
        mode="lines",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )
    x: list[float | None] = []
    y: list[float | None] = []
    for part in (0.25, 0.5, 0.75):
        rest = 1 - part
        lines: list[tuple[Shares, Shares]] = [
            ((part, rest, 0.0), (part, 0.0, rest)),
            ((rest, part, 0.0), (0.0, part, rest)),
            ((rest, 0.0, part), (0.0, rest, part)),
        ]
        for ends in lines:
            places = _places(ends)
            x += [*places["x"], None]
            y += [*places["y"], None]
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": GREY, "width": 1, "dash": "dot"},
        opacity=0.6,
        hoverinfo="skip",
        showlegend=False,
    )
    figure.add_scatter(
        x=[0, 0.5, 1, 0],
        y=[0, _HEIGHT, 0, 0],
        mode="lines",
        line={"color": INK, "width": 1.5},
        hoverinfo="skip",
        showlegend=False,
        cliponaxis=False,
    )


def _add_optimum(figure: go.Figure, surface: Surface) -> None:
    """Ring where the surface is highest, from the first rung to the last, whose ring is larger."""
    path = list(dict.fromkeys(surface.optimum))  # each place once
    name = "the surface's highest point"
    if len(path) > 1:
        name = "highest point, from the shortest runs to the longest"
    figure.add_scatter(
        **_places(path),
        mode="lines+markers",
        cliponaxis=False,
        name=name,
        line={"color": PICK, "width": 2, "dash": "dot"},
        marker={
            "color": PICK,
            "symbol": "circle-open",
            "size": [10] * (len(path) - 1) + [28],
            "line": {"width": 2.5},
        },
        hoverinfo="skip",
    )


def _add_directions(figure: go.Figure, directions: Mapping[str, Shares]) -> None:
    """Add named directions, hollow: nothing was trained there."""
    texts = []
    for direction, (depth, width, resolution) in directions.items():
        texts.append(
            f"{escape(direction)}: depth {depth:.0%}, width {width:.0%}, "
            f"resolution {resolution:.0%}, as published"
        )
    figure.add_scatter(
        **_places(list(directions.values())),
        mode="markers",
        cliponaxis=False,
        name="published directions, not run as such",
        marker={
            "symbol": "diamond",
            "size": 12,
            "color": PAGE,
            "line": {"color": INK, "width": 2},
        },
        text=texts,
        hovertemplate="%{text}<extra></extra>",
    )
    for name, shares in directions.items():
        place = _places([shares])
        figure.add_annotation(
            x=place["x"][0],
            y=place["y"][0],
            text=escape("EfficientNet" if name == "paper" else name),
            showarrow=False,
            yshift=16,
            bgcolor=PAGE,
            opacity=0.85,
            font={"size": 11},
        )


def _with_axes(figure: go.Figure) -> go.Figure:
    hidden = {"visible": False, "fixedrange": True, "zeroline": False, "showgrid": False}
    corners = [
        (0.5, _HEIGHT, "all in depth", "center", "bottom"),
        (0.0, 0.0, "all in width", "left", "top"),
        (1.0, 0.0, "all in resolution", "right", "top"),
    ]
    for x, y, name, anchor, side in corners:
        figure.add_annotation(
            x=x,
            y=y,
            text=f"<b>{name}</b>",
            showarrow=False,
            xanchor=anchor,
            yanchor=side,
            yshift=6 if side == "bottom" else -6,
        )
    figure.update_xaxes(**hidden, range=[-0.04, 1.04])
    figure.update_yaxes(
        **hidden, range=[-0.08, _HEIGHT + 0.08], scaleanchor="x", constrain="domain"
    )
    figure = apply_layout(figure, 480)
    return figure.update_layout(
        margin={"l": 10, "r": 10, "t": 10, "b": 60},
        legend={"y": -0.01, "itemsizing": "trace"},
    )
