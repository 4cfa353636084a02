"""The verdict in words: sentences for the terminal and the report alike."""

from __future__ import annotations

from scaling_search.study.candidate import Candidate
from scaling_search.verdict.verdict import MARGIN, Row, Verdict


def points(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def percent(share: float) -> str:
    return f"{round(100 * share)}%"  # rounds to an integer, which has no minus zero


def coefficients(c: Candidate) -> str:
    return f"alpha {c.alpha:.3g}, beta {c.beta:.3g}, gamma {c.gamma:.3g}"


def spent(shares: tuple[float, float, float]) -> str:
    depth, width, resolution = (percent(share) for share in shares)
    return f"depth {depth} width {width} resolution {resolution}"


def share_words(c: Candidate) -> str:
    return f"shares: {spent(c.shares)}" if c.shares else "shares: none, it is the baseline's cost"


def against(row: Row) -> str:
    """'1.1 points below (0.2 to 2.0): worse', against the pick, with the 95% interval and the
    margin's word."""
    low, high = points(abs(row.low)), points(abs(row.high))
    side = "below" if row.behind >= 0 else "above"
    if row.low < 0 < row.high:
        span = f"95%: {low} above to {high} below"
    else:
        span = f"95%: {low} to {high}" if row.behind >= 0 else f"95%: {high} to {low}"
    return f"{points(abs(row.behind))} points {side} ({span}): {row.standing}"


def beside(v: Verdict, row: Row) -> str:
    return "it is the pick" if row.candidate.key == v.pick.candidate.key else against(row)


def bound_words(v: Verdict) -> str:
    if len(v.rows) == 1:
        return "the only network of this cost that finished"
    return f"at most {points(v.bound)} points below the best (95%), P(best) {v.pick.best:.2f}"


def tied_words(v: Verdict) -> str:
    total, tied = len(v.rows), len(v.tied)
    ratios = [row.candidate.ratio for row in v.rows]
    cost = (
        "of this cost"
        if v.equal_cost
        else f"that really cost {min(ratios):.2f}x to {max(ratios):.2f}x"
    )
    if total == 1:
        return f"One network {cost}"
    if tied == total:
        return f"All {total} networks {cost} are tied: none can be told apart from the best"
    if tied == 1:
        return f"It is the best of {total} networks {cost} with 95% probability"
    return f"{tied} of {total} networks {cost} cannot be told apart from the best"


def fastest_words(v: Verdict) -> str | None:
    """The fastest of the tied set, where it is known and another than the pick."""
    fast, pick = v.fastest, v.pick
    if (
        fast is None
        or pick.speed is None
        or fast.speed is None
        or fast.candidate.key == pick.candidate.key
    ):
        return None
    gain = fast.speed / pick.speed
    return (
        f"{fast.candidate.label}: {gain:.2f} times the pick's images/s in training; {against(fast)}"
    )


def settle_words(v: Verdict) -> str | None:
    if len(v.rows) == 1:
        return None
    if v.settle == 0:
        return f"settled: whatever is best lies within {points(MARGIN)} points of the pick"
    if v.settle is None:
        return f"no affordable number of runs would bring this bound to {points(MARGIN)} points"
    return f"about {v.settle:,} more runs among the tied would bring this bound to {points(MARGIN)} points"


def noise_words(v: Verdict) -> str:
    one = v.left_out == 1
    lost = (
        f"; {v.left_out} failed run{'' if one else 's'} {'is' if one else 'are'} left out"
        if v.left_out
        else ""
    )
    return f"one run varies by ± {points(v.noise)} points around its network{lost}"


def single_words(v: Verdict) -> str | None:
    """The best single dimension against the pick; None where none was reached."""
    if v.best_single is None:
        return None
    name, row = v.best_single
    exact = name in row.candidate.directions
    return f"{name if exact else f'nearest to {name}'}, {row.candidate.label}: {beside(v, row)}"


def baseline_words(v: Verdict) -> str | None:
    """What the larger cost has brought."""
    if v.baseline is None:
        return None
    cost = f"at {1 / v.pick.candidate.ratio:.2f} of the pick's cost"
    words = f"val {points(v.baseline.mean)}, {cost}: {against(v.baseline)}"
    if v.pick.candidate.ratio > 1 and v.baseline.low <= 0:
        words += ". The extra cost does not show at this length of training: train longer before trusting a direction"
    return words


def surface_words(v: Verdict, rungs: tuple[int, ...]) -> str | None:
    """The fitted optimum, its region, and how far more epochs moved it."""
    if v.surface is None:
        return None
    s = v.surface
    low, high = (
        [min(p[i] for p in s.region) for i in range(3)],
        [max(p[i] for p in s.region) for i in range(3)],
    )
    names = ("depth", "width", "resolution")
    region = ", ".join(
        f"{n} {percent(a)} to {percent(b)}" for n, a, b in zip(names, low, high, strict=True)
    )
    words = f"highest at {spent(s.optimum[-1])}; 95% region: {region}"
    if len(s.region) > len(s.points) / 2:
        words += (
            f" ({percent(len(s.region) / len(s.points))} of the map: the direction is not settled)"
        )
    if len(s.optimum) > 1:
        first, last = s.optimum[0], s.optimum[-1]
        moved = (
            f"moved there from {spent(first)}, {percent(s.moved)} of the cost"
            if first != last
            else "did not move"
        )
        words += f". From {rungs[0]} to {rungs[-1]} epochs the optimum {moved}"
        words += (
            f" (95%: {percent(s.moved_low)} to {percent(s.moved_high)} of the extra cost elsewhere)"
        )
    return words
