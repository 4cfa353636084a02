"""Writes and says the answer of a study, from its store or from a recorded table alone."""

from __future__ import annotations

import json
import logging
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from effnet import atomic
from scaling_search import UserError
from scaling_search.driver.console import say
from scaling_search.report import render
from scaling_search.report.page import Page, page_of
from scaling_search.results import curves, tables
from scaling_search.results.reading import Results, open_results
from scaling_search.verdict.narration import cards, comparisons, opening
from scaling_search.verdict.verdict import Verdict

logger = logging.getLogger(__name__)


def finish(source: Results, folder: Path, console: Console) -> bool:
    """Write results.csv, config.json (of the pick) and report.html into the folder, and say the
    answer; return whether there is one. Raises UserError."""
    page = page_of(source, folder)
    _write(folder / "results.csv", tables.csv_text(page.records))
    for v in page.verdicts:
        name = "config.json" if len(page.study.budgets) == 1 else f"config-{v.budget}.json"
        _write(folder / name, json.dumps(_config(v), indent=1))
    _write_page(page, folder / "report.html", console)
    return bool(page.verdicts)


def write_report(source: Results, folder: Path, to: Path, console: Console) -> None:
    """Write the report of a run folder to another file, and say the answer; nothing is written into
    the folder, which may be another user's. Raises UserError."""
    _write_page(page_of(source, folder), to, console)


def compare(folders: Sequence[Path], to: Path, console: Console) -> None:
    """Write one page of several studies. Raises UserError."""
    pages = []
    for folder in folders:
        with open_results(folder) as source:
            pages.append(page_of(source, folder))
    titles = Counter(page.title for page in pages)
    named = []
    for page, folder in zip(pages, folders, strict=True):
        if titles[page.title] > 1:
            page = replace(page, title=f"{page.title} ({folder})")
        named.append(page)
    _write(to, render.build_comparison(named))
    say(console, "report", str(to))


def export(folder: Path, to: Path) -> int:
    """Write every curve of a run folder as a table; return its number of rows. Raises UserError."""
    with open_results(folder) as source:
        return write_table(source, to)


def write_table(source: Results, to: Path) -> int:
    """Write every curve of an open study as a table that says nothing of this machine's folders;
    return its number of rows. Raises UserError."""
    name, facts = source.fact("dataset"), source.facts()
    facts.pop("samples", None)  # somebody's images, which a table of curves need not carry
    settings = facts["settings"]
    facts["settings"] = {**settings, "data": {**settings["data"], "source": name}}
    baseline = settings["baseline"]
    if "function" in baseline:
        file_name = Path(baseline["name"]).name
        facts["settings"]["baseline"] = {**baseline, "name": file_name}
    facts["command"] = f"scaling-search search --study study.toml --data {shlex.quote(name)}"
    return curves.write(to, source.records(), facts)


def _write(path: Path, text: str) -> None:
    """Write a file of the answer. Raises UserError where it cannot be written, as in the run folder
    of another user."""
    try:
        atomic.write(path, text.encode())
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; report RUN --to FILE writes the report to another file"
        ) from error
    logger.info("wrote %s", path)


def _write_page(page: Page, to: Path, console: Console) -> None:
    """Write the page of one study, and say its answer."""
    _write(to, render.build(page))
    sentences = opening(page.verdicts, page.records, page.unfinished)
    for v in page.verdicts:
        for card in cards(v, page.study, page.state):
            sentences += card.sentences
        sentences += comparisons(v, page.records, page.study)
    for sentence in sentences:
        say(console, sentence.label, sentence.text)
    say(console, "report", str(to))


def _config(v: Verdict) -> dict[str, Any]:
    """Return the pick as effnet.read_config reads it, with what is expected of it."""
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
