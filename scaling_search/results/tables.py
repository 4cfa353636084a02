"""One row per run, as results.csv has them."""

from __future__ import annotations

import pandas as pd

from scaling_search.results.record import Record

COLUMNS = [
    "network", "alpha", "beta", "gamma", "blocks", "width", "resolution",
    "share_depth", "share_width", "share_resolution", "macs", "params", "acts",
    "seed", "epochs", "status", "val_acc", "val_loss", "test_acc",
    "seconds", "images_per_s", "peak_memory", "note",
]  # fmt: skip


def table(records: list[Record]) -> pd.DataFrame:
    """One row per (network, seed, epochs), the columns of results.csv; runs without an outcome are
    left out.

    `width` is the width multiplier, `resolution` in px, `seconds` wall-clock, `peak_memory` in
    bytes. `images_per_s` is empty where the run shared its GPU with others."""
    rows = []
    for r in records:
        o, c = r.outcome, r.candidate
        if o is None:
            continue
        s = c.shares or (None, None, None)
        final = o.epochs[-1] if r.done else None
        rows.append(
            [
                c.key, c.alpha, c.beta, c.gamma, c.arch.blocks, c.beta, c.arch.resolution,
                *s, c.cost.macs, c.cost.params, c.cost.acts,
                r.seed, r.epochs, o.status, final and final.val_acc, final and final.val_loss, r.test_acc,
                o.seconds, o.images_per_s or None, o.peak_memory, o.note,
            ]
        )  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def write_csv(records: list[Record]) -> str:
    """results.csv as text; floats in full, so that equal runs are equal text."""
    return table(records).to_csv(index=False, lineterminator="\n")
