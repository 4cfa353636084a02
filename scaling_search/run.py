"""A run folder from start to finish: data, plan, store, executor, search; then results.csv and report.html."""

from __future__ import annotations

import os
import platform
import signal
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch
from rich.console import Console

from effnet.budget import human
from scaling_search import UserError, __version__, analysis, atomic, report
from scaling_search.data import Dataset
from scaling_search.executors import open_executor
from scaling_search.page import Page
from scaling_search.progress import Live, say
from scaling_search.search import Search
from scaling_search.sources import load_or_explain
from scaling_search.space import Plan, plan
from scaling_search.store import Record, Store
from scaling_search.store import versions as store_versions
from scaling_search.study import Study, check, identity_hash
from scaling_search.train import versions
from scaling_search.verdict import (
    Verdict,
    against,
    coefficients,
    noise_words,
    points,
    share_words,
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
    """The main job. Exit status 0, or 130 after Ctrl-C (what was recorded stays; the same command goes on).

    Everything the user gave is checked before anything is written. Raises UserError."""
    device = _device(study)
    with console.status("reading data (once; it is cached)"):
        data = load_or_explain(study.data.source)
    # a device and a data set found for `auto` are part of the study from here on
    settings = study.settings()
    settings["device"] = device
    if study.data.source == "auto":
        settings["data"]["source"] = data.name
    study = check(settings, "study")
    say(console, "data", data.describe(study.data.train_images, study.data.val_images))
    todo = plan(study, len(data.classes), data.native)
    _say_plan(console, study, todo)

    folder = out or Path("runs") / "-".join(filter(None, [data.name, "_".join(study.budgets), label]))
    identity = study.identity(data.digest)
    store = Store.create(folder, identity, _facts(study, todo, data, command, identity))
    try:
        status = _train(study, todo, data, store, folder, workers, executor, device, console)
        if any(r.outcome for r in store.records()):
            _write_results(store, folder)
            _say_verdict(console, store)
            say(console, "report", str(folder / "report.html"))
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
    workers = workers or (1 if device == "cuda" else max(1, len(os.sched_getaffinity(0)) // study.threads))
    finished = sum(r.outcome is not None for r in store.records())
    if finished:
        say(console, "resume", f"{finished} runs are recorded in {folder}")
    planned = _planned(study, todo) - finished
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


def _device(study: Study) -> str:
    if study.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: torch finds no CUDA device here; use --device cpu")
    if study.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return study.device


def _planned(study: Study, todo: Plan) -> int:
    """How many runs the study needs in all."""
    groups = [sum(c.budget == b for c in todo.candidates) for b in dict.fromkeys(c.budget for c in todo.candidates)]
    runs = 0
    for _ in study.rungs:
        runs += 1 + len(todo.references) + sum(groups)
        groups, last = [-(-n // 2) for n in groups], groups
    best = sum(min(study.finalists, n) for n in last)
    return runs + (study.finalist_seeds - 1) * (best + 1 if best else 0)


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
        "targets": {str(b): b.target(base) for b in study.parsed_budgets()},
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
        notes=store.fact("notes"),
        provenance=store.fact("provenance"),
        records=records,
    )
    atomic.write(folder / "results.csv", analysis.write_csv(records).encode())
    atomic.write(folder / "report.html", report.build(page).encode())
    return folder / "report.html"


def _say_plan(console: Console, study: Study, todo: Plan) -> None:
    base, spec = todo.baseline, study.baseline
    say(
        console,
        "baseline",
        f"{spec.name}, {base.arch.blocks} blocks, width {spec.width:g}, at {base.arch.resolution} px · "
        f"{human(base.cost.macs)} MACs",
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


def _say_verdict(console: Console, store: Store) -> None:
    study = Study.model_validate(store.fact("settings"))
    records: list[Record] = store.records()
    found = verdicts(records, study.rungs[-1])
    if not found:
        say(console, "answer", "none yet: no network of the budget has finished its last rung")
    for verdict in found:
        for label, text in _verdict_lines(verdict):
            say(console, label, text)


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
    if single := v.best_single:
        name, row = single
        lines.append(("single", f"best single dimension, {name}, {row.candidate.label}: {v.beside(row)}"))
    if v.baseline:
        lines.append(
            ("baseline", f"val {points(v.baseline.mean)}: {against(v.baseline)}, at {1 / c.ratio:.2f} of the cost")
        )
    lines += [("failed", f"{f.label} did not finish; it is left out") for f in v.failed]
    return lines
