"""The report's figures. The only package that imports plotly.

A trace's `meta` tells the page's script what it fills in from the table of networks: `rows` (hover
texts), `axis` (the chosen cost as x), `front` (the front along each cost), `curves` (hover texts of
runs). So each text is there once.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from effnet.cost import Cost, cost
from effnet.families import arch
from scaling_search.report.figures import runs
from scaling_search.report.figures.style import (
    AXES,
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    RED,
    hover,
    layout,
)
from scaling_search.report.front import front_of_table
from scaling_search.report.page import Page, escape
from scaling_search.results.record import by_network_key
from scaling_search.study.directions import NAMED
from scaling_search.verdict.verdict import Row, Surface, Verdict

# EfficientNet on ImageNet (arXiv 1905.11946 v5, table 2): top-1, fully trained
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
_SHOWN = 40  # networks in the figure of differences
_BARS = 400  # with more networks than these, error bars would cover everything


@dataclass(frozen=True, slots=True)
class Figure:
    """`figure` as plotly's JSON; `control`: the page adds a choice of the cost axis."""

    anchor: str
    heading: str
    words: str
    figure: str
    control: bool = False


def figures(
    page: Page, told: dict[str, Row], index: dict[str, int], table: dict[str, Any]
) -> list[Figure]:
    """All that can be drawn. `told`: what the verdicts say of each network; `index`: its row in
    `table`."""
    found = list(page.found)
    drawn = []
    if told:
        words = _front_words(page)
        drawn.append(
            Figure(
                "front",
                "Accuracy against cost",
                words,
                _front(page, told, index, table).to_json(),
                True,
            )
        )
        for i, v in enumerate(found):
            anchor, of = ("map", "") if len(found) == 1 else (f"map-{i}", f" {escape(v.budget)}")
            drawn.append(
                Figure(
                    anchor, f"Where the budget{of} went", _MAP_WORDS, ternary(v, index).to_json()
                )
            )
        for i, v in enumerate(found):
            if len(v.rows) > 1:
                anchor, of = (
                    ("behind", "")
                    if len(found) == 1
                    else (f"behind-{i}", f" of {escape(v.budget)}")
                )
                figure, words = _differences(v, index)
                drawn.append(
                    Figure(anchor, f"Differences to the pick{of}", words, figure.to_json())
                )
    ended = [r for r in page.records if r.outcome is not None]
    if any(r.outcome and r.outcome.epochs for r in ended):
        words = runs.curve_words(page)
        drawn.append(
            Figure("curves", "Learning curves", words, runs.curves(page.records).to_json())
        )
    if len(ended) > 1:
        drawn.append(
            Figure(
                "progress",
                "What the search has bought",
                runs.PROGRESS,
                runs.progress(page).to_json(),
            )
        )
        drawn.append(
            Figure("time", "Where the time went", runs.TIME, runs.spent_time(ended).to_json())
        )
    return drawn


def script() -> str:
    """plotly.js, whole."""
    text: str = get_plotlyjs()
    return text


# ---- accuracy against cost


def _front_words(page: Page) -> str:
    band = (
        "The shaded band is the budget. Networks outside it (baseline and references) cost less or more, and are there "
        "for the line, not to be compared with those inside."
        if page.targets
        else "The budget is nominal, so these networks differ in real cost: compare along the front."
    )
    return f"Each point is a network at its exact cost; bars are one standard deviation. {band}"


def _front(
    page: Page, told: dict[str, Row], index: dict[str, int], table: dict[str, Any]
) -> go.Figure:
    figure = go.Figure()
    for budget, target in page.targets.items():
        figure.add_vrect(
            x0=target * (1 - page.study.space.tolerance),
            x1=target * (1 + page.study.space.tolerance),
            fillcolor=BLUE,
            opacity=0.15,
            line_width=0,
            annotation_text=escape(budget),
            annotation_position="top left",
        )
    lines = fronts(table)
    figure.add_scatter(
        mode="lines",
        line={"color": GREY, "shape": "hv", "width": 1, "dash": "dot"},
        name="front (best at each cost)",
        hoverinfo="skip",
        meta={"front": lines},
    )
    picks = page.picks
    kinds = [
        ("networks of the budget", "candidate", BLUE, "circle", 9),
        ("chosen", "pick", RED, "star", 16),
        ("baseline", "baseline", INK, "square", 11),
        ("references along the paper's direction", "reference", ORANGE, "diamond", 11),
    ]
    for name, kind, colour, symbol, size in kinds:
        rows = [
            r for key, r in told.items() if ("pick" if key in picks else r.candidate.role) == kind
        ]
        if rows:
            bars = {
                "type": "data",
                "array": [100 * r.error for r in rows],
                "thickness": 1,
                "width": 3,
            }
            figure.add_scatter(
                x=[r.candidate.cost.macs for r in rows],
                y=[100 * r.mean for r in rows],
                error_y=bars if len(rows) <= _BARS else None,
                mode="markers",
                name=name,
                marker={
                    "color": colour,
                    "symbol": symbol,
                    "size": size if len(rows) <= _BARS else 5,
                },
                **hover([index[r.candidate.key] for r in rows], axis=True),
            )
    if page.dataset.replace("_", "-").lower() in ("imagenet", "imagenet-1k"):
        costs = [cost(arch(name)) for name in _PUBLISHED]
        texts = [f"EfficientNet-{name.upper()}" for name in _PUBLISHED]
        _overlay(
            figure,
            "EfficientNet as published, fully trained",
            costs,
            list(_PUBLISHED.values()),
            texts,
            GREEN,
        )
    if page.family:
        groups = by_network_key(sorted(page.family, key=lambda r: r.candidate.cost.macs)).values()
        members = [group[0].candidate for group in groups]
        means = [100 * fmean(r.val_acc for r in group) for group in groups]
        _overlay(
            figure,
            "its family, mean of own runs",
            [c.cost for c in members],
            means,
            [c.label for c in members],
            RED,
        )
    figure.update_xaxes(title={"text": AXES["macs"]}, type="log")
    figure.update_yaxes(title={"text": "validation accuracy, %"})
    return layout(figure, 480)


def _overlay(
    figure: go.Figure,
    name: str,
    costs: list[Cost],
    values: list[float],
    texts: list[str],
    colour: str,
) -> None:
    """Networks that are no part of the study, joined by a line."""
    along = {axis: [getattr(c, axis) for c in costs] for axis in ("macs", "params", "acts")}
    figure.add_scatter(
        x=along["macs"],
        y=values,
        mode="lines+markers",
        name=name,
        line={"color": colour, "width": 1},
        marker={"symbol": "circle-open", "size": 9},
        text=[escape(text) for text in texts],
        hovertemplate="%{text}: %{y:.1f} %<extra></extra>",
        meta={"costs": along},
    )


def fronts(table: dict[str, Any]) -> dict[str, list[int]]:
    """For each cost, the rows of the front in order of cost."""
    frame = pd.DataFrame({name: table["rows"][name] for name in (*AXES, "mean")}).astype(float)
    return {axis: [int(i) for i in front_of_table(frame, axis).index] for axis in AXES}


# ---- the map

_MAP_WORDS = (
    "Where each network's extra cost goes: a corner spends all of it on one dimension, an edge on two of them, the "
    "middle on all three alike. Colour is expected validation accuracy, squares the smooth surface fitted through "
    "all runs; ringed squares hold 95% of the probability of its highest point, crosses go from where it "
    "was after the shortest runs to where it is after the longest. Hollow: the paper's coefficients as printed "
    "(nominal shares, never trained as such), EfficientNet-X's and the pure directions."
)


def ternary(v: Verdict, index: dict[str, int]) -> go.Figure:
    placed = [(row, row.candidate.shares) for row in v.rows if row.candidate.shares is not None]
    chosen = [row.candidate.key == v.pick.candidate.key for row, _ in placed]
    figure = go.Figure()
    if v.surface is not None:
        _add_surface(figure, v, v.surface)
    figure.add_scatterternary(
        a=[s[0] for _, s in placed],
        b=[s[1] for _, s in placed],
        c=[s[2] for _, s in placed],
        mode="markers",
        cliponaxis=False,
        name="trained networks (star: chosen)",
        marker={
            "color": [100 * row.mean for row, _ in placed],
            "coloraxis": "coloraxis",
            "size": [20 if pick else 13 for pick in chosen],
            "symbol": ["star" if pick else "circle" for pick in chosen],
            "line": {"color": INK, "width": 1},
        },
        **hover([index[row.candidate.key] for row, _ in placed]),
    )
    for name, symbol, names in (
        ("the paper's direction (nominal)", "diamond-open", ["paper"]),
        ("pure scalings, EfficientNet-X", "triangle-up-open", [n for n in NAMED if n != "paper"]),
    ):
        figure.add_scatterternary(
            a=[NAMED[n][0] for n in names],
            b=[NAMED[n][1] for n in names],
            c=[NAMED[n][2] for n in names],
            mode="markers",
            cliponaxis=False,
            name=name,
            marker={"symbol": symbol, "size": 17, "color": RED, "line": {"width": 2}},
            text=[
                f"{escape(n)}: depth {NAMED[n][0]:.0%}, width {NAMED[n][1]:.0%}, resolution {NAMED[n][2]:.0%}"
                for n in names
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    axis = {"min": 0, "tickformat": ".0%"}
    sides = {"aaxis": "depth", "baxis": "width", "caxis": "resolution"}
    return layout(
        figure,
        560,
        coloraxis={
            "colorscale": "Viridis",
            "colorbar": {"title": {"text": "val %"}, "thickness": 14, "len": 0.8},
        },
        ternary={side: {"title": {"text": name}, **axis} for side, name in sides.items()},
    ).update_layout(margin={"l": 50, "r": 30, "t": 60, "b": 80})


def _add_surface(figure: go.Figure, v: Verdict, surface: Surface) -> None:
    """The fitted surface under the networks: its height is relative, so it is hung at the best
    network's mean."""
    top = max(row.mean for row in v.rows)
    inside = set(surface.region)
    depth, width, resolution = zip(*surface.points, strict=True)
    figure.add_scatterternary(
        a=depth,
        b=width,
        c=resolution,
        mode="markers",
        name="fitted surface (ringed: 95% region of its optimum)",
        marker={
            "color": [100 * (top + h) for h in surface.height],
            "coloraxis": "coloraxis",
            "symbol": "square",
            "size": 7,
            "opacity": 0.75,
            "line": {"color": RED, "width": [1.5 if p in inside else 0 for p in surface.points]},
        },
        hoverinfo="skip",
    )
    path = tuple(dict.fromkeys(surface.optimum))
    figure.add_scatterternary(
        a=[p[0] for p in path],
        b=[p[1] for p in path],
        c=[p[2] for p in path],
        mode="lines+markers",
        cliponaxis=False,
        name="optimum, from the first rung to the last"
        if len(path) > 1
        else "the surface's optimum",
        line={"color": RED, "width": 2},
        marker={"color": RED, "symbol": "x", "size": [6] * (len(path) - 1) + [12]},
        hoverinfo="skip",
    )


# ---- differences


def _differences(v: Verdict, index: dict[str, int]) -> tuple[go.Figure, str]:
    others = [row for row in v.rows if row.candidate.key != v.pick.candidate.key][:_SHOWN]
    rows = [*others, *([v.baseline] if v.baseline else [])][::-1]
    figure = go.Figure()
    for name, kind, colour in (("tied with the best", True, BLUE), ("not tied", False, GREY)):
        part = [row for row in rows if row.tied is kind]
        figure.add_scatter(
            x=[-100 * row.behind for row in part],
            y=[_name(row) for row in part],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [100 * (row.behind - row.low) for row in part],
                "arrayminus": [100 * (row.high - row.behind) for row in part],
                "thickness": 1.5,
                "width": 4,
            },
            mode="markers",
            name=name,
            marker={"color": colour, "size": 9, "symbol": "circle" if kind else "circle-open"},
            **hover([index[row.candidate.key] for row in part]),
        )
    figure.add_vrect(x0=-0.5, x1=0.5, fillcolor=GREEN, opacity=0.12, line_width=0)
    figure.add_vline(x=0, line_color=RED, line_width=1)
    figure.update_xaxes(title={"text": "points against the pick"})
    figure.update_yaxes(
        categoryorder="array", categoryarray=[_name(row) for row in rows], automargin=True
    )
    more = len(v.rows) - 1 - len(others)
    words = (
        "Each network against the pick (the line at 0), with 95% intervals; the band is the margin within which two "
        "networks are as good."
        + (f" The best {_SHOWN} are shown, {more} more are in the table." if more > 0 else "")
    )
    return layout(figure, 170 + 22 * len(rows)), words


def _name(row: Row) -> str:
    return row.candidate.label + (" (baseline)" if row.candidate.role == "baseline" else "")
