"""What a report costs: seconds to build, its size, seconds until a browser has painted it and drawn
its figures.

    python benchmarks/report.py [--runs 100,1000,10000] [--check]

Studies of networks that exist (one budget, quick's space) with accuracies that are made up, over as
many seeds as it takes. Built is the verdict (the joint model of all runs) and the page. Beside it
optuna's own plot_pareto_front of the same trials, as a page of its own; it has no verdict. Each in
a process of its own; Chromium, headless, opens the page from the disk. The last line is the seconds
to build at the most runs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scaling_search.report.page import Page
from scaling_search.results.record import Record
from scaling_search.study.plan import plan
from scaling_search.study.settings import check
from scaling_search.training.trial import Epoch, Outcome
from scaling_search.verdict.verdict import verdicts

LIMITS = {"build": 5.0, "megabytes": 8.0, "painted": 3.0}


def page(runs: int) -> Page:
    study = check({"device": "cpu", "rungs": [2], "space": {"candidates": 100}}, "benchmark")
    todo = plan(study, 10, 64)
    rng = np.random.default_rng(0)
    truth = 0.7 + 0.02 * rng.random(len(todo.everything))
    records = []
    for i in range(runs):
        k, seed = i % len(todo.everything), i // len(todo.everything)
        accuracy = float(truth[k] + rng.normal(0, 0.01))
        epochs = tuple(Epoch(e, 1.0, 1.0, accuracy - 0.1 * (2 - e), 1.0) for e in (1, 2))
        outcome = Outcome(
            "done",
            epochs,
            seconds=float(2 + rng.random()),
            images_per_s=float(900 + 100 * rng.random()),
        )
        records.append(Record(i, todo.everything[k], seed, 2, outcome))
    return Page(
        "benchmark", "made up", "made up", "python benchmarks/report.py", study,
        {"2x": 2.0 * todo.baseline.cost.macs}, "", [], {}, records, (),
    )  # fmt: skip


def ours(runs: int, to: Path) -> float:
    made = page(runs)
    from scaling_search.report.render import build

    began = time.perf_counter()
    to.write_text(build(replace(made, found=tuple(verdicts(made.records, made.study)))))
    return time.perf_counter() - began


def optuna_front(runs: int, to: Path) -> float:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    made = page(runs)
    study = optuna.create_study(directions=["minimize", "maximize"])
    study.add_trials(
        [
            optuna.trial.create_trial(values=[float(r.candidate.cost.macs), r.val_acc])
            for r in made.records
        ]
    )
    began = time.perf_counter()
    figure = optuna.visualization.plot_pareto_front(study, target_names=["MACs", "accuracy"])
    to.write_text(figure.to_html())
    return time.perf_counter() - began


def browser(file: Path) -> tuple[float, float]:
    """Seconds from the start of navigation to the first contentful paint, and until every figure is
    drawn."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
            args=["--no-sandbox"],
        )
        opened = chromium.new_page(viewport={"width": 1600, "height": 1000})
        began = time.perf_counter()
        opened.goto(file.as_uri())
        opened.wait_for_selector(
            ".plot-container .point, .plot-container .points", state="attached", timeout=120_000
        )
        drawn = time.perf_counter() - began
        opened.wait_for_function(
            "performance.getEntriesByName('first-contentful-paint').length > 0"
        )
        painted = (
            opened.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
            / 1000
        )
        chromium.close()
    return float(painted), drawn


PARTS = {"ours": ours, "optuna": optuna_front}


def part(name: str, runs: int, to: Path) -> dict[str, float]:
    words = [sys.executable, __file__, "--part", name, "--runs", str(runs), "--to", str(to)]
    found = subprocess.run(words, capture_output=True, text=True, check=True)
    painted, drawn = browser(to)
    build = json.loads(found.stdout)
    return {
        "build": build,
        "megabytes": to.stat().st_size / 1e6,
        "painted": painted,
        "drawn": drawn,
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", default="100,1000,10000")
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--to", type=Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.part:
        print(PARTS[args.part](int(args.runs), args.to))
        return 0
    folder = Path(tempfile.mkdtemp())
    print("                      runs    build    size  painted    drawn")
    last: dict[str, float] = {}
    for runs in map(int, args.runs.split(",")):
        for name, title in (("ours", "report.html"), ("optuna", "plot_pareto_front")):
            found = part(name, runs, folder / f"{name}-{runs}.html")
            print(
                f"{title:18} {runs:7,} {found['build']:6.2f} s {found['megabytes']:4.1f} MB "
                f"{found['painted']:6.2f} s {found['drawn']:6.2f} s",
                flush=True,
            )
            last = found if name == "ours" else last
    print(f"{last['build']:.2f}")
    return int(args.check and any(last[name] >= limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
