"""The map: a budget's extra cost in shares of depth, width and resolution. Points on this triangle,
and who is near."""

from __future__ import annotations

import math

from scipy.stats import qmc

from effnet.families import PAPER
from effnet.shares import Shares, nominal_shares

SINGLE: dict[str, Shares] = {
    "depth only": (1.0, 0.0, 0.0),
    "width only": (0.0, 1.0, 0.0),
    "resolution only": (0.0, 0.0, 1.0),
}
NAMED: dict[str, Shares] = {
    "paper": nominal_shares(PAPER),
    **SINGLE,
    "EfficientNet-X": (0.38, 0.42, 0.20),  # on a GPU (arXiv 2102.05610)
}


def simplex(m: int) -> list[Shares]:
    """The simplex lattice of a mixture design (Scheffé 1958): the shares in steps of 1/m."""
    return [(i / m, j / m, (m - i - j) / m) for i in range(m + 1) for j in range(m + 1 - i)]


def on_triangle(u: float, v: float) -> Shares:
    """A point of the unit square as shares; uniform points stay uniform."""
    root = math.sqrt(u)
    return (1 - root, root * (1 - v), root * v)


def on_square(shares: Shares) -> tuple[float, float]:
    """The inverse of `on_triangle`."""
    depth, width, resolution = (max(0.0, s) for s in shares)
    total = depth + width + resolution
    root = 1 - depth / total
    return root**2, resolution / total / root if root else 0.0


def sobol(count: int, seed: int) -> list[Shares]:
    """`count` points of a scrambled Sobol sequence on the triangle."""
    power = max(1, math.ceil(math.log2(max(count, 2))))
    return [on_triangle(u, v) for u, v in qmc.Sobol(2, seed=seed).random_base2(power)[:count]]


def apart(here: Shares | None, aim: Shares | None) -> float:
    """The distance between two points of the triangle; without end where one is not on it."""
    return math.dist(here, aim) if here and aim else math.inf
