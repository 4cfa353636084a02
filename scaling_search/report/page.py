"""Gathers what a report says and draws, all of it read from a run folder."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from effnet.shares import EXPONENTS, Exponents, exponents
from scaling_search import UserError
from scaling_search.report.commands import config_file, train_command
from scaling_search.results.curves import Curves
from scaling_search.results.reading import Results, open_results
from scaling_search.results.record import Record, count_ended
from scaling_search.study.commands import without_option
from scaling_search.study.growth import Addition
from scaling_search.study.settings import Study, check
from scaling_search.study.wording import percent
from scaling_search.verdict.lengths import as_far_as_run
from scaling_search.verdict.narration import (
    Sentence,
    StudyState,
    cards,
    comparisons,
    length_words,
    opening,
    why_none,
)
from scaling_search.verdict.verdict import Verdict, verdicts

# A network that loses more of its cost to rounding is named: 2% is what a budget tolerates.
_MUCH_WASTE = 0.02


@dataclass(frozen=True)
class Page:
    """The content that a report is made from."""

    title: str
    dataset: str
    data: str  # the data set in one line
    command: str
    study: Study
    targets: dict[str, float]  # budget → its cost; empty where the budget is nominal
    unfinished: str  # such as '4 of 19 runs'; empty for a finished study
    notes: list[str]
    provenance: dict[str, str]
    records: list[Record]
    verdicts: tuple[Verdict, ...]
    native: int = 0  # px of the images; 0: not known
    classes: int = 0  # 0: not known
    samples: Sequence[dict[str, Any]] = ()  # of data/samples.py
    state: StudyState = field(default_factory=StudyState)
    family: tuple[Record, ...] = ()  # runs of `scaling-search family --train`
    powers: Exponents = EXPONENTS["macs"]  # of depth, width, resolution: the budgets' measure grows

    @property
    def axis(self) -> str:
        """The cost by which the study's networks are drawn, a column of the table of networks: its
        budgets' measure, or multiply-adds where that is memory."""
        of = self.study.budgets[0].of
        return {"memory": "macs", "latency": "latency_ms"}.get(of, of)

    @property
    def picks(self) -> set[str]:
        """Keys of the networks chosen."""
        return {v.pick.candidate.key for v in self.verdicts}


def page_of(source: Results, folder: Path, *, writes_picks: bool = False) -> Page:
    """Return all that a report of this study is made from. `writes_picks`: the picks are about to
    be written into the folder, and can be trained from there. Raises UserError."""
    # at once: a store reads every attribute of the study for each of them
    facts = source.facts()
    records = source.records()
    study = check(facts["settings"], str(folder))
    unfinished = unfinished_words(facts, records)
    data_facts = facts.get("data facts") or {}
    if unfinished:
        reached = as_far_as_run(records, study)
        if reached.rungs != study.rungs:
            unfinished += f", none of {length_words(study, study.rungs[-1])}"
            study = reached
    concluded: list[Verdict] = []
    for v in verdicts(records, study):
        has_runs = any(row.seeds for row in v.rows)
        if has_runs and not (unfinished and v.is_alone):
            concluded.append(v)
    budgets = ", ".join(str(budget) for budget in study.budgets)
    return Page(
        title=f"Scaling {Path(study.baseline.name).name} to {budgets} on {facts['dataset']}",
        dataset=facts["dataset"],
        data=facts["data"],
        command=facts["command"],
        study=study,
        targets=facts["targets"],
        unfinished=unfinished,
        notes=[
            *facts["notes"],
            *additions_in_words(facts),
            *(facts.get("latency again") or []),
        ],
        provenance=facts["provenance"],
        records=records,
        verdicts=tuple(concluded),
        native=data_facts.get("native", 0),
        classes=data_facts.get("classes", 0),
        samples=facts.get("samples") or (),
        state=StudyState(
            unfinished,
            command_of(source, facts, folder),
            str(folder),
            facts.get("state") == "out of time",
            _train_commands(concluded, study, folder, writes_picks, _is_table(source)),
        ),
        family=_family(folder / "family"),
        powers=_powers(facts, study),
    )


def answer_sentences(page: Page) -> list[Sentence]:
    """Return the answer as the terminal says it."""
    sentences = opening(page.verdicts, page.records, page.unfinished)
    for v in page.verdicts:
        if len(page.study.budgets) > 1:
            sentences.append(Sentence("budget", str(v.budget)))
        for card in cards(v, page.study, page.state):
            sentences += card.sentences
        sentences += comparisons(v, page.records, page.study)
    for budget, why in budgets_without_answer(page).items():
        sentences += [Sentence("budget", budget), Sentence("answer", f"none yet: {why}")]
    return sentences


def budgets_without_answer(page: Page) -> dict[str, str]:
    """Return budget → why it has no answer, of the budgets that have none where others have."""
    answered = {str(v.budget) for v in page.verdicts}
    own = [r for r in page.records if r.candidate.role == "candidate"]
    missing = {}
    for budget in page.study.budgets:
        if answered and str(budget) not in answered:
            missing[str(budget)] = why_none([r for r in own if r.candidate.budget == budget])
    return missing


def _is_table(source: Results) -> bool:
    """Whether a study is a recorded table, and no store that was read."""
    return isinstance(source, Curves) and source.path.is_file()


def command_of(source: Results, facts: dict[str, Any], folder: Path) -> str:
    """Return the command that goes on with the study of this folder, wherever it was begun; '' for
    a recorded table and a replay, to which nothing can be added."""
    command = str(facts["command"])
    if _is_table(source) or "--replay" in command:
        return ""
    try:
        words = shlex.split(command)
    except ValueError:  # as a family's was recorded once, its folder not quoted
        return command
    is_moved = facts.get("folder") not in (None, folder.resolve().name)
    for option, given in itertools.pairwise(words):
        if option == "--out":
            is_moved = Path(given).resolve() != folder.resolve()
    if not is_moved:
        return command
    return f"{without_option(command, '--out')} --out {shlex.quote(str(folder))}"


def _train_commands(
    concluded: Sequence[Verdict], study: Study, folder: Path, writes_picks: bool, is_table: bool
) -> dict[str, str]:
    """Return budget → the command that trains its pick, where the folder has it."""
    commands = {}
    for v in concluded:
        if writes_picks or config_file(folder, v, study).is_file():
            commands[str(v.budget)] = train_command(v, study, folder, is_table)
    return commands


def _powers(facts: dict[str, Any], study: Study) -> Exponents:
    """Return the powers of the dimensions with which the budgets' measure grows: of a latency those
    that were measured."""
    latencies = facts.get("latencies") or {}
    depth, width, resolution = latencies.get("powers") or exponents(study.budgets[0])
    return depth, width, resolution


def additions_in_words(facts: dict[str, Any]) -> list[str]:
    """Return a line for each time that the study grew."""
    additions = facts.get("additions") or []
    return [f"The study grew on {Addition.from_dict(addition)}." for addition in additions]


def unfinished_words(facts: dict[str, Any], records: Sequence[Record]) -> str:
    """Return '4 of 19 runs', or '' for a finished study."""
    recorded = count_ended(records)
    state, planned = facts.get("state"), facts["planned"]
    is_done = recorded >= planned and state not in ("running", "starting")
    if state == "finished" or is_done:
        return ""
    words = f"{recorded} of {max(recorded, planned)} runs"
    return f"{words}, the time was up" if state == "out of time" else words


def _family(folder: Path) -> tuple[Record, ...]:
    """Return the finished runs of `scaling-search family --train`; none where there is nothing to
    read."""
    with suppress(UserError), open_results(folder) as source:
        return tuple(r for r in source.records() if r.done)
    return ()


def warnings(page: Page) -> list[str]:
    """Return what a reader should beware of before he trusts the answer, each as plain text that
    goes on from 'Beware of'."""
    candidates = [r for r in page.records if r.candidate.role == "candidate"]
    checks = [
        _stopped_early(page, candidates),
        _upscaled_images(page, candidates),
        _failed_runs(page),
        *(f"no answer for {budget}: {why}" for budget, why in budgets_without_answer(page).items()),
    ]
    return [warning for warning in checks if warning is not None]


def waste_words(page: Page) -> str | None:
    """Return which networks lose much of their cost to rounding; None where none does."""
    networks = {r.candidate.label: r.candidate.waste for r in page.records}
    wasteful = {label: waste for label, waste in networks.items() if waste > _MUCH_WASTE}
    if not wasteful:
        return None
    worst = max(wasteful, key=lambda label: wasteful[label])
    losers = "1 network loses" if len(wasteful) == 1 else f"{len(wasteful)} networks lose"
    return (
        f"Waste: {losers} over {percent(_MUCH_WASTE)} of their cost to the "
        f"rounding of feature maps, at most {percent(wasteful[worst])} ({worst})."
    )


def _stopped_early(page: Page, candidates: list[Record]) -> str | None:
    last = page.study.rungs[-1]
    reached = {r.candidate.key for r in candidates if r.epochs == last}
    stopped = {r.candidate.key for r in candidates} - reached
    if not stopped:
        return None
    never = "have not reached" if page.unfinished else "never reached"
    return f"short runs: {len(stopped)} candidates {never} {last} epochs; the model carries them"


def _upscaled_images(page: Page, candidates: list[Record]) -> str | None:
    largest = max((r.candidate.arch.resolution for r in candidates), default=0)
    if not page.native or largest <= page.native:
        return None
    return (
        f"upscaling: some networks see images larger than the {page.native} px that the data set "
        "has"
    )


def _failed_runs(page: Page) -> str | None:
    failed = sum(r.failed for r in page.records)
    if not failed:
        return None
    return (
        f"failures: {failed} run{'' if failed == 1 else 's'} did not finish and count for nothing"
    )
