"""Where the time went: minutes of training and evaluation by rung."""

from __future__ import annotations

from collections import defaultdict

import plotly.graph_objects as go

from scaling_search.report.figures.style import (
    COULD_BE_BEST,
    FAILED,
    GREY,
    REFERENCE,
    apply_layout,
    run_kind,
)
from scaling_search.results.record import Record
from scaling_search.study.wording import counted

WORDS = (
    "Training and evaluation, minutes of all workers, by rung; what failed has a colour of its own."
)

# Kind of run → the colour of its bars, in the order in which they are stacked.
_COLOURS = {
    "candidate": COULD_BE_BEST,
    "reference": REFERENCE,
    "baseline": GREY,
    "failed": FAILED,
}


def draw(records: list[Record]) -> go.Figure:
    """Return the figure of the runs that have ended."""
    minutes: defaultdict[tuple[str, int], float] = defaultdict(float)  # (kind, epochs) → their sum
    for record in records:
        if record.outcome is not None:
            minutes[run_kind(record), record.epochs] += record.outcome.seconds / 60
    present = {kind for kind, _ in minutes}
    rungs = sorted({epochs for _, epochs in minutes})
    figure = go.Figure()
    for kind, colour in _COLOURS.items():
        if kind not in present:
            continue
        figure.add_bar(
            y=[counted(epochs, "epoch") for epochs in rungs],
            x=[round(minutes[kind, epochs], 3) for epochs in rungs],
            orientation="h",
            name=kind,
            marker={"color": colour},
            hovertemplate="%{y}: %{x:.1f} minutes<extra>" + kind + "</extra>",
        )
    figure.update_xaxes(title={"text": "minutes"})
    figure = apply_layout(figure, 200 + 40 * len(rungs), barmode="stack")
    return figure.update_layout(yaxis={"automargin": True})
