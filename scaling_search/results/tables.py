"""One run as one row: what results.csv, the curves and the report's tables have of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from scaling_search.results.record import Record
from scaling_search.study.candidate import Candidate

NOT_FINISHED = "not finished"  # in place of a status, for a run without an outcome
# In results.csv where inputs are not square, after resolution, which are the rows then: px across.
ACROSS = "columns"
# In results.csv where the study's budget is a latency, after acts.
LATENCY = "latency_ms"
COLUMNS = [
    "network", "alpha", "beta", "gamma", "blocks", "width", "resolution",
    "share_depth", "share_width", "share_resolution", "macs", "params", "acts",
    "seed", "epochs", "status", "val_acc", "val_loss", "test_acc",
    "seconds", "images_per_s", "peak_memory", "note",
]  # fmt: skip


def network_row(candidate: Candidate) -> dict[str, Any]:
    """A network's part of a row. `network` is its key, `width` the width multiplier, `resolution`
    in px; the shares are empty where the network costs no more than the baseline, `blocks` where a
    function builds it."""
    depth, width, resolution = candidate.shares or (None, None, None)
    return {
        "network": candidate.key,
        "alpha": candidate.alpha,
        "beta": candidate.beta,
        "gamma": candidate.gamma,
        "blocks": candidate.arch.blocks,
        "width": candidate.beta,
        "resolution": candidate.arch.resolution,
        ACROSS: candidate.arch.sides[1],
        "share_depth": depth,
        "share_width": width,
        "share_resolution": resolution,
        "macs": candidate.cost.macs,
        "params": candidate.cost.params,
        "acts": candidate.cost.acts,
        LATENCY: None if candidate.latency is None else candidate.latency / 1e6,
    }


def row(record: Record) -> dict[str, Any]:
    """A run as {column: value}, for each of COLUMNS in this order. `seconds` are of wall-clock,
    `peak_memory` in bytes. None where there is nothing: accuracies of a run that is not done, all
    results of one that has not finished."""
    results = {
        "status": NOT_FINISHED,
        "val_acc": None,
        "val_loss": None,
        "test_acc": record.test_acc,
        "seconds": None,
        "images_per_s": None,
        "peak_memory": None,
        "note": "",
    }
    outcome = record.outcome
    if outcome is not None:
        results["status"] = outcome.status
        results["seconds"] = outcome.seconds
        # 0 stands for a speed that is not the run's own: it shared its GPU with others
        results["images_per_s"] = outcome.images_per_s or None
        results["peak_memory"] = outcome.peak_memory
        results["note"] = outcome.note
        if record.done:
            results["val_acc"] = outcome.epochs[-1].val_acc
            results["val_loss"] = outcome.epochs[-1].val_loss
    return {
        **network_row(record.candidate),
        "seed": record.seed,
        "epochs": record.epochs,
        **results,
    }


def table(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each run that has an outcome, with the columns of results.csv."""
    rows = [row(record) for record in records if record.outcome is not None]
    columns = list(COLUMNS)
    if any(each[ACROSS] != each["resolution"] for each in rows):
        columns.insert(columns.index("resolution") + 1, ACROSS)
    if any(each[LATENCY] is not None for each in rows):
        columns.insert(columns.index("acts") + 1, LATENCY)
    return pd.DataFrame(rows, columns=columns)


def csv_text(records: Sequence[Record]) -> str:
    """results.csv as text; floats in full, so that equal runs are equal text."""
    return table(records).to_csv(index=False, lineterminator="\n")
