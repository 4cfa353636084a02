"""The report and the dashboard as people see them: in headless Chromium."""

from __future__ import annotations

import csv
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scaling_search.report.figures.style import AXES
from scaling_search.report.page import Page
from scaling_search.report.render import build, build_comparison
from scaling_search.study.directions import NAMED, SINGLE
from tests.chaos import ROOT, WORDS
from tests.pages import page_with
from tests.records import TODO, record

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here: apt-get install chromium"
)
COMMAND = [
    sys.executable,
    "-c",
    "import sys; from scaling_search.cli import main; sys.exit(main())",
]
HANG = 180  # seconds: longer than anything takes here, on a busy machine too
# A name that would be a script, an element, the end of a style, an attribute; and one that reads
# from the right.
HOSTILE = (
    "</style></script><script>window.hit=1</script><img src=x onerror='window.hit=1'>\"'\\ "
    "\u202eright\u2066"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class OpenPage:
    """A page that is open in the browser, with every line in its console, every exception and every
    address that it has requested."""

    def __init__(self, browser: Any, address: str, width: int = 1600, **options: Any) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 1000}, **options)
        self.console: list[str] = []
        self.requests: list[str] = []
        # Lines of every kind: plotly.js logs its warnings by console.trace.
        self.page.on("console", lambda line: self.console.append(line.text))
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.page.wait_for_selector("#of-runs, #front .point", state="attached")

    def unfold(self) -> None:
        """Open everything that is folded."""
        self.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")

    def column(self, table: str, name: str) -> list[str]:
        """The texts of a table's column, in the order of its rows."""
        headings = self.page.locator(f"#{table} th").all_inner_texts()
        place = [heading.rstrip(" ▲▼") for heading in headings].index(name) + 1
        cells = self.page.locator(f"#{table} tbody tr td:nth-child({place})")
        texts: list[str] = cells.all_inner_texts()
        return texts

    def count(self, selector: str) -> int:
        """The number of elements that the selector matches."""
        elements: int = self.page.locator(selector).count()
        return elements


def saved(text: str, folder: Path) -> str:
    """The address of a page written to a folder."""
    (folder / "report.html").write_text(text)
    return (folder / "report.html").as_uri()


@pytest.mark.parametrize(("width", "scheme"), [(1600, "light"), (390, "dark")])
def test_the_page_draws_all_and_asks_for_nothing(
    browser: Any, page: Page, tmp_path: Path, width: int, scheme: str
) -> None:
    address = saved(build(page), tmp_path)
    opened = OpenPage(browser, address, width, color_scheme=scheme)
    assert opened.page.locator(".card").count() == 4
    assert opened.count("#time .bars") == 0, "what is folded is not drawn"
    opened.unfold()
    opened.page.wait_for_selector("#time .bars", state="attached")
    (v,) = page.verdicts
    assert v.surface is not None
    assert opened.count("#front .point") == len(TODO.everything)
    published = len(NAMED) - len(SINGLE)  # the pure ones are the corners
    marks = len(TODO.candidates) + published + len(set(v.surface.optimum))
    assert opened.count("#map .point") == marks
    assert opened.count("#map .hm image") > 0, "the surface is filled"
    # every network, baseline and references too
    assert opened.count("#behind .point") == len(TODO.everything)
    assert opened.count("#progress .lines") > 0
    assert opened.count("#time .bars") > 0
    wide = opened.page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert wide <= 0, f"the page is wider than {width} px"
    dark = (
        opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        != "rgb(255, 255, 255)"
    )
    ink = opened.page.evaluate(
        "getComputedStyle(document.querySelector('#front .xtick text')).fill"
    )
    assert dark == (scheme == "dark")
    assert (ink == "rgb(26, 26, 26)") == (scheme == "light")
    assert opened.console == []
    fetched = [url for url in opened.requests if not url.startswith(("data:", "blob:"))]
    assert fetched == [address]


def test_hovering_names_the_network(browser: Any, page: Page, tmp_path: Path) -> None:
    opened = OpenPage(browser, saved(build(page), tmp_path))
    opened.page.locator("#front").scroll_into_view_if_needed()
    star = opened.page.locator("#front .scatterlayer .trace").last.locator(".point").first
    box = star.bounding_box()
    opened.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    opened.page.wait_for_selector("#front .hovertext")
    said = opened.page.locator("#front .hovertext").text_content()
    assert page.verdicts[0].pick.candidate.label in said
    assert "shares: depth" in said
    assert "and what its neighbours say" in said


def test_sort_filter_unfold_and_csv(browser: Any, page: Page, tmp_path: Path) -> None:
    opened = OpenPage(browser, saved(build(page), tmp_path), accept_downloads=True)
    head = opened.page.locator("#networks th button", has_text=re.compile("^accuracy %$"))
    head.click()
    down = [float(v.split()[0]) for v in opened.column("networks", "accuracy %") if v]
    assert down == sorted(down, reverse=True)
    assert len(down) == len(TODO.everything)
    assert opened.column("networks", "accuracy %")[len(down) :] == [""] * (
        len(TODO.everything) - len(down)
    )
    head.click()
    up = [float(v.split()[0]) for v in opened.column("networks", "accuracy %") if v]
    assert up == sorted(down)

    label = TODO.candidates[1].label
    opened.page.fill("#of-networks input", label.upper())
    (name,) = opened.column("networks", "network")
    assert name.startswith(label)
    assert (
        opened.page.locator("#of-networks .count").inner_text()
        == f"1 of {len(TODO.everything)} rows"
    )
    opened.page.locator("#networks tbody tr").first.click()
    assert "seed 0, epochs 1: done, val" in opened.page.locator("#networks tr.runs").inner_text()

    opened.unfold()
    opened.page.fill("#of-runs input", "crashed")
    with opened.page.expect_download() as download:
        opened.page.click("#of-runs button.csv")
    with Path(download.value.path()).open() as file:
        rows = list(csv.DictReader(file))
    assert [r["status"] for r in rows] == ["crashed"]
    assert rows[0]["note"] == "<script>alert(1)</script>"
    assert download.value.suggested_filename == "runs.csv"
    assert opened.console == []


def test_the_axis_of_cost_can_be_chosen(browser: Any, page: Page, tmp_path: Path) -> None:
    opened = OpenPage(browser, saved(build(page), tmp_path))
    assert opened.page.locator("#front .xtitle").text_content() == "parameters"
    opened.page.select_option("#axis", "macs")
    assert opened.page.locator("#front .xtitle").text_content() == AXES["macs"]
    traces = "document.getElementById('front').data.filter(trace => trace.meta?.axis)"
    costs = opened.page.evaluate(f"{traces}.flatMap(trace => trace.x)")
    assert sorted(costs) == sorted(c.cost.macs for c in TODO.everything)
    assert opened.console == []


def test_more_columns_unfold(browser: Any, page: Page, tmp_path: Path) -> None:
    opened = OpenPage(browser, saved(build(page), tmp_path))
    before = opened.count("#networks th")
    opened.page.click("#of-networks button.columns")
    assert opened.count("#networks th") > before + 10
    assert "depth share" in opened.page.locator("#networks thead").inner_text()
    assert opened.count("#networks tbody .difference svg") == len(TODO.everything) - 1
    opened.page.click("#of-networks button.columns")
    assert opened.count("#networks th") == before


def test_the_answer_is_on_a_phones_first_screen(browser: Any, page: Page, tmp_path: Path) -> None:
    opened = OpenPage(browser, saved(build(page), tmp_path), 390)
    opened.page.set_viewport_size({"width": 390, "height": 844})
    bottoms = opened.page.evaluate(
        "[...document.querySelectorAll('.card')].map(card => card.getBoundingClientRect().bottom)"
    )
    assert max(bottoms) <= 844
    table = opened.page.locator("#networks")
    table.scroll_into_view_if_needed()
    right = opened.page.evaluate(
        "document.querySelector('#networks tbody td:nth-child(2)').getBoundingClientRect().right"
    )
    assert right <= 390, "the accuracy is in sight"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_have_contrast(
    browser: Any, page: Page, tmp_path: Path, scheme: str
) -> None:
    """WCAG AA: 4.5 for text, 3 for marks."""
    opened = OpenPage(browser, saved(build(page), tmp_path), color_scheme=scheme)
    opened.unfold()
    background = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    texts = opened.page.evaluate(
        "[...document.querySelectorAll('main p, main dt, main dd, main td, main small, main h3')]"
        ".filter(e => e.offsetParent).map(e => [getComputedStyle(e).color,"
        " getComputedStyle(e.closest('.card') ?? document.body).backgroundColor])"
    )
    assert min(contrast(*pair) for pair in texts) >= 4.5
    marks = opened.page.evaluate(
        "[...document.querySelectorAll('#behind .point, #front .point')]"
        ".map(e => [getComputedStyle(e).fill, getComputedStyle(e).stroke])"
    )
    for fill, stroke in marks:
        drawn = [c for c in (fill, stroke) if c not in ("none", "rgba(0, 0, 0, 0)")]
        assert max(contrast(c, background) for c in drawn) >= 3


def contrast(one: str, other: str) -> float:
    """Of two colours as the browser names them, by WCAG 2.1."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_images_of_the_data_are_shown(browser: Any, page: Page, tmp_path: Path) -> None:
    dot = (
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgAB"
        "SK+kcQAAAABJRU5ErkJggg=="
    )
    seen = [{"label": "<b>cat", "images": [{"px": "32 px", "uri": dot}]}]
    opened = OpenPage(browser, saved(build(replace(page, samples=seen)), tmp_path))
    shown = opened.page.locator(".samples img")
    assert shown.evaluate("image => image.complete && image.naturalWidth") == 1
    assert "<b>cat" in opened.page.locator(".samples").inner_text()
    assert opened.console == []


def test_figures_are_saved_from_their_own_buttons(browser: Any, page: Page, tmp_path: Path) -> None:
    opened = OpenPage(browser, saved(build(page), tmp_path), accept_downloads=True)
    for title, magic in (("Download plot as a PNG", b"\x89PNG"), ("Download as SVG", b"<svg")):
        opened.page.locator("#front").hover()
        with opened.page.expect_download() as download:
            opened.page.locator(f"#front .modebar-btn[data-title='{title}']").click()
        assert Path(download.value.path()).read_bytes().startswith(magic)


def test_hostile_text_is_text(browser: Any, page: Page, tmp_path: Path) -> None:
    records = [*page.records]
    crashed = records[-1].outcome
    assert crashed is not None
    records[-1] = replace(records[-1], outcome=replace(crashed, note=HOSTILE))
    hostile = replace(
        page_with(page, records),
        title=HOSTILE,
        data=HOSTILE,
        command=HOSTILE,
        notes=[HOSTILE],
        unfinished=HOSTILE,
        provenance={HOSTILE: HOSTILE},
        targets={HOSTILE: 1e7},
    )
    for text in (build(hostile), build_comparison([hostile, page])):
        opened = OpenPage(browser, saved(text, tmp_path))
        assert opened.page.evaluate("window.hit") is None
        assert opened.count("img") == 0
        assert opened.count("main script") == 0
        assert opened.count("body > script") == 3
        assert opened.count("style[nonce], head style") >= 1
        assert HOSTILE.split("\u202e")[0] in opened.page.locator("main").inner_text()
        assert opened.console == [], (
            "nothing was even tried, or the page's policy would have said so"
        )
    # and if something slipped through, the policy would stop it
    opened.page.evaluate(
        "const script = document.createElement('script'); script.text = 'window.hit=1'; "
        "document.body.append(script)"
    )
    assert opened.page.evaluate("window.hit") is None


def test_titles_in_a_legend_are_as_they_were_given(
    browser: Any, page: Page, tmp_path: Path
) -> None:
    text = build_comparison([replace(page, title="a <b>"), replace(page, title="\"x\" & 'y'")])
    opened = OpenPage(browser, saved(text, tmp_path))
    names = opened.page.locator("#front .legend .legendtext").all_text_contents()
    assert names == ["a <b>", "\"x\" & 'y'"]
    assert opened.console == []


@pytest.mark.parametrize("finished", [0, 1, 2])
def test_pages_of_little_have_no_error(
    browser: Any, page: Page, tmp_path: Path, finished: int
) -> None:
    """Of one network, plotly.js took its accuracy for a colour in the map's legend."""
    records = [record(c, 0, 0.5) for c in TODO.candidates[:finished]]
    opened = OpenPage(browser, saved(build(page_with(page, records)), tmp_path))
    assert opened.console == []
    assert opened.count("#runs tbody tr") == finished


def test_a_page_of_failures_has_no_error(browser: Any, page: Page, tmp_path: Path) -> None:
    records = [record(c, 0, None) for c in TODO.everything]
    opened = OpenPage(browser, saved(build(page_with(page, records)), tmp_path))
    assert opened.console == []
    assert opened.count("#runs tbody tr") == len(records)


def test_every_glyph_of_a_legend_has_the_colour_of_its_marks(
    browser: Any, page: Page, tmp_path: Path
) -> None:
    """plotly.js takes a number for a colour where a legend's glyph has no scale: black marks, and
    "Invalid color specifier" in the console."""
    opened = OpenPage(browser, saved(build(page), tmp_path))
    for figure in ("map", "front", "behind"):
        glyphs = opened.page.locator(f"#{figure} .legend .legendpoints path").evaluate_all(
            "all => all.map(glyph => getComputedStyle(glyph).fill)"
        )
        marks = opened.page.locator(f"#{figure} .scatterlayer .point").evaluate_all(
            "all => all.map(point => getComputedStyle(point).fill)"
        )
        assert glyphs
        assert set(glyphs) <= set(marks), figure
    assert opened.console == []


# ---- live


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A real study, longer than the tests, and the address of its dashboard."""
    folder = tmp_path_factory.mktemp("live") / "run"
    words = [*WORDS, "--extra", "30", "--data", "shapes", "--workers", "1", "--out", str(folder)]
    with ExitStack() as ends:
        study = subprocess.Popen(
            [sys.executable, str(ROOT / "run_search.py"), *words], stdout=subprocess.PIPE, text=True
        )
        ends.callback(_stop, study, signal.SIGTERM)
        assert study.stdout is not None
        for line in study.stdout:  # until the first run has ended
            if line.startswith("run "):
                break
        else:
            pytest.fail(f"the study ended with {study.wait()} before a run had")
        command = [*COMMAND, "dashboard", str(folder), "--port", "0"]
        board = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            # a shell that starts pytest in the background has SIGINT ignored, and so has what
            # pytest starts
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        ends.callback(_stop, board, signal.SIGINT)
        assert board.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:\d+/", board.stdout.readline())
        assert address
        yield folder, address[0]
        board.send_signal(signal.SIGINT)
        assert board.wait(HANG) == 130


def _stop(process: subprocess.Popen[str], sign: signal.Signals) -> None:
    """End a process, also where a test has failed before it could."""
    process.send_signal(sign)
    process.communicate(timeout=HANG)


def test_the_live_page_follows_a_study(browser: Any, running: tuple[Path, str]) -> None:
    _, address = running
    opened = OpenPage(browser, address)
    # there once a run of several epochs has ended
    opened.page.wait_for_selector("#curves .nsewdrag", state="attached", timeout=1000 * HANG)
    before = opened.count("#runs tbody tr")
    opened.unfold()
    opened.page.fill("#of-runs input", "done")
    opened.page.locator("#curves").scroll_into_view_if_needed()
    box = opened.page.locator("#curves .nsewdrag").bounding_box()
    opened.page.mouse.move(box["x"] + 100, box["y"] + 50)
    opened.page.mouse.down()
    opened.page.mouse.move(box["x"] + 300, box["y"] + 150, steps=5)
    opened.page.mouse.up()
    zoomed = opened.page.evaluate("document.getElementById('curves').layout.yaxis.range")
    opened.page.wait_for_function(
        "n => content.tables.runs.rows.status.filter(s => s === 'done').length > n + 1",
        arg=before,
        timeout=1000 * HANG,
    )
    assert set(opened.column("runs", "status")) == {"done"}, "the filter is kept"
    assert opened.page.evaluate("document.getElementById('curves').layout.yaxis.range") == zoomed, (
        "and the zoom"
    )
    state = opened.page.locator("#live .state").inner_text()
    assert re.match(r"(running · \d+ of \d+ runs|finished · \d+ runs)", state)
    assert opened.console == []
    assert all(a.startswith((address, "data:")) for a in opened.requests)
    request = urllib.request.Request(address, headers={"Host": "evil.example:80"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request)


def test_a_dashboard_of_nothing_is_refused(tmp_path: Path) -> None:
    command = [*COMMAND, "dashboard", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no study.db there" in done.stderr


def test_optuna_dashboard_reads_the_same_study(
    browser: Any, running: tuple[Path, str], tmp_path: Path
) -> None:
    pytest.importorskip("optuna_dashboard")
    folder, _ = running
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("optuna-dashboard")
    log = (tmp_path / "log").open("w")
    board = subprocess.Popen(
        [program, f"sqlite:///{folder}/study.db", "--port", str(port)], stdout=log, stderr=log
    )
    try:
        for _ in range(100):
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            time.sleep(0.2)
        opened = browser.new_page()
        opened.goto(f"http://127.0.0.1:{port}/dashboard/studies/1", wait_until="domcontentloaded")
        opened.wait_for_selector("text=scaling-search")
        trials = opened.request.get(f"http://127.0.0.1:{port}/api/studies/1").json()["trials"]
        assert trials
        names = {parameter["name"] for parameter in trials[0]["params"]}
        assert names == {"alpha", "beta", "gamma"}
    finally:
        board.terminate()
        board.wait()
        log.close()
