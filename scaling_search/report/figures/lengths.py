"""Does the order hold for longer runs? Every network against the mean of all, by length of run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from scaling_search.report.figures.curves import add_curves
from scaling_search.report.figures.style import PICK, apply_layout, escape, role_name
from scaling_search.report.page import Page
from scaling_search.study.settings import Study
from scaling_search.verdict.correlation import between_lengths
from scaling_search.verdict.lengths import Means, means_by_length
from scaling_search.verdict.verdict import Row, Verdict

_WORDS = (
    "Each network's mean accuracy after runs of each length, in points above or below the mean of "
    "all networks after as long. Colours are of the longest runs. Where lines cross, the order "
    "changes with the length of training. The bars of the pick are the 95% of such a difference, "
    "alike for every network."
)
_LABEL = 16  # px between two names at the right end
_NAMES = 180  # px that they have
_HEIGHT = 460


def words(page: Page, verdict: Verdict) -> str:
    """Return what stands above the figure, with how each length's order agrees with the last."""
    study = page.study
    steps, unit = _steps(study)
    taus = []
    for epochs in study.rungs[:-1]:
        agreement = between_lengths(page.records, study, verdict.budget, epochs, study.rungs[-1])
        if agreement is not None:
            rank = agreement.rank
            taus.append(f"{epochs * steps:,} by {rank.tau:.2f} ({rank.low:.2f} to {rank.high:.2f})")
    if not taus:
        return _WORDS
    return (
        f"{_WORDS} The order after {study.rungs[-1] * steps:,} {unit} agrees with that after "
        f"{', '.join(taus)}: Kendall's tau over different seeds with its 95%, 1 for the same "
        "order, 0 for none."
    )


def _steps(study: Study) -> tuple[int, str]:
    """Return by what an epoch's number is multiplied to say how long a run is, and the unit."""
    steps = study.steps(1)
    if study.data.epoch_images is None or steps is None:  # a limit may be more than there is
        return 1, "epochs"
    return steps, f"steps of {study.recipe.batch} images"


def lengths_of(page: Page, verdict: Verdict) -> list[Means]:
    """Return what there is to draw; an empty list where networks were left behind at a lower rung
    (those that went on are there for their luck too), or where there is one length."""
    study = page.study
    if study.allocation != "flat" or len(study.rungs) < 2 or page.unfinished:
        return []
    return means_by_length(page.records, study, verdict.budget)


def draw(page: Page, verdict: Verdict, index: dict[str, int]) -> go.Figure:
    """Return the figure of one budget, of which there are `lengths_of`. `index`: network key → row
    in the table of networks."""
    drawn = lengths_of(page, verdict)
    curves: dict[str, list[tuple[float, float]]] = {}
    for length in drawn:
        for key, difference in length.against_all.items():
            curves.setdefault(key, []).append((float(length.epochs), 100 * difference))
    groups: dict[str, list[tuple[str, list[tuple[float, float]]]]] = {}
    rows = {row.candidate.key: row for row in verdict.rows}
    for key, curve in curves.items():
        groups.setdefault(_group(rows[key], verdict), []).append((key, curve))
    figure = go.Figure()
    figure.add_hline(y=0, line_width=1, opacity=0.5)
    for group in ("other", "tied", "pick"):
        if group in groups:
            hover = "%{y:+.1f} points against the mean of all"
            add_curves(figure, group, groups[group], index, hover, markers=True)
    _add_bars(figure, drawn, curves.get(verdict.pick.candidate.key, []))
    _add_names(figure, [rows[key] for key in curves], curves, verdict)
    steps, unit = _steps(page.study)
    first, last = math.log10(drawn[0].epochs), math.log10(drawn[-1].epochs)
    aside = 0.1 * (last - first)
    figure.update_xaxes(
        type="log",
        # on a logarithmic axis a place is given as its logarithm
        range=[first - aside, last + aside / 2],
        tickmode="array",
        tickvals=[length.epochs for length in drawn],
        ticktext=[f"{length.epochs * steps:,}" for length in drawn],
        title={"text": f"length of a run, {unit}"},
    )
    figure.update_yaxes(title={"text": "points against the mean of all"}, zeroline=False)
    figure = apply_layout(figure, _HEIGHT)
    return figure.update_layout(margin={"r": _NAMES})


def _group(row: Row, verdict: Verdict) -> str:
    if row.candidate.key == verdict.pick.candidate.key:
        return "pick"
    return "tied" if row.tied else "other"


def _add_bars(
    figure: go.Figure, drawn: Sequence[Means], curve: Sequence[tuple[float, float]]
) -> None:
    """Add the 95% of the pick's means."""
    halves = [100 * length.half for length in drawn]
    if not curve or not any(halves):
        return
    figure.add_scatter(
        x=[moment for moment, _ in curve],
        y=[value for _, value in curve],
        error_y={"type": "data", "array": halves, "thickness": 2, "width": 0, "color": PICK},
        mode="markers",
        marker={"color": PICK, "size": 1},
        hoverinfo="skip",
        showlegend=False,
    )


def _add_names(
    figure: go.Figure,
    rows: Sequence[Row],
    curves: dict[str, list[tuple[float, float]]],
    verdict: Verdict,
) -> None:
    """Write what a network stands for at the right end of its line, names far enough apart to be
    read."""
    named = []
    for row in rows:
        role = role_name(row, verdict.pick.candidate.key)
        if role:
            named.append((curves[row.candidate.key][-1], role))
    ends = [curve[-1][1] for curve in curves.values()]
    starts = [value for curve in curves.values() for _, value in curve]
    span = max(starts) - min(starts) or 1.0
    gap = _LABEL * span / (_HEIGHT - 110)
    lowest = min(ends) - span
    for (moment, value), role in sorted(named, key=lambda item: item[0][1]):
        height = max(value, lowest + gap)
        lowest = height
        figure.add_annotation(
            x=math.log10(moment),
            y=height,
            text=escape(role),
            name="line end",  # which the page's script finds where there is no room beside it
            xanchor="left",
            xshift=10,
            showarrow=False,
        )
