"""The command `figure`: sizes and formats, and what is said where none can be written."""

import importlib.util
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaling_search.cli import main
from tests.replays import RECORDED


@pytest.fixture(scope="module")
def _renderer() -> None:
    kaleido = pytest.importorskip("kaleido")
    import plotly.graph_objects as go

    try:
        kaleido.calc_fig_sync(go.Figure(), opts={"format": "svg"}, kopts={"mathjax": False})
    except RuntimeError as error:
        pytest.skip(f"kaleido has no Chrome here: {error}")


@pytest.mark.usefixtures("_renderer")
def test_images_have_the_size_that_was_asked_for(tmp_path: Path) -> None:
    pdf, svg, png = (tmp_path / f"fig.{ending}" for ending in ("pdf", "svg", "png"))
    size = ["--width", "85", "--height", "60", "--font-size", "7"]
    for path in (pdf, svg, png):
        assert main(["figure", str(RECORDED), "front", "--to", str(path), *size]) == 0
    box = re.search(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", pdf.read_bytes())
    assert box
    points = [float(side) for side in box.groups()]
    assert points == pytest.approx([85 / 25.4 * 72, 60 / 25.4 * 72], abs=1)
    text = svg.read_text()
    sides = re.search(r'width="([\d.]+)" height="([\d.]+)"', text)
    assert sides
    assert [float(side) for side in sides.groups()] == pytest.approx(
        [85 / 25.4 * 96, 60 / 25.4 * 96], abs=1
    )
    assert "validation accuracy, %" in text
    pixels = struct.unpack(">II", png.read_bytes()[16:24])  # of the header
    assert pixels == pytest.approx([85 / 25.4 * 300, 60 / 25.4 * 300], abs=2)


def test_a_page_needs_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "map.html"
    assert main(["figure", str(RECORDED / "curves.parquet"), "map", "--to", str(to)]) == 0
    assert capsys.readouterr().out == f"{to}\n"
    page = to.read_text()
    assert not re.search(r"<(script|link)[^>]*(src|href)=", page)
    assert '"format": "svg"' in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "fig.eps"], "a file that ends in .svg, .pdf, .png or .html"),
        (["--to", "no/fig.svg"], "there is no folder no"),
        (["--to", "fig.html", "--width", "3.5"], "--width 3.5: in mm, 20 to 1000"),
        (["--to", "fig.html", "--height", "4000"], "--height 4000: in mm"),
        (["--to", "fig.html", "--font-size", "0.1"], "--font-size 0.1: in points"),
        (["--to", "fig.html", "--budget", "7x"], "no verdict for the budget 7x: 2x"),
    ],
)
def test_errors_are_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert main(["figure", str(RECORDED), "map", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_kaleido_it_says_what_to_install(
    tmp_path: Path, hide_package: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    hide_package("kaleido")
    assert main(["figure", str(RECORDED), "map", "--to", str(tmp_path / "map.svg")]) == 2
    error = capsys.readouterr().err
    assert "pip install kaleido" in error
    assert "--to FILE.html needs neither" in error
    assert error.count("\n") == 1


def test_without_a_browser_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kaleido = pytest.importorskip("kaleido")

    def no_browser(*args: Any, **options: Any) -> bytes:
        raise RuntimeError("Chrome not found\nin any of its places")

    monkeypatch.setattr(kaleido, "calc_fig_sync", no_browser)
    assert main(["figure", str(RECORDED), "map", "--to", str(tmp_path / "map.svg")]) == 2
    error = capsys.readouterr().err
    assert "kaleido cannot draw it (Chrome not found in any of its places)" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
