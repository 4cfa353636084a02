"""The command `train`: one network on one data set, or where its time goes."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table

from effnet import families
from effnet.arch import Baseline, parse_sides
from scaling_search import UserError
from scaling_search.cli.command import Argument, Command, given_settings, of_settings
from scaling_search.cli.dials import NETWORK, dials, network
from scaling_search.study.flags import OUTPUT, SPENDING

if TYPE_CHECKING:
    from scaling_search.data.dataset import Dataset
    from scaling_search.data.source import Options
    from scaling_search.study.settings import Study
    from scaling_search.training.trial import Trial

_PROFILE_IMAGES = 2048  # at most: each part's share has settled by then


def _train(args: argparse.Namespace, argv: list[str]) -> int:
    """Exit status 0; 1 when the run failed; 130 after Ctrl-C, and the same command goes on."""
    from scaling_search.data.sources import load_or_explain
    from scaling_search.driver import devices
    from scaling_search.driver.console import say

    settings: dict[str, Any] = {"rungs": [args.epochs], **given_settings(args, "train")}
    indices = None
    if "device" in settings:
        settings["device"], indices = devices.parse(settings["device"])
    study = _check(settings)
    console = Console()
    device, note = devices.resolve(study.device, indices)
    if note:
        say(console, "note", note)
    if indices is not None:
        device = f"{device}:{indices[0]}"
    with console.status("reading data (once; it is cached)"):
        data = load_or_explain(study.data.source, _reading(args, study))
    trial = _make_trial(args, study, data, device)
    facts = data.facts(study.data.train_images, study.data.val_images)
    say(console, "data", facts.line)
    for note in facts.notes:
        say(console, "note", note)
    arch = trial.arch
    blocks = f"{arch.blocks} blocks, " if arch.blocks else ""
    say(console, "network", f"{arch.name}, {blocks}{arch.px}")
    if arch.resolution > data.native:
        say(console, "note", f"the images are enlarged: they have {data.native} rows")
    if args.profile:
        return _profile(trial, data, console)
    return _run(trial, data, console)


def _reading(args: argparse.Namespace, study: Study) -> Options:
    """How the images are read: cut to the proportion of the network's input. Raises UserError."""
    options = study.data.options
    try:
        if args.network.endswith(".toml"):  # which may state such a resolution
            base = families.baseline(args.network)
            assert isinstance(base, Baseline)
            base = base if args.resolution is None else base.at(args.resolution)
            return options.cut_to(base.resolution, base.columns)
        if args.resolution is not None:
            return options.cut_to(*parse_sides(args.resolution))
        return options
    except ValueError as error:
        raise UserError(str(error)) from error


def _check(flat: dict[str, Any]) -> Study:
    """A study of flat settings: it holds them to their types and ranges. Raises UserError."""
    from scaling_search.study.settings import check, override

    settings: dict[str, Any] = {}
    override(settings, flat)
    return check(settings, "command line")


def _make_trial(args: argparse.Namespace, study: Study, data: Dataset, device: str) -> Trial:
    from scaling_search.training.trial import Trial

    args.classes = len(data.classes)
    compound = any(value is not None for value in (args.alpha, args.beta, args.gamma, args.phi))
    if args.resolution is None and not compound:
        args.resolution = data.native
    return Trial(
        arch=network(args, data.input_channels(study.data.channels)),
        data_digest=data.digest,
        data_folder=str(data.folder),
        recipe=study.recipe,
        seed=study.seed,
        epochs=study.rungs[0],
        train_images=study.data.train_images,
        epoch_images=study.data.epoch_images,
        metric=study.metric,
        val_images=study.data.val_images,
        device=device,
        threads=study.threads,
        checkpoints=str((args.out or Path("runs/train")).resolve()),
        compile=study.compile,
        deadline=study.deadline,
    )


def _run(trial: Trial, data: Dataset, console: Console) -> int:
    """Train, a line for each epoch; the exit status. Raises UserError where a file cannot be read
    or written."""
    from scaling_search.driver.console import say
    from scaling_search.study.wording import points
    from scaling_search.training.train import run as train
    from scaling_search.training.trial import Epoch, Outcome

    try:
        for event in train(trial, data):
            if isinstance(event, Epoch):
                losses = f"loss {event.train_loss:.3f} train, {event.val_loss:.3f} val"
                words = f"{losses} · val {points(event.val_acc)} · {event.seconds:.1f} s"
                say(console, f"epoch {event.epoch}", words)
            elif isinstance(event, Outcome):
                outcome = event
    except KeyboardInterrupt:
        say(console, "stopped", f"the same command goes on from its last epoch in {trial.folder}")
        return 130
    except OSError as error:
        raise UserError(
            f"training stopped: {error}; mend it, and the same command goes on"
        ) from error
    memory = f"{outcome.peak_memory / 2**20:,.0f} MiB at the peak"
    words = f"{outcome.seconds:.1f} s · {outcome.images_per_s:,.0f} images/s, {memory}"
    if outcome.note:
        words += f" · {outcome.note}"
    say(console, outcome.status, words)
    return 0 if outcome.status == "done" else 1


def _profile(trial: Trial, data: Dataset, console: Console) -> int:
    """Time the parts of an epoch and print them. Raises UserError for too little memory."""
    from scaling_search.training.profile import profile

    wanted = trial.train_images or _PROFILE_IMAGES
    images = min(len(data.train_labels), wanted, 64 * trial.recipe.batch)
    short = replace(
        trial, train_images=images, epoch_images=None, val_images=trial.val_images or 1024
    )
    batch = trial.recipe.batch
    try:
        profiled = profile(short, data)
    except (RuntimeError, MemoryError) as error:
        raise UserError(f"batch {batch} at {trial.arch.px}: {error}") from error
    total = sum(profiled.seconds.values())
    columns = [Column(name, justify="right", no_wrap=True) for name in ("ms per step", "share")]
    table = Table("part", *columns, box=None)
    for part, seconds in profiled.seconds.items():
        table.add_row(part, f"{1000 * seconds / profiled.steps:.2f}", f"{seconds / total:.0%}")
    console.print(table)
    rate = f"{batch / profiled.step:,.0f} images/s, kernels of {profiled.kernels}"
    print(f"a step of {batch} images takes {1000 * profiled.step:.2f} ms: {rate}")
    if profiled.eager:
        print(f"the step was not captured: {profiled.eager}")
    print(
        f"{profiled.achieved / 1e9:,.1f} GFLOP/s, {profiled.achieved / profiled.peak:.1%} of the "
        f"{profiled.peak / 1e9:,.1f} that a matrix product reaches here"
    )
    return 0


TRAIN = Command(
    "train",
    "train one network, or say where its time goes",
    (
        NETWORK,
        *dials("the images' native side"),
        *of_settings("train"),
        Argument(
            "--epochs",
            "Epochs of the run.",
            "1",
            SPENDING,
            {"type": int, "default": 1},
        ),
        Argument(
            "--profile",
            "Time one epoch in place of training: data, forward, backward, ...",
            group=OUTPUT,
            options={"action": "store_true"},
        ),
        Argument(
            "--out",
            "Folder of its checkpoints.",
            "runs/train",
            OUTPUT,
            {"type": Path},
        ),
    ),
    _train,
)
