"""The command line: search and report; the commands about networks are in networks.py."""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from scaling_search import UserError, __version__, without_secrets
from scaling_search.cli import family, networks, train

# flag, setting, type, help: each number of a preset can be overridden, these by a flag, the rest by
# --set
_OVERRIDES: tuple[tuple[str, str, type, str], ...] = (
    (
        "--data",
        "data.source",
        str,
        "fashion-mnist, cifar10, shapes, a folder, or parquet (default: auto)",
    ),
    ("--mode", "space.mode", str, "measured (exact budgets) or nominal (the paper's lattice)"),
    ("--step", "space.step", int, "of the nominal lattice, in hundredths"),
    ("--candidates", "space.candidates", int, "networks to train per budget"),
    ("--alpha-max", "space.alpha_max", float, "largest depth multiplier"),
    ("--beta-max", "space.beta_max", float, "largest width multiplier"),
    ("--gamma-max", "space.gamma_max", float, "largest resolution multiplier"),
    (
        "--baseline",
        "baseline.name",
        str,
        "b0-s4, b0, mobilenetv2, resnet50, ... or a TOML file of your own",
    ),
    ("--blocks", "baseline.blocks", int, "of the baseline"),
    ("--width", "baseline.width", float, "of the baseline, of B0's channels"),
    ("--divisor", "baseline.divisor", int, "channels are multiples of it"),
    ("--resolution", "baseline.resolution", int, "of the baseline, px"),
    ("--sampler", "space.sampler", str, "lattice (over the shares), sobol or tpe"),
    ("--allocation", "allocation", str, "flat (all to the last rung) or rungs (half go on)"),
    ("--seeds", "seeds", int, "of every network"),
    ("--extra", "extra", int, "runs more per budget, where they help most"),
    (
        "--confirm",
        "confirm",
        int,
        "fresh seeds on the test split, for the pick and what it is compared with",
    ),
    ("--seed", "seed", int, "the first"),
    ("--train-images", "data.train_images", int, "per run"),
    ("--val-images", "data.val_images", int, "per run"),
    ("--recipe", "recipe.base", str, "proxy (short runs) or paper (the official recipe)"),
    ("--lr", "recipe.lr", float, "learning rate"),
    ("--batch", "recipe.batch", int, "images per step"),
    ("--threads", "threads", int, "per run"),
    (
        "--deadline",
        "deadline",
        float,
        "seconds of a run, on a GPU of its own, after which it is given up",
    ),
    ("--device", "device", str, "cpu, cuda, cuda:1 (that card alone) or auto (default: auto)"),
)


_LEAST_TIME = 60  # s


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None, prog: str = "scaling-search") -> int:
    """Run one command; its exit status. Whatever the user can cause is one line on stderr and
    status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        parsed = _parser(prog).parse_args(_join_negative(arguments))
        status: int = parsed.command(parsed, arguments)
        return status
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # whoever read our output has left
        return 141
    except (UserError, OSError) as error:  # OSError: a full disk, say
        print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before any training: nothing to keep
        return 130


def _join_negative(argv: list[str]) -> list[str]:
    """`--budget -2x` is a wrong budget, not an unknown option."""
    joined: list[str] = []
    for word in argv:
        if joined and joined[-1] == "--budget":
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=prog, description="How should depth, width and resolution be scaled?")
    parser.add_argument("--version", action="version", version=f"scaling-search {__version__}")
    commands = parser.add_subparsers(
        required=True,
        metavar="search | report | dashboard | family | check | train | list | cost | solve | export",
        parser_class=_Parser,
    )

    search = commands.add_parser(
        "search", help="train networks of one cost and say which way to scale"
    )
    search.add_argument("--budget", help="2x, 0.5x, 400M, 1.2G; several with commas (default: 2x)")
    search.add_argument(
        "--preset", help="quick (default on a CPU), standard (default on a GPU) or paper"
    )
    search.add_argument(
        "--study", type=Path, metavar="FILE", help="a study definition (TOML) instead of a preset"
    )
    for flag, setting, kind, text in _OVERRIDES:
        search.add_argument(flag, dest=setting, type=kind, help=text, metavar=flag[2:].upper())
    search.add_argument("--epochs", help="of each rung, such as 2 or 1,2,4")
    search.add_argument(
        "--upscale", action="store_true", help="allow resolutions above the images' native side"
    )
    search.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any setting of a study"
    )
    search.add_argument("--out", type=Path, help="run folder (default: runs/DATA-BUDGET)")
    search.add_argument(
        "--time",
        metavar="30m",
        help="bounds the whole study: it spends what it has (3m, 90s, 1h30m)",
    )
    search.add_argument(
        "--replay", type=Path, metavar="TABLE", help="curves.parquet in place of training"
    )
    search.add_argument(
        "--workers", type=int, help="runs at a time (default: cores / threads; on GPUs, what pays)"
    )
    search.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="worker processes, or Ray Tune",
    )
    search.add_argument(
        "--ray-address", metavar="ADDRESS", help="auto or HOST:PORT: a running cluster (with ray)"
    )
    search.add_argument(
        "--storage",
        metavar="PLACE",
        help="checkpoints: a shared folder or s3://... (default: run folder)",
    )
    search.add_argument(
        "--store",
        metavar="URL",
        help="postgresql://user@host/database (default: SQLite in the run folder)",
    )
    search.add_argument(
        "--no-check",
        dest="check",
        action="store_false",
        help="on a GPU: leave out the short check of its numbers before the first run",
    )
    search.set_defaults(command=_search)

    report = commands.add_parser(
        "report", help="write report.html and results.csv again; of several runs, one page"
    )
    report.add_argument("run", type=Path, nargs="+", help="run folders; several are compared")
    report.add_argument(
        "--to", type=Path, metavar="FILE", help="of several runs (default: comparison.html)"
    )
    report.add_argument(
        "--store", metavar="URL", help="where its results are, if the folder does not say"
    )
    report.set_defaults(command=_report)

    dashboard = commands.add_parser(
        "dashboard", help="the report of a study while it runs, on 127.0.0.1"
    )
    dashboard.add_argument("run", type=Path, help="run folder")
    dashboard.add_argument(
        "--port", type=int, default=8642, help="0 for any that is free (default: 8642)"
    )
    dashboard.add_argument(
        "--store", metavar="URL", help="where its results are, if the folder does not say"
    )
    dashboard.set_defaults(command=_dashboard)

    check = commands.add_parser(
        "check", help="say whether training works on this machine, and how fast"
    )
    check.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 (that card) or auto (default: auto)"
    )
    check.set_defaults(command=_check)

    family.add_command(commands)
    train.add_command(commands)
    networks.add_commands(commands)
    return parser


# ---- search


def _search(args: argparse.Namespace, argv: list[str]) -> int:
    # torch, optuna and pandas take seconds to import: wrong arguments are answered before that
    began = time.monotonic()
    from scaling_search.study.settings import read

    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers {args.workers}: at least 1")
    if args.ray_address is not None and args.executor != "ray":
        raise UserError(f"--ray-address {args.ray_address}: takes --executor ray with it")
    limit = _seconds(args.time) if args.time is not None else math.inf
    if args.study and args.preset:
        raise UserError("--study and --preset: give one of them")
    overrides = _overrides(args)
    indices = None
    if str(overrides.get("device", "")).startswith("cuda:"):
        from scaling_search.driver.devices import parse

        overrides["device"], indices = parse(overrides["device"])
    try:
        name, path = _definition(args, overrides.get("device", "auto"))
        study = read(path, overrides)

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
        words = (without_secrets(word) for word in argv if word != "search")
        return session.search(
            study,
            label=name if args.preset or args.study else "",
            out=args.out,
            place=place,
            command=shlex.join(["python", "run_search.py", *words]),
            console=Console(),
            clock=session.Clock(limit, began),
            replay=args.replay,
        )
    finally:
        if args.ray_address is not None:
            from scaling_search.driver.executors.ray import disconnect

            disconnect()


def _seconds(text: str) -> float:
    """'30m', '90s', '1h30m' → seconds."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip())
    if not found or not any(found.groups()):
        raise UserError(f"--time {text}: wanted is 30m, 90s or 1h30m")
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    total = 3600 * hours + 60 * minutes + seconds
    if total < _LEAST_TIME:
        raise UserError(
            f"--time {text}: a study needs at least {_LEAST_TIME} s: workers start, some networks train, a report is "
            "written; the preset quick takes 4m whole"
        )
    return float(total)


def _definition(args: argparse.Namespace, device: str) -> tuple[str, Path]:
    """The study file and its name: the one given, the preset named, or the default of `device`,
    which is the cluster's where the study runs on one. Raises UserError."""
    from scaling_search.study.settings import PRESETS, preset_path

    if args.study:
        return args.study.stem, args.study
    if args.preset and args.preset not in PRESETS:
        raise UserError(
            f"--preset {args.preset}: known are {', '.join(PRESETS)}; --study takes a file of your own"
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


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    values = {setting: getattr(args, setting) for _, setting, _, _ in _OVERRIDES}
    found = {setting: value for setting, value in values.items() if value is not None}
    if args.budget is not None:
        found["budgets"] = args.budget.split(",")
    if args.epochs is not None:
        if not all(part.strip().isdigit() for part in args.epochs.split(",")):
            raise UserError(f"--epochs {args.epochs}: whole numbers above 0, such as 2 or 1,2,4")
        found["rungs"] = [int(part) for part in args.epochs.split(",")]
    if args.upscale:
        found["space.upscale"] = True
    for item in args.set:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise UserError(f"--set {item}: wanted is NAME=VALUE, such as recipe.lr=0.01")
        found[name] = networks.plain(text)
    return found


# ---- report


def _report(args: argparse.Namespace, argv: list[str]) -> int:
    from scaling_search.report import answer
    from scaling_search.results.reading import open_results

    if len(args.run) > 1:
        if args.store:
            raise UserError("--store: of one run; each folder of several remembers its own")
        answer.compare(args.run, args.to or Path("comparison.html"), Console())
        return 0
    (run,) = args.run
    if args.to:
        raise UserError(
            f"--to {args.to}: of several runs; the report of one is written into its folder"
        )
    answer.finish(open_results(run, args.store), run, Console())
    return 0


def _check(args: argparse.Namespace, argv: list[str]) -> int:
    """Exit status 1 where a question is answered with FAIL."""
    from scaling_search.driver import devices
    from scaling_search.training import device_check

    kind, indices = devices.parse(args.device)
    kind, note = devices.resolve(kind, indices)
    if note:
        print(f"note: {note}")
    device = f"cuda:{indices[0]}" if indices else kind
    failures = 0
    for answer in device_check.check(device):
        print(device_check.line(answer), flush=True)
        failures += answer.ok is False
    if failures:
        print(f"{failures} FAIL: do not trust a study on {device} before this is mended")
    return int(failures > 0)


def _dashboard(args: argparse.Namespace, argv: list[str]) -> int:
    from scaling_search.report import dashboard

    return dashboard.serve(args.run, args.port, args.store, Console())
