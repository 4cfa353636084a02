"""The command `family`: a study's direction at other costs, and whether error follows cost along
it."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Console

from effnet import custom
from effnet.budget import BASELINE_MACS, Budget, human
from scaling_search import UserError
from scaling_search.cli.command import Argument, Command, OneOf
from scaling_search.study.flags import OUTPUT, PLACE, SPENDING, TRAINED

if TYPE_CHECKING:
    from effnet.shares import Shares
    from scaling_search.results.record import Record
    from scaling_search.study.candidate import Candidate
    from scaling_search.study.context import ScalingContext
    from scaling_search.study.family import Member
    from scaling_search.study.settings import Study
    from scaling_search.verdict.verdict import Verdict

# A member whose cost is within this fraction of the baseline's is shown without its shares: of next
# to no extra cost, they say nothing.
_BASELINE_COST = 0.05
# A member of more than this many times the pick's cost is past what the study compared. Of three
# studies that searched larger budgets too, one found another direction there (studies/transfer; the
# figures are those of benchmarks/family.py), two the same (studies/single-dimension-*).
_FARTHER = 1.5
_MOVES = (
    "of three studies on CIFAR-10 it held at 4x in two; in the third, what followed it lay 1.7 "
    "points (0.6 to 2.8) behind the pick of a search at 4x. A search at the cost you want is surer"
)
_FEWEST_TO_FIT = 4  # costs: a line with an interval takes three, and the largest is held out


@dataclass(frozen=True, slots=True)
class _Source:
    """What a family goes on from: a study and the network that it picked."""

    study: Study
    context: ScalingContext
    baseline: Candidate
    verdict: Verdict

    @property
    def pick(self) -> Candidate:
        return self.verdict.pick.candidate


def parse_phis(text: str) -> list[float]:
    """`1..7`, `1,2,3` or any real number above 0, in order. Raises UserError."""
    span = re.fullmatch(r"\s*(\d{1,4})\.\.(\d{1,4})\s*", text)
    phis: list[float] = []
    if span:
        phis = [float(phi) for phi in range(int(span[1]), int(span[2]) + 1)]
    else:
        try:
            phis = [float(part) for part in text.split(",")]
        except ValueError:
            phis = []  # refused below, with what is
    if not phis or not all(0 < phi < math.inf for phi in phis):
        raise UserError(
            f"--phi {text}: numbers above 0, such as 0.5 or 1,2,3, or a range of whole ones such "
            "as 1..7"
        )
    return sorted(set(phis))


def parse_budgets(text: str, tolerance: float, like: Budget = BASELINE_MACS) -> list[Budget]:
    """Budgets as in `2x,4x,8x`, of the measure of `like`, which need not be repeated. Raises
    UserError."""
    try:
        budgets = [Budget.parse(part, tolerance) for part in text.split(",")]
        says_macs = "macs" in text.lower()
        for i, budget in enumerate(budgets):
            if budget.relative and budget.of == "macs" and not says_macs:
                budgets[i] = replace(like, value=budget.value, relative=True, tolerance=tolerance)
                continue
            if budget.of == like.of == "latency" and not budget.device:
                budget = replace(budget, device=like.device)
            budgets[i] = replace(budget, times=like.times)
            if budget.measured_as != like.measured_as:
                raise ValueError(f"the study's budget is {like}: give a family of {like.unit} too")
    except ValueError as error:
        raise UserError(f"--budgets {text}: {error}") from error
    return budgets


def _family(args: argparse.Namespace, argv: list[str]) -> int:
    """Exit status 0; with --train 1 when no member finished, 130 after Ctrl-C: the same command
    goes on."""
    phis = parse_phis(args.phi) if args.phi is not None else []
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers {args.workers}: at least 1")

    from scaling_search.driver.console import say
    from scaling_search.study.family import aim_of, members
    from scaling_search.study.wording import spent

    source = _read_source(args.run, args.baseline)
    aim = aim_of(source.pick)
    targets = _targets(args, phis, source, aim)
    console = Console()
    origin = f"from {source.pick.label}, picked at {source.verdict.budget}"
    say(console, "direction", f"{spent(aim)}, {origin}")
    family = members(source.context, aim, targets)
    for member in family:
        for label, text in _lines(member):
            say(console, label, text)
    if any(member.network.ratio > _FARTHER * source.pick.ratio for member in family):
        say(console, "note", f"the direction is that of {source.verdict.budget}: {_MOVES}")
    return _train(args, source, family, console) if args.train else 0


def _read_source(run: Path, place: str | None) -> _Source:
    """The study of a run folder and its verdict, that of its largest budget, or of the one whose
    config.json `run` is; `place` is that of the function that built its networks, where one did.
    Raises UserError."""
    from scaling_search.results.reading import open_results
    from scaling_search.study.latency import Recorded, with_times
    from scaling_search.study.plan import scaling_context
    from scaling_search.study.settings import check
    from scaling_search.verdict.verdict import verdicts

    budget = None
    if run.suffix == ".json":
        run, budget = run.parent, _budget_of(run)
    with open_results(run) as results:
        study, records = check(results.fact("settings"), str(run)), results.records()
        data_facts = results.fact("data facts") or {}
        latencies = results.fact("latencies")
    _find_function(study, place)
    native = data_facts.get("native")
    if native is None:  # its driver was killed as it began
        raise UserError(f"{run}: its data are not recorded; run its search again, which goes on")
    if latencies is not None:
        study = with_times(study, Recorded.read(latencies, study).times)
    candidates = [record.candidate for record in records]
    baseline = next((c for c in candidates if c.role == "baseline"), None)
    reached = verdicts(records, study)
    if not reached or baseline is None:
        raise UserError(
            f"{run}: no verdict yet, no network of the budget has finished; let the search go on"
        )
    largest = study.budgets[0].measure  # of one measure, all of them
    verdict = max(reached, key=lambda verdict: largest(verdict.pick.candidate.arch))
    if budget is not None:
        of_budget = [verdict for verdict in reached if str(verdict.budget) == budget]
        if not of_budget:
            raise UserError(f"{run}: its study has no verdict at {budget}, whose config.json it is")
        verdict = of_budget[0]
    context = scaling_context(study, baseline.arch.num_classes, native)
    return _Source(study, context, baseline, verdict)


def _budget_of(config: Path) -> str:
    """The budget whose pick a config.json is. Raises UserError."""
    try:
        return str(json.loads(config.read_text("utf-8"))["budget"])
    except OSError as error:
        raise UserError(f"{config}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{config}: not the config.json of a search: {error}") from error


def _find_function(study: Study, place: str | None) -> None:
    """Find the function that a study's networks were built by, at the place where the user says
    that it is: a run folder may be somebody else's. Raises UserError."""
    wanted = study.baseline.function
    if place is None and wanted is None:
        return
    if wanted is None:
        raise UserError(f"--baseline {place}: the study's networks are of {study.baseline.name}")
    name = Path(study.baseline.name).name
    if place is None:
        raise UserError(f"the study's networks are built by a function: give it, --baseline {name}")
    function = custom.find(place)
    if function.digest != wanted:
        raise UserError(
            f"--baseline {place}: not the function of the study, {name} of digest {wanted}, but of "
            f"{function.digest}; a copy of its file is in the run folder, as baseline.py"
        )


def _targets(
    args: argparse.Namespace, phis: list[float], source: _Source, aim: Shares
) -> dict[str, Budget]:
    """The budgets of the family by name. Raises UserError for one that no network can meet."""
    from scaling_search.study.family import check_reach

    context, tolerance = source.context, source.study.space.tolerance
    targets: dict[str, Budget] = {}
    if args.phi is None:
        like = source.study.budgets[0]
        for budget in parse_budgets(args.budgets, tolerance, like):
            power = math.log(context.ratio(budget))
            check_reach(context, aim, f"--budgets {budget}", power, 0.0)
            targets[str(budget)] = budget
        return targets
    unit = math.log(context.ratio(source.verdict.budget))
    if abs(unit) < 0.01:
        raise UserError(
            f"--phi {args.phi}: any power of the study's budget, {source.verdict.budget}, is 1x; "
            "give --budgets"
        )
    for phi in phis:
        check_reach(context, aim, f"--phi {phi:g}", phi * unit, unit)
        ratio = math.exp(phi * unit)
        budget = replace(source.verdict.budget, value=ratio, relative=True, tolerance=tolerance)
        targets[f"phi {phi:g}"] = budget
    return targets


def _lines(member: Member) -> list[tuple[str, str]]:
    """A member in two lines, each (label, text): what it is, and what stands beside it."""
    from scaling_search.study.wording import spent

    network = member.network
    cost = f"{human(network.cost.macs)} FLOPs ({network.ratio:.2f}x)"
    words = [network.label, f"{cost}, {human(network.cost.params)} params"]
    if network.latency is not None:
        words.append(f"{network.budget.quantity(network.latency)}, by the study's measurements")
    if network.shares and abs(network.ratio - 1) > _BASELINE_COST:
        words.append(spent(network.shares))
    words.append(f"dropout {network.arch.dropout_percent / 100:g}")
    words += member.notes
    paper = member.paper
    beside = [f"the paper's direction: {paper.label}, {human(paper.cost.macs)} FLOPs"]
    if member.published:
        beside.append(f"published: {member.published}")
    return [(member.name, " · ".join(words)), ("", " · ".join(beside))]


def _train(
    args: argparse.Namespace, source: _Source, family: list[Member], console: Console
) -> int:
    """Train the members as the study trained, and fit error against cost; the exit status."""
    from scaling_search import session
    from scaling_search.driver.console import say
    from scaling_search.study.plan import Plan
    from scaling_search.study.wording import points

    networks: dict[str, Candidate] = {}
    for member in family:
        if member.network.key != source.baseline.key:
            networks[member.network.key] = member.network
    candidates = tuple(networks.values())
    study = _study_of_family(source.study, candidates, args.data)
    study, data = session.resolve_device_and_data(study, console)
    plan = Plan(source.baseline, (), candidates, {}, ())
    run = args.run.parent if args.run.suffix == ".json" else args.run
    folder = args.out or run / "family"
    status, records = session.train_family(
        study, plan, data, folder, args.workers, console, retry_failed=args.retry_failed
    )
    if status:
        return status
    accuracy = _mean_accuracies(records)
    trained = [network for network in plan.everything if network.key in accuracy]
    for network in trained:
        words = f"{human(network.cost.macs)} FLOPs · val {points(accuracy[network.key])}"
        say(console, "trained", f"{network.label} · {words}")
    costs = [network.cost.macs for network in trained]
    for line in fit_words(costs, [1 - accuracy[network.key] for network in trained]):
        say(console, "fit", line)
    return 0 if len(trained) > 1 else 1


def _study_of_family(study: Study, networks: Sequence[Candidate], source: str | None) -> Study:
    """The study with these networks and its longest runs alone; `source`: where its data are
    now."""
    budgets = tuple(dict.fromkeys(network.budget for network in networks))
    changes = {
        "budgets": budgets,
        "allocation": "flat",
        "rungs": study.rungs[-1:],
        "extra": 0,
        "confirm": 0,
        "references": (),
    }
    if source:
        changes["data"] = study.data.model_copy(update={"source": source})
    return study.model_copy(update=changes)


def _mean_accuracies(records: Sequence[Record]) -> dict[str, float]:
    """Of each network with a finished run, its validation accuracy: the mean over seeds."""
    from scaling_search.results.record import by_network_key

    groups = by_network_key([record for record in records if record.done])
    return {key: fmean(run.val_acc for run in runs) for key, runs in groups.items()}


def fit_words(costs: Sequence[int], errors: Sequence[float]) -> list[str]:
    """Error against cost in words, and the check by holding out the largest."""
    from scaling_search.study.family import fit

    if 0 in errors:
        return ["a network without errors is on no line: nothing is fitted"]
    distinct = len(set(costs))
    if distinct < _FEWEST_TO_FIT:
        return [
            f"{distinct} costs are too few to fit a line and check it: train at least "
            f"{_FEWEST_TO_FIT} networks"
        ]
    line = fit(costs, errors)
    doubling = f"error falls by {1 - 2**line.slope:.1%} with each doubling of multiply-adds"
    *smaller, largest = sorted(range(len(costs)), key=lambda i: costs[i])
    held_out = fit([costs[i] for i in smaller], [errors[i] for i in smaller])
    middle, low, high = held_out.predict(costs[largest])
    error = errors[largest]
    inside = "inside" if low <= error <= high else "outside"
    side = "above" if error > middle else "below"
    check = (
        f"the largest, held out: error {error:.1%}, predicted {middle:.1%} (95%: {low:.1%} to "
        f"{min(high, 1):.1%}): {inside}, {100 * abs(error - middle):.1f} points {side}"
    )
    twice, least, most = line.predict(2 * max(costs))
    interval = f"(95%: {least:.1%} to {min(most, 1):.1%})"
    return [doubling, check, f"twice the largest's cost: error {twice:.1%} {interval}"]


FAMILY = Command(
    "family",
    "a study's direction at other costs; with --train: does error follow cost?",
    (
        Argument(
            "run",
            "Run folder of a study; of several budgets, the config-2x.json in it that is meant "
            "(else that of the largest).",
            options={"type": Path},
        ),
        Argument(
            "--baseline",
            "The function that built the study's networks, as FILE.py:FUNCTION, where one did.",
            "none",
            TRAINED,
        ),
        OneOf(
            (
                Argument(
                    "--phi", "Powers of the study's budget: 1..7 or 0.5,1,2.", "the --budgets"
                ),
                Argument(
                    "--budgets", "Costs of the members: 2x,4x,8x or 400M,1.2G.", "those of --phi"
                ),
            ),
            required=True,
        ),
        Argument(
            "--train",
            "Train the members as the study trained, and fit error against cost.",
            group=TRAINED,
            options={"action": "store_true"},
        ),
        Argument(
            "--data", "Where the study's data are now, with --train.", "where they were", TRAINED
        ),
        Argument(
            "--workers",
            "Runs at a time, with --train.",
            "cores / threads; 1 on a GPU",
            PLACE,
            {"type": int},
        ),
        Argument(
            "--retry-failed",
            "Try runs again that crashed, timed out or ran out of memory, with --train.",
            group=SPENDING,
            options={"action": "store_true"},
        ),
        Argument("--out", "Run folder of --train.", "RUN/family", OUTPUT, {"type": Path}),
    ),
    _family,
)
