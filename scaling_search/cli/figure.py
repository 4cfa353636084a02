"""The command `figure`: one of a study's figures in a file, for a paper or a slide."""

from __future__ import annotations

import argparse
from pathlib import Path

from scaling_search import UserError
from scaling_search.cli.command import Argument, Command
from scaling_search.report import FIGURES


def _figure(args: argparse.Namespace, argv: list[str]) -> int:
    _check_size(args)
    from scaling_search.opening import open_study
    from scaling_search.report.figures import static

    static.check_target(args.to)
    size = static.Size(args.width, args.height, args.font_size)
    figure = open_study(args.run, args.store).figure(args.figure, args.budget)
    static.write(figure, args.to, size)
    print(args.to)
    return 0


def _check_size(args: argparse.Namespace) -> None:
    """Raise UserError for a size that no paper has: one given in another unit, say."""
    for flag, value in (("--width", args.width), ("--height", args.height)):
        if value is not None and not 20 <= value <= 1000:
            raise UserError(f"{flag} {value:g}: in mm, 20 to 1000, such as 85 or 170")
    if not 3 <= args.font_size <= 40:
        raise UserError(f"--font-size {args.font_size:g}: in points, 3 to 40, such as 8")


FIGURE = Command(
    "figure",
    "one of a study's figures in a file: PDF, SVG, PNG or HTML",
    (
        Argument("run", "Run folder, a recorded study's folder, or its curves.parquet."),
        Argument(
            "figure",
            "Accuracy against cost, where the cost went, the differences to the pick, the learning "
            "curves, or whether the order holds for longer runs.",
            options={"choices": FIGURES},
        ),
        Argument(
            "--to",
            "File that ends in .pdf, .svg or .png, which takes kaleido (pip install kaleido) and "
            "Chrome or Chromium, or in .html, which takes neither.",
            options={"type": Path, "required": True, "metavar": "FILE"},
        ),
        Argument(
            "--budget",
            "Which of several budgets the map or the differences are of, such as 2x.",
            "the only one",
        ),
        Argument("--width", "Width in mm.", "170", options={"type": float, "default": 170.0}),
        Argument("--height", "Height in mm.", "in proportion", options={"type": float}),
        Argument(
            "--font-size",
            "Size of the text in points; marks and lines go with it.",
            "8",
            options={"type": float, "default": 8.0},
        ),
        Argument(
            "--store",
            "Database that holds the results: postgresql://user@host/database.",
            "what the run folder says",
            options={"metavar": "URL"},
        ),
    ),
    _figure,
)
