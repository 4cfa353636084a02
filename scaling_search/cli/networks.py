"""The commands about networks: list, cost, solve, export."""

from __future__ import annotations

import argparse
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from effnet import families
from effnet.arch import Arch, Baseline, Scaling
from effnet.budget import Budget, InfeasibleError, Solution, fit
from effnet.cost import (
    CONVENTIONS,
    PRECISIONS,
    Cost,
    conventions,
    cost,
    cost_by_block,
    cost_by_kind,
    training_memory,
)
from effnet.shares import shares, toward
from scaling_search import UserError


def add_commands(commands: Any) -> None:
    """Adds the sub-commands to argparse's `commands`."""
    known = commands.add_parser("list", help="every network known by name")
    known.set_defaults(command=_list)

    price = commands.add_parser("cost", help="exact MACs, parameters and activations of a network")
    _add_network(price)
    add_dials(price)
    view = price.add_mutually_exclusive_group()
    view.add_argument("--blocks", action="store_true", help="per block instead of per operator")
    view.add_argument(
        "--convention",
        choices=(*CONVENTIONS, "all"),
        help="the FLOPs that other tools print for it",
    )
    price.add_argument("--batch", type=int, default=32, help="of the training memory (default: 32)")
    price.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="of the training memory"
    )
    view.add_argument(
        "--check", action="store_true", help="compare with fvcore and torch's counter; 1 if unequal"
    )
    view.add_argument(
        "--measure", action="store_true", help="latency and peak training memory on this device"
    )
    price.set_defaults(command=_cost)

    solving = commands.add_parser(
        "solve", help="the network nearest to a budget; status 1 if it misses it"
    )
    solving.add_argument("baseline", help="b0, b0-s4, mobilenetv2, resnet50, ... or a TOML file")
    solving.add_argument(
        "--budget", required=True, help="2x, 400M, '5M params', '2x acts', 8GiB@64"
    )
    solving.add_argument("--along", help="paper, or alpha,beta,gamma: solve phi")
    solving.add_argument(
        "--shares", help="depth,width,resolution: the network nearest to this direction"
    )
    for name in ("depth", "width"):
        solving.add_argument(f"--{name}", type=float)
    solving.add_argument("--resolution", type=int, help="px")
    solving.add_argument(
        "--rounding", help="another rounding rule: spread moves depth in whole blocks"
    )
    solving.add_argument("--tolerance", type=float, default=0.02)
    solving.add_argument("--classes", type=int, default=1000)
    solving.set_defaults(command=_solve)

    out = commands.add_parser(
        "export", help="write a network, with weights if given, or the curves of a run"
    )
    _add_network(out)
    add_dials(out)
    out.add_argument(
        "--weights",
        type=Path,
        help="a state dict of timm, torchvision or ours, or a folder of export's",
    )
    out.add_argument(
        "--bn-eps",
        type=float,
        help="of the batch norms (default: 1e-3; timm, torchvision: mostly 1e-5)",
    )
    out.add_argument(
        "--same-padding", action="store_true", help="pad as TensorFlow does (timm's tf_ weights)"
    )
    out.add_argument(
        "--names",
        choices=("timm", "torchvision"),
        help="whose names a .safetensors file is to have",
    )
    out.add_argument(
        "--to",
        type=Path,
        required=True,
        help="a folder, or a file: .onnx, .pt2, .safetensors; .parquet of a run",
    )
    out.set_defaults(command=_export)


def _add_network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "network", help="b3, lite2, v2-s, ... (see list), or a TOML file of your own"
    )
    parser.add_argument("--classes", type=int, default=1000)


def add_dials(parser: argparse.ArgumentParser) -> None:
    for name in ("alpha", "beta", "gamma", "phi", "depth", "width"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--resolution", type=int, help="px")
    parser.add_argument("--rounding", help="another rounding rule, such as spread or nearest")
    parser.add_argument(
        "--stage",
        action="append",
        default=[],
        metavar="N.KEY=VALUE",
        help="override a row: 5.kernel=3",
    )


def network(args: argparse.Namespace) -> Arch:
    try:
        return families.arch(
            args.network,
            alpha=args.alpha,
            beta=args.beta,
            gamma=args.gamma,
            phi=args.phi,
            depth=args.depth,
            width=args.width,
            resolution=args.resolution,
            num_classes=args.classes,
            rounding=args.rounding,
            stages=_overrides(args.stage),
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def _overrides(items: list[str]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for item in items:
        place, _, text = item.partition("=")
        number, _, key = place.partition(".")
        if not number.isdecimal() or not key or not text:
            raise UserError(f"--stage {item}: wanted is N.KEY=VALUE, such as 5.kernel=3")
        found.setdefault(int(number), {})[key] = plain(text)
    return found


def plain(text: str) -> Any:
    """A value on the command line as TOML reads it, else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 140)


def _right(*names: str) -> list[Column]:
    return [Column(name, justify="right", no_wrap=True) for name in names]


def _cells(part: Cost) -> list[str]:
    return [f"{n:,}" for n in (part.macs, part.params, part.acts)]


# ---- list


def _list(args: argparse.Namespace, argv: list[str]) -> int:
    table = Table(
        "name",
        "baseline",
        *_right("width", "depth", "px", "blocks", "macs", "params", "acts"),
        box=None,
    )
    for name in families.names():
        member = families.MEMBERS.get(name)
        net = families.arch(name)
        dials = (f"{member.width:.3g}", f"{member.depth:.3g}") if member else ("1", "1")
        table.add_row(
            name,
            member.baseline if member else name,
            *dials,
            f"{net.resolution}",
            f"{net.blocks}",
            *_cells(cost(net)),
        )
    _console().print(table)
    return 0


# ---- cost


def _cost(args: argparse.Namespace, argv: list[str]) -> int:
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: at least 1")
    net = network(args)
    total = cost(net)
    memory = training_memory(net, args.batch, args.precision)
    print(f"{args.network}: {net.blocks} blocks, {net.resolution} px, {net.num_classes} classes")
    print(f"macs   {total.macs:>18,}  (multiply-adds per image, convolutions and linear)")
    print(f"params {total.params:>18,}\nacts   {total.acts:>18,}")
    training = f"training at batch {args.batch} in {args.precision}, without the kernels' workspace"
    print(f"memory {memory:>18,}  (bytes, estimated: {training})")
    if phi := _implied_phi(args.network, net):
        print(phi)
    console = _console()
    if args.convention:
        return _conventions(net, args.convention, console)
    if args.check:
        return _check(net, console)
    if args.measure:
        return _measure(net, args, memory)
    if args.blocks:
        console.print(_by_block(net))
        return 0
    table = Table("operator", *_right("macs", "params", "acts"), box=None)
    for kind, part in cost_by_kind(net).items():
        table.add_row(kind, *_cells(part))
    console.print(table)
    return 0


def _implied_phi(name: str, net: Arch) -> str:
    """Of a published member as it is published."""
    try:
        published = net == families.arch(name, num_classes=net.num_classes)
        d, w, r = families.implied_phi(name)
    except ValueError:
        return ""
    if not published or d == w == r == 0:
        return ""
    return f"phi    depth {d:.2f}, width {w:.2f}, resolution {r:.2f}  (that the paper's 1.2, 1.1, 1.15 would need)"


def _conventions(net: Arch, which: str, console: Console) -> int:
    table = Table("convention", *_right("count"), "what it counts", box=None)
    for name, count in conventions(net).items():
        if which in (name, "all"):
            table.add_row(name, f"{count:,}", CONVENTIONS[name])
    console.print(table)
    return 0


def _by_block(net: Arch) -> Table:
    heads = ("repeats", "in", "inner", "out", "kernel", "stride", "px", "macs", "params", "acts")
    table = Table("block", *_right(*heads), box=None)
    for b, part in cost_by_block(net):
        shape = (b.repeats, b.c_in, b.expanded, b.c_out, b.kernel, b.stride)
        table.add_row(b.operator, *map(str, shape), f"{b.side_in} → {b.side_out}", *_cells(part))
    return table


def _check(net: Arch, console: Console) -> int:
    from effnet.nn.measure import compare

    report = compare(net)
    heads = ("macs", "- fvcore", "- torch", "params", "- module", "acts", "- fvcore")
    table = Table("operator", *_right(*heads), box=None)
    for row in report.rows:
        a, b = row.ours, row.theirs
        cells = (
            a.macs,
            a.macs - b.macs,
            a.macs - row.torch_macs,
            a.params,
            a.params - b.params,
            a.acts,
        )
        table.add_row(row.kind, *(f"{n:,}" for n in (*cells, a.acts - b.acts)))
    console.print(table)
    extras = " + ".join(f"{count:,} of {op}" for op, count in report.extras.items())
    print(f"fvcore's total() says {report.fvcore_total:,}: the macs above + {extras or 'nothing'}")
    print(
        "equal to fvcore (macs, acts), torch's counter (macs) and the built module (params)"
        if report.equal
        else f"NOT equal: {', '.join(row.kind for row in report.rows if not row.equal)}"
    )
    return 0 if report.equal else 1


def _measure(net: Arch, args: argparse.Namespace, estimate: int) -> int:
    from effnet.nn.measure import latency, peak_training_memory

    try:
        one, many = (1000 * latency(net, n, args.precision) for n in (1, args.batch))
        peak = peak_training_memory(net, args.batch, args.precision)
    except (
        RuntimeError,
        ValueError,
    ) as error:  # out of memory; one pixel for a batch norm to normalise over
        raise UserError(
            f"--batch {args.batch} at {net.resolution} px: {str(error).splitlines()[0]}"
        ) from None
    print(
        f"latency   {one:.2f} ms for 1 image, {many:.2f} ms for {args.batch} (median, eval, {args.precision})"
    )
    print(
        f"memory    {peak:,} bytes at the peak of a training step; the estimate is {estimate / peak - 1:+.1%}"
    )
    return 0


# ---- solve


def _solve(args: argparse.Namespace, argv: list[str]) -> int:
    try:
        base = families.baseline(args.baseline)
        base = replace(base, rounding=args.rounding or base.rounding)
        if not 0 < args.tolerance < 1:
            raise ValueError(f"--tolerance {args.tolerance:g}: above 0 and below 1")
        budget = Budget.parse(args.budget, args.tolerance)
        if args.shares:
            found = _toward(base, budget, args)
        else:
            found = fit(
                base,
                budget,
                depth=args.depth,
                width=args.width,
                resolution=args.resolution,
                along=_along(args.along),
                num_classes=args.classes,
            )
    except ValueError as error:
        raise UserError(str(error)) from None
    print(found if found.met else InfeasibleError(found))
    if real := shares(base, found.depth, found.width, found.arch.resolution, args.classes):
        depth, width, side = (round(s, 2) + 0.0 for s in real)  # never "-0%"
        print(f"shares of MACs: depth {depth:.0%}, width {width:.0%}, resolution {side:.0%}")
    total = cost(found.arch)
    print(f"macs {total.macs:,} · params {total.params:,} · acts {total.acts:,}")
    return 0 if found.met else 1


def _toward(base: Baseline, budget: Budget, args: argparse.Namespace) -> Solution:
    if any(value is not None for value in (args.depth, args.width, args.resolution, args.along)):
        raise ValueError(
            "--shares sets depth, width and resolution: give it without them and without --along"
        )
    try:
        depth, width, side = (float(part) for part in args.shares.split(","))
    except ValueError:
        raise ValueError(
            f"--shares {args.shares}: depth,width,resolution such as 0.3,0.3,0.4"
        ) from None
    return toward(base, (depth, width, side), budget, args.classes)[0]


def _along(text: str | None) -> Scaling | None:
    if text is None:
        return None
    if text == "paper":
        return families.PAPER
    try:
        alpha, beta, gamma = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"--along {text}: paper, or alpha,beta,gamma such as 1.2,1.1,1.15"
        ) from None
    return Scaling(alpha, beta, gamma)


# ---- export


def _export_curves(args: argparse.Namespace) -> int:
    folder = Path(args.network)
    if not folder.is_dir():
        raise UserError(
            f"export {folder}: no such run folder; a .parquet table is of a run, such as runs/fashion-mnist-2x"
        )
    if not args.to.parent.is_dir():
        raise UserError(f"--to {args.to}: there is no folder {args.to.parent}")
    from scaling_search.report import answer

    rows = answer.export(folder, args.to)
    print(f"{args.to}  {rows:,} epochs")
    return 0


def _export(args: argparse.Namespace, argv: list[str]) -> int:
    if args.to.suffix == ".parquet":
        return _export_curves(args)
    net = network(args)
    from effnet import build
    from effnet.nn import weights

    kinds = (".onnx", ".pt2", ".safetensors")
    if args.to.suffix and args.to.suffix not in kinds:
        raise UserError(f"--to {args.to}: a folder, or a file that ends in {', '.join(kinds)}")
    if not args.to.parent.is_dir():
        raise UserError(f"--to {args.to}: there is no folder {args.to.parent}")
    if args.names and args.to.suffix != ".safetensors":
        raise UserError(f"--names {args.names} is for --to FILE.safetensors")
    saved = bool(args.weights and args.weights.is_dir())
    if saved and (args.bn_eps is not None or args.same_padding):
        raise UserError(f"--bn-eps, --same-padding: {args.weights} says itself how it was built")
    try:
        if saved:
            model = weights.load(args.weights)
            if model.arch != net:
                raise ValueError(
                    f"{args.weights} holds another network ({model.arch.name}) than {args.network}"
                )
        else:
            model = build(net, bn_eps=args.bn_eps, same_padding=args.same_padding).eval()
            if args.weights:
                model.load_state_dict(weights.convert(weights.read_state(args.weights), net))
        if args.names:
            weights.save_state(weights.to_peer(model.state_dict(), net, args.names), args.to)
        elif args.to.suffix == ".safetensors":
            weights.save_state(model.state_dict(), args.to)
        elif args.to.suffix == ".onnx":
            weights.save_onnx(model, args.to)
        elif args.to.suffix == ".pt2":
            weights.save_program(model, args.to)
        else:
            weights.save(model, args.to)
    except ValueError as error:
        raise UserError(str(error)) from None
    print(args.to)
    return 0
