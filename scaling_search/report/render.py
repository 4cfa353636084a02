"""One self-contained HTML file: the answer in words, the figures, the tables, all that is in them
as one JSON text.

The same text is what the dashboard serves, so that the page is made in one way.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib import resources

from scaling_search.report import columns, figures
from scaling_search.report.figures import compare
from scaling_search.report.figures.style import AXES
from scaling_search.report.page import Page, answer, comparison, escape, reproduce


def build(page: Page) -> str:
    """The whole page as HTML text."""
    words = f"{answer(page)}<div id='rest'></div>{reproduce(page)}"
    return _html(page.title, words, _content(page, {}))


def content(page: Page) -> str:
    """What the live page shows, as JSON: words as HTML (escaped), figures as plotly's JSON, tables
    as columns."""
    return _content(page, {"answer": answer(page), "reproduce": reproduce(page)})


def _content(page: Page, words: dict[str, str]) -> str:
    """`words`: what is not on the page already."""
    told, networks = columns.told_rows(page), columns.networks(page)
    index = {key: i for i, key in enumerate(networks["rows"]["network"])}
    drawn = figures.figures(page, told, index, networks)
    return _json(
        {
            "title": page.title,
            **words,
            "axes": AXES,
            "tables": {"networks": networks, "runs": columns.runs(page, index)},
        },
        drawn,
    )


def build_comparison(pages: Sequence[Page]) -> str:
    """One page of several studies: their fronts in one figure, their maps, their answers side by
    side."""
    front = figures.Figure("front", "Accuracy against cost", _COMPARED, compare.compared(pages))
    maps = [
        figures.Figure(
            f"map-{i}-{j}",
            f"{escape(page.title)}: where the budget {escape(v.budget)} went",
            "",
            text,
        )
        for i, page in enumerate(pages)
        for j, (v, text) in enumerate(compare.maps(page))
    ]
    shown = [front, *maps] if maps else []
    title = f"{len(pages)} studies"
    return _html(
        title,
        f"{comparison(pages)}<div id='rest' class='beside'></div>",
        _json({"title": title}, shown),
    )


_COMPARED = (
    "Each study's networks at their exact cost, with one standard deviation, and its front; stars are the picks. "
    "Accuracies of different data sets, sizes or recipes are not comparable as such: compare where the fronts bend and "
    "where on the map the best lie."
)


def live(page_title: str) -> str:
    """The page that the dashboard serves: it asks for its content."""
    words = "<section id='answer'><p>Reading the study ...</p></section><div id='rest'></div><div id='reproduce'></div>"
    return _html(page_title, words, _json({"title": page_title}, []), live=True)


def _json(parts: dict[str, object], drawn: Sequence[figures.Figure]) -> str:
    """As text that a script element may hold: `<` is written as an escape. Figures are JSON
    already."""
    texts = [
        json.dumps({"id": f.anchor, "heading": f.heading, "words": f.words, "control": f.control})[
            :-1
        ]
        + f', "figure": {f.figure}}}'
        for f in drawn
    ]
    text = (
        json.dumps(parts, separators=(",", ":"), ensure_ascii=False)[:-1]
        + f',"figures":[{",".join(texts)}]}}'
    )
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _html(title: str, words: str, data: str, live: bool = False) -> str:
    css, script, plotly = _asset("report.css"), _asset("report.js"), figures.script()
    asks = "'self'" if live else "'none'"
    policy = (
        f"default-src 'none'; script-src '{_digest(plotly)}' '{_digest(script)}'; style-src 'unsafe-inline'; "
        f"img-src data: blob:; connect-src {asks}; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><link rel='icon' href='data:,'><style>{css}</style></head>"
        f"<body{' data-live' if live else ''}><main><h1>{escape(title)}</h1>{words}</main>"
        # last, so that the words are painted first
        f"<script type='application/json' id='content'>{data}</script>"
        f"<script>{plotly}</script><script>{script}</script></body></html>\n"
    )


@cache
def _asset(name: str) -> str:
    return (resources.files("scaling_search.report") / "assets" / name).read_text()


@cache
def _digest(script: str) -> str:
    """What the page's own policy allows: these two scripts and no other, whatever a text may
    say."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
