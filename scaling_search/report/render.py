"""Renders the report, the comparison of several studies and the dashboard's page as HTML.

Each is one self-contained file: words first, then all that its script (assets/report.js) draws as
one JSON text. The dashboard serves the same JSON, so that figures and tables are made in one way.
HTML is written in templates/ alone, where every text from a study, a data set or a name is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from scaling_search.report import columns, figures, stages
from scaling_search.report.figures import compare
from scaling_search.report.figures.style import DARK, axes_of
from scaling_search.report.live import Live
from scaling_search.report.page import Page, warnings, waste_words
from scaling_search.results.record import count_ended
from scaling_search.verdict.chances import MARGIN
from scaling_search.verdict.narration import cards, comparisons, details, in_brief, opening
from scaling_search.verdict.verdict import Verdict


def _texts(folder: str) -> dict[str, str]:
    """Return the files of a folder of this package by name."""
    files = (resources.files("scaling_search.report") / folder).iterdir()
    return {file.name: file.read_text("utf-8") for file in files}


# Read with this module, not when a report is written: the files of another version, installed while
# a study runs for hours, would ask for what this module does not have.
_TEMPLATES, _ASSETS = _texts("templates"), _texts("assets")

_COMPARED = (
    "Each study's networks at their exact cost, with its 95%, and its front; stars "
    "are the picks. Accuracies of different data sets, sizes or recipes are not comparable as "
    "such: compare where the fronts bend and where on the map the best lie."
)


def build(page: Page) -> str:
    """Return the report of one study as HTML."""
    words = {**_answer(page), "page": page}
    return _page("report.html.j2", _Shell(page.title, _content(page, {})), words)


def content(page: Page) -> str:
    """Return what the live page shows below its state, as JSON: words as HTML, figures, tables as
    columns."""
    words = {
        "answer": _render("answer.html.j2", {**_answer(page), "page": page}),
        "seen": _render("seen.html.j2", {**_answer(page), "page": page}),
        "reproduce": _render("reproduce.html.j2", {**_answer(page), "page": page}),
    }
    return _content(page, words)


def build_comparison(pages: Sequence[Page]) -> str:
    """Return one page of several studies as HTML: their answers side by side, their fronts in one
    figure, their maps."""
    title = f"{len(pages)} studies"
    content = _json({"title": title, "dark": DARK}, _compared_figures(pages))
    headings, rows = _compared_answers(pages)
    words = {"headings": headings, "rows": rows}
    return _page("comparison.html.j2", _Shell(title, content), words)


def live(title: str) -> str:
    """Return the page that the dashboard serves: it asks for its content."""
    return _page("live.html.j2", _Shell(title, _json({"title": title}, []), live=True), {})


def live_state(live: Live) -> str:
    """Return what a study does now as HTML."""
    return _render("live_state.html.j2", {"live": live})


# ---- the words


def _answer(page: Page) -> dict[str, object]:
    """Return what the template of the answer takes, but for the page."""
    return {
        "opening": opening(page.verdicts, page.records, page.unfinished),
        "answers": [
            {
                "budget": f"Budget {v.budget}",
                "cards": cards(v, page.study, page.state),
                "comparisons": comparisons(v, page.records, page.study),
                "details": details(v, page.records, page.study),
                "stages": _stages(v),
            }
            for v in page.verdicts
        ],
        "warnings": warnings(page),
        "waste": waste_words(page),
        "margin": MARGIN,
        "samples": page.samples,
    }


def _stages(v: Verdict) -> list[stages.Line]:
    if v.baseline is None:
        return []
    return stages.compare(v.baseline.candidate.arch, v.pick.candidate.arch)


def _compared_answers(pages: Sequence[Page]) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the rows of the table: a row for each budget of each study."""
    headings: list[str] = []
    rows = []
    for page in pages:
        runs = page.unfinished or str(count_ended(page.records))
        for v in page.verdicts:
            brief = in_brief(v, page.study)
            headings = ["study", *(sentence.label for sentence in brief), "runs"]
            rows.append([page.title, *(sentence.text for sentence in brief), runs])
        for sentence in opening(page.verdicts, page.records, ""):
            rows.append([page.title, f"{sentence.label}: {sentence.text}"])
    return headings or ["study", "answer"], rows


# ---- what the script draws


def _content(page: Page, words: dict[str, str]) -> str:
    """Return the JSON of one study's figures and tables. `words`: HTML that the page lacks yet."""
    networks = columns.networks(page)
    runs = columns.runs(page.records, columns.row_index(networks))
    parts: dict[str, object] = {
        "title": page.title,
        **words,
        # the first is shown until the reader chooses another
        "axes": axes_of(page),
        "dark": DARK,
        "margin": MARGIN,
        "tables": {"networks": networks, "runs": runs},
    }
    return _json(parts, figures.figures(page, networks))


def _compared_figures(pages: Sequence[Page]) -> list[figures.Figure]:
    """Return the fronts in one figure and a map for each verdict; nothing without a verdict."""
    maps = []
    for i, page in enumerate(pages):
        for j, (v, text) in enumerate(compare.maps(page)):
            heading = f"{page.title}: where the budget {v.budget} went"
            maps.append(figures.Figure(f"map-{i}-{j}", heading, "", text))
    if not maps:
        return []
    fronts = compare.fronts(pages)
    return [figures.Figure("front", "Accuracy against cost", _COMPARED, fronts), *maps]


def _json(parts: dict[str, object], drawn: Sequence[figures.Figure]) -> str:
    """Return one JSON text that a script element may hold: `<` is written as an escape.

    Figures are JSON already, megabytes of it, so they are put in as they are.
    """
    figure_texts = []
    for f in drawn:
        head = {
            "id": f.anchor,
            "heading": f.heading,
            "words": f.words,
            "control": f.control,
            "place": f.place,
        }
        figure_texts.append(f'{json.dumps(head)[:-1]}, "figure": {f.figure}}}')
    head_text = json.dumps(parts, separators=(",", ":"), ensure_ascii=False)
    text = f'{head_text[:-1]},"figures":[{",".join(figure_texts)}]}}'
    # U+2028 and U+2029 end a line in older JavaScript, but not in JSON
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


# ---- the page


@dataclass(frozen=True, slots=True)
class _Shell:
    """The frame that every page has around its words. `live`: its script asks the dashboard for
    content."""

    title: str
    content: str  # JSON without a `<`
    live: bool = False


def _page(template: str, shell: _Shell, words: dict[str, object]) -> str:
    script, plotly = _ASSETS["report.js"], figures.script()
    scripts = [plotly, script]
    if shell.live:
        scripts.append(_ASSETS["live.js"])
    # No script but these runs and nothing is fetched from anywhere, whatever a text may say.
    policy = {
        "default-src": "'none'",
        "script-src": " ".join(f"'{_digest(text)}'" for text in scripts),
        "style-src": "'unsafe-inline'",  # plotly sets styles as it draws
        "img-src": "data: blob:",
        "connect-src": "'self'" if shell.live else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    around = {
        "title": shell.title,
        "live": Markup(_ASSETS["live.js"]) if shell.live else "",
        "policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "css": Markup(_ASSETS["report.css"]),
        "plotly": Markup(plotly),
        "script": Markup(script),
        "content": Markup(shell.content),
    }
    # a template's last newline is dropped, and a whole page ends with one
    return _render(template, {**words, **around}) + "\n"


def _render(template: str, values: dict[str, object]) -> str:
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    """Templates that escape whatever they print, and fail at a name that nobody gave."""
    environment = Environment(
        loader=DictLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["split_at_options"] = _split_at_options
    return environment


def _split_at_options(text: str) -> list[str]:
    """Return text in pieces, every second of which is a command's option, such as --seeds."""
    # what follows a letter is part of a name, such as my--photos
    return re.split(r"(?<![\w-])(--[a-z][a-z-]*)", text)


@cache
def _digest(script: str) -> str:
    """Return a script's digest as a Content-Security-Policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
