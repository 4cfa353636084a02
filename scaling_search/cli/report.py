"""The commands that show a study: report and dashboard."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from scaling_search import UserError
from scaling_search.cli.command import Argument, Command


def _report(args: argparse.Namespace, argv: list[str]) -> int:
    from scaling_search.report import answer
    from scaling_search.results.reading import open_results

    if len(args.run) > 1:
        if args.store:
            raise UserError("--store: of one run; each folder of several remembers its own")
        answer.compare(args.run, args.to or Path("comparison.html"), Console())
        return 0
    (run,) = args.run
    with open_results(run, args.store) as results:
        if args.to:
            answer.write_report(results, run, args.to, Console())
        else:
            answer.finish(results, run, Console())
    return 0


def _dashboard(args: argparse.Namespace, argv: list[str]) -> int:
    from scaling_search.report import dashboard

    return dashboard.serve(args.run, args.port, args.store, Console())


_STORE = Argument(
    "--store",
    "Database that holds the results: postgresql://user@host/database.",
    "what the run folder says",
    options={"metavar": "URL"},
)

REPORT = Command(
    "report",
    "write report.html and results.csv again; of several runs, one page that compares them",
    (
        Argument(
            "run",
            "Run folders; several are compared.",
            options={"type": Path, "nargs": "+"},
        ),
        Argument(
            "--to",
            "File of the page; of one run, nothing else is written then.",
            "report.html in the run folder, of several comparison.html",
            options={"type": Path, "metavar": "FILE"},
        ),
        _STORE,
    ),
    _report,
)

DASHBOARD = Command(
    "dashboard",
    "the report of a study while it runs, on 127.0.0.1",
    (
        Argument("run", "Run folder.", options={"type": Path}),
        Argument(
            "--port",
            "Port to listen on; 0 for any that is free.",
            "8642",
            options={"type": int, "default": 8642},
        ),
        _STORE,
    ),
    _dashboard,
)
