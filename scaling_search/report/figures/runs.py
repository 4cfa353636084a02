"""Figures of the runs themselves: their curves, what they have bought, where the time went."""

from __future__ import annotations

from collections import Counter

import numpy as np
import plotly.graph_objects as go

from scaling_search.report.figures.style import BLUE, GREY, INK, ORANGE, RED, layout
from scaling_search.report.front import hypervolume_so_far
from scaling_search.report.page import Page, escape
from scaling_search.results.record import Record
from scaling_search.verdict.verdict import searched


def curve_words(page: Page) -> str:
    words = "Validation accuracy after each epoch of every run (batch norms re-estimated first), by rung. "
    longest: dict[str, int] = {}
    for r in page.records:
        if r.candidate.role == "candidate" and r.done:
            longest[r.candidate.key] = max(r.epochs, longest.get(r.candidate.key, 0))
    left = Counter(longest.values())
    last = page.study.rungs[-1]
    stopped = [f"{left[e]} after {e} epoch{'s' if e > 1 else ''}" for e in sorted(left) if e < last]
    if stopped:
        where = "there so far" if page.unfinished else "stopped there"
        words += f"Networks {where}: {', '.join(stopped)}; {left[last]} went on to {last}. "
    failed = Counter(r.outcome.status for r in page.records if r.outcome and not r.done)
    if failed:
        words += f"Runs that failed ({', '.join(f'{n} {escape(s)}' for s, n in failed.items())}) are crossed."
    return words


def curves(records: list[Record]) -> go.Figure:
    figure = go.Figure()
    rungs = sorted({r.epochs for r in records})
    dashes = dict(
        zip(reversed(rungs), ("solid", "dash", "dot", "dashdot", "longdash"), strict=False)
    )
    many = len(records) > 300
    groups: dict[tuple[str, int], list[int]] = {}
    for i, r in enumerate(records):
        if r.outcome and r.outcome.epochs:
            groups.setdefault(("failed" if not r.done else r.candidate.role, r.epochs), []).append(
                i
            )
    colours = {"candidate": BLUE, "reference": ORANGE, "baseline": INK, "failed": RED}
    for (kind, epochs), members in sorted(
        groups.items(), key=lambda g: (list(colours).index(g[0][0]), g[0][1])
    ):
        x: list[float | None] = []
        y: list[float | None] = []
        for i in members:  # one trace, a gap between two runs
            outcome = records[i].outcome
            assert outcome is not None
            x += [*(e.epoch for e in outcome.epochs), None]
            y += [*(round(100 * e.val_acc, 2) for e in outcome.epochs), None]
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines" if many else "lines+markers",
            line={
                "color": colours[kind],
                "width": 1 if many else 1.5,
                "dash": dashes.get(epochs, "solid"),
            },
            marker={"size": 6, "symbol": "x" if kind == "failed" else "circle"},
            opacity=0.55 if kind == "candidate" else 1.0,
            name=kind if len(rungs) == 1 else f"{kind}, {epochs} epoch{'s' if epochs > 1 else ''}",
            meta={"curves": members, "points": [len(records[i].outcome.epochs) for i in members]},  # type: ignore[union-attr]
            hovertemplate="%{text}<br>epoch %{x}: %{y:.1f} %<extra></extra>",
        )
    figure.update_xaxes(title={"text": "epoch"}, dtick=1 if rungs[-1] <= 20 else None)
    figure.update_yaxes(title={"text": "validation accuracy, %"})
    return layout(figure, 420)


PROGRESS = (
    "The best single run of a network of the budget so far, and the hypervolume of accuracy (%) and the log of FLOPs, "
    "both against the training time spent, over runs at the last rung in the order of their start. The hypervolume's "
    "reference point is accuracy 0 at the costliest network. A best of many runs is lucky: the answer above is not."
)


def progress(page: Page) -> go.Figure:
    ended = [r for r in searched(page.records, page.study) if r.outcome is not None]
    minutes = np.cumsum([r.outcome.seconds if r.outcome else 0.0 for r in ended]) / 60
    last = page.study.rungs[-1]
    whole = np.array([r.done and r.epochs == last for r in ended])
    accuracy = np.array(
        [100 * r.val_acc if use else np.nan for r, use in zip(ended, whole, strict=True)]
    )
    mine = np.where([r.candidate.role == "candidate" for r in ended], accuracy, np.nan)
    macs = np.log10([float(r.candidate.cost.macs) for r in ended])
    figure = go.Figure()
    figure.add_scatter(
        x=minutes, y=np.fmax.accumulate(mine), mode="lines", name="best run so far, %",
        line={"color": BLUE, "width": 2, "shape": "hv"},
    ).add_scatter(
        x=minutes, y=hypervolume_so_far(macs, accuracy, (float(macs.max()), 0.0)), mode="lines", yaxis="y2",
        name="hypervolume so far", line={"color": ORANGE, "width": 2, "dash": "dash", "shape": "hv"},
    )  # fmt: skip
    figure.update_xaxes(title={"text": "training time spent, minutes of all workers"})
    figure.update_yaxes(title={"text": "validation accuracy, %"})
    figure = layout(
        figure, 380, yaxis2={"overlaying": "y", "side": "right", "title": {"text": "hypervolume"}}
    )
    return figure.update_layout(margin={"r": 70}, yaxis2={"showgrid": False, "tickmode": "auto"})


TIME = "Training and evaluation, minutes of all workers, by rung; what failed is apart."


def spent_time(ended: list[Record]) -> go.Figure:
    figure = go.Figure()
    rungs = sorted({r.epochs for r in ended})
    spent: Counter[tuple[str, int]] = Counter()
    for r in ended:
        spent["failed" if not r.done else r.candidate.role, r.epochs] += (
            r.outcome.seconds / 60 if r.outcome else 0.0
        )  # type: ignore[assignment]
    colours = {"candidate": BLUE, "reference": ORANGE, "baseline": GREY, "failed": RED}
    for kind, colour in colours.items():
        if any(k == kind for k, _ in spent):
            figure.add_bar(
                y=[f"{e} epoch{'s' if e > 1 else ''}" for e in rungs],
                x=[round(float(spent[kind, e]), 3) for e in rungs],
                orientation="h",
                name=kind,
                marker={"color": colour},
                hovertemplate="%{y}: %{x:.1f} minutes<extra>" + kind + "</extra>",
            )
    figure.update_xaxes(title={"text": "minutes"})
    return layout(figure, 200 + 40 * len(rungs), barmode="stack").update_layout(
        yaxis={"automargin": True}
    )
