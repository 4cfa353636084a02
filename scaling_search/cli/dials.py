"""The arguments that name a network and scale it, shared by cost, export and train."""

from __future__ import annotations

import argparse
from typing import Any

from effnet import families
from effnet.arch import Network
from scaling_search import UserError
from scaling_search.cli.command import Argument
from scaling_search.cli.values import plain

NETWORK = Argument(
    "network",
    "Network: b3, lite2, v2-s, ... (see list), a run folder or its config.json for the pick of a "
    "search, a TOML file of your own, or a function that builds a torch module, as "
    "FILE.py:FUNCTION.",
)
FUNCTION = Argument(
    "--baseline",
    "The function that built a run folder's networks, as FILE.py:FUNCTION, where one did.",
    "none",
    options={"metavar": "FILE.py:FUNCTION"},
)
CLASSES = Argument(
    "--classes",
    "Classes that the network tells apart.",
    "1000, a pick's own",
    options={"type": int},
)
ROUNDING = Argument(
    "--rounding",
    "Rounding rule, such as nearest, or spread, which moves depth in whole blocks.",
    "the baseline's own",
)
SCALE = (
    Argument("--alpha", "Coefficient of depth, to the power of phi.", "1", options={"type": float}),
    Argument("--beta", "Coefficient of width, to the power of phi.", "1", options={"type": float}),
    Argument(
        "--gamma", "Coefficient of resolution, to the power of phi.", "1", options={"type": float}
    ),
    Argument(
        "--phi", "Compound coefficient of alpha, beta and gamma.", "1", options={"type": float}
    ),
    Argument(
        "--depth",
        "Depth multiplier of the named baseline, without alpha, beta, gamma; a study's multipliers "
        "are of its own baseline, RUN/baseline.toml.",
        "the named network's",
        options={"type": float},
    ),
    Argument(
        "--width",
        "Width multiplier of the named baseline, without alpha, beta, gamma; a study's are of its "
        "own baseline, RUN/baseline.toml.",
        "the named network's",
        options={"type": float},
    ),
)
STAGE = Argument(
    "--stage",
    "Another value in row N of the baseline's table, such as 5.kernel=3; may be given several "
    "times.",
    "none",
    options={"action": "append", "default": [], "metavar": "N.KEY=VALUE"},
)


def dials(resolution: str) -> tuple[Argument, ...]:
    """Everything that scales a named network; `resolution` is how that one's default reads."""
    side = Argument(
        "--resolution",
        "Resolution in px, or rows and columns such as 96x160, without alpha, beta, gamma.",
        resolution,
    )
    return (*SCALE, side, ROUNDING, STAGE)


def network(args: argparse.Namespace, in_channels: int | None = None) -> Network:
    """The network that the arguments describe, for images of `in_channels`, of 3 or a pick's own
    where they are not given. Raises UserError."""
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
            in_channels=in_channels,
            rounding=args.rounding,
            stages=_parse_stages(args.stage),
            function=args.baseline,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def _parse_stages(items: list[str]) -> dict[int, dict[str, Any]]:
    """["5.kernel=3"] → {5: {"kernel": 3}}. Raises UserError."""
    stages: dict[int, dict[str, Any]] = {}
    for item in items:
        place, _, text = item.partition("=")
        number, _, key = place.partition(".")
        if not number.isdecimal() or not key or not text:
            raise UserError(f"--stage {item}: wanted is N.KEY=VALUE, such as 5.kernel=3")
        stages.setdefault(int(number), {})[key] = plain(text)
    return stages
