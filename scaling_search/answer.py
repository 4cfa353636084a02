"""What is written and said at the end of a study, from its store or from a recorded table alone."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from effnet import atomic
from scaling_search import UserError, analysis, curves, report
from scaling_search.confirm import confirmed
from scaling_search.curves import TABLE, Curves
from scaling_search.page import Page
from scaling_search.progress import say
from scaling_search.record import Record
from scaling_search.store import Store
from scaling_search.study import Study, check
from scaling_search.verdict import Verdict, verdicts
from scaling_search.words import (
    baseline_words,
    beside,
    bound_words,
    coefficients,
    fastest_words,
    noise_words,
    points,
    settle_words,
    share_words,
    single_words,
    surface_words,
    tied_words,
)


def open_results(folder: Path, store: str | None = None, empty: bool = False) -> Store | Curves:
    """What a folder holds: a study's own store (or what it has on the server at `store`), or the table of a recorded
    one. Raises UserError for neither, or for a study without runs unless it may be `empty`."""
    if store or (folder / "study.db").is_file() or not (folder / TABLE).is_file():
        source: Store | Curves = Store.read(folder, store)
    else:
        source = curves.read(folder / TABLE)
    if source.fact("settings") is None or not (empty or source.records()):
        raise UserError(f"{folder}: the study has no runs yet")
    return source


def page_of(source: Store | Curves, folder: Path) -> Page:
    """All that a report is made from. Raises UserError."""
    records = source.records()
    study = check(source.fact("settings"), str(folder))
    return Page(
        title=f"Scaling {study.baseline.name} on {source.fact('dataset')}: {', '.join(study.budgets)}",
        dataset=source.fact("dataset"),
        data=source.fact("data"),
        command=source.fact("command"),
        study=study,
        targets=source.fact("targets"),
        unfinished=_unfinished(source),
        notes=source.fact("notes"),
        provenance=source.fact("provenance"),
        records=records,
        found=tuple(verdicts(records, study)),
        native=(source.fact("data facts") or {}).get("native", 0),
        family=_family(folder / "family"),
    )


def _family(folder: Path) -> tuple[Record, ...]:
    """What `scaling-search family --train` has trained in its own place; nothing where there is none to read."""
    if not (folder / "study.db").is_file():
        return ()
    with suppress(UserError):
        store = Store.read(folder)
        try:
            return tuple(r for r in store.records() if r.done)
        finally:
            store.close()
    return ()


def finish(source: Store | Curves, folder: Path, console: Console) -> bool:
    """Write results.csv, config.json (of the pick) and report.html, and say the answer in a few lines; whether there
    is one."""
    page = page_of(source, folder)
    atomic.write(folder / "results.csv", analysis.write_csv(page.records).encode())
    for v in page.found:
        name = "config.json" if len(page.study.budgets) == 1 else f"config-{v.budget}.json"
        atomic.write(folder / name, json.dumps(_config(v), indent=1).encode())
    atomic.write(folder / "report.html", report.build(page).encode())
    _say(console, source, page.records, page.study, list(page.found))
    say(console, "report", str(folder / "report.html"))
    return bool(page.found)


def _config(v: Verdict) -> dict[str, Any]:
    """The pick, for effnet.read_config."""
    c = v.pick.candidate
    return {
        "arch": c.arch.as_dict(),
        "coefficients": {"alpha": c.alpha, "beta": c.beta, "gamma": c.gamma, "phi": 1},
        "budget": v.budget,
        "macs": c.cost.macs,
        "params": c.cost.params,
        "val_acc": v.pick.mean,
        "loss_bound": v.bound,
    }


def compare(folders: Sequence[Path], to: Path, console: Console) -> None:
    """One page of several studies. Raises UserError."""
    pages = [page_of(open_results(folder), folder) for folder in folders]
    twice = {p.title for p in pages if sum(q.title == p.title for q in pages) > 1}
    named = [
        replace(p, title=f"{p.title} ({folder})") if p.title in twice else p
        for p, folder in zip(pages, folders, strict=True)
    ]
    atomic.write(to, report.build_comparison(named).encode())
    say(console, "report", str(to))


def export(folder: Path, to: Path) -> int:
    """Every curve of a run folder as a table; its number of rows. It says nothing of this machine's folders.

    Raises UserError."""
    return write_table(open_results(folder), to)


def write_table(source: Store | Curves, to: Path) -> int:
    """The same from a store that is open."""
    name, facts = source.fact("dataset"), source.facts()
    facts["settings"] = {**facts["settings"], "data": {**facts["settings"]["data"], "source": name}}
    facts["command"] = f"scaling-search search --study study.toml --data {shlex.quote(name)}"
    return curves.write(to, source.records(), facts)


def _unfinished(source: Store | Curves) -> str:
    """'4 of 19 runs', or nothing for a finished study."""
    recorded = sum(r.outcome is not None for r in source.records())
    state = source.fact("state")
    if state == "finished" or recorded >= source.fact("planned"):
        return ""
    late = ", the time was up" if state == "out of time" else ""
    return f"{recorded} of {max(recorded, source.fact('planned'))} runs{late}"


def _say(console: Console, source: Store | Curves, records: list[Record], study: Study, found: list[Verdict]) -> None:
    if not found:
        say(console, "answer", "none yet: no network of the budget has finished")
    if found and (part := _unfinished(source)):
        say(console, "so far", f"unfinished: {part}")
    for verdict in found:
        for label, text in _verdict_lines(verdict, study):
            say(console, label, text)
        for c in confirmed(records, study, verdict):
            say(console, "confirm", f"{c.row.candidate.label}: {c.words}")


def _verdict_lines(v: Verdict, study: Study) -> list[tuple[str, str]]:
    c = v.pick.candidate
    val = f"val {points(v.pick.mean)} ± {points(v.pick.error)}"
    test = f" · test {points(v.pick.test)}" if v.pick.test is not None else ""
    lines = [
        ("choose", f"{c.label}   {coefficients(c)}   {share_words(c)}   {val}{test}"),
        ("", f"{bound_words(v)} · {tied_words(v)}"),
        ("", "; ".join(filter(None, [noise_words(v), settle_words(v)]))),
    ]
    if fast := fastest_words(v):
        lines.append(("fastest", f"of the tied, {fast}"))
    if paper := v.named("paper"):
        names = ", ".join(paper.candidate.directions)
        lines.append(("paper", f"{names}, {paper.candidate.label}: {beside(v, paper)}"))
    if single := single_words(v):
        lines.append(("single", f"best single dimension, {single}"))
    if base := baseline_words(v):
        lines.append(("baseline", base))
    if surface := surface_words(v, study.rungs):
        lines.append(("surface", surface))
    lines += [("failed", f"{f.label} did not finish; it is left out") for f in v.failed]
    return lines
