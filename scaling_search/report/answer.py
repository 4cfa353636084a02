"""Writes and says the answer of a study, from its store or from a recorded table alone."""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w
from rich.console import Console

from effnet import atomic, custom
from effnet.arch import Baseline
from effnet.definition import baseline_settings, baseline_table
from scaling_search import UserError
from scaling_search.data.preprocessing import Preprocessing
from scaling_search.driver.console import say
from scaling_search.report import render
from scaling_search.report.page import Page, page_of
from scaling_search.results import curves, tables
from scaling_search.results.reading import Results, open_results
from scaling_search.study.settings import Study
from scaling_search.verdict.narration import cards, comparisons, opening
from scaling_search.verdict.verdict import Verdict

logger = logging.getLogger(__name__)

_LONGER = 10  # times the study's longest runs: what is proposed for the pick's own training
_BASELINE_HEAD = (
    "# The baseline of this study: its depth, width and resolution are multiples of it."
)


def finish(source: Results, folder: Path, console: Console) -> bool:
    """Write results.csv, config.json (of the pick), baseline.toml and report.html into the folder,
    and say the answer; return whether there is one. Raises UserError."""
    page = page_of(source, folder)
    _write(folder / "results.csv", tables.csv_text(page.records))
    base = page.study.network()
    if isinstance(base, Baseline):  # of a function baseline.py is there
        _write_baseline(base, folder / "baseline.toml")
    for v in page.verdicts:
        _write(_config_file(folder, v, page), json.dumps(_config(v, page.study, source), indent=1))
    _write_page(page, folder, folder / "report.html", console)
    return bool(page.verdicts)


def write_report(source: Results, folder: Path, to: Path, console: Console) -> None:
    """Write the report of a run folder to another file, and say the answer; nothing is written into
    the folder, which may be another user's. Raises UserError."""
    _write_page(page_of(source, folder), folder, to, console)


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


def _write_baseline(base: Baseline, path: Path) -> None:
    """Write the study's baseline as a file that every command takes: the multipliers of a report
    are multiples of it. A file of the user's own is left as it is."""
    if path.exists() and not path.read_bytes().startswith(_BASELINE_HEAD.encode()):
        logger.warning("%s: a file of the user's own; the study's baseline is not written", path)
        return
    _write(path, f"{_BASELINE_HEAD}\n{tomli_w.dumps(baseline_table(base))}")


def _config_file(folder: Path, v: Verdict, page: Page) -> Path:
    """Return where the pick of a verdict goes in the run folder."""
    if len(page.study.budgets) == 1:
        return folder / "config.json"
    # a budget may have any character in it, as "2x latency@8/cuda", a file's name may not
    return folder / f"config-{re.sub(r'[^A-Za-z0-9.@-]+', '-', str(v.budget))}.json"


def _write_page(page: Page, folder: Path, to: Path, console: Console) -> None:
    """Write the page of the study in a run folder, and say its answer, and what can be done with
    it."""
    _write(to, render.build(page))
    sentences = opening(page.verdicts, page.records, page.unfinished)
    for v in page.verdicts:
        for card in cards(v, page.study, page.state):
            sentences += card.sentences
        sentences += comparisons(v, page.records, page.study)
    for sentence in sentences:
        say(console, sentence.label, sentence.text)
    for v in page.verdicts:
        config = _config_file(folder, v, page)
        if config.is_file():
            network = folder if len(page.study.budgets) == 1 else config
            say(console, "use", _use_words(v, page.study, network))
    say(console, "report", str(to))


def _use_words(v: Verdict, study: Study, network: Path) -> str:
    """Return the command that trains a pick, with a comment that may be pasted with it. `network`:
    the run folder, or the pick's config.json where there are several."""
    epochs = _LONGER * study.rungs[-1]
    trained = network / "trained"
    if network.suffix == ".json":
        trained = network.with_name(network.stem.replace("config", "trained"))
    words = ["scaling-search", "train", str(network), "--epochs", str(epochs)]
    if study.baseline.function is not None:
        words += ["--baseline", _from_here(study.baseline.name)]
        trained = trained.with_suffix(".safetensors")
    words += ["--to", str(trained)]
    minutes = round(_LONGER * v.seconds / 60)
    time = f", some {minutes} minutes" if minutes > 1 else ""
    return f"{shlex.join(words)}  # trains the pick {_LONGER} times as long as here{time}"


def _from_here(place: str) -> str:
    """Return the place of a function, its file relative to the working folder where it is below."""
    file, attribute = custom.split_place(place)
    path = Path(file)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        return f"{path.relative_to(Path.cwd())}:{attribute}"
    return place


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
