"""What the documents say is so: commands that parse, links that lead somewhere, code that runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from scaling_search.cli import build_parser

ROOT = Path(__file__).parent.parent
GENERATE = ROOT / "docs" / "generate.py"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# `scaling-search ...` or `python run_search.py ...`: at the start of a line, after a prompt or &&,
# with environment variables before it
_COMMAND = re.compile(
    r"(?:^|&&|\$)\s*(?:\w+=\S+\s+)*"
    r"(?:scaling-search|\S*python3? (?P<search>run_search\.py))(?=\s|$)"
)
_SHELL_WORDS = {"&&", "|", ">", ";"}  # that end a command


def blocks(path: Path, *languages: str) -> list[str]:
    """The texts of a page's fenced code blocks in these languages."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
    return [text for language, text in fences if language in languages]


def commands(text: str) -> list[list[str]]:
    """The arguments of every command line of ours in a block."""
    command_lines = []
    for line in text.replace("\\\n", " ").splitlines():
        match = _COMMAND.search(line)
        if match is None:
            continue
        words = ["search"] if match["search"] else []
        for word in shlex.split(line[match.end() :], comments=True):
            if word in _SHELL_WORDS:
                break
            words.append(word)
        command_lines.append(words)
    return command_lines


def documented_commands(page: Path) -> list[list[str]]:
    """The arguments of every command line that a page shows."""
    return [words for block in blocks(page, "", "sh") for words in commands(block)]


def test_commands_are_found() -> None:
    listing = "$ scaling-search list  # all"
    searching = "pip install . && .venv/bin/python run_search.py --data a \\\n  --upscale"
    text = f"{listing}\n{searching}\nnone\n"
    assert commands(text) == [["list"], ["search", "--data", "a", "--upscale"]]
    assert sum(len(documented_commands(page)) for page in PAGES) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_parses(page: Path) -> None:
    for words in documented_commands(page):
        try:
            build_parser().parse_args(words)
        except SystemExit as leaves:  # --help, --version
            assert leaves.code == 0, words


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_runs(page: Path) -> None:
    """Whole, or, where it reads a run folder, as far as compiling."""
    for block in blocks(page, "python"):
        code = compile(block, page.name, "exec")
        if "runs/" not in block:
            exec(code, {})


def test_the_command_line_reference_is_up_to_date() -> None:
    check = subprocess.run(
        [sys.executable, str(GENERATE), "--check"], capture_output=True, text=True, timeout=120
    )
    assert check.returncode == 0, check.stdout + check.stderr


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(ROOT / "docs" / "study.ipynb", as_version=4)
    kept = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert any(kept), "python docs/generate.py --notebook keeps what it printed"
    assert str(ROOT) not in str(kept), "no paths of one machine"
    NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": str(ROOT / "docs")}}
    ).execute()
