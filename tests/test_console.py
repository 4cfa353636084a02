"""Lines for people: wrapped on a terminal, whole elsewhere."""

from __future__ import annotations

from io import StringIO

import pytest

from scaling_search.driver.console import clock, say

LONG = "one network, two networks, [three] networks; they cannot be told apart  seed 0"


def said(label: str, text: str, **console: object) -> list[str]:
    from rich.console import Console

    out = StringIO()
    say(Console(file=out, **console), label, text)  # type: ignore[arg-type]
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80])
def test_on_a_terminal_lines_hang_under_their_text(width: int) -> None:
    lines = said("certainty", LONG, force_terminal=True, width=width)
    assert len(lines) > 1
    assert lines[0].startswith("certainty one network")
    assert all(line.startswith(" " * 10) for line in lines[1:])
    assert all(len(line) <= width for line in lines)
    assert " ".join(lines).split() == ["certainty", *LONG.split()]


def test_elsewhere_a_sentence_is_one_line() -> None:
    assert said("choose", LONG * 5, width=60) == [f"choose    {LONG * 5}"]


def test_a_path_is_not_broken_and_wide_letters_count_twice() -> None:
    path = "/a/path/that/is/longer/than/the/terminal/report.html"
    lines = said("report", f"written to {path}", force_terminal=True, width=40)
    assert lines == ["report    written to", f"          {path}"]
    lines = said("data", "画像 画像 画像 画像 画像", force_terminal=True, width=30)
    assert lines == ["data      画像 画像 画像 画像", "          画像"]


def test_a_clock() -> None:
    assert [clock(s) for s in (0, 59.9, 60, 3599, 5025)] == [
        "0:00",
        "0:59",
        "1:00",
        "59:59",
        "1:23:45",
    ]
