"""What the documents say is so: commands that parse, links that lead somewhere, code that runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from nbclient import NotebookClient

import effnet
import scaling_search
from scaling_search.cli import build_parser, main

ROOT = Path(__file__).parent.parent
GENERATE = ROOT / "docs" / "generate.py"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "studies" / "README.md",
]
NOTES = sorted((ROOT / "studies").glob("*/NOTES.md"))
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
    """The arguments of every command line that a page shows, in blocks and within a line."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    if page.name == "cli.md":  # its lines say how a command is used
        prose = ""
    spans = [span for span in re.findall(r"`([^`]+)`", prose) if len(span.split()) > 2]
    return [words for text in (*blocks(page, "", "sh"), *spans) for words in commands(text)]


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


# Commands that are done within a second or two and read what comes with the project.
_QUICK = {"list", "cost", "solve"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_quick_command_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in documented_commands(page):
        reads_a_file = any("runs/" in word or "mine." in word for word in words)
        if words[0] in _QUICK and not reads_a_file and "--measure" not in words:
            assert main(words) == 0, words
            assert capsys.readouterr().out, words


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def links(text: str) -> list[str]:
    """The targets of a text's links and images, in Markdown and HTML, but for other sites'."""
    targets = re.findall(r"\]\(([^)\s]+)", text)
    targets += re.findall(r"""\b(?:src|srcset|href)=["']?([^"'\s>]+)""", text)
    return [link for link in targets if not re.match(r"[a-z]+:|//", link)]


@pytest.mark.parametrize("page", PAGES + NOTES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in links(prose):
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


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(GENERATE), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_generated_pages_are_up_to_date() -> None:
    check = generate("--check")
    assert check.returncode == 0, check.stdout + check.stderr


def test_the_python_interface_has_every_public_name() -> None:
    headings = re.findall(r"^### (.*)$", (ROOT / "docs" / "interface.md").read_text(), re.MULTILINE)
    for package in (effnet, scaling_search):
        for name in getattr(package, "__all__", ()):
            assert name.startswith("_") or f"{package.__name__}.{name}" in headings, name


def test_the_signatures_of_the_python_interface_are_python() -> None:
    signatures = blocks(ROOT / "docs" / "interface.md", "py")
    assert len(signatures) > 15
    for signature in signatures:
        head = re.sub(r"^[\w.]+\(", "def function(", signature.strip())
        compile(f"{head}: ..." if head != signature.strip() else head, "interface.md", "exec")


def test_the_site_builds_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    build = generate("--site", str(tmp_path))
    assert build.returncode == 0, build.stdout + build.stderr

    site = tmp_path / "site"
    texts = {page: page.read_text() for page in site.rglob("*.html") if page.name != "404.html"}
    ids = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in texts.items()}
    for page, text in texts.items():
        text = re.sub(r"<(script|style)\b[^>]*>.*?</\1>", "", text, flags=re.DOTALL)
        for link in links(text):
            path, _, anchor = unquote(link).partition("#")
            target = Path(os.path.normpath(page.parent / path)) if path else page
            assert target.exists(), f"{page.name}: {link}"
            assert target not in ids or not anchor or anchor in ids[target], f"{page.name}: {link}"
        # GitHub takes a list that follows a line of text for one, the site does not
        assert not re.search(r"<p>[^<]*\n(?:- |1\. )", text), (
            f"{page.name}: an empty line is missing"
        )


def test_every_page_has_its_place_in_the_navigation() -> None:
    pages = {"index.md" if page.name == "README.md" else page.name for page in PAGES}
    pages |= {"study.ipynb.md", "studies/README.md"}
    config = (ROOT / "mkdocs.yml").read_text()
    assert sorted(re.findall(r"^  - .*: (\S+\.md)$", config, re.MULTILINE)) == sorted(pages)


def test_the_site_says_which_link_is_broken(tmp_path: Path) -> None:
    (tmp_path / "mkdocs.yml").write_bytes((ROOT / "mkdocs.yml").read_bytes())
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "index.md").write_text("# Home\n\n[here](tutorial.md#the-images)\n")
    (pages / "tutorial.md").write_text("# Tutorial\n\n## Other images\n")
    build = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert build.returncode == 1
    assert "anchor does not exist" in build.stdout + build.stderr


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(ROOT / "docs" / "study.ipynb", as_version=4)
    kept = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert any(kept), "python docs/generate.py --notebook keeps what it printed"
    assert str(ROOT) not in str(kept), "no paths of one machine"
    NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": str(ROOT / "docs")}}
    ).execute()
