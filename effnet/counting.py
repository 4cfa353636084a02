"""Networks of functions, counted: which there are at what depth and width, and what they cost.

A count takes torch some 50 ms: counts are kept, in memory and in a file for each function. No torch
is imported until something is counted.
"""

from __future__ import annotations

import json
import logging
import math
from operator import index
from pathlib import Path

from effnet.custom import Counts, CustomArch, Function, FunctionError
from effnet.folders import cache_folder
from effnet.rounding import round_half_up, shortest_decimal

logger = logging.getLogger(__name__)

# Depth multipliers that are told apart at most, however wide the range.
_MOST_DEPTHS = 200


def network(
    function: Function, depth: float, width: float, resolution: int, num_classes: int
) -> CustomArch:
    """The network of these multipliers, over the baseline's own width, counted.

    Raises FunctionError, with depth, width and resolution, for what the function raises there, or
    for a module that cannot be trained on such images."""
    if resolution < 1 and function.resolution:
        raise FunctionError(
            f"{function.place}: resolution = {resolution}: must be a whole number from 1"
        )
    if resolution < 1:
        raise FunctionError(
            f"{function.place}: its resolution has no default; give it one, as in "
            "build(depth, width, resolution=224, ...), or give --resolution"
        )
    try:
        resolution, num_classes = index(resolution), index(num_classes)
    except TypeError as error:
        raise FunctionError(
            f"{function.place}: resolution = {resolution!r}, num_classes = {num_classes!r}: must "
            "be whole numbers"
        ) from error
    if num_classes < 1:
        raise FunctionError(f"{function.place}: num_classes = {num_classes}: at least 1")
    counts = _counts(function, *function.multipliers(depth, width), resolution, num_classes)
    return CustomArch(function, depth, width, resolution, num_classes, counts)


def distinct_depths(function: Function, low: float, high: float, num_classes: int) -> list[float]:
    """Depth multipliers in [low, high], one for each network that they make at the baseline's width
    and side, in order of size: of those that make the same one, the shortest decimal.

    Found by halving: where both ends of a range make one network, all of it does, as cost does not
    fall when depth rises. Raises FunctionError, also where it does fall."""
    unit = 100
    first, last = round_half_up(low * unit), round_half_up(high * unit)
    step = max(1, (last - first) // _MOST_DEPTHS)
    first = max(1, first)
    positions = [*range(first, max(first, last) + 1, step)]

    def at(index: int) -> CustomArch:
        return network(function, positions[index] / unit, 1.0, function.resolution, num_classes)

    starts = [0]  # where each network begins
    ranges = [(0, len(positions) - 1)]
    while ranges:
        begin, end = ranges.pop()
        one, other = at(begin), at(end)
        if one == other:
            continue
        if one.counts.macs > other.counts.macs:
            raise FunctionError(
                f"{function.place}: cost falls as depth rises: {one.counts.macs:,} multiply-adds "
                f"at depth {one.depth:g}, {other.counts.macs:,} at {other.depth:g}"
            )
        if end - begin == 1:
            starts.append(end)
            continue
        middle = (begin + end) // 2
        ranges += [(begin, middle), (middle, end)]
    starts.sort()
    ends = [start - 1 for start in starts[1:]] + [len(positions) - 1]
    multipliers = []
    for start, end in zip(starts, ends, strict=True):
        multipliers.append(shortest_decimal(positions[start], positions[end], unit) / unit)
    return multipliers


def check(function: Function, num_classes: int, max_side: float = math.inf) -> list[str]:
    """Hold a function to what a search takes for granted, at the baseline and at twice each dial
    (sides up to `max_side` [px]); lines for the user about what it ignores.

    Raises FunctionError where it builds another network at the next call, where cost falls as a
    dial rises, where width does nothing, or where a training step fails."""
    side = function.resolution
    from effnet.nn import count  # torch, which is imported when something is counted

    base = network(function, 1.0, 1.0, side, num_classes)
    again = count.count(function, *function.multipliers(1.0, 1.0), side, num_classes)
    if again != base.counts:
        raise FunctionError(
            f"{function.place}: another network at each call ({base.counts.macs:,} and "
            f"{again.macs:,} multiply-adds, {base.counts.params:,} and {again.params:,} "
            "parameters); a function gives the same one for the same arguments"
        )
    try:
        doubled = {
            "depth": network(function, 2.0, 1.0, side, num_classes),
            "width": network(function, 1.0, 2.0, side, num_classes),
        }
    except FunctionError as error:
        raise FunctionError(
            f"{error} (asked for to see what depth and width do: a function is to build twice the "
            "baseline's)"
        ) from error
    larger_side = int(min(2 * side, max_side))
    if larger_side > side:
        doubled["resolution"] = network(function, 1.0, 1.0, larger_side, num_classes)
    notes = []
    for dial, larger in doubled.items():
        if larger.counts.macs < base.counts.macs:
            raise FunctionError(
                f"{function.place}: cost falls as {dial} rises: {base.counts.macs:,} "
                f"multiply-adds at 1, {larger.counts.macs:,} at 2"
            )
        if larger.counts.macs == base.counts.macs:
            notes.append(f"{function.name} costs the same at any {dial}: the map has no {dial}")
    if doubled["width"].counts.macs == base.counts.macs:
        raise FunctionError(
            f"{function.place}: width does nothing (the same cost at 1 and at 2); it is the dial "
            "that is solved for a budget"
        )
    count.try_step(base)
    return notes


_known: dict[str, dict[str, Counts]] = {}  # by digest, and by what was counted


def counted() -> int:
    """How many networks are known by now, of all functions."""
    return sum(len(counts) for counts in _known.values())


def _counts(
    function: Function, depth: float, width: float, resolution: int, num_classes: int
) -> Counts:
    from effnet.nn.count import count

    key = json.dumps([depth, width, resolution, num_classes, function.in_channels])
    known = _known.get(function.digest)
    if known is None:
        known = _read_counts(function)
        # What the file imports may have changed since: the first network that is asked for is
        # counted anew, and where it is another, so may all be.
        if key in known and known[key] != count(function, depth, width, resolution, num_classes):
            known = {}
            _forget_counts(function)
        _known[function.digest] = known
    if key not in known:
        known[key] = count(function, depth, width, resolution, num_classes)
        _write_counts(function, key, known[key])
    return known[key]


# ---- counts kept on disk


def _cache_file(function: Function) -> Path | None:
    """The file of a function's counts; None where there is no folder for it. In it other releases
    of torch, which may count otherwise, have files of their own."""
    from importlib.metadata import version

    try:
        folder = cache_folder() / "counts"
        folder.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError) as error:
        logger.info("counts are not kept: %s", error)
        return None
    return folder / f"{function.digest}-torch-{version('torch')}.jsonl"


def _read_counts(function: Function) -> dict[str, Counts]:
    """The counts of earlier processes. A line that is cut short, as by a kill, is left out."""
    path = _cache_file(function)
    counts: dict[str, Counts] = {}
    if path is None or not path.is_file():
        return counts
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            key, *values = json.loads(line)
            counts[key] = Counts(*values)
        except (ValueError, TypeError):
            continue
    return counts


def _forget_counts(function: Function) -> None:
    path = _cache_file(function)
    if path is not None:
        path.unlink(missing_ok=True)


def _write_counts(function: Function, key: str, counts: Counts) -> None:
    path = _cache_file(function)
    if path is None:
        return
    values = [key, counts.macs, counts.params, counts.acts, counts.structure]
    try:
        # one short line, which the system appends whole beside other processes' lines
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
    except OSError as error:
        logger.info("counts are not kept in %s: %s", path, error)
