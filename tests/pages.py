"""Pages of made-up studies."""

from dataclasses import replace

from scaling_search.report.page import Page
from scaling_search.results.record import Record
from scaling_search.training.trial import Outcome
from scaling_search.verdict.verdict import verdicts
from tests.records import STUDY, TODO, record

EVIL = "</pre><script>alert(3)</script>"


def made_up_page() -> Page:
    """A page whose every text tries to break out of the HTML."""
    records = [record(c, 0, 0.7 + 0.01 * (k % 7), None) for k, c in enumerate(TODO.everything)]
    records += [record(c, 1, 0.71, 0.69) for c in TODO.everything[:4]]
    records.append(
        Record(0, TODO.candidates[5], 7, 1, Outcome("crashed", note="<script>alert(1)</script>"))
    )
    base = TODO.baseline.cost.macs
    return Page(
        title='Scaling <b0> on "x" & y',
        dataset="x",
        data="data <img src=x onerror=alert(1)>",
        command="python run_search.py --data '</script><script>alert(2)</script>'",
        study=STUDY.model_copy(
            update={"baseline": STUDY.baseline.model_copy(update={"name": EVIL})}
        ),
        targets={"2x": 2.0 * base},
        unfinished="",
        notes=["note <script>alert(4)</script>"],
        provenance={"data digest": "abc", "<b>": "<i>"},
        records=records,
        verdicts=tuple(verdicts(records, STUDY)),
    )


def page_with(page: Page, records: list[Record], **changes: object) -> Page:
    """The page with `records` in place of its own, and their verdicts."""
    page = replace(page, records=records, **changes)
    return replace(page, verdicts=tuple(verdicts(records, page.study)))
