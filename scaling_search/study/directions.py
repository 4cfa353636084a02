"""The map: a budget's extra cost in shares of depth, width and resolution.

A point on this triangle is a direction to scale in. Some have a name; others are spread over it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from effnet.families import PAPER
from effnet.shares import Exponents, Shares, nominal_shares, translated

SINGLE: dict[str, Shares] = {
    "depth only": (1.0, 0.0, 0.0),
    "width only": (0.0, 1.0, 0.0),
    "resolution only": (0.0, 0.0, 1.0),
}
NAMED: dict[str, Shares] = {
    "paper": nominal_shares(PAPER),
    **SINGLE,
    # the family searched for GPUs and TPUs (Li et al. 2021, arXiv 2102.05610)
    "EfficientNet-X": (0.38, 0.42, 0.20),
}

_LONGEST_NAME = 40  # of a direction: what a table's column and a legend hold

_PREFIXES = {"along": "", "nearest": "nearest to ", "beside": "beside the "}


@dataclass(frozen=True, slots=True)
class Direction:
    """A named direction that a network was chosen for.

    `match` is "along" where the network goes that way, "nearest" where it is the nearest there is,
    and "beside" where it is one of the next nearest, taken to bracket the direction."""

    name: str
    match: Literal["along", "nearest", "beside"] = "along"

    @property
    def represents(self) -> bool:
        """Whether the network stands for the direction when that is compared with the pick."""
        return self.match != "beside"

    def __str__(self) -> str:
        return _PREFIXES[self.match] + self.name

    @classmethod
    def from_text(cls, text: str) -> Direction:
        """The inverse of `str`, which is how a direction is recorded."""
        if text.startswith(_PREFIXES["nearest"]):
            return cls(text.removeprefix(_PREFIXES["nearest"]), "nearest")
        if text.startswith(_PREFIXES["beside"]):
            return cls(text.removeprefix(_PREFIXES["beside"]), "beside")
        return cls(text)


def by_measure(directions: Mapping[str, Shares], powers: Exponents) -> dict[str, Shares]:
    """Directions, which are given in shares of multiply-adds, in shares of a measure that grows
    with these powers of the dimensions; without those that do not grow it, as resolution does not
    grow parameters."""
    reached = {}
    for name, aim in directions.items():
        shares = translated(aim, powers)
        if shares is not None:
            reached[name] = shares
    return reached


def check_direction(name: str, shares: Shares) -> None:
    """Check a direction of a study. Raises ValueError."""
    if name in NAMED:
        raise ValueError(f"directions.{name}: {', '.join(NAMED)} are there already")
    # a direction is recorded as a text, after one of these prefixes or none, between commas
    ours = tuple(prefix for prefix in _PREFIXES.values() if prefix)
    is_name = name.isprintable() and 0 < len(name) <= _LONGEST_NAME
    if not is_name or "," in name or name.startswith(ours):
        raise ValueError(
            f"directions.{name}: a name of at most {_LONGEST_NAME} characters, without a comma and "
            "not beginning with 'nearest to' or 'beside the'"
        )
    if not (min(shares) >= 0 and abs(sum(shares) - 1) <= 0.001):  # also of NaN
        raise ValueError(
            f"directions.{name} = {list(shares)}: shares of depth, width and resolution, each at "
            "least 0, that sum to 1"
        )


def simplex(m: int) -> list[Shares]:
    """The simplex lattice of a mixture design (Scheffé 1958): the shares in steps of 1/m."""
    points = []
    for depth in range(m + 1):
        for width in range(m + 1 - depth):
            points.append((depth / m, width / m, (m - depth - width) / m))
    return points


def on_triangle(u: float, v: float) -> Shares:
    """A point of the unit square as shares; uniform points stay uniform."""
    root = math.sqrt(u)
    return (1 - root, root * (1 - v), root * v)


def on_square(shares: Shares) -> tuple[float, float]:
    """The inverse of `on_triangle`. Shares below 0, as of a network that shrinks one dimension, are
    taken for 0."""
    depth, width, resolution = (max(0.0, share) for share in shares)
    total = depth + width + resolution
    root = 1 - depth / total
    if root == 0:  # the corner of depth, where v is any
        return 0.0, 0.0
    return root**2, resolution / total / root


def sobol(count: int, seed: int) -> list[Shares]:
    """`count` points of a scrambled Sobol sequence on the triangle."""
    from scipy.stats import qmc  # takes a second to import, which `search --help` need not spend

    # qmc warns where the number of points is no power of two
    power = max(1, math.ceil(math.log2(max(count, 2))))
    points = qmc.Sobol(2, seed=seed).random_base2(power)[:count]
    return [on_triangle(u, v) for u, v in points]


def distance(a: Shares | None, b: Shares | None) -> float:
    """Between two points of the triangle; infinity where one is not on it (a network of the
    baseline's cost has no shares)."""
    return math.dist(a, b) if a and b else math.inf
