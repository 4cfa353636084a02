"""How fractions and shares are written for people."""

from __future__ import annotations

from effnet.shares import Shares


def points(fraction: float) -> str:
    """0.1234 → '12.3'."""
    return f"{100 * fraction:.1f}"


def signed(fraction: float) -> str:
    """0.0061 → '+0.6', -0.0193 → '−1.9', 0.0001 → '0.0': a difference in points."""
    text = points(abs(fraction))
    if float(text) == 0:
        return text
    return f"+{text}" if fraction > 0 else f"−{text}"


def difference(value: float, low: float, high: float) -> str:
    """'−0.9 (−1.5 to −0.4)': a difference in points and its 95% interval."""
    return f"{signed(value)} ({signed(low)} to {signed(high)})"


def counted(number: int, noun: str) -> str:
    """1, 'epoch' → '1 epoch'; 4, 'epoch' → '4 epochs'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def percent(share: float) -> str:
    """0.123 → '12%'."""
    return f"{round(100 * share)}%"  # rounds to an integer, which has no minus zero


def spent(shares: Shares) -> str:
    """(0.5, 0.2, 0.3) → 'depth 50% width 20% resolution 30%'."""
    depth, width, resolution = (percent(share) for share in shares)
    return f"depth {depth} width {width} resolution {resolution}"
