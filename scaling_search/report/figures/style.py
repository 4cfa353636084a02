"""What all figures share: colours, the layout, the texts that the page fills in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

# Okabe and Ito's colours: told apart by the colour-blind.
BLUE, ORANGE, GREY, RED, GREEN = "#0072B2", "#E69F00", "#7A7A7A", "#D55E00", "#009E73"
INK = "#808080"  # outlines that show on light and on dark
AXES = {
    "macs": "FLOPs (multiply-adds) per image",
    "params": "parameters",
    "acts": "activations (output elements) per image",
    "image_ms": "training time per image, ms, here",
    "seconds": "training seconds of a run, here",
}


def layout(figure: go.Figure, height: int, **more: Any) -> go.Figure:
    """The page gives fonts and colours, which change with light and dark."""
    return figure.update_layout(
        template=None,
        height=height,
        margin={"l": 60, "r": 20, "t": 40, "b": 60},
        legend={
            "orientation": "h",
            "y": -72 / (height - 110),
            "yanchor": "top",
            "x": 0,
        },  # px under the axis title
        **more,
    )


def hover(rows: Sequence[int], **more: Any) -> dict[str, Any]:
    """Texts of networks, by their rows in the table."""
    return {"meta": {"rows": list(rows), **more}, "hovertemplate": "%{text}<extra></extra>"}
