"""A family: networks along one direction at other costs, and whether error follows cost along it.

EfficientNet's family is one such: B0's direction at phi 1 to 7 (arXiv 1905.11946, section 4). Here
the direction is the one that a study picked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from effnet import families
from effnet.arch import AnyBaseline, Arch, Baseline, least_side, scale
from effnet.budget import Budget, human
from effnet.cost import macs, training_memory
from effnet.custom import Function
from effnet.rounding import round_half_up
from effnet.shares import Shares, direction, exponents
from scaling_search import UserError
from scaling_search.study.candidate import Candidate
from scaling_search.study.context import ScalingContext

# What does not train in this many bytes, one image at a time, trains on no device there is: the
# largest accelerators have 192 GiB.
_LARGEST_MEMORY = 192 * 2**30
_FARTHEST = 1e5  # times the baseline's cost, either way
_ROUNDING = 0.02  # a share this little below 0 comes from rounding
# How far off in cost a published member may be to stand beside one of ours, as a fraction.
_PUBLISHED_WITHIN = 0.25


@dataclass(frozen=True, slots=True)
class Member:
    """A network of the family; the paper's direction at the same cost; the published member near it
    in cost, in words."""

    name: str
    network: Candidate
    paper: Candidate
    published: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fit:
    """log(error) = intercept + slope * log(MACs), by least squares over `count` networks.

    `residual_deviation` is the residuals' standard deviation (count - 2 degrees of freedom);
    `centre` and `spread` are the mean and the sum of squares of log(MACs)."""

    slope: float
    intercept: float
    residual_deviation: float
    centre: float
    spread: float
    count: int

    def predict(self, cost: float) -> tuple[float, float, float]:
        """Error (a fraction) of one more network of `cost` MACs, and its 95% prediction interval:
        the textbook's for a new observation of a simple regression."""
        from scipy.stats import t

        x = math.log(cost)
        factor = math.sqrt(1 + 1 / self.count + (x - self.centre) ** 2 / self.spread)
        half = float(t.ppf(0.975, self.count - 2)) * self.residual_deviation * factor
        half = min(half, 100.0)  # e^100 is as good as without end, and no overflow
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
    squares = float(((y - line.intercept - line.slope * x) ** 2).sum())
    return Fit(
        slope=float(line.slope),
        intercept=float(line.intercept),
        residual_deviation=math.sqrt(squares / (len(x) - 2)),
        centre=float(x.mean()),
        spread=float(((x - x.mean()) ** 2).sum()),
        count=len(x),
    )


def dropout(base_percent: int, ratio: float) -> int:
    """Dropout in percent at `ratio` times the baseline's cost.

    The published rates, .2 .2 .3 .3 .4 .4 .5 .5 from B0 to B7 (efficientnet_builder.py), rise by
    0.3 over seven doublings: here linearly, in steps of 5, up to 50. A smaller network, or a family
    without dropout, keeps the baseline's."""
    if not base_percent or ratio <= 1:
        return base_percent
    percent = 5 * round_half_up((base_percent + 30 / 7 * math.log2(ratio)) / 5)
    return max(base_percent, min(50, percent))


def aim_of(pick: Candidate) -> Shares:
    """The direction that a network went: its shares, none below 0. Raises UserError where it went
    in none."""
    if pick.shares is None or min(pick.shares) < -_ROUNDING:
        raise UserError(
            f"the pick, {pick.label}, has no direction to follow: it costs what the baseline does, "
            "or shrinks one dimension to grow another"
        )
    depth, width, side = (max(0.0, share) for share in pick.shares)
    total = depth + width + side
    return depth / total, width / total, side / total


def check_reach(context: ScalingContext, aim: Shares, name: str, power: float, unit: float) -> None:
    """Raises UserError, with the largest that can be had, where a network of e^`power` times the
    baseline's cost cannot. `unit` is the power of phi = 1, or 0 where costs are given as
    budgets."""
    most = math.log(_FARTHEST)
    if -most <= power <= 0:
        return
    if 0 < power <= most and _trains_somewhere(context, aim, math.exp(power)):
        return
    size = f"10^{power / math.log(10):,.1f} times the baseline's cost"
    if power < 0:
        raise UserError(f"{name}: {size}; take at least 10^-5 times")
    low, high = 0.0, most
    while high - low > 0.01:
        middle = (low + high) / 2
        if _trains_somewhere(context, aim, math.exp(middle)):
            low = middle
        else:
            high = middle
    largest = f"{math.floor(math.exp(low)):,}x"
    if unit > 0:
        largest = f"phi {math.floor(100 * low / unit) / 100:g}"
    raise UserError(
        f"{name}: {size}, past what any device can train ({_LARGEST_MEMORY >> 30} GiB, one image "
        f"at a time); the largest is about {largest}"
    )


def _trains_somewhere(context: ScalingContext, aim: Shares, ratio: float) -> bool:
    """Whether the network of `ratio` trains on some device, one image at a time. Solves nothing:
    resolution is cut at the context's largest and width takes up the rest."""
    base = context.base
    s = direction(aim, ratio)
    if isinstance(base, Function):  # shares.toward refuses those that take too long to count
        return True
    wanted = round_half_up(min(context.max_side, s.resolution * base.resolution))
    side = max(least_side(base.total_stride), wanted)
    width = max(1.0, math.sqrt(ratio / s.depth) * base.resolution / side)
    arch = scale(base, s.depth, width, side, num_classes=context.classes)
    return training_memory(arch, 1) <= _LARGEST_MEMORY


def published(base: AnyBaseline, cost: int, classes: int) -> str | None:
    """The published member nearest in exact cost, within a quarter, in words; None where `base` is
    not a published one."""
    home = families.BASELINES.get(base.name)
    if (
        home is None
        or not isinstance(base, Baseline)
        or replace(base, rounding=home.rounding) != home
    ):
        return None
    costs = {}
    for name, member in families.MEMBERS.items():
        # X's members (x-) are of another search, on another stem: not this family's
        if member.baseline == base.name and not name.startswith("x-"):
            costs[name] = macs(families.arch(name, num_classes=classes))
    nearest = min(costs, key=lambda name: abs(costs[name] / cost - 1))
    if abs(costs[nearest] / cost - 1) > _PUBLISHED_WITHIN:
        return None
    return f"{nearest}, {human(costs[nearest])} FLOPs"


def members(context: ScalingContext, aim: Shares, targets: dict[str, Budget]) -> list[Member]:
    """For each target the network that is nearest to the direction (effnet.shares.toward); cheapest
    first."""
    by_cost = sorted(targets.items(), key=lambda item: context.ratio(item[1]))
    return [_member(context, aim, name, budget) for name, budget in by_cost]


def _member(context: ScalingContext, aim: Shares, name: str, budget: Budget) -> Member:
    base, ratio = context.base, context.ratio(budget)
    net = context.toward(aim, ratio, budget)
    paper = context.toward_paper(ratio, budget)
    notes = []
    off = budget.off(budget.measure(net.arch), context.base_cost(budget))
    if abs(off) > budget.tolerance:
        notes.append(f"misses the budget by {off:+.1%}")
    side = round_half_up(direction(aim, ratio, exponents(budget)).resolution * base.resolution)
    if side > context.max_side:
        notes.append(f"the direction wants {side} px, the images have {context.max_side:g}")
    arch = net.arch
    if isinstance(arch, Arch) and isinstance(base, Baseline):  # a function has its own dropout
        arch = replace(arch, dropout_percent=dropout(base.dropout_percent, net.ratio))
    # the budget as it is recorded, without the many digits of e^(phi · unit)
    recorded = replace(Budget.from_text(str(budget)), times=budget.times)
    network = replace(net, arch=arch, role="candidate", budget=recorded)
    near = published(base, net.cost.macs, context.classes)
    return Member(name, network, paper, near, tuple(notes))
