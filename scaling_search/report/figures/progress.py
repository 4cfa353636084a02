"""What the search has bought: the best run and the hypervolume so far, against the time spent."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from scaling_search.report.figures.style import BLUE, ORANGE, accuracy_title, apply_layout
from scaling_search.report.front import hypervolume_so_far
from scaling_search.report.page import Page
from scaling_search.verdict.verdict import searched

WORDS = (
    "The best single run of a network of the budget so far, and the hypervolume: the area of "
    "accuracy (%) and the log of FLOPs (multiply-adds) that the runs dominate, which grows with "
    "each run that moves the front. Both against the training time spent, over runs of full "
    "length in the order of their start. The hypervolume's reference point is accuracy 0 at the "
    "costliest network. A best of many runs is lucky: the answer above is not."
)


def draw(page: Page) -> go.Figure:
    """Return the figure. At least one run of the search has ended."""
    last = page.study.rungs[-1]
    seconds, accuracies, macs, in_budget = [], [], [], []
    for record in searched(page.records, page.study):
        if record.outcome is None:
            continue
        # A short or failed run takes its time and adds no accuracy.
        whole = record.done and record.epochs == last
        seconds.append(record.outcome.seconds)
        accuracies.append(100 * record.val_acc if whole else np.nan)
        macs.append(float(record.candidate.cost.macs))
        in_budget.append(record.candidate.role == "candidate")
    minutes = np.cumsum(seconds) / 60
    of_budget = np.where(in_budget, accuracies, np.nan)
    log_macs = np.log10(macs)
    hypervolume = hypervolume_so_far(log_macs, accuracies, (float(log_macs.max()), 0.0))

    figure = go.Figure()
    figure.add_scatter(
        x=minutes,
        y=np.fmax.accumulate(of_budget),
        mode="lines",
        name="best run so far, %",
        line={"color": BLUE, "width": 2, "shape": "hv"},
    )
    figure.add_scatter(
        x=minutes,
        y=hypervolume,
        mode="lines",
        yaxis="y2",
        name="hypervolume so far",
        line={"color": ORANGE, "width": 2, "dash": "dash", "shape": "hv"},
    )
    figure.update_xaxes(title={"text": "training time spent, minutes of all workers"})
    figure.update_yaxes(title={"text": accuracy_title(page.study.metric)})
    right = {
        "overlaying": "y",
        "side": "right",
        "title": {"text": "hypervolume"},
        "showgrid": False,
        "tickmode": "auto",
    }
    figure = apply_layout(figure, 380, yaxis2=right)
    return figure.update_layout(margin={"r": 70})  # room for the second axis
