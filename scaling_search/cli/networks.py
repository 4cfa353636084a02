"""The commands about networks: list, cost, solve."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

from effnet import families
from effnet.arch import (
    AnyBaseline,
    Arch,
    Baseline,
    Network,
    Scaling,
    scale,
)
from effnet.budget import Budget
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
from effnet.custom import CustomArch, FunctionError
from effnet.messages import first_line
from effnet.shares import Shares, shares, toward
from effnet.solve import InfeasibleError, Solution, fit, of_sides
from scaling_search import UserError
from scaling_search.cli.command import Argument, Command, OneOf
from scaling_search.cli.dials import CLASSES, FUNCTION, NETWORK, ROUNDING, dials, network

if TYPE_CHECKING:
    from effnet.nn.measure import Figure


# Multipliers beyond these, or below their inverse, are pointed out by `solve`. The largest
# EfficientNet, L2 (arXiv 1911.04252, Table 7), has width 4.3 and depth 5.3, and is tested at 3.6
# times B0's resolution. Baselines for small images begin at 16 px, and may well grow tenfold.
_FARTHEST = 6.0
_FARTHEST_RESOLUTION = 16.0
_MOST_OPPOSED = 2.0  # how much of the cost one dimension may take away for the others to spend


def _console() -> Console:
    """As wide as the terminal; in a file or a pipe wide enough for any table here."""
    return Console(width=None if sys.stdout.isatty() else 140)


def _print_table(console: Console, table: Table) -> None:
    """Print a table. Where the terminal is too narrow, columns give way from the right, and that is
    said: numbers and names that are cut would be wrong ones."""
    hidden: list[str] = []
    unlimited = console.options.update(max_width=10_000)
    while (
        len(table.columns) > 2
        and Measurement.get(console, unlimited, table).maximum > console.width
    ):
        hidden.insert(0, str(table.columns.pop().header))
    console.print(table)
    if hidden:
        print(f"(wider than {console.width} columns: {', '.join(hidden)} left out)")


def _name(head: str) -> Column:
    return Column(head, no_wrap=True)


def _right(*names: str) -> list[Column]:
    """Columns of numbers."""
    return [Column(name, justify="right", no_wrap=True) for name in names]


def _numbers(*counts: int) -> list[str]:
    return [f"{count:,}" for count in counts]


def _cells(part: Cost) -> list[str]:
    return _numbers(part.macs, part.params, part.acts)


# ---- list


def _list(args: argparse.Namespace, argv: list[str]) -> int:
    table = Table(
        _name("name"),
        _name("baseline"),
        *_right("width", "depth", "px", "blocks", "macs", "params", "acts"),
        box=None,
    )
    for name in families.names():
        member = families.MEMBERS.get(name)
        baseline, width, depth = name, 1.0, 1.0  # of a baseline itself
        if member:
            baseline, width, depth = member.baseline, member.width, member.depth
        net = families.arch(name)
        size = (f"{width:.3g}", f"{depth:.3g}", f"{net.resolution}", f"{net.blocks}")
        table.add_row(name, baseline, *size, *_cells(cost(net)))
    _print_table(_console(), table)
    return 0


# ---- cost


def _cost(args: argparse.Namespace, argv: list[str]) -> int:
    """Exit status 1 where --check finds a difference."""
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: at least 1")
    net = network(args)
    total = cost(net)
    blocks = f"{net.blocks} blocks, " if net.blocks else ""
    print(f"{args.network}: {blocks}{net.px}, {net.num_classes} classes")
    print(f"macs   {total.macs:>18,}  (multiply-adds per image, convolutions and linear)")
    print(f"params {total.params:>18,}\nacts   {total.acts:>18,}")
    if isinstance(net, CustomArch) and not net.function.source:
        return _cost_as_recorded(args)
    memory = training_memory(net, args.batch, args.precision)
    training = f"training at batch {args.batch} in {args.precision}, without the kernels' workspace"
    print(f"memory {memory:>18,}  (bytes, estimated: {training})")
    if not isinstance(net, Arch):
        return _cost_of_function(net, args, memory)
    phi = _implied_phi(args.network, net)
    if phi:
        print(phi)
    console = _console()
    if args.convention:
        return _conventions(net, args.convention, console)
    if args.check:
        return _check(net, console)
    if args.measure:
        return _measure(net, args, memory)
    _print_table(console, _by_block(net) if args.blocks else _by_operator(net))
    return 0


def _cost_as_recorded(args: argparse.Namespace) -> int:
    """What remains of `cost` for a pick whose function is not given."""
    for option in ("blocks", "convention", "check", "measure"):
        if getattr(args, option):
            raise UserError(f"--{option}: takes the function of {args.network}, with --baseline")
    print("as its search recorded it; --baseline FILE.py:FUNCTION counts its memory too")
    return 0


def _cost_of_function(net: CustomArch, args: argparse.Namespace, memory: int) -> int:
    """What remains of `cost` for a function's network: its blocks are its own affair."""
    for option in ("blocks", "convention"):
        if getattr(args, option):
            raise UserError(f"--{option}: {args.network} is a function, whose blocks are its own")
    print("counted by torch on the meta device")
    if args.check:
        return _check_function(net)
    return _measure(net, args, memory) if args.measure else 0


def _check_function(net: CustomArch) -> int:
    """torch's count beside fvcore's; exit status 1 where fvcore counts the same operators and says
    otherwise."""
    from effnet.nn.measure import fvcore_macs

    try:
        theirs, left_out = fvcore_macs(net)
    except FunctionError as error:
        raise UserError(str(error)) from error
    missing = f"; fvcore does not count {', '.join(left_out)}" if left_out else ""
    print(f"fvcore {theirs:>18,}  (convolutions and matrix products{missing})")
    if theirs == net.counts.macs:
        print("equal to fvcore (macs)")
        return 0
    if left_out:
        return 0
    print(f"NOT equal: {theirs - net.counts.macs:+,} macs")
    return 1


def _implied_phi(name: str, net: Arch) -> str:
    """The phi that each dimension of a published member implies, in words; "" for any other
    network."""
    try:
        published = net == families.arch(name, num_classes=net.num_classes)
        d, w, r = families.implied_phi(name)
    except ValueError:
        return ""
    if not published or d == w == r == 0:
        return ""
    return (
        f"phi    depth {d:.2f}, width {w:.2f}, resolution {r:.2f}  "
        "(that the paper's 1.2, 1.1, 1.15 would need)"
    )


def _conventions(net: Arch, which: str, console: Console) -> int:
    table = Table(_name("convention"), *_right("count"), "what it counts", box=None)
    for name, count in conventions(net).items():
        if which in (name, "all"):
            table.add_row(name, f"{count:,}", CONVENTIONS[name])
    console.print(table)
    return 0


def _by_operator(net: Arch) -> Table:
    table = Table(_name("operator"), *_right("macs", "params", "acts"), box=None)
    for kind, part in cost_by_kind(net).items():
        table.add_row(kind, *_cells(part))
    return table


def _by_block(net: Arch) -> Table:
    heads = ("repeats", "in", "inner", "out", "kernel", "stride", "px", "macs", "params", "acts")
    table = Table(_name("block"), *_right(*heads), box=None)
    for block, part in cost_by_block(net):
        shape = (
            block.repeats,
            block.c_in,
            block.expanded,
            block.c_out,
            block.kernel,
            block.stride,
        )
        sides = f"{block.side_in} → {block.side_out}"
        if block.side_in != block.across_in:
            rows = f"{block.side_in}×{block.across_in}"
            sides = f"{rows} → {block.side_out}×{block.across_out}"
        table.add_row(block.operator, *map(str, shape), sides, *_cells(part))
    return table


def _check(net: Arch, console: Console) -> int:
    """Our counts beside fvcore's, torch's and the module's; exit status 1 where they differ."""
    from effnet.nn.measure import compare

    report = compare(net)
    heads = ("macs", "- fvcore", "- torch", "params", "- module", "acts", "- fvcore")
    table = Table(_name("operator"), *_right(*heads), box=None)
    for row in report.rows:
        ours, theirs = row.ours, row.theirs
        cells = _numbers(
            ours.macs,
            ours.macs - theirs.macs,
            ours.macs - row.torch_macs,
            ours.params,
            ours.params - theirs.params,
            ours.acts,
            ours.acts - theirs.acts,
        )
        table.add_row(row.kind, *cells)
    _print_table(console, table)
    extras = " + ".join(f"{count:,} of {op}" for op, count in report.extras.items())
    print(f"fvcore's total() says {report.fvcore_total:,}: the macs above + {extras or 'nothing'}")
    if not report.equal:
        print(f"NOT equal: {', '.join(row.kind for row in report.rows if not row.equal)}")
        return 1
    print("equal to fvcore (macs, acts), torch's counter (macs) and the built module (params)")
    return 0


def _measure(net: Network, args: argparse.Namespace, estimate: int) -> int:
    from effnet.nn.measure import Figure, measure

    try:
        # the figures go to standard output as they come, what is done meanwhile to standard error
        with Console(stderr=True).status("measuring") as status:
            for item in measure(net, args.batch, args.precision):
                if isinstance(item, Figure):
                    print(_figure(item, args.precision, estimate), flush=True)
                else:
                    status.update(item)
    except (RuntimeError, ValueError) as error:
        # too little memory; one pixel for a batch norm to normalise over
        reason = first_line(error)
        raise UserError(f"--batch {args.batch} at {net.px}: {reason}") from error
    return 0


def _figure(figure: Figure, precision: str, estimate: int) -> str:
    """A measured figure as a line; `estimate` is the predicted memory [bytes]."""
    if figure.name == "memory":
        return (
            f"memory    {figure.value:,.0f} bytes at the peak of a training step; "
            f"the estimate is {estimate / figure.value - 1:+.1%}"
        )
    images = "1 image" if figure.batch == 1 else f"{figure.batch} images"
    return f"latency   {1000 * figure.value:.2f} ms for {images} (median, eval, {precision})"


# ---- solve


def _solve(args: argparse.Namespace, argv: list[str]) -> int:
    """Exit status 1 where the nearest network misses the budget."""
    try:
        base = families.baseline(args.baseline)
        if isinstance(base, Baseline):
            base = replace(base, rounding=args.rounding or base.rounding)
        elif args.rounding:
            raise ValueError(f"--rounding {args.rounding}: {base.place} rounds as it will")
        if args.classes is None:
            args.classes = families.default_classes(args.baseline)
        if not 0 < args.tolerance < 1:
            raise ValueError(f"--tolerance {args.tolerance:g}: above 0 and below 1")
        budget = Budget.parse(args.budget, args.tolerance)
        if args.shares:
            solution = _toward(base, budget, args)
        else:
            solution = fit(
                base,
                budget,
                depth=args.depth,
                width=args.width,
                resolution=args.resolution,
                along=_along(args.along),
                num_classes=args.classes,
            )
    except ValueError as error:
        raise UserError(str(error)) from error
    print(solution if solution.met else InfeasibleError(solution))
    if args.resolution is not None:
        _, base = of_sides(base, args.resolution)
    arch = solution.arch
    real = shares(
        base, solution.depth, solution.width, arch.resolution, args.classes, budget.measure
    )
    if real:
        depth, width, side = (round(share, 2) + 0.0 for share in real)  # never "-0%"
        print(
            f"shares of {budget.unit}: depth {depth:.0%}, width {width:.0%}, resolution {side:.0%}"
        )
    total = cost(arch)
    print(f"macs {total.macs:,} · params {total.params:,} · acts {total.acts:,}")
    unusual = _unusual(base, solution, real)
    if unusual:
        print(f"note: {unusual}")
    return 0 if solution.met else 1


def _unusual(base: AnyBaseline, solution: Solution, real: Shares | None) -> str:
    """What no network that people train is like, and what would be right, in words; "" where there
    is nothing: a dimension that is scaled very far, or one that takes away most of the cost so that
    another can spend it."""
    sides = solution.arch.resolution / base.resolution
    multipliers = {"depth": solution.depth, "width": solution.width, "resolution": sides}
    words = []
    for name, multiplier in multipliers.items():
        far = _FARTHEST_RESOLUTION if name == "resolution" else _FARTHEST
        if not 1 / far <= multiplier <= far:
            words.append(f"{name} is {multiplier:.3g} times the baseline's")
    if real:
        budget, arch = solution.budget, solution.arch
        base_cost = budget.measure(scale(base, num_classes=arch.num_classes))
        grown = math.log(solution.cost / base_cost)
        for name, share in zip(multipliers, real, strict=True):
            # its share of the logarithm of the whole ratio is by how much it alone multiplies cost
            factor = math.exp(share * grown)
            if share < 0 and not 1 / _MOST_OPPOSED <= factor <= _MOST_OPPOSED:
                others = "raise it" if grown > 0 else "lower it"
                words.append(f"{name} alone multiplies cost by {factor:.2g} while others {others}")
    if not words:
        return ""
    return (
        f"unusual: {'; '.join(words)}. A balanced network has shares from 0% to 100%: let --along "
        "paper or --shares 0.3,0.3,0.4 set all three, or give a width, depth or resolution nearer "
        "to the baseline's"
    )


def _toward(base: AnyBaseline, budget: Budget, args: argparse.Namespace) -> Solution:
    """The network nearest to the direction of --shares. Raises ValueError."""
    if any(value is not None for value in (args.depth, args.width, args.resolution, args.along)):
        raise ValueError(
            "--shares sets depth, width and resolution: give it without them and without --along"
        )
    try:
        depth, width, side = (float(part) for part in args.shares.split(","))
    except ValueError as error:
        raise ValueError(
            f"--shares {args.shares}: depth,width,resolution such as 0.3,0.3,0.4"
        ) from error
    return toward(base, (depth, width, side), budget, args.classes)[0]


def _along(text: str | None) -> Scaling | None:
    """The coefficients that --along names. Raises ValueError."""
    if text is None:
        return None
    if text == "paper":
        return families.PAPER
    try:
        alpha, beta, gamma = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(
            f"--along {text}: paper, or alpha,beta,gamma such as 1.2,1.1,1.15"
        ) from error
    return Scaling(alpha, beta, gamma)


LIST = Command("list", "every network known by name", (), _list)

COST = Command(
    "cost",
    "exact FLOPs (multiply-adds), parameters and activations of a network",
    (
        NETWORK,
        FUNCTION,
        CLASSES,
        *dials("the named network's"),
        OneOf(
            (
                Argument(
                    "--blocks",
                    "Cost per block in place of per operator.",
                    options={"action": "store_true"},
                ),
                Argument(
                    "--convention",
                    "The FLOPs that other tools print for the network.",
                    "none",
                    options={"choices": (*CONVENTIONS, "all")},
                ),
                Argument(
                    "--check",
                    "Compare with fvcore and torch's counter; exit status 1 if unequal.",
                    options={"action": "store_true"},
                ),
                Argument(
                    "--measure",
                    "Latency and peak training memory on this device.",
                    options={"action": "store_true"},
                ),
            )
        ),
        Argument(
            "--batch",
            "Images of the training memory, and of --measure.",
            "32",
            options={"type": int, "default": 32},
        ),
        Argument(
            "--precision",
            "Precision of the training memory, and of --measure.",
            "fp32",
            options={"choices": PRECISIONS, "default": "fp32"},
        ),
    ),
    _cost,
)

SOLVE = Command(
    "solve",
    "the network nearest to a budget; exit status 1 if it misses it",
    (
        Argument(
            "baseline",
            "Baseline: b0, b0-s4, mobilenetv2, resnet50, ... (see list), a TOML file of your own, "
            "a run folder or its config.json for the baseline of that search, or a function as "
            "FILE.py:FUNCTION.",
        ),
        Argument(
            "--budget",
            "Cost to meet: 2x, 400M, '5M params', '2x acts', or 8GiB@64 of training memory.",
            options={"required": True},
        ),
        Argument(
            "--along", "Direction to scale in, solving phi: paper, or alpha,beta,gamma.", "none"
        ),
        Argument(
            "--shares",
            "Direction in shares of cost, depth,width,resolution: the network nearest to it.",
            "none",
        ),
        Argument("--depth", "Depth multiplier.", "solved, or 1", options={"type": float}),
        Argument("--width", "Width multiplier.", "solved, or 1", options={"type": float}),
        Argument(
            "--resolution",
            "Resolution in px; rows and columns (96x160) give the baseline their proportion.",
            "solved, or the baseline's",
        ),
        ROUNDING,
        Argument(
            "--tolerance",
            "How far the cost may lie from the budget, as a fraction of it.",
            "0.02",
            options={"type": float, "default": 0.02},
        ),
        CLASSES,
    ),
    _solve,
)
