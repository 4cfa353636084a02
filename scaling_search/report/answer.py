"""What is written and said at the end of a study, from its store or from a recorded table alone."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from effnet import atomic
from scaling_search.driver.progress import say
from scaling_search.report import render
from scaling_search.report.page import page_of, unfinished_words
from scaling_search.results import curves, tables
from scaling_search.results.curves import Curves
from scaling_search.results.reading import open_results
from scaling_search.results.record import Record
from scaling_search.results.store import Store
from scaling_search.study.settings import Study
from scaling_search.verdict.confirm import confirmed
from scaling_search.verdict.narration import (
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
from scaling_search.verdict.verdict import Verdict


def finish(source: Store | Curves, folder: Path, console: Console) -> bool:
    """Write results.csv, config.json (of the pick) and report.html, and say the answer in a few
    lines; whether there is one."""
    page = page_of(source, folder)
    atomic.write(folder / "results.csv", tables.write_csv(page.records).encode())
    for v in page.found:
        name = "config.json" if len(page.study.budgets) == 1 else f"config-{v.budget}.json"
        atomic.write(folder / name, json.dumps(_config(v), indent=1).encode())
    atomic.write(folder / "report.html", render.build(page).encode())
    _say(console, source, page.records, page.study, list(page.found))
    say(console, "report", str(folder / "report.html"))
    return bool(page.found)


def _config(v: Verdict) -> dict[str, Any]:
    """The pick, for effnet.read_config."""
    c = v.pick.candidate
    return {
        "arch": c.arch.as_dict(),
        "coefficients": {"alpha": c.alpha, "beta": c.beta, "gamma": c.gamma, "phi": 1},
        "budget": str(v.budget),
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
    atomic.write(to, render.build_comparison(named).encode())
    say(console, "report", str(to))


def export(folder: Path, to: Path) -> int:
    """Every curve of a run folder as a table; its number of rows. It says nothing of this machine's
    folders.

    Raises UserError."""
    return write_table(open_results(folder), to)


def write_table(source: Store | Curves, to: Path) -> int:
    """The same from a store that is open."""
    name, facts = source.fact("dataset"), source.facts()
    facts["settings"] = {**facts["settings"], "data": {**facts["settings"]["data"], "source": name}}
    facts["command"] = f"scaling-search search --study study.toml --data {shlex.quote(name)}"
    return curves.write(to, source.records(), facts)


def _say(
    console: Console,
    source: Store | Curves,
    records: list[Record],
    study: Study,
    found: list[Verdict],
) -> None:
    if not found:
        say(console, "answer", "none yet: no network of the budget has finished")
    if found and (part := unfinished_words(source)):
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
