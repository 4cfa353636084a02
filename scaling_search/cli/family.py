"""The command `family`: a study's direction at other costs, and whether error follows cost along
it."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from effnet import families
from effnet.arch import Baseline, least_side, scale
from effnet.budget import Budget, human
from effnet.cost import macs, training_memory
from effnet.rounding import round_half_up
from effnet.shares import Shares, direction
from scaling_search import UserError
from scaling_search.study.candidate import Candidate

_DEVICE = 192 * 2**30  # bytes: what does not train in this, one image at a time, trains nowhere
_FARTHEST = 1e5  # times the baseline's cost, either way
_TINY = 0.02  # a share below 0 by no more than this is rounding
_BESIDE = 0.25  # how far off in cost a published member may be


@dataclass(frozen=True, slots=True)
class Member:
    """A network of the family; the paper's direction at the same cost; the published member near it
    in cost."""

    name: str
    network: Candidate
    paper: Candidate
    published: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fit:
    """log(error) = intercept + slope * log(MACs), by least squares over `count` networks, `left`
    their residual standard deviation, `centre` and `reach` the mean and the sum of squares of
    log(MACs)."""

    slope: float
    intercept: float
    left: float
    centre: float
    reach: float
    count: int

    def predict(self, cost: float) -> tuple[float, float, float]:
        """Error (a fraction) of one more network of `cost` MACs, and its 95% prediction
        interval."""
        from scipy.stats import t

        x = math.log(cost)
        wide = math.sqrt(1 + 1 / self.count + (x - self.centre) ** 2 / self.reach)
        half = min(
            float(t.ppf(0.975, self.count - 2)) * self.left * wide, 100.0
        )  # e^100: as good as without end
        middle = self.intercept + self.slope * x
        return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def fit(costs: Sequence[float], errors: Sequence[float]) -> Fit:
    """The line through networks of `costs` MACs and `errors` (fractions). Raises ValueError for
    fewer than three networks, networks of one cost, or an error of 0."""
    from scipy.stats import linregress

    if len(costs) < 3 or min(costs) == max(costs) or min(errors) <= 0:
        raise ValueError(
            "a line with an interval takes three networks, of different costs, none without errors"
        )
    x, y = np.log(costs), np.log(errors)
    line = linregress(x, y)
    residual = float(((y - line.intercept - line.slope * x) ** 2).sum())
    left = math.sqrt(residual / (len(x) - 2))
    return Fit(
        float(line.slope),
        float(line.intercept),
        left,
        float(x.mean()),
        float(((x - x.mean()) ** 2).sum()),
        len(x),
    )


# ---- which networks


def phis(text: str) -> list[float]:
    """`1..7`, `1,2,3` or any real number above 0, in order. Raises UserError."""
    span = re.fullmatch(r"\s*(\d{1,4})\.\.(\d{1,4})\s*", text)
    try:
        found = (
            list(range(int(span[1]), int(span[2]) + 1))
            if span
            else [float(part) for part in text.split(",")]
        )
    except ValueError:
        found = []
    if not found or not all(0 < phi < math.inf for phi in found):
        raise UserError(
            f"--phi {text}: numbers above 0, such as 0.5 or 1,2,3, or a range of whole ones such as 1..7"
        )
    return sorted(set(found))


def budgets(text: str, tolerance: float) -> list[Budget]:
    """Of multiply-adds, as in `2x,4x,8x`. Raises UserError."""
    try:
        found = [Budget.parse(part, tolerance) for part in text.split(",")]
        if any(budget.of != "macs" for budget in found):
            raise ValueError("a family is of multiply-adds, such as 2x,4x or 400M,1.2G")
    except ValueError as error:
        raise UserError(f"--budgets {text}: {error}") from None
    return found


def dropout(base_percent: int, ratio: float) -> int:
    """Percent at `ratio` times the baseline's cost. The published rates, .2 .2 .3 .3 .4 .4 .5 .5
    from B0 to B7, rise by 0.3 over seven doublings: here linearly, in steps of 5, up to 50. A
    smaller network, or a family without dropout, keeps the baseline's."""
    if not base_percent or ratio <= 1:
        return base_percent
    return max(
        base_percent, min(50, 5 * round_half_up((base_percent + 30 / 7 * math.log2(ratio)) / 5))
    )


def aim_of(pick: Candidate) -> Shares:
    """The direction that a network went: its shares, none below 0. Raises UserError where it went
    in none."""
    if pick.shares is None or min(pick.shares) < -_TINY:
        raise UserError(
            f"the pick, {pick.label}, has no direction to follow: it costs what the baseline does, or shrinks one "
            "dimension to grow another"
        )
    depth, width, side = (max(0.0, share) for share in pick.shares)
    total = depth + width + side
    return depth / total, width / total, side / total


def _fits(base: Baseline, aim: Shares, ratio: float, top: float, classes: int) -> bool:
    """Whether the network of `ratio` trains on some device, one image at a time; resolution goes to
    `top` px at most and width takes up the rest. Solves nothing."""
    s = direction(aim, ratio)
    side = max(
        least_side(base.total_stride), round_half_up(min(top, s.resolution * base.resolution))
    )
    width = max(1.0, math.sqrt(ratio / s.depth) * base.resolution / side)
    return training_memory(scale(base, s.depth, width, side, num_classes=classes), 1) <= _DEVICE


def check_reach(
    base: Baseline, aim: Shares, top: float, classes: int, name: str, power: float, unit: float
) -> None:
    """Whether a network of e^`power` times the baseline's cost can be had; `unit`: the power of phi
    = 1, or 0.

    Raises UserError, with the largest that can."""
    most = math.log(_FARTHEST)
    if -most <= power <= 0 or (
        0 < power <= most and _fits(base, aim, math.exp(power), top, classes)
    ):
        return
    size = f"10^{power / math.log(10):,.1f} times the baseline's multiply-adds"
    if power < 0:
        raise UserError(f"{name}: {size}; take at least 10^-5 times")
    low, high = 0.0, most
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (
            (middle, high) if _fits(base, aim, math.exp(middle), top, classes) else (low, middle)
        )
    largest = (
        f"phi {math.floor(100 * low / unit) / 100:g}"
        if unit > 0
        else f"{math.floor(math.exp(low)):,}x"
    )
    raise UserError(
        f"{name}: {size}, past what any device can train ({_DEVICE >> 30} GiB, one image at a time); the largest is "
        f"about {largest}"
    )


def published(base: Baseline, cost: int, classes: int) -> str | None:
    """The published member nearest in exact cost, within a quarter; None where `base` is not a
    published one."""
    home = families.BASELINES.get(base.name)
    if home is None or replace(base, rounding=home.rounding) != home:
        return None
    kin = [
        name
        for name, m in families.MEMBERS.items()
        if m.baseline == base.name and not name.startswith("x-")
    ]
    costs = {name: macs(families.arch(name, num_classes=classes)) for name in kin}
    name = min(costs, key=lambda name: abs(costs[name] / cost - 1))
    return f"{name}, {human(costs[name])} MACs" if abs(costs[name] / cost - 1) <= _BESIDE else None


def members(
    base: Baseline, aim: Shares, targets: dict[str, Budget], classes: int, waste: float, top: float
) -> list[Member]:
    """For each target the network of at most `top` px that is nearest to the direction, as
    effnet.shares.toward has it; cheapest first."""
    from scaling_search.study.directions import NAMED
    from scaling_search.study.plan import reference

    base_macs = macs(scale(base, num_classes=classes))
    found = []
    for name, budget in sorted(targets.items(), key=lambda item: item[1].target(base_macs)):
        ratio = budget.target(base_macs) / base_macs
        net, paper = (
            reference(base, way, ratio, classes, waste, top) for way in (aim, NAMED["paper"])
        )
        side, off = (
            round_half_up(direction(aim, ratio).resolution * base.resolution),
            net.ratio / ratio - 1,
        )
        notes = (
            f"misses the budget by {off:+.1%}" if abs(off) > budget.tolerance else "",
            f"the direction wants {side} px, the images have {top:g}" if side > top else "",
        )
        arch = replace(net.arch, dropout_percent=dropout(base.dropout_percent, net.ratio))
        ours = replace(net, arch=arch, role="candidate", budget=Budget.from_text(str(budget)))
        found.append(
            Member(
                name,
                ours,
                paper,
                published(base, net.cost.macs, classes),
                tuple(filter(None, notes)),
            )
        )
    return found


# ---- the command


def add_command(commands: Any) -> None:
    """Adds `family` to argparse's `commands`."""
    family = commands.add_parser(
        "family", help="a study's direction at other costs; --train: does error follow cost?"
    )
    family.add_argument("run", type=Path, help="run folder of a study")
    costs = family.add_mutually_exclusive_group(required=True)
    costs.add_argument("--phi", help="1..7 or 0.5,1,2: the study's budget to this power")
    costs.add_argument("--budgets", help="2x,4x,8x or 400M,1.2G")
    family.add_argument(
        "--train",
        action="store_true",
        help="train them as the study trained, fit error against cost",
    )
    family.add_argument("--data", help="where the study's data are now (with --train)")
    family.add_argument("--out", type=Path, help="run folder of --train (default: RUN/family)")
    family.add_argument(
        "--workers", type=int, help="runs at a time (default: cores / threads; 1 on a GPU)"
    )
    family.set_defaults(command=_family)


def _family(args: argparse.Namespace, argv: list[str]) -> int:
    """Exit status 0; with --train 1 when no member finished, 130 after Ctrl-C: the same command
    goes on."""
    powers = phis(args.phi) if args.phi is not None else []
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers {args.workers}: at least 1")

    from scaling_search.driver.progress import say
    from scaling_search.results.reading import open_results
    from scaling_search.study.settings import check
    from scaling_search.verdict.narration import spent
    from scaling_search.verdict.verdict import verdicts

    source, console = open_results(args.run), Console()
    study, records = check(source.fact("settings"), str(args.run)), source.records()
    baseline = next((r.candidate for r in records if r.candidate.role == "baseline"), None)
    found = verdicts(records, study)
    if not found or baseline is None:
        raise UserError(
            f"{args.run}: no verdict yet, no network of the budget has finished; let the search go on"
        )
    base, classes = study.network(), baseline.arch.num_classes
    tolerance, top = (
        study.space.tolerance,
        math.inf if study.space.upscale else source.fact("data facts")["native"],
    )
    verdict = max(found, key=lambda v: v.pick.candidate.ratio)
    pick = verdict.pick.candidate
    aim = aim_of(pick)
    unit = math.log(verdict.budget.target(baseline.cost.macs) / baseline.cost.macs)
    if args.phi is not None and abs(unit) < 0.01:
        raise UserError(
            f"--phi {args.phi}: any power of the study's budget, {verdict.budget}, is 1x; give --budgets"
        )
    for phi in powers:
        check_reach(base, aim, top, classes, f"--phi {phi:g}", phi * unit, unit)
    if args.phi is not None:
        targets = {
            f"phi {phi:g}": Budget(math.exp(phi * unit), relative=True, tolerance=tolerance)
            for phi in powers
        }
    else:
        targets = {str(budget): budget for budget in budgets(args.budgets, tolerance)}
        for name, budget in targets.items():
            power = math.log(budget.target(baseline.cost.macs) / baseline.cost.macs)
            check_reach(base, aim, top, classes, f"--budgets {name}", power, 0.0)

    say(console, "direction", f"{spent(aim)}, from {pick.label}, picked at {verdict.budget}")
    family = members(base, aim, targets, classes, study.space.max_waste, top)
    for m in family:
        for label, text in _lines(m):
            say(console, label, text)
    return _train(args, study, baseline, family, console) if args.train else 0


def _lines(m: Member) -> list[tuple[str, str]]:
    from scaling_search.verdict.narration import spent

    c = m.network
    cost = f"{human(c.cost.macs)} MACs ({c.ratio:.2f}x), {human(c.cost.params)} params"
    # next to the baseline's own cost, shares of next to nothing say nothing
    shares = f" · {spent(c.shares)}" if c.shares and abs(c.ratio - 1) > _BESIDE / 5 else ""
    notes = "".join(f" · {note}" for note in m.notes)
    lines = [
        (m.name, f"{c.label} · {cost}{shares} · dropout {c.arch.dropout_percent / 100:g}{notes}")
    ]
    beside = f"the paper's direction: {m.paper.label}, {human(m.paper.cost.macs)} MACs"
    lines.append(("", beside + (f" · published: {m.published}" if m.published else "")))
    return lines


def _train(
    args: argparse.Namespace,
    study: Any,
    baseline: Candidate,
    family: list[Member],
    console: Console,
) -> int:
    from scaling_search import session
    from scaling_search.driver.progress import say
    from scaling_search.study.plan import Plan
    from scaling_search.verdict.narration import points

    networks = tuple(
        {m.network.key: m.network for m in family if m.network.key != baseline.key}.values()
    )
    last = study.rungs[-1:]
    alone = {
        "budgets": tuple(dict.fromkeys(c.budget for c in networks)),
        "allocation": "flat",
        "rungs": last,
    }
    own = study.model_copy(update={**alone, "extra": 0, "confirm": 0, "references": ()})
    if args.data:
        own = own.model_copy(update={"data": own.data.model_copy(update={"source": args.data})})
    own, data = session.resolve_device_and_data(own, console)
    todo = Plan(baseline, (), networks, {}, ())
    status, records = session.train_family(
        own, todo, data, args.out or args.run / "family", args.workers, console
    )
    if status:
        return status
    accuracies: dict[str, list[float]] = {}
    for r in records:
        if r.done:
            accuracies.setdefault(r.candidate.key, []).append(r.val_acc)
    trained = [
        (c, 1 - float(np.mean(accuracies[c.key]))) for c in todo.everything if c.key in accuracies
    ]
    for c, error in trained:
        say(console, "trained", f"{c.label} · {human(c.cost.macs)} MACs · val {points(1 - error)}")
    for line in fit_words([c.cost.macs for c, _ in trained], [error for _, error in trained]):
        say(console, "fit", line)
    return 0 if len(trained) > 1 else 1


def fit_words(costs: Sequence[int], errors: Sequence[float]) -> list[str]:
    """Error against cost in words, and the check by holding out the largest."""
    if len(set(costs)) < 4:
        return [
            f"{len(set(costs))} costs are too few to fit a line and check it: train at least 4 networks"
        ]
    line = fit(costs, errors)
    doubling = f"error falls by {1 - 2**line.slope:.1%} with each doubling of multiply-adds"
    order = sorted(range(len(costs)), key=lambda i: costs[i])
    rest, largest = order[:-1], order[-1]
    middle, low, high = fit([costs[i] for i in rest], [errors[i] for i in rest]).predict(
        costs[largest]
    )
    seen = errors[largest]
    inside = "inside" if low <= seen <= high else "outside"
    check = (
        f"the largest, held out: error {seen:.1%}, predicted {middle:.1%} (95%: {low:.1%} to {min(high, 1):.1%}): "
        f"{inside}, {100 * abs(seen - middle):.1f} points {'above' if seen > middle else 'below'}"
    )
    twice, least, most = line.predict(2 * max(costs))
    ahead = f"twice the largest's cost: error {twice:.1%} (95%: {least:.1%} to {min(most, 1):.1%})"
    return [doubling, check, ahead]
