"""The dashboard beside a real study whose driver is killed, in headless Chromium."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import ROOT, WORDS
from tests.test_browser import COMMAND, HANG, OpenPage, browser, pytestmark

__all__ = ["browser", "pytestmark"]  # the fixture; that nothing here runs without Chromium

# Of every text of the live section its contrast with what lies behind it (WCAG 2.1, 1.4.3).
CONTRASTS = """() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const luminance = colour => numbers(colour).slice(0, 3)
    .map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const behind = e => numbers(getComputedStyle(e).backgroundColor)[3] === 0
    ? behind(e.parentElement) : getComputedStyle(e).backgroundColor;
  const ratio = e => {
    const [low, high] = [getComputedStyle(e).color, behind(e)].map(luminance).sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const hasText = e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  return [...document.querySelectorAll("#live *:not(svg *)")].filter(hasText).map(ratio);
}"""
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def start(stack: ExitStack, command: list[str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    stack.callback(process.communicate, timeout=HANG)
    stack.callback(process.kill)
    return process


def check_looks(page: Any) -> None:
    """Nothing is cut or hard to read: on a screen and a phone, by day and by night."""
    for width in (1600, 390):
        for scheme in ("light", "dark"):
            page.set_viewport_size({"width": width, "height": 1000})
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate(WIDER) <= 0, f"the page is wider than {width} px"
            assert min(page.evaluate(CONTRASTS)) >= 4.5, scheme
    page.set_viewport_size({"width": 1600, "height": 1000})


@pytest.fixture
def address(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A study of long runs, two at a time, and the address of its dashboard."""
    words = [*WORDS, "--epochs", "200", "--allocation", "flat", "--extra", "0", "--workers", "2"]
    words += ["--data", "shapes", "--out", str(tmp_path / "a run")]
    with ExitStack() as stack:
        study = start(stack, [sys.executable, str(ROOT / "run_search.py"), *words])
        while not (tmp_path / "a run" / "study.toml").exists():
            assert study.poll() is None
        board = start(stack, [*COMMAND, "dashboard", str(tmp_path / "a run"), "--port", "0"])
        assert board.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:\d+/", board.stdout.readline())
        assert address
        yield study, address[0]


def test_a_killed_driver_is_seen_and_goes_on(
    browser: Any, address: tuple[subprocess.Popen[str], str]
) -> None:
    study, url = address
    opened = OpenPage(browser, url)
    page = opened.page
    # epochs are seen as they end, long before their run has
    two_epochs = "#live svg.curve polyline[points*=' ']"
    page.wait_for_selector(two_epochs, state="attached", timeout=1000 * HANG)
    state = page.locator("#live .state")
    assert re.match(
        r"running · 0 of 8 runs · about .* left · started \d\d:\d\d", state.inner_text()
    )
    assert page.locator("#live dd.next div").count() == 5
    assert "baseline" in page.locator("#live tbody tr").first.inner_text()
    assert page.locator("#live .go-on").count() == 0
    assert re.match("0 of 8 · Scaling", page.title())
    check_looks(page)

    study.send_signal(signal.SIGKILL)
    page.wait_for_selector("#live .state.stopped", timeout=1000 * HANG)
    assert f"the driver (process {study.pid} on " in state.inner_text()
    assert "ended without a word" in state.inner_text()
    assert re.search(r"runs? goe?s? on from (its|their) last epoch", state.inner_text())
    command = page.locator("#live .go-on pre").inner_text()
    assert page.title().startswith("stopped")
    check_looks(page)

    with ExitStack() as stack:
        python, *words = shlex.split(command)
        assert python == "python"
        start(stack, [sys.executable, *words])
        page.wait_for_selector("#live .state.running", timeout=1000 * HANG)
        page.wait_for_selector("#live .more:has-text('its driver ended')", timeout=1000 * HANG)
        assert page.locator("#live .go-on").count() == 0
    assert opened.console == []
    assert page.evaluate("document.scripts.length") == 4, "content, plotly, report.js, live.js"
    with urllib.request.urlopen(f"{url}live") as answer:
        assert answer.headers["Content-Type"] == "application/json"
