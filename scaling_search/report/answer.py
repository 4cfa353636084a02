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

import tomli_w
from rich.console import Console

from effnet import atomic
from effnet.arch import Baseline
from effnet.definition import baseline_settings, baseline_table
from scaling_search import UserError
from scaling_search.data.preprocessing import Preprocessing
from scaling_search.driver.console import say
from scaling_search.report import render
from scaling_search.report.commands import config_file
from scaling_search.report.page import Page, answer_sentences, page_of
from scaling_search.results import curves, tables
from scaling_search.results.reading import Results, open_results
from scaling_search.study.settings import Study
from scaling_search.verdict.narration import Sentence
from scaling_search.verdict.verdict import Verdict

logger = logging.getLogger(__name__)

_BASELINE_HEAD = (
    "# The baseline of this study: its depth, width and resolution are multiples of it."
)


def finish(source: Results, folder: Path, console: Console) -> bool:
    """Write results.csv, config.json (of the pick), baseline.toml and report.html into the folder,
    and say the answer; return whether there is one. Raises UserError."""
    page = page_of(source, folder, writes_picks=True)
    _write(folder / "results.csv", tables.csv_text(page.records))
    base = page.study.network()
    if isinstance(base, Baseline):  # of a function baseline.py is there
        _write_baseline(base, folder / "baseline.toml")
    for v in page.verdicts:
        config = json.dumps(_config(v, page.study, source), indent=1)
        _write(config_file(folder, v, page.study), config)
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


def write_table(source: Results, to: Path, is_replay: bool = False) -> int:
    """Write every curve of an open study as a table that says nothing of this machine's folders;
    return its number of rows. `is_replay`: into the folder of a replay, which has no other record.
    Raises UserError."""
    name, facts = source.fact("dataset"), source.facts()
    facts.pop("samples", None)  # somebody's images, which a table of curves need not carry
    facts.pop("folder", None)
    facts.pop(curves.REPLAYED, None)
    if is_replay:
        facts[curves.REPLAYED] = True
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


def _write_baseline(base: Baseline, path: Path) -> None:
    """Write the study's baseline as a file that every command takes: the multipliers of a report
    are multiples of it. A file of the user's own is left as it is."""
    if path.exists() and not path.read_bytes().startswith(_BASELINE_HEAD.encode()):
        logger.warning("%s: a file of the user's own; the study's baseline is not written", path)
        return
    _write(path, f"{_BASELINE_HEAD}\n{tomli_w.dumps(baseline_table(base))}")


def _write_page(page: Page, to: Path, console: Console) -> None:
    """Write the page of a study, and say its answer, and what can be done with it."""
    _write(to, render.build(page))
    train = page.state.train
    sentences = [s for s in answer_sentences(page) if s.text not in train.values()]
    sentences += [Sentence("use", command) for command in train.values()]
    for sentence in sentences:
        say(console, sentence.label, sentence.text)
    say(console, "report", str(to))


def _config(v: Verdict, study: Study, source: Results) -> dict[str, Any]:
    """Return the pick as effnet.read_config reads it: what it was scaled from, what its images are
    to be, and what is expected of it."""
    c = v.pick.candidate
    facts = source.fact("data facts") or {}
    preprocessing = Preprocessing.of(facts, c.arch)
    return {
        "arch": c.arch.as_dict(),
        "baseline": baseline_settings(study.network()),
        "coefficients": {"alpha": c.alpha, "beta": c.beta, "gamma": c.gamma, "phi": 1},
        "budget": str(v.budget),
        "macs": c.cost.macs,
        "params": c.cost.params,
        "val_acc": v.pick.mean,
        "loss_bound": v.bound,
        "data": {"name": source.fact("dataset"), "digest": facts.get("digest", "")},
        **(preprocessing.as_dict() if preprocessing else {}),
    }
