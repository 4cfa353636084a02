"""The report's words: the answer, the table of runs, how to run it again. HTML, no plotly.

Every text that comes from a study, a data set or a name passes through `escape`.
"""

from __future__ import annotations

import html
from dataclasses import dataclass

from effnet.budget import human
from scaling_search.analysis import holds
from scaling_search.confirm import confirmed
from scaling_search.record import Record
from scaling_search.study import Study
from scaling_search.verdict import MARGIN, Row, Verdict
from scaling_search.words import (
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


@dataclass(frozen=True)
class Page:
    """What a report is made from, all of it read from the run folder."""

    title: str
    data: str  # the data set in one line
    command: str
    study: Study
    targets: dict[str, float]  # budget → MACs; empty where the budget is nominal
    unfinished: str  # such as '4 of 19 runs'; empty for a finished study
    notes: list[str]
    provenance: dict[str, str]
    records: list[Record]
    found: tuple[Verdict, ...]


def escape(text: object) -> str:
    return html.escape(str(text))


# ---- the answer


def answer(found: list[Verdict], page: Page) -> str:
    lines = [f"<p class='data'>{escape(page.data)}</p>"]
    if not found:
        lines.append("<p><strong>No answer yet:</strong> no network of the budget has finished.</p>")
    for v in found:
        lines.append(_verdict(v, page))
    if page.notes:
        lines.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in page.notes) + "</ul>")
    return f"<section id='answer'>{''.join(lines)}</section>"


def _verdict(v: Verdict, page: Page) -> str:
    c, n = v.pick.candidate, v.pick.seeds
    study = page.study
    so_far = f"<strong>Unfinished, {escape(page.unfinished)}.</strong> So far: " if page.unfinished else ""
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
        items.append(f"confirmed on the test split: {escape(found.row.candidate.label)}: {escape(found.words)}")
    if surface := surface_words(v, study.rungs):
        items.append(f"the surface fitted over the shares is {escape(surface)}")
    items += [f"does it hold: {escape(line)}" for line in holds(page.records, study, v.budget)]
    if v.failed:
        items.append(f"left out because they did not finish: {escape('; '.join(f.label for f in v.failed))}")
    items.append("; ".join(escape(w) for w in (noise_words(v), settle_words(v)) if w))
    last = study.rungs[-1]
    epochs = f"{last} epoch{'s' if last > 1 else ''}"
    items.append(
        f"these networks cost the same and trained for {epochs}: equal cost and equal epochs are equal training cost; "
        "short training is a proxy for long"
        if v.equal_cost
        else "these networks are equal in nominal cost only: weigh each accuracy against its real cost in the table"
    )
    return f"<p class='lead'>{lead}</p><ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def _named(row: Row) -> str:
    return escape(f"{', '.join(row.candidate.directions)}; {row.candidate.label}")


# ---- the tables and the provenance


def networks(v: Verdict) -> str:
    """Every network of the budget against the pick, best first."""
    heads = ("network", "stands for", "val % expected", "below the pick, points (95%)", "", "P(best)", "tied", "runs")
    body = []
    for row in v.rows:
        pick = row.candidate.key == v.pick.candidate.key
        cells = [
            row.candidate.label,
            ", ".join(row.candidate.directions),
            f"{points(row.mean)} ± {points(row.error)}",
            "" if pick else f"{points(row.behind)} ({points(row.low)} to {points(row.high)})",
            "the pick" if pick else row.standing,
            f"{row.best:.2f}",
            "yes" if row.tied else "",
            str(row.seeds),
        ]
        body.append(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    return (
        f"<section><h2>The networks of {escape(v.budget)}</h2><p>From one model of all runs. Tied: the smallest set "
        f"whose P(best) sums to 0.95. As good: within {points(MARGIN)} points of the pick, either way.</p>"
        f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div></section>"
    )


_HEAD = (
    ("network", "blocks, width multiplier, resolution"),
    ("stands for", ""),
    ("val %", ""),
    ("test %", "what the answer names only"),
    ("seed", ""),
    ("epochs", ""),
    ("status", ""),
    ("alpha", "depth multiplier"),
    ("beta", "width multiplier"),
    ("gamma", "resolution multiplier"),
    ("depth share", "share of the extra cost"),
    ("width share", "share of the extra cost"),
    ("resolution share", "share of the extra cost"),
    ("MACs", "multiply-adds per image"),
    ("ratio", "to the baseline's MACs"),
    ("waste", "of the resolution's rounding"),
    ("params", ""),
    ("seconds", ""),
    ("note", ""),
)


def table(records: list[Record]) -> str:
    head = "".join(
        f"<th aria-sort='none'><button type='button' title='{escape(title)}'>{escape(name)}</button></th>"
        for name, title in _HEAD
    )
    body = []
    for r in records:
        c, o = r.candidate, r.outcome
        val = o.epochs[-1].val_acc if o and r.done else None
        shares = c.shares or (None, None, None)
        role = [] if c.role == "candidate" else [c.role]
        cells = [
            (c.label, None),
            (", ".join([*role, *c.directions]), None),
            (points(val) if val is not None else "", val),
            (points(r.test_acc) if r.test_acc is not None else "", r.test_acc),
            (r.seed, r.seed),
            (r.epochs, r.epochs),
            (o.status if o else "not finished", None),
            *((f"{x:.3g}", x) for x in (c.alpha, c.beta, c.gamma)),
            *((percent(x) if x is not None else "", x) for x in shares),
            (human(c.cost.macs), c.cost.macs),
            (f"{c.ratio:.2f}x", c.ratio),
            (percent(c.waste), c.waste),
            (human(c.cost.params), c.cost.params),
            (f"{o.seconds:.0f}" if o else "", o.seconds if o else None),
            (o.note if o else "", None),
        ]
        row = "".join(
            f"<td>{escape(text)}</td>"
            if value is None
            else f"<td class='n' data-v='{float(value)!r}'>{escape(text)}</td>"
            for text, value in cells
        )
        body.append(f"<tr>{row}</tr>")
    return (
        "<section><h2>Every run</h2><p>Click a heading to sort. The same rows, in full precision, are in "
        "results.csv.</p>"
        f"<div class='wide'><table id='runs'><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        "</section>"
    )


def reproduce(page: Page) -> str:
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in page.provenance.items())
    return (
        f"<section id='reproduce'><h2>Run it again</h2><pre>{escape(page.command)}</pre>"
        f"<p>or, with everything resolved, save this as study.toml (it lies beside this report):</p>"
        f"<pre>scaling-search search --study study.toml</pre><details><summary>study.toml</summary>"
        f"<pre>{escape(page.study.to_toml())}</pre></details><dl>{facts}</dl></section>"
    )
