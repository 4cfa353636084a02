"""The report's two tables as columns of plain values: every network, every run.

The page formats, sorts, filters and downloads them; its figures name networks by their row here.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from effnet.arch import Arch
from scaling_search.report.page import Page
from scaling_search.results.record import Record, by_network_key
from scaling_search.verdict.verdict import Row

# key, heading, what it says, how the page shows it
_NETWORKS = (
    ("label", "network", "blocks, width multiplier, resolution", "text"),
    ("stands", "stands for", "its role, and the directions that it is or is nearest to", "text"),
    ("budget", "budget", "", "text"),
    ("mean", "val %", "expected at the last rung, from the model of all runs", "percent1"),
    ("error", "±", "standard deviation of that, points", "percent1"),
    ("behind", "below the pick", "points", "percent1"),
    ("low", "from", "95%, points", "percent1"),
    ("high", "to", "95%, points", "percent1"),
    ("standing", "so it is", "against the pick, with a margin of half a point", "text"),
    ("best", "P(best)", "", "fixed2"),
    ("tied", "tied", "of the smallest set whose P(best) sums to 0.95", "text"),
    ("count", "runs", "that ended well at the last rung", "number"),
    ("status", "status", "of all its runs", "text"),
    ("alpha", "alpha", "depth multiplier", "number"),
    ("beta", "beta", "width multiplier", "number"),
    ("gamma", "gamma", "resolution multiplier", "number"),
    ("share_depth", "depth share", "of the extra cost", "percent"),
    ("share_width", "width share", "of the extra cost", "percent"),
    ("share_resolution", "resolution share", "of the extra cost", "percent"),
    ("macs", "MACs", "multiply-adds per image", "si"),
    ("ratio", "ratio", "to the baseline's MACs", "ratio"),
    ("waste", "waste", "of the resolution's rounding", "percent1"),
    ("params", "params", "", "si"),
    ("acts", "acts", "output elements per image", "si"),
    ("image_ms", "ms/image", "training time per image, median of its runs", "fixed2"),
    ("seconds", "seconds", "of a run at the last rung, median", "number"),
    ("stages", "stages", "blocks × channels of each", "text"),
    ("network", "key", "of the network, as in results.csv", "text"),
)
_RUNS = (
    ("row", "network", "", "network"),
    ("seed", "seed", "", "number"),
    ("epochs", "epochs", "", "number"),
    ("status", "status", "", "text"),
    ("val_acc", "val %", "of this run", "percent1"),
    ("val_loss", "val loss", "", "fixed2"),
    ("test_acc", "test %", "what the answer names only", "percent1"),
    ("seconds", "seconds", "", "number"),
    ("images_per_s", "images/s", "in training", "si"),
    ("peak_memory", "memory", "bytes at the peak", "si"),
    ("note", "note", "", "text"),
)


def networks(page: Page) -> dict[str, Any]:
    """{columns, rows: key → values}: one row a network, the verdicts' order first."""
    told = told_rows(page)
    groups = by_network_key(page.records)
    order = {key: i for i, key in enumerate(told)}
    keys = sorted(groups, key=lambda key: order.get(key, len(order)))
    last = page.study.rungs[-1]
    return _columns(
        _NETWORKS, [_network(groups[key], told.get(key), key in page.picks, last) for key in keys]
    )


def told_rows(page: Page) -> dict[str, Row]:
    """What the verdicts say of each network that has a finished run."""
    return {
        row.candidate.key: row
        for v in page.found
        for row in (*v.rows, *v.references, *([v.baseline] if v.baseline else []))
    }


def _network(runs: list[Record], row: Row | None, pick: bool, last: int) -> tuple[Any, ...]:
    c = runs[0].candidate
    done = [r.outcome for r in runs if r.done and r.outcome]
    whole = [r.outcome.seconds for r in runs if r.done and r.epochs == last and r.outcome]
    count = (
        row.seeds if row is not None else len(whole)
    )  # fresh seeds only confirm: no part of the verdict
    speeds = [o.images_per_s for o in done if o.images_per_s]
    statuses = Counter(r.outcome.status if r.outcome else "not finished" for r in runs)
    beside = (None,) * 7
    if row is not None:
        compared = (None,) * 4 if pick else (row.behind, row.low, row.high, row.standing)
        inside = c.role == "candidate"
        beside = (row.mean, row.error, *compared, row.best if inside else None)  # type: ignore[assignment]
    return (
        c.label,
        ", ".join(
            [
                *(["chosen"] if pick else []),
                *([] if c.role == "candidate" else [c.role]),
                *c.directions,
            ]
        ),
        str(c.budget) if c.role == "candidate" else "",
        *beside,
        "yes" if row is not None and row.tied else "",
        count,
        ", ".join(f"{n} {status}" if n > 1 else status for status, n in statuses.items()),
        c.alpha,
        c.beta,
        c.gamma,
        *(c.shares or (None, None, None)),
        c.cost.macs,
        c.ratio,
        c.waste,
        c.cost.params,
        c.cost.acts,
        1000 / statistics.median(speeds) if speeds else None,
        statistics.median(whole) if whole else None,
        _stages(c.arch),
        c.key,
    )


def _stages(net: Arch) -> str:
    stages = " ".join(f"{s.repeats}×{s.width}" for s in net.stages)
    return f"stem {net.stem_width}; {stages}; head {net.head_width}"


def runs(page: Page, index: dict[str, int]) -> dict[str, Any]:
    """The same of every run; `index`: network key → its row among the networks."""
    rows = []
    for r in page.records:
        o = r.outcome
        final = o.epochs[-1] if o and r.done else None
        rows.append(
            (
                index[r.candidate.key], r.seed, r.epochs, o.status if o else "not finished",
                final and final.val_acc, final and final.val_loss, r.test_acc,
                o and o.seconds, (o and o.images_per_s) or None, o and o.peak_memory, o.note if o else "",
            )
        )  # fmt: skip
    return _columns(_RUNS, rows)


def _columns(
    heads: Sequence[tuple[str, str, str, str]], rows: Sequence[tuple[Any, ...]]
) -> dict[str, Any]:
    values = zip(*rows, strict=True) if rows else [() for _ in heads]
    return {
        "columns": heads,
        "rows": {head[0]: list(column) for head, column in zip(heads, values, strict=True)},
    }
