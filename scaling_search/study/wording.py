"""How fractions and shares are written for people."""

from __future__ import annotations

from effnet.shares import Shares


def points(fraction: float) -> str:
    """0.1234 → '12.3'."""
    return f"{100 * fraction:.1f}"


def percent(share: float) -> str:
    """0.123 → '12%'."""
    return f"{round(100 * share)}%"  # rounds to an integer, which has no minus zero


def spent(shares: Shares) -> str:
    """(0.5, 0.2, 0.3) → 'depth 50% width 20% resolution 30%'."""
    depth, width, resolution = (percent(share) for share in shares)
    return f"depth {depth} width {width} resolution {resolution}"
