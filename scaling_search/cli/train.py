"""The command `train`: one network on one data set, or where its time goes."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from scaling_search import UserError
from scaling_search.cli import networks

# flag, setting of a study, type, default, help
_SETTINGS: tuple[tuple[str, str, type, Any, str], ...] = (
    ("--data", "data.source", str, "auto", "fashion-mnist, cifar10, shapes, a folder, or parquet"),
    ("--train-images", "data.train_images", int, None, "default: all"),
    ("--val-images", "data.val_images", int, None, "default: all"),
    ("--recipe", "recipe.base", str, "proxy", "proxy (short runs) or paper (the official recipe)"),
    ("--lr", "recipe.lr", float, None, "learning rate"),
    ("--batch", "recipe.batch", int, None, "images per step"),
    ("--epochs", "rungs", int, 1, ""),
    ("--seed", "seed", int, 0, "also says which fold validates"),
    ("--threads", "threads", int, 1, "of this run"),
    ("--deadline", "deadline", float, None, "seconds after which the run is given up"),
    ("--device", "device", str, "auto", "cpu, cuda, cuda:1 (that card) or auto (default: auto)"),
)


def add_command(commands: Any) -> None:
    """Adds `train` to argparse's `commands`."""
    train = commands.add_parser("train", help="train one network, or say where its time goes")
    train.add_argument("network", help="b0, b0-s4, ... (see list), or a TOML file of your own")
    networks.add_dials(train)
    for flag, setting, kind, default, text in _SETTINGS:
        train.add_argument(
            flag, dest=setting, type=kind, default=default, help=text, metavar=flag[2:].upper()
        )
    train.add_argument(
        "--compile", action="store_true", help="torch.compile, on CUDA: for runs of many epochs"
    )
    train.add_argument(
        "--profile", action="store_true", help="time one epoch: data, forward, backward, ..."
    )
    train.add_argument("--out", type=Path, help="folder of its checkpoints (default: runs/train)")
    train.set_defaults(command=_train)


def _train(args: argparse.Namespace, argv: list[str]) -> int:
    """Exit status 0; 1 when the run failed; 130 after Ctrl-C, and the same command goes on."""
    from scaling_search import session
    from scaling_search.data.sources import load_or_explain
    from scaling_search.driver import devices
    from scaling_search.driver.progress import say
    from scaling_search.study.settings import check
    from scaling_search.training.train import run as train
    from scaling_search.training.trial import Epoch, Outcome, Trial
    from scaling_search.verdict.narration import points

    settings: dict[str, Any] = {"compile": args.compile}
    for _, name, _, _, _ in _SETTINGS:
        part, _, field = name.rpartition(".")
        if (value := getattr(args, name)) is not None:
            (settings.setdefault(part, {}) if part else settings)[field] = (
                [value] if name == "rungs" else value
            )
    settings["device"], indices = devices.parse(settings["device"])
    study = check(settings, "command line")
    console = Console()
    device = session.resolve_device(study, session.Place(devices=indices), console)
    if indices is not None:
        device = f"{device}:{indices[0]}"
    with console.status("reading data (once; it is cached)"):
        data = load_or_explain(study.data.source)
    args.classes = len(data.classes)
    args.resolution = data.native if args.resolution is None else args.resolution
    trial = Trial(
        networks.network(args), data.digest, str(data.folder), study.recipe, study.seed, study.rungs[0],
        study.data.train_images, study.data.val_images, device, study.threads,
        str((args.out or Path("runs/train")).resolve()), compile=study.compile, deadline=study.deadline,
    )  # fmt: skip
    say(console, "data", data.describe(study.data.train_images, study.data.val_images))
    say(
        console,
        "network",
        f"{trial.arch.name}, {trial.arch.blocks} blocks, {trial.arch.resolution} px",
    )
    if args.profile:
        return _profile(trial, data, console)
    try:
        for event in train(trial, data):
            if isinstance(event, Epoch):
                loss = f"loss {event.train_loss:.3f} train, {event.val_loss:.3f} val"
                say(
                    console,
                    f"epoch {event.epoch}",
                    f"{loss} · val {points(event.val_acc)} · {event.seconds:.1f} s",
                )
            elif isinstance(event, Outcome):
                outcome = event
    except KeyboardInterrupt:
        say(console, "stopped", f"the same command goes on from its last epoch in {trial.folder}")
        return 130
    except OSError as error:
        raise UserError(
            f"training stopped: {error}; mend it, and the same command goes on"
        ) from None
    rate = (
        f"{outcome.images_per_s:,.0f} images/s, {outcome.peak_memory / 2**20:,.0f} MiB at the peak"
    )
    say(
        console,
        outcome.status,
        f"{outcome.seconds:.1f} s · {rate}" + (f" · {outcome.note}" if outcome.note else ""),
    )
    return 0 if outcome.status == "done" else 1


def _profile(trial: Any, data: Any, console: Console) -> int:
    from scaling_search.training.profile import profile

    images = min(len(data.train_labels), trial.train_images or 2048, 64 * trial.recipe.batch)
    try:
        found = profile(
            replace(trial, train_images=images, val_images=trial.val_images or 1024), data
        )
    except (RuntimeError, MemoryError) as error:
        raise UserError(
            f"batch {trial.recipe.batch} at {trial.arch.resolution} px: {error}"
        ) from None
    total = sum(found.seconds.values())
    right = {"justify": "right", "no_wrap": True}
    table = Table("part", Column("ms per step", **right), Column("share", **right), box=None)  # type: ignore[arg-type]
    for part, seconds in found.seconds.items():
        table.add_row(part, f"{1000 * seconds / found.steps:.2f}", f"{seconds / total:.0%}")
    console.print(table)
    batch = trial.recipe.batch
    rate = f"{batch / found.step:,.0f} images/s, kernels of {found.kernels}"
    print(f"a step of {batch} images takes {1000 * found.step:.2f} ms: {rate}")
    if found.eager:
        print(f"the step was not captured: {found.eager}")
    print(
        f"{found.achieved / 1e9:,.1f} GFLOP/s, {found.achieved / found.peak:.1%} of the {found.peak / 1e9:,.1f} that a "
        f"matrix product reaches here"
    )
    return 0
