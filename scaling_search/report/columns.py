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
from scaling_search.study.wording import difference
from scaling_search.verdict.narration import accuracy_and_interval, own_runs_words
from scaling_search.verdict.verdict import Row

# Key of a column, its heading, what it says, how the page shows it (FORMATS in assets/report.js),
# and whether it is shown at once; the others unfold.
_Head = tuple[str, str, str, str, bool]
_NETWORKS: tuple[_Head, ...] = (
    (
        "label",
        "network",
        "Blocks, width multiplier, resolution; under it what it is.",
        "name",
        True,
    ),
    (
        "mean",
        "accuracy %",
        "Validation accuracy expected after the longest runs, with its 95%, from one model of all "
        "runs. Click a row for the runs that it comes from.",
        "accuracy",
        True,
    ),
    (
        "difference",
        "against the pick",
        "Points against the pick, with their 95%. The band is half a point: as good.",
        "difference",
        True,
    ),
    (
        "tied",
        "could be best",
        "Of the smallest set of networks whose probabilities of being the best sum to 95%.",
        "text",
        True,
    ),
    ("count", "runs", "That ended well at full length.", "number", True),
    ("params", "parameters", "Of the whole network.", "si", True),
    (
        "image_ms",
        "ms per image",
        "Training time per image here, median of its runs.",
        "fixed2",
        True,
    ),
    ("latency_ms", "latency, ms", "Of a forward pass, as the budget says.", "fixed2", True),
    (
        "stands",
        "role",
        "What it is, and the directions that it is or is nearest to.",
        "text",
        False,
    ),
    ("budget", "budget", "The budget that it meets.", "text", False),
    ("best", "P(best)", "The probability that it is the best of its budget.", "fixed2", False),
    ("status", "status", "Of all its runs.", "text", False),
    ("alpha", "depth ×", "Depth multiplier, alpha.", "number", False),
    ("beta", "width ×", "Width multiplier, beta.", "number", False),
    ("gamma", "resolution ×", "Resolution multiplier, gamma.", "number", False),
    ("share_depth", "depth share", "Of the extra cost.", "percent", False),
    ("share_width", "width share", "Of the extra cost.", "percent", False),
    ("share_resolution", "resolution share", "Of the extra cost.", "percent", False),
    ("macs", "FLOPs (multiply-adds)", "Per image.", "si", False),
    ("ratio", "their ratio", "To the baseline's FLOPs (multiply-adds).", "ratio", False),
    ("waste", "waste %", "Of its cost, by the rounding of feature maps.", "percent1", False),
    ("acts", "activations", "Output elements per image.", "si", False),
    ("seconds", "seconds", "Of a run of full length, median.", "number", False),
    ("stages", "stages", "Blocks × channels of each stage.", "text", False),
    ("network", "key", "Of the network, as in results.csv.", "text", False),
    # what the page shows within other columns
    ("accuracy", "", "", "hidden", False),
    ("own", "", "", "hidden", False),
    ("against", "", "", "hidden", False),
    ("low", "", "", "hidden", False),
    ("high", "", "", "hidden", False),
)
_RUNS: tuple[_Head, ...] = (
    ("row", "network", "", "network", True),
    ("seed", "seed", "", "number", True),
    ("epochs", "epochs", "", "number", True),
    ("status", "status", "", "text", True),
    ("val_acc", "accuracy %", "Validation accuracy of this run.", "percent1", True),
    ("val_loss", "loss", "Validation loss of this run.", "fixed2", True),
    ("test_acc", "test %", "Of what the answer names only.", "percent1", True),
    ("seconds", "seconds", "", "number", True),
    ("images_per_s", "images/s", "In training.", "si", True),
    ("peak_memory", "memory", "Bytes at the peak.", "si", True),
    ("note", "note", "", "text", True),
)

# Of a network without a finished run.
_NO_CONCLUSIONS: dict[str, Any] = {
    "mean": None,
    "accuracy": "",
    "own": "",
    "difference": None,
    "against": "",
    "low": None,
    "high": None,
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
            if row["budget"] == "" and len(page.verdicts) > 1:
                row |= {"difference": None, "against": ""}  # to which of the picks?
        rows.append(row)
    headings = []
    for head in _NETWORKS:
        if head[0] == "latency_ms" and all(row["latency_ms"] is None for row in rows):
            continue  # no budget asked for it
        if head[0] == "budget" and len(page.study.budgets) > 1:
            head = (*head[:4], True)
        headings.append(head)
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
        "accuracy": accuracy_and_interval(row),
        "own": own_runs_words(row),
        # Not all finished runs at the last rung: fresh seeds only confirm, and are no part of the
        # verdict.
        "count": row.seeds,
    }
    if not is_pick:
        values |= {
            # `behind` says how far the pick is ahead; shown is the network's own side
            "difference": -row.behind,
            "against": difference(-row.behind, -row.high, -row.low),
            "low": -row.high,
            "high": -row.low,
        }
    if row.candidate.role == "candidate":
        values["best"] = row.best
        values["tied"] = "yes" if row.tied else "no"
    return values


def _stands_for(candidate: Candidate, is_pick: bool) -> str:
    """Return what the network is, such as 'the pick, paper'."""
    words = []
    if is_pick:
        words.append("the pick")
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


def _as_columns(heads: Sequence[_Head], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the columns that have a heading; a row may have others."""
    keys = [head[0] for head in heads]
    return {"columns": heads, "rows": {key: [row[key] for row in rows] for key in keys}}
