"""Learning curves: the validation accuracy of every run after each of its epochs, or, where runs
have one epoch, their training losses within it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from scaling_search.report.figures.style import (
    BLUE,
    INK,
    ORANGE,
    RED,
    accuracy_title,
    apply_layout,
    epoch_count,
    run_kind,
)
from scaling_search.report.page import Page
from scaling_search.results.record import Record

# With more runs than these, a mark for each epoch would cover the lines.
_MANY = 300
# Losses that are averaged into one point of a curve: of 32 steps each, whose images differ.
_SMOOTHED = 3
# Kind of run → the colour of its curve, in the order in which they are drawn.
_COLOURS = {"candidate": BLUE, "reference": ORANGE, "baseline": INK, "failed": RED}
# Of the longest runs first; a study with more rungs draws the shortest solid again.
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def words(page: Page) -> str:
    """Return what stands above the figure, with how many networks stopped at which rung."""
    if _within_an_epoch(page.records):
        text = "Training loss of every run, smoothed, from its first image to its last. "
    else:
        text = (
            "Validation accuracy after each epoch of every run (batch norms re-estimated first), "
            "by rung. "
        )
    text += _stopped(page)
    failed: Counter[str] = Counter()
    for record in page.records:
        if record.outcome is not None and not record.done:
            failed[record.outcome.status] += 1
    if failed:
        counts = ", ".join(f"{n} {status}" for status, n in failed.items())
        text += f"Runs that failed ({counts}) are crossed."
    return text


def _stopped(page: Page) -> str:
    """Return how many networks have their longest run at which rung; nothing when all have it at
    the last."""
    longest: dict[str, int] = {}
    for record in page.records:
        key = record.candidate.key
        if record.candidate.role == "candidate" and record.done:
            longest[key] = max(record.epochs, longest.get(key, 0))
    networks = Counter(longest.values())
    last = page.study.rungs[-1]
    shorter = sorted(epochs for epochs in networks if epochs < last)
    if not shorter:
        return ""
    counts = ", ".join(f"{networks[epochs]} after {epoch_count(epochs)}" for epochs in shorter)
    where = "there so far" if page.unfinished else "stopped there"
    return f"Networks {where}: {counts}; {networks[last]} went on to {last}. "


def _within_an_epoch(records: Sequence[Record]) -> bool:
    """Whether an accuracy after each epoch would be a single dot: runs have one epoch, and their
    losses in more detail."""
    epochs = [e for record in records if record.outcome for e in record.outcome.epochs]
    last = max((epoch.epoch for epoch in epochs), default=0)
    return last == 1 and any(len(epoch.losses) >= _SMOOTHED for epoch in epochs)


def _curve(record: Record, within: bool) -> tuple[list[float], list[float]]:
    """Return a run's curve: accuracies in per cent by epoch, or `within` its epoch the losses."""
    assert record.outcome is not None
    epochs = record.outcome.epochs
    if not within:
        accuracies = [round(100 * epoch.val_acc, 2) for epoch in epochs]
        return [float(epoch.epoch) for epoch in epochs], accuracies
    losses = epochs[0].losses
    if len(losses) < _SMOOTHED:
        return [], []
    smooth = np.convolve(losses, np.full(_SMOOTHED, 1 / _SMOOTHED), mode="valid")
    middles = (np.arange(len(smooth)) + _SMOOTHED / 2) / len(losses)
    return middles.round(3).tolist(), smooth.round(3).tolist()


def draw(records: list[Record], metric: str) -> go.Figure:
    """Return the figure. At least one of the runs has an epoch."""
    groups: dict[tuple[str, int], list[int]] = {}  # (kind, epochs) → its rows among the runs
    for row, record in enumerate(records):
        if record.outcome is not None and record.outcome.epochs:
            groups.setdefault((run_kind(record), record.epochs), []).append(row)

    kinds = list(_COLOURS)
    rungs = sorted({record.epochs for record in records})
    within = _within_an_epoch(records)
    figure = go.Figure()
    for kind, epochs in sorted(groups, key=lambda group: (kinds.index(group[0]), group[1])):
        name = kind
        if len(rungs) > 1:
            name = f"{kind}, {epoch_count(epochs)}"
        place = rungs[::-1].index(epochs)
        dash = _DASHES[place] if place < len(_DASHES) else "solid"
        _add_runs(figure, records, groups[kind, epochs], kind, name, dash, within)
    if within:
        figure.update_xaxes(title={"text": "part of the run"}, tickformat=".0%")
        figure.update_yaxes(title={"text": "training loss"})
    else:
        figure.update_xaxes(title={"text": "epoch"}, dtick=1 if rungs[-1] <= 20 else None)
        figure.update_yaxes(title={"text": accuracy_title(metric)})
    return apply_layout(figure, 420)


def _add_runs(
    figure: go.Figure,
    records: list[Record],
    rows: list[int],
    kind: str,
    name: str,
    dash: str,
    within: bool,
) -> None:
    """Add the curves of one group as one trace, with a gap between two runs: a trace for each would
    make a large study's page slow."""
    x: list[float | None] = []
    y: list[float | None] = []
    points = []
    for row in rows:
        moments, values = _curve(records[row], within)
        x += [*moments, None]
        y += [*values, None]
        points.append(len(moments))
    plain = len(records) > _MANY or within
    hover = "%{x:.0%}: loss %{y:.2f}" if within else "epoch %{x}: %{y:.1f} %"
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines" if plain else "lines+markers",
        line={"color": _COLOURS[kind], "width": 1 if plain else 1.5, "dash": dash},
        marker={"size": 6, "symbol": "x" if kind == "failed" else "circle"},
        opacity=0.55 if kind == "candidate" else 1.0,
        name=name,
        meta={"curves": rows, "points": points},
        hovertemplate=f"%{{text}}<br>{hover}<extra></extra>",
    )
