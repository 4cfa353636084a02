"""How the best direction moves with the budget: the shares of the extra cost of each pick."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from scaling_search.report.figures.style import BLUE, GREEN, ORANGE, apply_layout, escape
from scaling_search.verdict.verdict import Verdict

WORDS = (
    "What each budget's extra cost is best spent on: of the pick, and of the highest point of the "
    "surface that is fitted through all runs of that budget."
)
_DIMENSIONS = {"depth": BLUE, "width": ORANGE, "resolution": GREEN}


def draw(verdicts: Sequence[Verdict]) -> go.Figure:
    """Return the figure: a bar for each budget's pick and one for its surface."""
    names, shares = [], []
    for verdict in verdicts:
        if verdict.pick.candidate.shares is not None:
            names.append(f"{escape(verdict.budget)}: the pick")
            shares.append(verdict.pick.candidate.shares)
        if verdict.surface is not None:
            names.append(f"{escape(verdict.budget)}: the surface")
            shares.append(verdict.surface.optimum[-1])
    figure = go.Figure()
    for place, (name, colour) in enumerate(_DIMENSIONS.items()):
        parts = [share[place] for share in shares]
        figure.add_bar(
            y=names[::-1],
            x=parts[::-1],
            orientation="h",
            name=name,
            marker={"color": colour},
            text=[f"{part:.0%}" if part >= 0.05 else "" for part in parts[::-1]],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            hovertemplate="%{y}: " + name + " %{x:.0%}<extra></extra>",
        )
    figure.update_xaxes(title={"text": "share of the extra cost"}, tickformat=".0%")
    figure.update_yaxes(automargin=True)
    return apply_layout(figure, 170 + 34 * len(names), barmode="relative")
