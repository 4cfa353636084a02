"""What a report costs: seconds to build, its size, seconds until a browser has painted it and drawn
its figures.

    python benchmarks/report.py [--runs 100,1000,10000] [--check]

Studies of networks that exist (one budget, quick's space) with accuracies that are made up, over as
many seeds as it takes. Built is the verdict (the joint model of all runs) and the page. Beside it
optuna's own plot_pareto_front of the same trials, as a page of its own; it has no verdict. Each in
a process of its own; Chromium, headless, opens the page from the disk. The last lines are the
report of the most runs beside LIMITS; `--check` exits 1 when one is missed.
"""

from __future__ import annotations

import argparse
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

# Of the most runs, at most: seconds to build, MB, seconds until the words are painted.
LIMITS = {"build": 5.0, "megabytes": 8.0, "painted": 3.0}


_OF_10_000_IMAGES = "f" * 2500  # a bit for each: the model takes their number from it


def page(runs: int) -> Page:
    """Return the page of a made-up study, but for its verdicts."""
    study = check({"device": "cpu", "rungs": [2], "space": {"candidates": 100}}, "benchmark")
    todo = plan(study, 10, 64)
    rng = np.random.default_rng(0)
    truth = 0.7 + 0.02 * rng.random(len(todo.everything))
    records = []
    for i in range(runs):
        seed, k = divmod(i, len(todo.everything))
        luck = rng.normal(0, 0.01)
        accuracy = float(truth[k] + luck)
        # losses say the same with a little noise of their own
        val_loss, train_loss = 3 - 2 * (truth[k] + 0.9 * luck + rng.normal(0, 0.005, 2))
        epochs = tuple(
            Epoch(e, float(train_loss), float(val_loss), accuracy - 0.1 * (2 - e), 1.0)
            for e in (1, 2)
        )
        outcome = Outcome(
            "done",
            epochs,
            right=_OF_10_000_IMAGES,
            seconds=float(2 + rng.random()),
            images_per_s=float(900 + 100 * rng.random()),
        )
        records.append(Record(i, todo.everything[k], seed, 2, outcome))
    return Page(
        title="benchmark",
        dataset="made up",
        data="made up",
        command="python benchmarks/report.py",
        study=study,
        targets={"2x": 2.0 * todo.baseline.cost.macs},
        unfinished="",
        notes=[],
        provenance={},
        records=records,
        verdicts=(),
    )


def build_ours(runs: int, file: Path) -> float:
    """Write the report and return the seconds that it took."""
    from scaling_search.report.render import build

    made_up = page(runs)
    start = time.perf_counter()
    concluded = tuple(verdicts(made_up.records, made_up.study))
    file.write_text(build(replace(made_up, verdicts=concluded)))
    return time.perf_counter() - start


def build_optuna(runs: int, file: Path) -> float:
    """Write Optuna's front of the same runs and return the seconds that it took."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["minimize", "maximize"])
    for record in page(runs).records:
        values = [float(record.candidate.cost.macs), record.val_acc]
        study.add_trial(optuna.trial.create_trial(values=values))
    start = time.perf_counter()
    figure = optuna.visualization.plot_pareto_front(study, target_names=["MACs", "accuracy"])
    file.write_text(figure.to_html())
    return time.perf_counter() - start


BUILDERS = {"ours": build_ours, "optuna": build_optuna}


def open_in_browser(file: Path) -> tuple[float, float]:
    """Return the seconds from the start of navigation to the first contentful paint, and until
    every figure is drawn."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
            args=["--no-sandbox"],
        )
        opened = chromium.new_page(viewport={"width": 1600, "height": 1000})
        start = time.perf_counter()
        opened.goto(file.as_uri())
        opened.wait_for_selector(
            ".plot-container .point, .plot-container .points", state="attached", timeout=120_000
        )
        drawn = time.perf_counter() - start
        paint = "performance.getEntriesByName('first-contentful-paint')"
        opened.wait_for_function(f"{paint}.length > 0")
        painted = opened.evaluate(f"{paint}[0].startTime") / 1000
        chromium.close()
    return float(painted), drawn


def measure(builder: str, runs: int, file: Path) -> dict[str, float]:
    """Return what one page costs, built in a process of its own."""
    words = [sys.executable, __file__, "--build", builder, "--runs", str(runs), "--to", str(file)]
    process = subprocess.run(words, capture_output=True, text=True, check=True)
    painted, drawn = open_in_browser(file)
    return {
        "build": float(process.stdout),
        "megabytes": file.stat().st_size / 1e6,
        "painted": painted,
        "drawn": drawn,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", default="100,1000,10000")
    parser.add_argument("--build", choices=BUILDERS, help="build one page and print its seconds")
    parser.add_argument("--to", type=Path, help="the file that --build writes")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.build:
        print(BUILDERS[args.build](int(args.runs), args.to))
        return 0
    ours: dict[str, float] = {}
    print("                      runs    build    size  painted    drawn")
    with tempfile.TemporaryDirectory() as folder:
        for runs in map(int, args.runs.split(",")):
            for builder, title in (("ours", "report.html"), ("optuna", "plot_pareto_front")):
                costs = measure(builder, runs, Path(folder) / f"{builder}-{runs}.html")
                print(
                    f"{title:18} {runs:7,} {costs['build']:6.2f} s {costs['megabytes']:4.1f} MB "
                    f"{costs['painted']:6.2f} s {costs['drawn']:6.2f} s",
                    flush=True,
                )
                if builder == "ours":
                    ours = costs
    missed = False
    for name, limit in LIMITS.items():
        met = ours[name] < limit
        missed = missed or not met
        print(f"{name} {ours[name]:.2f}, below {limit:g}: {'met' if met else 'MISSED'}")
    return int(args.check and missed)


if __name__ == "__main__":
    sys.exit(main())
