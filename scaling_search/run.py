"""A run folder from start to finish: data, plan, store, executor, search; then results.csv and report.html."""

from __future__ import annotations

import os
import platform
import signal
import time
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch
from rich.console import Console

from effnet import atomic
from effnet.budget import human
from scaling_search import UserError, __version__, analysis, report
from scaling_search.data import Dataset
from scaling_search.executors import open_executor
from scaling_search.page import Page
from scaling_search.progress import Live, say
from scaling_search.search import Search, runs_needed
from scaling_search.sources import load_or_explain, own_path
from scaling_search.space import Plan, plan
from scaling_search.store import Record, Store
from scaling_search.store import versions as store_versions
from scaling_search.study import Study, check, identity_hash
from scaling_search.train import versions
from scaling_search.verdict import (
    Verdict,
    baseline_words,
    coefficients,
    noise_words,
    percent,
    points,
    share_words,
    single_words,
    tied_words,
    verdicts,
)


def search(
    study: Study,
    *,
    label: str,
    out: Path | None,
    workers: int | None,
    executor: str,
    command: str,
    console: Console,
) -> int:
    """The main job. Exit status 0; 1 when no network of the budget finished; 130 after Ctrl-C (what was recorded
    stays, and the same command goes on).

    Everything the user gave is checked before anything is written. Raises UserError."""
    device = device_of(study)
    with console.status("reading data (once; it is cached)"):
        data = load_or_explain(study.data.source)
    # a device and a data set found for `auto` are part of the study from here on
    settings = study.settings()
    settings["device"] = device
    if study.data.source == "auto":
        settings["data"]["source"] = data.name
    elif (path := own_path(study.data.source)).exists():
        settings["data"]["source"] = str(path.resolve())  # study.toml can be run from anywhere
    study = check(settings, "study")
    say(console, "data", data.describe(study.data.train_images, study.data.val_images))
    with console.status("planning"):
        todo = plan(study, len(data.classes), data.native)
    _say_plan(console, study, todo)

    folder = out or Path("runs") / "-".join(filter(None, [data.name, "_".join(study.budgets), label]))
    identity = study.identity(data.digest)
    store = Store.create(folder, identity, _facts(study, todo, data, command, identity))
    try:
        status = _train(study, todo, data, store, folder, workers, executor, device, console)
        if any(r.outcome for r in store.records()):
            _write_results(store, folder)
            answered = _say_verdict(console, store)
            say(console, "report", str(folder / "report.html"))
            if status == 0 and not answered:
                status = 1
    finally:
        store.close()
    return status


def _train(
    study: Study,
    todo: Plan,
    data: Dataset,
    store: Store,
    folder: Path,
    workers: int | None,
    executor: str,
    device: str,
    console: Console,
) -> int:
    atomic.write(folder / "study.toml", study.to_toml().encode())
    workers = workers or (1 if device == "cuda" else max(1, _cores() // study.threads))
    finished = sum(r.outcome is not None for r in store.records())
    if finished:
        say(console, "resume", f"{finished} runs are recorded in {folder}")
    planned = runs_needed(study, todo) - finished
    signal.signal(signal.SIGTERM, _on_term)
    where = None
    try:
        with Live(console, max(planned, 0), workers) as live:
            where = open_executor(executor, workers, device, study.threads)
            job = Search(
                study, todo, data, store, where, live, device=device, checkpoints=str(folder.resolve() / "checkpoints")
            )
            trained = job.run()
    except KeyboardInterrupt:
        recorded = sum(r.outcome is not None for r in store.records())
        say(console, "stopped", f"{recorded} runs are recorded; the same command goes on from here")
        return 130
    finally:
        if where:
            where.close()
    if not trained:
        say(console, "nothing", "left to train: every run of this study is recorded")
    return 0


def _on_term(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(143)


def _cores() -> int:
    """Those that this process may use; macOS does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_of(study: Study) -> str:
    """cpu or cuda. Raises UserError for a device, or a library of the recipe, that is not here."""
    if study.recipe.randaugment and find_spec("torchvision") is None:
        raise UserError("recipe.randaugment: needs torchvision (pip install torchvision), or set it to false")
    if study.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: torch finds no CUDA device here; use --device cpu")
    if study.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return study.device


def _facts(study: Study, todo: Plan, data: Dataset, command: str, identity: dict[str, object]) -> dict[str, object]:
    base = todo.baseline.cost.macs
    hardware = f"{platform.machine()}, {os.cpu_count()} cores"
    if study.device == "cuda":
        hardware = f"{torch.cuda.get_device_name()}; {hardware}"
    found = ", ".join(f"{n} networks at {b}" for b, n in todo.found.items())
    return {
        "settings": study.settings(),
        "data": data.describe(study.data.train_images, study.data.val_images),
        "dataset": data.name,
        "command": command,
        "notes": [f"The space holds {found}; {len(todo.candidates)} were chosen.", *todo.notes],
        "targets": {} if study.space.mode == "nominal" else {str(b): b.target(base) for b in study.parsed_budgets()},
        "planned": runs_needed(study, todo),
        "provenance": {
            "data digest": data.digest,
            "study": identity_hash(identity),
            "begun": time.strftime("%Y-%m-%d %H:%M"),
            "hardware": hardware,
            "versions": ", ".join(
                f"{k} {v}" for k, v in {"scaling-search": __version__, **versions(), **store_versions()}.items()
            ),
        },
    }


# ---- what is written and said at the end


def write_report(folder: Path) -> Path:
    """results.csv and report.html of a run folder, from its store alone; the report's path. Raises UserError."""
    store = Store.read(folder)
    if store.fact("settings") is None or not store.records():
        raise UserError(f"{folder}: the study has no runs yet")
    return _write_results(store, folder)


def _write_results(store: Store, folder: Path) -> Path:
    records = store.records()
    study = Study.model_validate(store.fact("settings"))
    page = Page(
        title=f"Scaling {study.baseline.name} on {store.fact('dataset')}: {', '.join(study.budgets)}",
        data=store.fact("data"),
        command=store.fact("command"),
        study_toml=study.to_toml(),
        epochs=study.rungs[-1],
        tolerance=study.space.tolerance,
        targets=store.fact("targets"),
        unfinished=_unfinished(store),
        notes=store.fact("notes"),
        provenance=store.fact("provenance"),
        records=records,
    )
    atomic.write(folder / "results.csv", analysis.write_csv(records).encode())
    atomic.write(folder / "report.html", report.build(page).encode())
    return folder / "report.html"


def _unfinished(store: Store) -> str:
    """'4 of 19 runs', or nothing when every run has an outcome. Failed networks may leave fewer finalists to run."""
    records, planned = store.records(), store.fact("planned")
    recorded = sum(r.outcome is not None for r in records)
    waiting = any(r.outcome is None for r in records)
    failed = any(r.outcome is not None and not r.done for r in records)
    return f"{recorded} of {planned} runs" if waiting or (recorded < planned and not failed) else ""


def _say_plan(console: Console, study: Study, todo: Plan) -> None:
    base, spec = todo.baseline, study.baseline
    say(
        console,
        "baseline",
        f"{spec.name}, {base.arch.blocks} blocks, width {spec.width:g}, at {base.arch.resolution} px · "
        f"{human(base.cost.macs)} MACs" + (f" · wastes {percent(base.waste)}" if base.waste > 0.005 else ""),
    )
    for budget in study.parsed_budgets():
        chosen = sum(c.budget == str(budget) for c in todo.candidates)
        target = budget.target(base.cost.macs)
        if study.space.mode == "nominal":
            costs = [c.ratio for c in todo.candidates if c.budget == str(budget)]
            kind = f"nominally {budget}, really {min(costs):.2f}x to {max(costs):.2f}x"
        else:
            kind = f"{target / base.cost.macs:.2f}x = {human(target)} MACs ± {budget.tolerance:.0%}"
        say(
            console,
            "budget",
            f"{kind} · {todo.found[str(budget)]} distinct networks, {chosen} chosen",
        )
    for note in todo.notes:
        say(console, "note", note)


def _say_verdict(console: Console, store: Store) -> bool:
    """The answer in a few lines; whether there is one."""
    study = Study.model_validate(store.fact("settings"))
    records: list[Record] = store.records()
    found = verdicts(records, study.rungs[-1])
    if not found:
        say(console, "answer", "none yet: no network of the budget has finished its last rung")
    if found and (part := _unfinished(store)):
        say(console, "so far", f"unfinished: {part}")
    for verdict in found:
        for label, text in _verdict_lines(verdict):
            say(console, label, text)
    return bool(found)


def _verdict_lines(v: Verdict) -> list[tuple[str, str]]:
    c = v.pick.candidate
    val = f"val {points(v.pick.mean)} ± {points(v.pick.error)}"
    test = f" · test {points(v.pick.test)}" if v.pick.test is not None else ""
    lines = [
        (
            "choose",
            f"{c.label}   {coefficients(c)}   {share_words(c)}   {val}{test}",
        ),
        ("", tied_words(v)),
        ("", noise_words(v)),
    ]
    if paper := v.named("paper"):
        lines.append(("paper", f"{', '.join(paper.candidate.directions)}, {paper.candidate.label}: {v.beside(paper)}"))
    if single := single_words(v):
        lines.append(("single", f"best single dimension, {single}"))
    if base := baseline_words(v):
        lines.append(("baseline", base))
    lines += [("failed", f"{f.label} did not finish; it is left out") for f in v.failed]
    return lines
