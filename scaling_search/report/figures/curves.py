"""Learning curves: how each network learns, the mean over its runs; the pick and its rivals stand
out. Where runs have one epoch it is their training loss within it, else the accuracy after each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

import numpy as np
import plotly.graph_objects as go

from scaling_search.report.columns import verdict_rows
from scaling_search.report.figures.style import (
    BASELINE,
    COULD_BE_BEST,
    FAILED,
    GROUP_NAMES,
    OTHER,
    PICK,
    REFERENCE,
    accuracy_title,
    apply_layout,
)
from scaling_search.report.page import Page
from scaling_search.results.record import Record
from scaling_search.study.wording import counted
from scaling_search.verdict.verdict import Row

# Losses that are averaged into one point of a curve: of 32 steps each, whose images differ.
_SMOOTHED = 3
# Group of curves → its colour and width [px], in the order they are drawn.
_GROUPS = {
    "other": (OTHER, 1.0),
    "reference": (REFERENCE, 1.5),
    "baseline": (BASELINE, 1.5),
    "tied": (COULD_BE_BEST, 1.75),
    "pick": (PICK, 3.0),
    "failed": (FAILED, 1.5),
}


def words(page: Page) -> str:
    """Return what stands above the figure, with how many networks stopped at which rung."""
    if _within_an_epoch(page.records):
        text = "Training loss of each network, the mean over its runs, from its start to its end"
        if len(page.verdicts) == 1:
            text += ", beside the pick's at the same moment: above 0 it learns slower"
        text += ". "
    else:
        text = (
            "Validation accuracy of each network after each epoch, the mean over its runs of full "
            "length or, of a network without one, of its longest. "
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
    counts = ", ".join(f"{networks[epochs]} after {counted(epochs, 'epoch')}" for epochs in shorter)
    where = "there so far" if page.unfinished else "stopped there"
    return f"Networks {where}: {counts}; {networks[last]} went on to {last}. "


def _within_an_epoch(records: Sequence[Record]) -> bool:
    """Whether an accuracy after each epoch would be a single dot: runs have one epoch, and their
    losses in more detail."""
    epochs = [e for record in records if record.outcome for e in record.outcome.epochs]
    last = max((epoch.epoch for epoch in epochs), default=0)
    return last == 1 and any(len(epoch.losses) >= _SMOOTHED for epoch in epochs)


def are_drawn(records: Sequence[Record]) -> bool:
    """Whether there is a curve to draw: not where every run is a single dot."""
    several = any(record.outcome and len(record.outcome.epochs) > 1 for record in records)
    return several or _within_an_epoch(records)


def _curve(record: Record, within: bool) -> tuple[list[float], list[float]]:
    """Return a run's curve: accuracies in per cent by epoch, or `within` its epoch the losses."""
    assert record.outcome is not None
    epochs = record.outcome.epochs
    if not within:
        accuracies = [100 * epoch.val_acc for epoch in epochs]
        return [float(epoch.epoch) for epoch in epochs], accuracies
    losses = epochs[0].losses
    if len(losses) < _SMOOTHED:
        return [], []
    smooth = np.convolve(losses, np.full(_SMOOTHED, 1 / _SMOOTHED), mode="valid")
    middles = (np.arange(len(smooth)) + _SMOOTHED / 2) / len(losses)
    return middles.round(3).tolist(), smooth.tolist()


_Curve = list[tuple[float, float]]


def _mean_curve(runs: Sequence[Record], within: bool) -> _Curve:
    """Return the mean curve of a network's longest runs; empty where they have none."""
    longest = max(run.epochs for run in runs)
    values: dict[float, list[float]] = {}
    for run in runs:
        if run.epochs == longest:
            for moment, value in zip(*_curve(run, within), strict=True):
                values.setdefault(moment, []).append(value)
    return [(moment, fmean(values[moment])) for moment in sorted(values)]


def draw(page: Page, index: dict[str, int]) -> go.Figure:
    """Return the figure, of runs that `are_drawn`. `index`: network key → row in the
    table of networks."""
    within = _within_an_epoch(page.records)
    runs_of: dict[str, list[Record]] = {}
    failed: dict[str, list[Record]] = {}
    for record in page.records:
        if record.outcome is not None and record.outcome.epochs:
            kind = runs_of if record.done else failed
            kind.setdefault(record.candidate.key, []).append(record)
    curves = {key: _mean_curve(runs, within) for key, runs in runs_of.items()}
    reference = _reference(page, curves) if within else {}
    groups: dict[str, list[tuple[str, _Curve]]] = {group: [] for group in _GROUPS}
    concluded = verdict_rows(page)
    for key, curve in curves.items():
        groups[_group(page, runs_of[key][0], concluded)].append((key, _beside(curve, reference)))
    for key, runs in failed.items():
        for run in runs:
            groups["failed"].append((key, _beside(_mean_curve([run], within), reference)))

    figure = go.Figure()
    hover = "%{x:.0%}: loss %{y:.3f}" if within else "epoch %{x}: %{y:.1f} %"
    for group, members in groups.items():
        if members:
            add_curves(figure, group, members, index, hover, markers=not within)
    if within:
        figure.update_xaxes(title={"text": "part of the run"}, tickformat=".0%")
        figure.update_yaxes(title={"text": "training loss against the pick's"})
        if not reference:
            figure.update_yaxes(title={"text": "training loss"})
    else:
        last = page.study.rungs[-1]
        figure.update_xaxes(title={"text": "epoch"}, dtick=1 if last <= 20 else None)
        figure.update_yaxes(title={"text": accuracy_title(page.study.metric)})
    return apply_layout(figure, 420)


def _reference(page: Page, curves: dict[str, _Curve]) -> dict[float, float]:
    """Return the pick's loss at each moment, of one budget; of several there is no one pick."""
    if len(page.verdicts) != 1:
        return {}
    return dict(curves.get(page.verdicts[0].pick.candidate.key, []))


def _beside(curve: _Curve, reference: dict[float, float]) -> _Curve:
    """Return the curve against another one, at the moments of both; itself where there is none."""
    if not reference:
        return curve
    return [(moment, value - reference[moment]) for moment, value in curve if moment in reference]


def _group(page: Page, record: Record, concluded: dict[str, Row]) -> str:
    """Return the group that a network's curve is drawn in."""
    candidate = record.candidate
    if candidate.key in page.picks:
        return "pick"
    if candidate.role != "candidate":
        return candidate.role
    row = concluded.get(candidate.key)
    return "tied" if row is not None and row.tied else "other"


def add_curves(
    figure: go.Figure,
    group: str,
    members: Sequence[tuple[str, _Curve]],
    index: dict[str, int],
    hover: str,
    *,
    markers: bool,
) -> None:
    """Add the curves of one group as one trace, with a gap between two: a trace for each would make
    a large study's page slow."""
    colour, width = _GROUPS[group]
    x: list[float | None] = []
    y: list[float | None] = []
    networks, points = [], []
    for key, curve in members:
        x += [*(moment for moment, _ in curve), None]
        y += [*(round(value, 3) for _, value in curve), None]
        networks.append(index[key])
        points.append(len(curve))
    is_failed = group == "failed"
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines+markers" if is_failed or markers else "lines",
        line={"color": colour, "width": width},
        marker={"size": 8 if is_failed else 5, "symbol": "x" if is_failed else "circle"},
        opacity=0.7 if group == "other" else 1.0,
        name=GROUP_NAMES.get(group, "failed runs"),
        meta={"curves": networks, "points": points},
        hovertemplate=f"%{{text}}<br>{hover}<extra></extra>",
    )
