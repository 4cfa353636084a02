"""The command `train`: one network on one data set, or where its time goes."""

from __future__ import annotations

import argparse
import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table

from effnet import custom, families
from effnet.arch import Arch, Baseline, Network, parse_sides
from effnet.budget import human
from effnet.cost import cost
from effnet.custom import CustomArch
from effnet.definition import find_config, read_config
from scaling_search import UserError
from scaling_search.cli.command import Argument, Command, given_settings, of_settings
from scaling_search.cli.dials import FUNCTION, NETWORK, dials, network
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

    settings = given_settings(args, "train")
    if args.epochs is not None:
        settings["rungs"] = [args.epochs]
    indices = None
    if "device" in settings:
        settings["device"], indices = devices.parse(settings["device"])
    console = Console()
    searched = _study_of_pick(args.network) if families.is_run(args.network) else None
    if searched is None and families.is_run(args.network) and "data.source" not in settings:
        raise UserError(
            f"{args.network}: its study.toml is not beside it; say what data with --data"
        )
    study = _check(settings, _to_train_alike(searched, args) if searched else {})
    _check_target(args)
    device, note = devices.resolve(study.device, indices)
    if note:
        say(console, "note", note)
    if indices is not None:
        device = f"{device}:{indices[0]}"
    with console.status("reading data (once; it is cached)"):
        data = load_or_explain(study.data.source, _reading(args, study))
    trial = _make_trial(args, study, data, device)
    if args.to:
        _check_other_network(args.to, trial.arch)
    say(console, "network", _network_words(args, trial.arch))
    for words in _pick_notes(args, study, data, searched):
        say(console, "note", words)
    facts = data.facts(study.data.train_images, study.data.val_images)
    say(console, "data", facts.line)
    for note in facts.notes:
        say(console, "note", note)
    if trial.arch.resolution > data.native:
        say(console, "note", f"the images are enlarged: they have {data.native} rows")
    if args.profile:
        return _profile(trial, data, console)
    status = _run(trial, data, console)
    if status == 0 and args.to:
        _save(trial, data, args.to, console)
    return status


# ---- the pick of a search


def _study_of_pick(name: str) -> Study | None:
    """The study whose pick a run folder or its config.json names; None where the config.json came
    alone. Raises UserError."""
    from scaling_search.results.reading import open_results
    from scaling_search.study.settings import check

    try:
        folder = find_config(name).parent
        path = folder / "study.toml"
        if path.is_file():
            return check(tomllib.loads(path.read_text("utf-8")), str(path))
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error
    if (folder / "study.db").is_file():
        with open_results(folder) as results:
            return check(results.fact("settings"), str(folder))
    return None


def _to_train_alike(study: Study, args: argparse.Namespace) -> dict[str, Any]:
    """The settings under which a study's pick trains as it did in the search, but on all of the
    data: limits on images are for short runs. What reads the data goes with the study's own, and
    not with others that --data names."""
    whole = study.settings()
    settings = {name: whole[name] for name in ("recipe", "metric", "seed")}
    settings["rungs"] = whole["rungs"][-1:]
    names = ["epoch_images"]
    if getattr(args, "data.source") is None:
        names += ["source", "image_column", "label_column", "channels"]
    settings["data"] = {name: whole["data"][name] for name in names if name in whole["data"]}
    return settings


def _pick_notes(
    args: argparse.Namespace, study: Study, data: Dataset, searched: Study | None
) -> list[str]:
    """What a pick is trained with that was not typed, and what differs from its search."""
    if not families.is_run(args.network):
        return []
    if searched is None:
        return ["its study.toml is not beside it: the recipe is this command's own"]
    length = f"{study.rungs[0]} of its epochs"
    if study.data.epoch_images:
        length += f" of {study.data.epoch_images:,} images"
    notes = [f"recipe and metric are those of the search, where no option says otherwise; {length}"]
    picked = read_config(args.network)
    if picked.num_classes != len(data.classes):
        notes.append(
            f"it was searched for on {picked.num_classes} classes; these data have "
            f"{len(data.classes)}, and it ends in as many"
        )
    return notes


# ---- the network and its data


def _network_words(args: argparse.Namespace, arch: Network) -> str:
    """A network as it is, with what its multipliers are multiples of: a study's are of its own
    baseline, and would build another network from the table of the same name."""
    parts = [f"the pick of {args.network}" if families.is_run(args.network) else arch.name]
    if arch.blocks:
        parts.append(f"{arch.blocks} blocks")
    parts.append(arch.px)
    if isinstance(arch, Arch):
        widths = [arch.stem_width, *(stage.width for stage in arch.stages)]
        if arch.head_width:
            widths.append(arch.head_width)
        parts.append(f"channels {' '.join(map(str, widths))}")
    total = cost(arch)
    cost_words = f"{human(total.macs)} FLOPs (multiply-adds), {human(total.params)} parameters"
    words = f"{', '.join(parts)} · {cost_words}"
    dials = [
        f"{name} {getattr(args, name):g}" for name in ("depth", "width") if getattr(args, name)
    ]
    return f"{words} · {', '.join(dials)}: multiples of {args.network} itself" if dials else words


def _reading(args: argparse.Namespace, study: Study) -> Options:
    """How the images are read: cut to the proportion of the network's input. Raises UserError."""
    options = study.data.options
    try:
        if args.network.endswith(".toml"):  # which may state such a resolution
            base = families.baseline(args.network)
            assert isinstance(base, Baseline)
            base = base if args.resolution is None else base.at(args.resolution)
            return options.cut_to(base.resolution, base.columns)
        if args.resolution is None and families.is_run(args.network):
            return options.cut_to(*read_config(args.network).sides)
        if args.resolution is not None:
            return options.cut_to(*parse_sides(args.resolution))
        return options
    except ValueError as error:
        raise UserError(str(error)) from error


def _check(flat: dict[str, Any], settings: dict[str, Any]) -> Study:
    """A study of flat settings put over `settings`: it holds them to their types and ranges. Raises
    UserError."""
    from scaling_search.study.settings import check, override

    override(settings, flat)
    return check(settings, "command line")


def _make_trial(args: argparse.Namespace, study: Study, data: Dataset, device: str) -> Trial:
    from scaling_search.training.trial import Trial

    args.classes = len(data.classes)
    compound = any(value is not None for value in (args.alpha, args.beta, args.gamma, args.phi))
    if args.resolution is None and not compound and not families.is_run(args.network):
        args.resolution = data.native
    arch = network(args, data.input_channels(study.data.channels))
    if isinstance(arch, CustomArch):
        custom.load(arch.function)  # raises FunctionError for a pick whose function is not given
    return Trial(
        arch=arch,
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


def _check_target(args: argparse.Namespace) -> None:
    """Raise UserError where the weights could not be written, before hours of training."""
    if args.to is None:
        return
    if args.profile:
        raise UserError("--to: --profile trains nothing that could be written")
    of_function = custom.is_place(args.network) or args.baseline is not None
    if args.to.suffix and args.to.suffix != ".safetensors":
        raise UserError(f"--to {args.to}: a folder, or a file that ends in .safetensors")
    if of_function and not args.to.suffix:
        raise UserError(
            f"--to {args.to}: a folder is for a table's network, a function's weights go to a file "
            "that ends in .safetensors"
        )
    if not args.to.parent.is_dir():
        raise UserError(f"--to {args.to}: there is no folder {args.to.parent}")
    if args.to.suffix and args.to.is_dir():
        raise UserError(f"--to {args.to}: is a folder")


def _check_other_network(to: Path, net: Network) -> None:
    """Raise UserError where another network's weights would be lost."""
    if not (to / "config.json").is_file():
        return
    try:
        written = read_config(to)
    except ValueError as error:
        raise UserError(f"--to {to}: {error}; choose another folder") from error
    if written != net:
        raise UserError(f"--to {to}: holds the weights of another network; choose another folder")


def _save(trial: Trial, data: Dataset, to: Path, console: Console) -> None:
    """Write the trained network: its weights, and in a folder what its images are to be."""
    from effnet.nn import weights
    from effnet.nn.model import ConvNet
    from scaling_search.data.preprocessing import Preprocessing
    from scaling_search.driver.console import say
    from scaling_search.training.trained import trained_model

    model = trained_model(trial, data)
    try:
        if to.suffix:
            weights.save_state(model.state_dict(), to)
        else:
            assert isinstance(model, ConvNet)
            preprocessing = Preprocessing.of(asdict(data.facts()), trial.arch)
            weights.save(model, to, preprocessing.as_dict() if preprocessing else None)
    except OSError as error:
        raise UserError(f"--to {to}: {error.strerror}") from error
    say(console, "weights", str(to))


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
        FUNCTION,
        *dials("the images' native side, a pick's own"),
        *of_settings("train"),
        Argument(
            "--epochs",
            "Epochs of the run.",
            "1; of a run folder those of its longest runs",
            SPENDING,
            {"type": int},
        ),
        Argument(
            "--profile",
            "Time one epoch in place of training: data, forward, backward, ...",
            group=OUTPUT,
            options={"action": "store_true"},
        ),
        Argument(
            "--to",
            "Where its weights go when it is done: a folder, which also says how images are "
            "prepared for it, or FILE.safetensors.",
            "nowhere but its checkpoints",
            OUTPUT,
            {"type": Path},
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
