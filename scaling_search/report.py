"""One self-contained HTML file: the answer in words, then the figures. The only file that imports plotly.

The words are page.py's; here are the figures and the file that holds everything.
"""

from __future__ import annotations

from importlib import resources

import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from plotly.offline import get_plotlyjs

from effnet.budget import human
from scaling_search.analysis import front
from scaling_search.page import Page, answer, escape, networks, reproduce, table
from scaling_search.record import Record
from scaling_search.triangle import NAMED
from scaling_search.verdict import Row, Surface, Verdict
from scaling_search.words import coefficients, points, share_words

# Okabe and Ito's colours: told apart by the colour-blind.
BLUE, ORANGE, GREY, RED = "#0072B2", "#E69F00", "#7A7A7A", "#D55E00"
_CONFIG = {
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "displaylogo": False,
    "responsive": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d"],
}


def build(page: Page) -> str:
    """The whole page as HTML text."""
    found = list(page.found)
    summary = _summary(found)
    parts = [answer(found, page)]
    if summary is not None:
        figures = [
            ("front", "Accuracy against cost", _front_words(page), _front(summary, page)),
            *(
                ("map" if len(found) == 1 else f"map-{i}", f"Where the budget {v.budget} went", _MAP_WORDS, _ternary(v))
                for i, v in enumerate(found)
            ),
            ("curves", "Learning curves", _CURVE_WORDS, _curves(page.records)),
        ]
        for anchor, heading, words, figure in figures:
            body = pio.to_html(figure, full_html=False, include_plotlyjs=False, div_id=anchor, config=_CONFIG)
            parts.append(f"<section><h2>{escape(heading)}</h2><p>{words}</p>{body}</section>")
    parts += [networks(v) for v in found]
    parts.append(table(page.records))
    parts.append(reproduce(page))
    assets = resources.files("scaling_search") / "assets"
    css, script = (assets / "report.css").read_text(), (assets / "report.js").read_text()
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(page.title)}</title><link rel='icon' href='data:,'><style>{css}</style>"
        f"<script>{get_plotlyjs()}</script></head><body><main>"
        f"<h1>{escape(page.title)}</h1>{''.join(parts)}</main><script>{script}</script></body></html>\n"
    )


# ---- figures


def _summary(found: list[Verdict]) -> pd.DataFrame | None:
    """One row per finished network of the last rung, all on the verdict's one scale."""
    rows = {r.candidate.key: r for v in found for r in (*v.rows, *v.references, *([v.baseline] if v.baseline else []))}
    picks = {v.pick.candidate.key for v in found}
    if not rows:
        return None
    return pd.DataFrame(
        [
            {
                "row": row,
                "macs": row.candidate.cost.macs,
                "mean": row.mean,
                "error": row.error,
                "role": row.candidate.role,
                "pick": key in picks,
            }
            for key, row in rows.items()
        ]
    )


def _hover(row: Row) -> str:
    c = row.candidate
    names = f"<b>{escape(', '.join(c.directions))}</b><br>" if c.directions else ""
    shares = f"<br>{escape(share_words(c))}" if c.shares else ""
    return (
        f"{names}{escape(c.label)}{shares}<br>{escape(coefficients(c))}<br>{human(c.cost.macs)} MACs ({c.ratio:.2f}x), "
        f"{human(c.cost.params)} params<br>validation {points(row.mean)} ± {points(row.error)} %, "
        f"P(best) {row.best:.2f} ({row.seeds} seed{'s' if row.seeds != 1 else ''})"
    )


def _layout(figure: go.Figure, height: int) -> go.Figure:
    return figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 60, "r": 20, "t": 40, "b": 60},
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "y": -0.18, "yanchor": "top", "x": 0},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )


def _front_words(page: Page) -> str:
    band = (
        "The shaded band is the budget. Networks outside it (baseline and references) cost less or more, and are there "
        "for the line, not to be compared with those inside."
        if page.targets
        else "The budget is nominal, so these networks differ in real cost: compare along the front."
    )
    return f"Each point is a network at its exact cost; bars are one standard deviation. {band}"


def _front(summary: pd.DataFrame, page: Page) -> go.Figure:
    figure = go.Figure()
    for budget, target in page.targets.items():
        figure.add_vrect(
            x0=target * (1 - page.study.space.tolerance),
            x1=target * (1 + page.study.space.tolerance),
            fillcolor=BLUE,
            opacity=0.12,
            line_width=0,
            annotation_text=escape(budget),
            annotation_position="top left",
        )
    line = front(summary)
    figure.add_scatter(
        x=line["macs"],
        y=100 * line["mean"],
        mode="lines",
        line={"color": GREY, "shape": "hv", "width": 1, "dash": "dot"},
        name="front (best at each cost)",
        hoverinfo="skip",
    )
    role = summary["role"]
    kinds = [
        ("networks of the budget", (role == "candidate") & ~summary["pick"], BLUE, "circle", 9),
        ("chosen", summary["pick"], RED, "star", 16),
        ("baseline", role == "baseline", "#000000", "square", 11),
        ("references along the paper's direction", role == "reference", ORANGE, "diamond", 11),
    ]
    for name, which, colour, symbol, size in kinds:
        part = summary[which]
        if len(part):
            figure.add_scatter(
                x=part["macs"],
                y=100 * part["mean"],
                error_y={"type": "data", "array": 100 * part["error"], "thickness": 1, "width": 3},
                mode="markers",
                name=name,
                marker={"color": colour, "symbol": symbol, "size": size, "line": {"color": "white", "width": 1}},
                text=[_hover(row) for row in part["row"]],
                hovertemplate="%{text}<extra></extra>",
            )
    figure.update_xaxes(title="FLOPs (multiply-adds per image, log scale)", type="log", tickformat="~s", nticks=8)
    figure.update_yaxes(title="validation accuracy, %")
    return _layout(figure, 480)


_MAP_WORDS = (
    "Each network of the budget by the real shares of its extra cost: a corner spends everything on one dimension, the "
    "middle on all three alike. Colour is expected validation accuracy, squares the smooth surface fitted through "
    "all runs; ringed squares hold 95% of the probability of its highest point, the black line goes from where it was "
    "after the shortest runs to where it is after the longest. Hollow marks are the paper's coefficients as printed "
    "(nominal shares, never trained as such), EfficientNet-X's and the pure directions."
)


def _ternary(v: Verdict) -> go.Figure:
    rows = [(row, row.candidate.shares) for row in v.rows]
    placed = [(row, shares) for row, shares in rows if shares is not None]
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
            "line": {"color": "black", "width": 1},
        },
        text=[_hover(row) for row, _ in placed],
        hovertemplate="%{text}<extra></extra>",
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
    axis = {"min": 0, "tickformat": ".0%", "gridcolor": "#cccccc", "linecolor": "#888888"}
    _layout(figure, 560)
    return figure.update_layout(
        margin={"l": 50, "r": 30, "t": 60, "b": 80},
        coloraxis={"colorscale": "Viridis", "colorbar": {"title": {"text": "val %"}, "thickness": 14, "len": 0.8}},
        ternary={
            "aaxis": {"title": {"text": "depth"}, **axis},
            "baxis": {"title": {"text": "width"}, **axis},
            "caxis": {"title": {"text": "resolution"}, **axis},
            "bgcolor": "rgba(0,0,0,0)",
        },
    )


def _add_surface(figure: go.Figure, v: Verdict, surface: Surface) -> None:
    """The fitted surface under the networks: its height is relative, so it is hung at the best network's mean."""
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
        name="optimum, from the first rung to the last" if len(path) > 1 else "the surface's optimum",
        line={"color": "black", "width": 2},
        marker={"color": "black", "symbol": "x", "size": [6] * (len(path) - 1) + [12]},
        hoverinfo="skip",
    )


_CURVE_WORDS = (
    "Validation accuracy after each epoch of every run (batch norms re-estimated first). Hover for the network; runs "
    "that failed are crossed where they stopped."
)


def _curves(records: list[Record]) -> go.Figure:
    figure = go.Figure()
    colours = {"baseline": "#000000", "reference": ORANGE, "candidate": BLUE}
    shown: set[str] = set()
    for r in records:
        if r.outcome is None or not r.outcome.epochs:
            continue
        role, failed = r.candidate.role, not r.done
        name = "failed" if failed else role
        figure.add_scatter(
            x=[e.epoch for e in r.outcome.epochs],
            y=[100 * e.val_acc for e in r.outcome.epochs],
            mode="lines+markers",
            line={"color": RED if failed else colours[role], "width": 1.5},
            marker={"size": 6, "symbol": "x" if failed else "circle"},
            opacity=0.55 if role == "candidate" else 1.0,
            name=name,
            legendgroup=name,
            showlegend=name not in shown,
            text=f"{escape(r.candidate.label)}, seed {r.seed}, {escape(r.outcome.status)}",
            hovertemplate="%{text}<br>epoch %{x}: %{y:.1f} %<extra></extra>",
        )
        shown.add(name)
    figure.update_xaxes(title="epoch", dtick=1 if max((r.epochs for r in records), default=1) <= 20 else None)
    figure.update_yaxes(title="validation accuracy, %")
    return _layout(figure, 420)
