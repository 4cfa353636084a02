"""The command `search`: train networks of one cost and say which way to scale."""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from scaling_search import UserError, without_secrets
from scaling_search.cli.command import Argument, Command, given_settings, of_settings
from scaling_search.cli.values import plain
from scaling_search.study.flags import OUTPUT, PLACE, SPACE, SPENDING, TRAINED

_LEAST_TIME = 60  # s: workers start, a few networks train, a report is written

# How this command is given: the checkout's script, where that was run, else the installed program.
_IS_SCRIPT = Path(sys.argv[0]).name == "run_search.py"
_PROGRAM = ("python", "run_search.py") if _IS_SCRIPT else ("scaling-search", "search")


def _search(args: argparse.Namespace, argv: list[str]) -> int:
    began = time.monotonic()
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers {args.workers}: at least 1")
    if args.ray_address is not None and args.executor != "ray":
        raise UserError(f"--ray-address {args.ray_address}: takes --executor ray with it")
    if args.study and args.preset:
        raise UserError("--study and --preset: give one of them")
    if args.log == "tensorboard":
        from scaling_search.driver import tensorboard

        tensorboard.check_installed()
    limit = parse_seconds(args.time) if args.time is not None else math.inf
    overrides = read_overrides(args)
    try:
        return _run(args, argv, overrides, limit, began)
    finally:
        if args.ray_address is not None:
            from scaling_search.driver.executors.ray import disconnect

            disconnect()


def _run(
    args: argparse.Namespace,
    argv: list[str],
    overrides: dict[str, Any],
    limit: float,
    began: float,
) -> int:
    """The study, from what is typed to its exit status. `limit` in seconds from `began`."""
    from scaling_search.study.settings import read

    indices = None
    if str(overrides.get("device", "")).startswith("cuda:"):
        from scaling_search.driver.devices import parse

        overrides["device"], indices = parse(overrides["device"])
    name, path = _choose_definition(args, overrides.get("device", "auto"))
    study = read(path, overrides)

    # torch, optuna and pandas take seconds to import: wrong arguments are answered before that
    from scaling_search import session

    place = session.Place(
        args.executor,
        args.workers,
        args.ray_address,
        devices=indices,
        storage=args.storage,
        store=args.store,
        check=args.check,
    )
    words = [without_secrets(word) for word in argv if word != "search"]
    return session.search(
        study,
        label=name if args.preset or args.study else "",
        out=args.out,
        place=place,
        command=shlex.join([*_PROGRAM, *words]),
        console=Console(),
        clock=session.Clock(limit, began),
        replay=args.replay,
        known=args.known,
        latency_table=args.latency_table,
        retry_failed=args.retry_failed,
        show_images=not args.no_images,
        overridden=overrides.keys(),
        for_tensorboard=args.log == "tensorboard",
    )


def parse_seconds(text: str) -> float:
    """'30m', '90s', '1h30m' → seconds. Raises UserError."""
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip())
    if not match or not any(match.groups()):
        raise UserError(f"--time {text}: wanted is 30m, 90s or 1h30m")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    total = 3600 * hours + 60 * minutes + seconds
    if total < _LEAST_TIME:
        raise UserError(
            f"--time {text}: a study needs at least {_LEAST_TIME} s: workers start, some networks "
            "train, a report is written; the preset quick takes 4m whole"
        )
    return float(total)


def _choose_definition(args: argparse.Namespace, device: str) -> tuple[str, Path]:
    """The study file and its name: the one given, the preset named, or the default of `device`,
    which is the cluster's where the study runs on one. Raises UserError."""
    from scaling_search.study.settings import PRESETS, preset_path

    if args.study:
        # every recorded study's file is study.toml: its folder says which
        name = args.study.stem
        return (args.study.resolve().parent.name if name == "study" else name), args.study
    if args.preset and args.preset not in PRESETS:
        raise UserError(
            f"--preset {args.preset}: known are {', '.join(PRESETS)}; --study takes a file of your "
            "own"
        )
    if args.preset:
        return args.preset, preset_path(args.preset)
    if device == "auto" and args.ray_address is not None:
        from scaling_search.driver.executors.ray import resolve_on_cluster

        device = resolve_on_cluster(args.ray_address, device)
    elif device == "auto":
        from scaling_search.driver.devices import probe_cuda

        device = "cuda" if probe_cuda().count else "cpu"
    name = "standard" if device == "cuda" else "quick"
    return name, preset_path(name)


def read_overrides(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line puts over the study's file: {"recipe.lr": 0.01, ...}. Raises
    UserError."""
    overrides = given_settings(args, "search")
    if "budgets" in overrides:
        overrides["budgets"] = overrides["budgets"].split(",")
    if "rungs" in overrides:
        overrides["rungs"] = _parse_epochs(overrides["rungs"])
    for item in args.set:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise UserError(f"--set {item}: wanted is NAME=VALUE, such as recipe.lr=0.01")
        overrides[name] = plain(text)
    return overrides


def _parse_epochs(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"--epochs {text}: whole numbers above 0, such as 2 or 1,2,4")
    return [int(part) for part in parts]


SEARCH = Command(
    "search",
    "train networks of one cost and say which way to scale",
    (
        Argument(
            "--preset",
            "Study that the other options go over: quick, standard or paper.",
            "quick on a CPU, standard on a GPU",
            TRAINED,
        ),
        Argument(
            "--study",
            "Study of your own in place of a preset: a TOML file.",
            "the preset",
            TRAINED,
            {"type": Path, "metavar": "FILE"},
        ),
        *of_settings("search"),
        Argument(
            "--set",
            "Any setting of a study, with or without a flag of its own; may be given several "
            "times.",
            "none",
            TRAINED,
            {"action": "append", "default": [], "metavar": "NAME=VALUE"},
        ),
        Argument(
            "--latency-table",
            "Table of measured latencies (CSV), for budgets of latency: written, or read where it "
            "is there; of another device it is all that is gone by.",
            "measured, and kept in the run folder's database",
            SPACE,
            {"type": Path, "metavar": "TABLE"},
        ),
        Argument(
            "--time",
            "Time for the whole study, such as 30m, 90s or 1h30m, which it then spends; what fits "
            "into it is said first.",
            "no limit",
            SPENDING,
            {"metavar": "TIME"},
        ),
        Argument(
            "--retry-failed",
            "Try the runs again that crashed, ran out of memory or passed their deadline.",
            group=SPENDING,
            options={"action": "store_true"},
        ),
        Argument(
            "--no-images",
            "Leave the data's own images out of the report, which shows four of them.",
            group=PLACE,
            options={"action": "store_true"},
        ),
        Argument(
            "--workers",
            "Runs at a time.",
            "cores / threads; on GPUs, what pays",
            PLACE,
            {"type": int},
        ),
        Argument(
            "--executor",
            "What the runs are handed to: processes of this machine, or Ray Tune.",
            "local",
            PLACE,
            {"choices": ("local", "ray"), "default": "local"},
        ),
        Argument(
            "--ray-address",
            "Ray cluster that is running, with --executor ray: auto or HOST:PORT.",
            "a Ray of its own on this machine",
            PLACE,
            {"metavar": "ADDRESS"},
        ),
        Argument(
            "--storage",
            "Where checkpoints go: a folder that every node sees, or an address such as "
            "s3://bucket/path.",
            "the run folder",
            PLACE,
            {"metavar": "PLACE"},
        ),
        Argument(
            "--no-check",
            "Leave out the short check of a GPU's numbers before the first run.",
            group=PLACE,
            options={"dest": "check", "action": "store_false"},
        ),
        Argument(
            "--out",
            "Run folder; a study that it holds already is continued.",
            "runs/DATA-BUDGET",
            OUTPUT,
            {"type": Path},
        ),
        Argument(
            "--store",
            "Database for the results: postgresql://user@host/database.",
            "SQLite in the run folder",
            OUTPUT,
            {"metavar": "URL"},
        ),
        Argument(
            "--log",
            "Log every run in another form too: tensorboard, in the run folder.",
            "none",
            OUTPUT,
            {"choices": ("tensorboard",)},
        ),
        Argument(
            "--replay",
            "Take the runs from a table of curves (curves.parquet) in place of training.",
            "train",
            OUTPUT,
            {"type": Path, "metavar": "TABLE"},
        ),
        Argument(
            "--known",
            "Take the runs that a table of curves has from it, and train the others: a recorded "
            "study goes on in a run folder of its own.",
            "train all",
            OUTPUT,
            {"type": Path, "metavar": "TABLE"},
        ),
    ),
    _search,
)
