"""The report's two tables as columns of plain values: every network, every run.

The page formats, sorts, filters and downloads them; its figures name networks by their row here.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from effnet.arch import Arch, Network
from scaling_search.report.page import Page
from scaling_search.results import tables
from scaling_search.results.record import Record, by_network_key
from scaling_search.study.candidate import Candidate
from scaling_search.verdict.verdict import Row

# Key of a column, its heading, what it says, how the page shows it (FORMATS in assets/report.js).
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
    ("latency_ms", "latency, ms", "of a forward pass, as the budget says", "fixed2"),
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


# Of a network without a finished run.
_NO_CONCLUSIONS: dict[str, Any] = {
    "mean": None,
    "error": None,
    "behind": None,
    "low": None,
    "high": None,
    "standing": None,
    "best": None,
    "tied": "",
}


def networks(page: Page) -> dict[str, Any]:
    """Return {"columns": the headings, "rows": {key of a column: its values}}, a row a network.

    Networks with a finished run come first, in the order of the verdicts."""
    verdicts = verdict_rows(page)
    groups = by_network_key(page.records)
    others = [key for key in groups if key not in verdicts]
    last = page.study.rungs[-1]
    rows = []
    for key in [*verdicts, *others]:
        row = _network(groups[key], last, is_pick=key in page.picks)
        if key in verdicts:
            row |= _conclusions(verdicts[key], is_pick=key in page.picks)
        rows.append(row)
    headings: Sequence[tuple[str, str, str, str]] = _NETWORKS
    if all(row["latency_ms"] is None for row in rows):  # no budget asked for it
        headings = tuple(head for head in _NETWORKS if head[0] != "latency_ms")
    return _as_columns(headings, rows)


def runs(records: Sequence[Record], index: dict[str, int]) -> dict[str, Any]:
    """Return the same of every run. `index`: network key → its row among the networks."""
    rows = []
    for record in records:
        row = tables.row(record)
        row["row"] = index[row["network"]]
        rows.append(row)
    return _as_columns(_RUNS, rows)


def verdict_rows(page: Page) -> dict[str, Row]:
    """Return what the verdicts say of each network that has a finished run, by its key."""
    rows = {}
    for verdict in page.verdicts:
        for row in [*verdict.rows, *verdict.references]:
            rows[row.candidate.key] = row
        if verdict.baseline is not None:
            rows[verdict.baseline.candidate.key] = verdict.baseline
    return rows


def row_index(table: dict[str, Any]) -> dict[str, int]:
    """Return {network key: its row} of the table of networks."""
    return {key: row for row, key in enumerate(table["rows"]["network"])}


def _network(records: list[Record], last: int, *, is_pick: bool) -> dict[str, Any]:
    """Return what a network is and what its runs were. `last`: epochs of the last rung."""
    candidate = records[0].candidate
    statuses: Counter[str] = Counter()
    speeds, seconds = [], []
    for record in records:
        run = tables.row(record)
        statuses[run["status"]] += 1
        if record.done and run["images_per_s"] is not None:
            speeds.append(run["images_per_s"])
        if record.done and record.epochs == last:
            seconds.append(run["seconds"])
    return {
        **tables.network_row(candidate),
        "label": candidate.label,
        "stands": _stands_for(candidate, is_pick),
        "budget": str(candidate.budget) if candidate.role == "candidate" else "",
        "count": len(seconds),
        "status": ", ".join(_counted(status, n) for status, n in statuses.items()),
        "ratio": candidate.ratio,
        "waste": candidate.waste,
        "image_ms": 1000 / statistics.median(speeds) if speeds else None,
        "seconds": statistics.median(seconds) if seconds else None,
        "stages": _stages(candidate.arch),
        **_NO_CONCLUSIONS,
    }


def _conclusions(row: Row, *, is_pick: bool) -> dict[str, Any]:
    """Return what the verdict concludes about a network."""
    values: dict[str, Any] = {
        "mean": row.mean,
        "error": row.error,
        # Not all finished runs at the last rung: fresh seeds only confirm, and are no part of the
        # verdict.
        "count": row.seeds,
    }
    if not is_pick:
        values |= {
            "behind": row.behind,
            "low": row.low,
            "high": row.high,
            "standing": row.standing,
        }
    if row.candidate.role == "candidate":
        values["best"] = row.best
    if row.tied:
        values["tied"] = "yes"
    return values


def _stands_for(candidate: Candidate, is_pick: bool) -> str:
    """Return the network's role and the directions that it stands for, such as 'chosen, paper'."""
    words = []
    if is_pick:
        words.append("chosen")
    if candidate.role != "candidate":
        words.append(candidate.role)
    return ", ".join([*words, *map(str, candidate.directions)])


def _counted(status: str, runs: int) -> str:
    """Return '3 done', or 'done' for one run."""
    return f"{runs} {status}" if runs > 1 else status


def _stages(net: Network) -> str:
    if not isinstance(net, Arch):
        return f"{net.name} at depth {net.depth:g}, width {net.width:g}"
    stages = " ".join(f"{stage.repeats}×{stage.width}" for stage in net.stages)
    return f"stem {net.stem_width}; {stages}; head {net.head_width}"


def _as_columns(
    heads: Sequence[tuple[str, str, str, str]], rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return the columns that have a heading; a row may have others."""
    keys = [head[0] for head in heads]
    return {"columns": heads, "rows": {key: [row[key] for row in rows] for key in keys}}
