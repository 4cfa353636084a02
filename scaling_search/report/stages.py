"""The pick beside the baseline, stage by stage."""

from __future__ import annotations

from typing import NamedTuple

from effnet.arch import Arch, Network, Stage
from effnet.blocks import blocks


class Line(NamedTuple):
    """One stage of both networks, in words: '3 × 24 channels, 16 px'."""

    name: str
    baseline: str
    pick: str


def compare(baseline: Network, pick: Network) -> list[Line]:
    """Return a line for each stage; none where the inside of a network is not known, as of a
    function's."""
    if not isinstance(baseline, Arch) or not isinstance(pick, Arch):
        return []
    before, after = _lines(baseline), _lines(pick)
    names = ["stem", *(_stage_name(stage) for stage in baseline.stages), "head"]
    return [Line(*line) for line in zip(names, before, after, strict=True)]


def _stage_name(stage: Stage) -> str:
    return f"{stage.operator}, {stage.kernel} × {stage.kernel}"


def _lines(net: Arch) -> list[str]:
    """Return what the stem, each stage and the head are."""
    resolved = iter(blocks(net))
    stem = next(resolved)
    lines = [f"{stem.c_out} channels, {stem.side_out} px"]
    for stage in net.stages:
        remaining = stage.repeats
        while remaining:
            block = next(resolved)
            remaining -= block.repeats
        lines.append(f"{stage.repeats} × {stage.width} channels, {block.side_out} px")
    head = f"{net.head_width} channels" if net.head_width else "classifier alone"
    return [*lines, f"{head}, {net.num_classes} classes"]
