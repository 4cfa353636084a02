"""The report's words: the answer, what to beware of, how to run it again. HTML, no plotly.

Every text that comes from a study, a data set or a name passes through `escape`.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from effnet.budget import human
from scaling_search import UserError
from scaling_search.results.curves import Curves
from scaling_search.results.record import Record
from scaling_search.results.store import Store
from scaling_search.study.settings import Study, check
from scaling_search.verdict.confirm import confirmed
from scaling_search.verdict.narration import (
    baseline_words,
    beside,
    bound_words,
    coefficients,
    fastest_words,
    noise_words,
    percent,
    points,
    settle_words,
    share_words,
    single_words,
    surface_words,
    tied_words,
)
from scaling_search.verdict.rank import holds
from scaling_search.verdict.verdict import Row, Verdict, verdicts


@dataclass(frozen=True)
class Page:
    """What a report is made from, all of it read from the run folder."""

    title: str
    dataset: str
    data: str  # the data set in one line
    command: str
    study: Study
    targets: dict[str, float]  # budget → MACs; empty where the budget is nominal
    unfinished: str  # such as '4 of 19 runs'; empty for a finished study
    notes: list[str]
    provenance: dict[str, str]
    records: list[Record]
    found: tuple[Verdict, ...]
    native: int = 0  # px of the images; 0: not known
    family: tuple[Record, ...] = ()  # runs of `scaling-search family --train`

    @property
    def picks(self) -> set[str]:
        """Keys of the networks chosen."""
        return {v.pick.candidate.key for v in self.found}


def escape(text: object) -> str:
    return html.escape(str(text))


# ---- the answer


def answer(page: Page) -> str:
    lines = [f"<p class='data'>{escape(page.data)}</p>"]
    if not page.found:
        lines.append(f"<p><strong>No answer yet:</strong> {_why_none(page)}</p>")
    for v in page.found:
        lines.append(_verdict(v, page))
    if notes := [*page.notes, *(f"Beware of {warning}." for warning in warnings(page))]:
        lines.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>")
    return f"<section id='answer'>{''.join(lines)}</section>"


def _why_none(page: Page) -> str:
    ended = [r.outcome for r in page.records if r.outcome]
    if not page.records:
        return "no run has been started."
    if not ended:
        return f"no run has ended; {len(page.records)} {'is' if len(page.records) == 1 else 'are'} in progress."
    failed = sum(o.status != "done" for o in ended)
    if failed == len(ended):
        return f"every run so far has failed ({failed} of {failed}); the table says how."
    return (
        f"no network of the budget has finished ({len(ended) - failed} runs have, {failed} failed)."
    )


def _verdict(v: Verdict, page: Page) -> str:
    c, n = v.pick.candidate, v.pick.seeds
    study = page.study
    so_far = (
        f"<strong>Unfinished, {escape(page.unfinished)}.</strong> So far: "
        if page.unfinished
        else ""
    )
    runs = f"{n} run{'s' if n != 1 else ''} of it, and all others through the model"
    test = f", test {points(v.pick.test)} %" if v.pick.test is not None else ""
    lead = (
        f"{so_far}For the budget <strong>{escape(v.budget)}</strong> choose <strong>{escape(c.label)}</strong>: "
        f"{escape(coefficients(c))}; {escape(share_words(c))}. It costs {human(c.cost.macs)} FLOPs (multiply-adds), "
        f"{c.ratio:.2f} times the baseline's. Validation accuracy {points(v.pick.mean)} ± {points(v.pick.error)} % "
        f"({runs}){test}. It is {escape(bound_words(v))}. {escape(tied_words(v))}."
    )
    items = []
    if fast := fastest_words(v):
        items.append(f"the fastest of those that cannot be told apart: {escape(fast)}")
    if paper := v.named("paper"):
        items.append(f"the paper's direction ({_named(paper)}): {escape(beside(v, paper))}")
    if single := single_words(v):
        items.append(f"the best single dimension, {escape(single)}")
    if base := baseline_words(v):
        items.append(f"the baseline: {escape(base)}")
    for found in confirmed(page.records, study, v):
        items.append(
            f"confirmed on the test split: {escape(found.row.candidate.label)}: {escape(found.words)}"
        )
    if surface := surface_words(v, study.rungs):
        items.append(f"the surface fitted over the shares is {escape(surface)}")
    items += [f"does it hold: {escape(line)}" for line in holds(page.records, study, v.budget)]
    if v.failed:
        items.append(
            f"left out because they did not finish: {escape('; '.join(f.label for f in v.failed))}"
        )
    items.append("; ".join(escape(w) for w in (noise_words(v), settle_words(v)) if w))
    items.append(
        f"these networks cost the same and trained for {escape(_trained(study))}: equal cost and equal epochs are "
        "equal training cost; short training is a proxy for long"
        if v.equal_cost
        else "these networks are equal in nominal cost only: weigh each accuracy against its real cost in the table"
    )
    return f"<p class='lead'>{lead}</p><ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def _trained(study: Study) -> str:
    last, recipe = study.rungs[-1], study.recipe
    return f"{last} epoch{'s' if last > 1 else ''} ({recipe.optimizer}, lr {recipe.lr:g}, batch {recipe.batch})"


def _named(row: Row) -> str:
    return escape(f"{', '.join(row.candidate.directions)}; {row.candidate.label}")


# ---- what to beware of, and the provenance


def warnings(page: Page) -> list[str]:
    """What a reader should know before trusting the answer; plain text."""
    found = []
    last = page.study.rungs[-1]
    few = sum(v.pick.seeds < 3 for v in page.found)
    if few:
        have = ", ".join(str(v.pick.seeds) for v in page.found)
        found.append(
            f"few seeds: the pick has {have} of its own, three or more tell luck from merit"
        )
    wasteful = {
        r.candidate.label: r.candidate.waste for r in page.records if r.candidate.waste > 0.02
    }
    if wasteful:
        worst = max(wasteful, key=lambda label: wasteful[label])
        found.append(
            f"waste: {len(wasteful)} networks lose over 2% of their cost to the rounding of feature maps, at most "
            f"{percent(wasteful[worst])} ({worst})"
        )
    mine = [r for r in page.records if r.candidate.role == "candidate"]
    short = {r.candidate.key for r in mine} - {r.candidate.key for r in mine if r.epochs == last}
    if short:
        never = "have not reached" if page.unfinished else "never reached"
        found.append(
            f"stopped: {len(short)} candidates {never} {last} epochs; the model carries them"
        )
    if page.native and any(r.candidate.arch.resolution > page.native for r in mine):
        found.append(
            f"upscaling: some networks see images larger than the {page.native} px that the data set has"
        )
    if failed := sum(r.outcome is not None and not r.done for r in page.records):
        found.append(
            f"failures: {failed} run{'s' if failed > 1 else ''} did not finish and count for nothing"
        )
    return found


def reproduce(page: Page) -> str:
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        for name, value in page.provenance.items()
    )
    return (
        f"<section id='reproduce'><h2>Run it again</h2><pre>{escape(page.command)}</pre>"
        f"<p>or, with everything resolved, save this as study.toml (it lies beside this report):</p>"
        f"<pre>scaling-search search --study study.toml</pre><details><summary>study.toml</summary>"
        f"<pre>{escape(page.study.to_toml())}</pre></details><dl>{facts}</dl></section>"
    )


# ---- several studies


def comparison(pages: Sequence[Page]) -> str:
    """A row for each budget of each study."""
    heads = (
        "study",
        "budget",
        "the pick",
        "its shares",
        "val %",
        "may lose (95%)",
        "tied",
        "baseline",
        "runs",
        "trained",
    )
    body = []
    for page in pages:
        for v in page.found:
            c = v.pick.candidate
            cells = [
                page.title, v.budget, c.label, share_words(c).removeprefix("shares: "),
                f"{points(v.pick.mean)} ± {points(v.pick.error)}", f"{points(v.bound)} points",
                f"{len(v.tied)} of {len(v.rows)}", points(v.baseline.mean) if v.baseline else "",
                page.unfinished or str(sum(r.outcome is not None for r in page.records)), _trained(page.study),
            ]  # fmt: skip
            body.append(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
        if not page.found:
            cells = [page.title, *[""] * (len(heads) - 2), "no network of the budget has finished"]
            body.append(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    return (
        f"<section id='answer'><div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
        "</table></div></section>"
    )


def page_of(source: Store | Curves, folder: Path) -> Page:
    """All that a report is made from. Raises UserError."""
    records = source.records()
    study = check(source.fact("settings"), str(folder))
    return Page(
        title=f"Scaling {study.baseline.name} on {source.fact('dataset')}: {', '.join(map(str, study.budgets))}",
        dataset=source.fact("dataset"),
        data=source.fact("data"),
        command=source.fact("command"),
        study=study,
        targets=source.fact("targets"),
        unfinished=unfinished_words(source),
        notes=source.fact("notes"),
        provenance=source.fact("provenance"),
        records=records,
        found=tuple(verdicts(records, study)),
        native=(source.fact("data facts") or {}).get("native", 0),
        family=_family(folder / "family"),
    )


def _family(folder: Path) -> tuple[Record, ...]:
    """What `scaling-search family --train` has trained in its own place; nothing where there is
    none to read."""
    if not (folder / "study.db").is_file():
        return ()
    with suppress(UserError):
        store = Store.read(folder)
        try:
            return tuple(r for r in store.records() if r.done)
        finally:
            store.close()
    return ()


def unfinished_words(source: Store | Curves) -> str:
    """'4 of 19 runs', or nothing for a finished study."""
    recorded = sum(r.outcome is not None for r in source.records())
    state = source.fact("state")
    if state == "finished" or recorded >= source.fact("planned"):
        return ""
    late = ", the time was up" if state == "out of time" else ""
    return f"{recorded} of {max(recorded, source.fact('planned'))} runs{late}"
