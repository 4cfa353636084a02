"""Learning curves: the validation accuracy of every run after each of its epochs."""

from __future__ import annotations

from collections import Counter

import plotly.graph_objects as go

from scaling_search.report.figures.style import (
    ACCURACY,
    BLUE,
    INK,
    ORANGE,
    RED,
    apply_layout,
    epoch_count,
    run_kind,
)
from scaling_search.report.page import Page
from scaling_search.results.record import Record

# With more runs than these, a mark for each epoch would cover the lines.
_MANY = 300
# Kind of run → the colour of its curve, in the order in which they are drawn.
_COLOURS = {"candidate": BLUE, "reference": ORANGE, "baseline": INK, "failed": RED}
# Of the longest runs first; a study with more rungs draws the shortest solid again.
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def words(page: Page) -> str:
    """Return what stands above the figure, with how many networks stopped at which rung."""
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


def draw(records: list[Record]) -> go.Figure:
    """Return the figure. At least one of the runs has an epoch."""
    groups: dict[tuple[str, int], list[int]] = {}  # (kind, epochs) → its rows among the runs
    for row, record in enumerate(records):
        if record.outcome is not None and record.outcome.epochs:
            groups.setdefault((run_kind(record), record.epochs), []).append(row)

    kinds = list(_COLOURS)
    rungs = sorted({record.epochs for record in records})
    figure = go.Figure()
    for kind, epochs in sorted(groups, key=lambda group: (kinds.index(group[0]), group[1])):
        name = kind
        if len(rungs) > 1:
            name = f"{kind}, {epoch_count(epochs)}"
        place = rungs[::-1].index(epochs)
        dash = _DASHES[place] if place < len(_DASHES) else "solid"
        _add_runs(figure, records, groups[kind, epochs], kind, name, dash)
    figure.update_xaxes(title={"text": "epoch"}, dtick=1 if rungs[-1] <= 20 else None)
    figure.update_yaxes(title={"text": ACCURACY})
    return apply_layout(figure, 420)


def _add_runs(
    figure: go.Figure, records: list[Record], rows: list[int], kind: str, name: str, dash: str
) -> None:
    """Add the curves of one group as one trace, with a gap between two runs: a trace for each would
    make a large study's page slow."""
    epochs: list[float | None] = []
    accuracies: list[float | None] = []
    points = []
    for row in rows:
        outcome = records[row].outcome
        assert outcome is not None
        epochs += [epoch.epoch for epoch in outcome.epochs]
        accuracies += [round(100 * epoch.val_acc, 2) for epoch in outcome.epochs]
        epochs.append(None)
        accuracies.append(None)
        points.append(len(outcome.epochs))
    many = len(records) > _MANY
    figure.add_scatter(
        x=epochs,
        y=accuracies,
        mode="lines" if many else "lines+markers",
        line={"color": _COLOURS[kind], "width": 1 if many else 1.5, "dash": dash},
        marker={"size": 6, "symbol": "x" if kind == "failed" else "circle"},
        opacity=0.55 if kind == "candidate" else 1.0,
        name=name,
        meta={"curves": rows, "points": points},
        hovertemplate="%{text}<br>epoch %{x}: %{y:.1f} %<extra></extra>",
    )
