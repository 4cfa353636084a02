"""The command `export`: a network, with weights, or the curves of a run, in a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from effnet.arch import Arch, Network
from scaling_search import UserError
from scaling_search.cli.command import Argument, Command
from scaling_search.cli.dials import CLASSES, FUNCTION, NETWORK, dials, network

_SUFFIXES = (".onnx", ".pt2", ".safetensors")


def _export(args: argparse.Namespace, argv: list[str]) -> int:
    if args.to.suffix == ".parquet":
        return _export_curves(args)
    net = network(args)
    _check_arguments(args, net)
    try:
        _write(_build(args, net), net, args)
    except ValueError as error:
        raise UserError(str(error)) from error
    print(args.to)
    return 0


def _export_curves(args: argparse.Namespace) -> int:
    folder = Path(args.network)
    if not folder.is_dir():
        raise UserError(
            f"export {folder}: no such run folder; a .parquet table is of a run, such as "
            "runs/fashion-mnist-2x"
        )
    _check_parent(args.to)
    from scaling_search.report import answer

    epochs = answer.export(folder, args.to)
    print(f"{args.to}  {epochs:,} epochs")
    return 0


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise UserError(f"--to {path}: there is no folder {path.parent}")


def _check_arguments(args: argparse.Namespace, net: Network) -> None:
    """Raises UserError for arguments that do not fit together, before anything is built."""
    suffix = args.to.suffix
    if suffix and suffix not in _SUFFIXES:
        raise UserError(
            f"--to {args.to}: a folder, or a file that ends in {', '.join(_SUFFIXES)}; the curves "
            "of a run folder go to a file.parquet"
        )
    _check_parent(args.to)
    if not isinstance(net, Arch):
        if not suffix:
            raise UserError(
                f"--to {args.to}: a folder is for a table's network, a function's goes to a file "
                f"that ends in {', '.join(_SUFFIXES)}"
            )
        if args.names or args.bn_eps is not None or args.same_padding or _is_saved(args):
            raise UserError(
                f"{args.network} is a function: --names, --bn-eps, --same-padding and a folder of "
                "weights are of tables"
            )
    if args.names and suffix != ".safetensors":
        raise UserError(f"--names {args.names} is for --to FILE.safetensors")
    if _is_saved(args) and (args.bn_eps is not None or args.same_padding):
        raise UserError(f"--bn-eps, --same-padding: {args.weights} says itself how it was built")


def _is_saved(args: argparse.Namespace) -> bool:
    """Whether --weights is a folder that `export` wrote: network and weights together."""
    return args.weights is not None and args.weights.is_dir()


def _build(args: argparse.Namespace, net: Network) -> Any:
    """The module, with the weights that are given or fresh ones. Raises ValueError."""
    from effnet import build
    from effnet.nn import weights

    if not isinstance(net, Arch):
        model = build(net).eval()
        if args.weights:
            try:
                model.load_state_dict(weights.read_state(args.weights))
            except RuntimeError as error:  # torch's, of several lines
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"--weights {args.weights}: {reason}") from error
        return model
    if _is_saved(args):
        model = weights.load(args.weights)
        if model.arch != net:
            raise ValueError(
                f"{args.weights} holds another network ({model.arch.name}) than {args.network}"
            )
        return model
    model = build(net, bn_eps=args.bn_eps, same_padding=args.same_padding).eval()
    if args.weights:
        model.load_state_dict(weights.convert(weights.read_state(args.weights), net))
    return model


def _write(model: Any, net: Network, args: argparse.Namespace) -> None:
    """The module in the format that the name of --to asks for. Raises ValueError."""
    from effnet.nn import weights

    suffix = args.to.suffix
    if args.names and isinstance(net, Arch):
        weights.save_state(weights.to_peer(model.state_dict(), net, args.names), args.to)
    elif suffix == ".safetensors":
        weights.save_state(model.state_dict(), args.to)
    elif suffix == ".onnx":
        weights.save_onnx(model, net, args.to)
    elif suffix == ".pt2":
        weights.save_program(model, net, args.to)
    else:
        weights.save(model, args.to)


EXPORT = Command(
    "export",
    "write a network, with weights if given, or the curves of a run",
    (
        Argument(
            "network",
            f"{NETWORK.sentence.removesuffix('.')}; for a .parquet table of all curves, a run "
            "folder.",
        ),
        FUNCTION,
        CLASSES,
        *dials("the named network's"),
        Argument(
            "--weights",
            "State dict of timm's, torchvision's or our names, or a folder that export wrote.",
            "fresh ones",
            options={"type": Path},
        ),
        Argument(
            "--bn-eps",
            "Epsilon of the batch norms; timm's and torchvision's weights want 1e-5 mostly.",
            "the family's own",
            options={"type": float},
        ),
        Argument(
            "--same-padding",
            "Pad as TensorFlow does, which timm's tf_ weights want.",
            options={"action": "store_true"},
        ),
        Argument(
            "--names",
            "Whose names the tensors of a .safetensors file have.",
            "ours",
            options={"choices": ("timm", "torchvision")},
        ),
        Argument(
            "--to",
            "What to write: a folder, or a file that ends in .onnx, .pt2, .safetensors (of a run "
            "folder its pick), or, of a run folder, .parquet (all its curves).",
            options={"type": Path, "required": True},
        ),
    ),
    _export,
)
