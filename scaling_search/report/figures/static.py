"""The report's figures complete on their own, for papers and notebooks: what the page's script
(assets/report.js) fills in and colours is done here, once, for a light page."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import plotly.graph_objects as go

from effnet import atomic
from effnet.budget import human
from scaling_search import UserError
from scaling_search.report import columns
from scaling_search.report.columns import row_index, verdict_rows
from scaling_search.report.figures import curves, differences, front, lengths
from scaling_search.report.figures import map as share_map
from scaling_search.report.figures.style import axes_of, escape
from scaling_search.report.page import Page
from scaling_search.results.record import by_network_key
from scaling_search.verdict.verdict import Verdict

Plot: TypeAlias = go.Figure  # for the annotations of those who do not import plotly
_Table = dict[str, Any]  # of networks (columns.networks)

# Name of a figure → how it is drawn: of a whole study, or of one of its budgets.
_OF_A_STUDY: dict[str, Callable[[Page, _Table], go.Figure]] = {
    "front": front.draw,
    "curves": lambda page, table: curves.draw(page, row_index(table)),
}
_OF_A_BUDGET: dict[str, Callable[[Page, _Table, Verdict], go.Figure]] = {
    "map": lambda page, table, verdict: share_map.draw(verdict, row_index(table), page.powers),
    "differences": lambda page, table, verdict: differences.draw(verdict, row_index(table)),
    "lengths": lambda page, table, verdict: lengths.draw(page, verdict, row_index(table)),
}
OF_A_BUDGET = tuple(_OF_A_BUDGET)
WITHOUT_VERDICT = ("curves",)  # can be drawn before there is one

IMAGES = (".svg", ".pdf", ".png")  # what kaleido writes

# As the page is on paper.
_INK, _LINE, _PAPER = "#1a1a1a", "#d9d9d9", "#ffffff"
_FONT = "Helvetica, Arial, sans-serif"
_FONT_SIZE = 13.0  # px, for which the figures' marks and margins are made

_PX_PER_MM = 96 / 25.4
_PX_PER_PT = 96 / 72
_DOTS_PER_INCH = 300  # of a PNG


@dataclass(frozen=True, slots=True)
class Size:
    """A figure's size on paper; without a height it keeps the shape that it has in the report."""

    width: float = 170.0  # mm
    height: float | None = None  # mm
    font: float = 8.0  # pt


def draw(page: Page, name: str, verdict: Verdict | None) -> go.Figure:
    """Return one of report.FIGURES with every text and colour of its own. `verdict`: that of the
    budget, for a figure OF_A_BUDGET."""
    table = columns.networks(page)
    if verdict is None:
        figure = _OF_A_STUDY[name](page, table)
    else:
        figure = _OF_A_BUDGET[name](page, table, verdict)
    _fill(figure, page, table)
    return _on_paper(figure)


# ---- what the page's script does


def _fill(figure: go.Figure, page: Page, table: _Table) -> None:
    """Fill in what each trace's `meta` says the tables have; figures/__init__.py lists its keys."""
    axis = next(iter(axes_of(page)))
    costs = table["rows"][axis]
    texts = _network_texts(page, table)
    means = {key: row.mean for key, row in verdict_rows(page).items()}
    keys = table["rows"]["network"]
    for trace in figure.data:
        meta = trace.meta
        if not isinstance(meta, dict):
            continue
        if "rows" in meta:
            trace.text = [texts[row] for row in meta["rows"]]
        if "front" in meta:
            rows = [row for row in meta["front"][axis] if keys[row] in means]
            trace.x = [costs[row] for row in rows]
            trace.y = [100 * means[keys[row]] for row in rows]
        if "curves" in meta:
            labels = [escape(table["rows"]["label"][row]) for row in meta["curves"]]
            # a point for each moment of a curve, and the gap behind it
            trace.text = [
                label
                for label, length in zip(labels, meta["points"], strict=True)
                for _ in range(length + 1)
            ]
        trace.meta = None


def _network_texts(page: Page, table: _Table) -> list[str]:
    """Return the text under the mouse of each network, by its row in the table."""
    groups, rows = by_network_key(page.records), table["rows"]
    texts = []
    for place, key in enumerate(rows["network"]):
        candidate = groups[key][0].candidate
        lines = [escape(candidate.label)]
        if key in page.picks:
            lines.insert(0, "<b>the pick</b>")
        elif candidate.role != "candidate":
            lines.insert(0, f"<b>{candidate.role}</b>")
        if candidate.shares:
            depth, width, resolution = candidate.shares
            lines.append(f"depth {depth:.0%}, width {width:.0%}, resolution {resolution:.0%}")
        cost = candidate.cost
        lines.append(f"{human(cost.macs)} FLOPs (multiply-adds), {human(cost.params)} parameters")
        if rows["accuracy"][place]:
            lines.append(f"accuracy {rows['accuracy'][place]} %")
            if rows["against"][place]:
                lines.append(f"against the pick {rows['against'][place]}")
            lines.append(rows["own"][place])
        texts.append("<br>".join(lines))
    return texts


def _on_paper(figure: go.Figure) -> go.Figure:
    """Give the figure the colours and the font that the page has on paper; return it."""
    figure.update_layout(
        paper_bgcolor=_PAPER,
        plot_bgcolor=_PAPER,
        font={"family": _FONT, "size": _FONT_SIZE, "color": _INK},
        hoverlabel={"bgcolor": _PAPER, "bordercolor": _LINE, "align": "left"},
    )
    lines = {"gridcolor": _LINE, "zerolinecolor": _LINE, "linecolor": _LINE}
    figure.update_xaxes(lines, overwrite=False)
    # or it would move down with the margin that the legend takes, and into the legend
    figure.update_xaxes(title={"standoff": 8})
    figure.update_yaxes(lines, overwrite=False)
    return figure


# ---- files


def check_target(to: Path) -> None:
    """Raise UserError unless a figure can be written there: before anything is drawn."""
    if to.suffix not in (*IMAGES, ".html"):
        raise UserError(f"--to {to}: a file that ends in {', '.join(IMAGES)} or .html")
    if not to.parent.is_dir():
        raise UserError(f"--to {to}: there is no folder {to.parent}")
    if to.suffix in IMAGES and importlib.util.find_spec("kaleido") is None:
        raise _no_renderer(to, "kaleido is not installed")


def write(figure: go.Figure, to: Path, size: Size) -> None:
    """Write a figure in the format that the file's name asks for, an image as large as `size` says.
    Raises UserError."""
    check_target(to)
    content = _page(figure, to) if to.suffix == ".html" else _image(figure, to, size)
    try:
        atomic.write(to, content)
    except OSError as error:
        raise UserError(f"{to}: {error.strerror}; choose a file that can be written") from error


def _page(figure: go.Figure, to: Path) -> bytes:
    """Return a page that holds plotly.js too; the camera above the figure saves it as SVG."""
    config = {
        "displaylogo": False,
        "responsive": True,
        "toImageButtonOptions": {"format": "svg", "filename": to.stem},
    }
    text: str = figure.to_html(config=config, include_plotlyjs=True)
    return text.encode()


def _image(figure: go.Figure, to: Path, size: Size) -> bytes:
    import kaleido
    from kaleido.errors import KaleidoError

    # Drawn as large as the report draws it, and made smaller with all that it holds: marks, lines
    # and margins keep their proportion to the text.
    scale = size.font * _PX_PER_PT / _FONT_SIZE
    width = size.width * _PX_PER_MM / scale
    height = float(figure.layout.height or 480)
    if size.height is not None:
        height = size.height * _PX_PER_MM / scale
        figure = _with_height(figure, height)
    if to.suffix == ".png":
        scale *= _DOTS_PER_INCH / 96
    options = {"format": to.suffix[1:], "width": width, "height": height, "scale": scale}
    try:
        # without MathJax, which kaleido would fetch from the internet
        image: bytes = kaleido.calc_fig_sync(
            figure.to_plotly_json(), opts=options, kopts={"mathjax": False}
        )
    except (RuntimeError, OSError, KaleidoError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _no_renderer(to, f"kaleido cannot draw it ({reason[:120]})") from error
    return image


def _with_height(figure: go.Figure, height: float) -> go.Figure:
    """Return the figure at another height [px]. A legend below the axis keeps its distance, which
    plotly counts in heights of the plot."""
    figure = go.Figure(figure)
    layout = figure.layout
    if layout.legend.y is not None and layout.legend.y < 0:
        margins = layout.margin.t + layout.margin.b
        layout.legend.y *= (layout.height - margins) / max(height - margins, 1)
    layout.height = height
    return figure


def _no_renderer(to: Path, reason: str) -> UserError:
    return UserError(
        f"--to {to}: {reason}; pip install kaleido, and have Chrome or Chromium on this machine. "
        "--to FILE.html needs neither, and its camera saves an SVG"
    )
