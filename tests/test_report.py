import html.parser
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from scaling_search.page import Page
from scaling_search.record import Record
from scaling_search.report import build
from scaling_search.space import plan
from scaling_search.study import preset_path, read
from scaling_search.trial import Outcome
from scaling_search.triangle import NAMED
from scaling_search.verdict import verdicts
from tests.test_verdict import STUDY, TODO, record

EVIL = "</pre><script>alert(3)</script>"

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def page() -> Page:
    records = [record(c, 0, 0.7 + 0.01 * (k % 7), None) for k, c in enumerate(TODO.everything)]
    records += [record(c, 1, 0.71, 0.69) for c in TODO.everything[:4]]
    records.append(Record(0, TODO.candidates[5], 7, 1, Outcome("crashed", note="<script>alert(1)</script>")))
    base = TODO.baseline.cost.macs
    return Page(
        title='Scaling <b0> on "x" & y',
        data="data <img src=x onerror=alert(1)>",
        command="python run_search.py --data '</script><script>alert(2)</script>'",
        study=STUDY.model_copy(update={"baseline": STUDY.baseline.model_copy(update={"name": EVIL})}),
        targets={"2x": 2.0 * base},
        unfinished="",
        notes=["note <script>alert(4)</script>"],
        provenance={"data digest": "abc", "<b>": "<i>"},
        records=records,
        found=tuple(verdicts(records, STUDY)),
    )


def told(page: Page, records: list[Record], **changes: object) -> Page:
    """The page of other runs."""
    page = replace(page, records=records, **changes)
    return replace(page, found=tuple(verdicts(records, page.study)))


class Outside(html.parser.HTMLParser):
    """Every address that the page would fetch, and every script element with what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.scripts: list[str] = []
        self._in_script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_script = tag == "script"
        self.fetched += [v for k, v in attrs if k in ("src", "href") and v and not v.startswith("data:")]

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append(data)


def test_self_contained_and_escaped(page: Page) -> None:
    text = build(page)
    seen = Outside()
    seen.feed(text)
    assert seen.fetched == []
    assert text.count("plotly.js v") == 1, "plotly.js is embedded once"
    assert not any("alert(" in s and len(s) < 100_000 for s in seen.scripts)
    assert "<script>alert" not in text and "<img src=x" not in text
    assert "&lt;script&gt;alert(4)" in text and len(text) < 7_000_000


def test_answer_says_what_the_numbers_say(page: Page) -> None:
    text = re.sub(r"<[^>]+>", "", build(page).split("id='answer'")[1].split("</section>")[0])
    assert "For the budget 2x choose" in text and "alpha" in text and "shares: depth" in text
    assert "the paper's direction" in text and "best single dimension" in text and "the baseline: val" in text
    assert "cannot be told apart" in text and "equal training cost" in text
    assert "Unfinished" not in text
    part = build(replace(page, unfinished="4 of 19 runs"))
    assert "Unfinished, 4 of 19 runs." in part and "So far: " in part


def test_one_map_for_each_budget(page: Page) -> None:
    todo = plan(read(preset_path("quick"), {"budgets": ["0.5x", "2x"]}), 10, 28)
    records = [record(c, 0, 0.7) for c in todo.everything]
    study = page.study.model_copy(update={"budgets": ("0.5x", "2x")})
    text = build(told(page, records, study=study, targets={"0.5x": 1e6, "2x": 4e6}))
    assert 'id="map-0"' in text and 'id="map-1"' in text and "Where the budget 0.5x went" in text


def test_page_without_any_finished_network(page: Page) -> None:
    records = [Record(0, c, 0, 1, Outcome("diverged", note="loss not finite")) for c in TODO.everything]
    text = build(told(page, records))
    assert "No answer yet" in text and "diverged" in text and 'id="front"' not in text


def test_baseline_alone(page: Page) -> None:
    assert "No answer yet" in build(told(page, [record(TODO.baseline, 0, 0.5)]))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
def test_in_a_real_browser(page: Page, tmp_path: Path) -> None:
    """The page draws its figures, sorts its table, and neither logs an error nor asks the network for anything."""
    probe = """<script>
    const errors = [];
    window.addEventListener("error", e => errors.push(String(e.message)));
    window.addEventListener("load", () => setTimeout(() => {
      const column = name => [...document.querySelectorAll("#runs th")].findIndex(h => h.textContent === name);
      const head = document.querySelectorAll("#runs th button")[column("MACs")];
      const values = () =>
        [...document.querySelectorAll("#runs tbody tr")].map(r => +r.cells[column("MACs")].dataset.v);
      head.click(); const down = values(); head.click(); const up = values();
      document.title = "RESULT" + JSON.stringify({
        errors, up, down,
        front: document.querySelectorAll("#front .point").length,
        ternary: document.querySelectorAll("#map .point").length,
        curves: document.querySelectorAll("#curves .lines").length,
        requests: performance.getEntriesByType("resource").map(r => r.name).filter(n => !n.startsWith("data:")),
        alerts: document.body.textContent.includes("alert(1)"),
        overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
      });
    }, 1500));
    </script>"""
    (verdict,) = page.found
    assert verdict.surface is not None
    drawn = len(TODO.candidates) + len(NAMED) + len(verdict.surface.points) + len(set(verdict.surface.optimum))
    file = tmp_path / "report.html"
    file.write_text(build(page).replace("<head>", "<head>" + probe, 1))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --virtual-time-budget=8000 --dump-dom"
    for width in (1600, 390):
        command = [
            str(CHROMIUM), *flags.split(), f"--user-data-dir={tmp_path}/profile", f"--window-size={width},1200",
            file.as_uri(),
        ]  # fmt: skip
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        found = re.search(r"<title>RESULT(.*?)</title>", dom)
        assert found, "the page's scripts did not run to the end"
        result = json.loads(html.unescape(found[1]))
        assert result["errors"] == [] and result["requests"] == []
        assert result["up"] == sorted(result["up"]) and result["down"] == sorted(result["up"], reverse=True)
        assert result["front"] == len(TODO.everything) and result["ternary"] == drawn
        assert result["curves"] >= len(TODO.everything)
        assert result["overflow"] <= 0, f"the page is wider than {width} px"
