"""Assembles the pages of the documentation's site, as `zensical build` reads them.

The README and the pages of docs/ link to each other and to files of the repository as they lie
there. Here README.md becomes index.md, docs/ becomes the top folder, and what else is linked to is
taken along: Markdown as a page, source text as a page that shows it, a folder as a page that lists
its files, an image as it is.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat
from plotly.io import to_html
from plotly.offline import get_plotlyjs

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "mkdocs.yml"
_PLOTLY = "plotly.min.js"  # plotly's script, for the notebook's figures

# The target of a Markdown link or image, of an HTML tag's source.
_LINK = re.compile(r"""(?P<before>\]\(|\b(?:src|srcset|href)=")(?P<target>[^)"\s]+)""")
_FENCE = re.compile(r"^(```.*?^```)$", re.MULTILINE | re.DOTALL)
_LANGUAGES = {".py": "py", ".toml": "toml", ".txt": "text", "": "text"}


def assemble(folder: Path) -> None:
    """Write mkdocs.yml and all pages into `folder`, in place of pages that are there. A link that
    leads nowhere stays as it is: the build finds it."""
    pages = folder / "pages"  # docs_dir of mkdocs.yml
    shutil.rmtree(pages, ignore_errors=True)
    pages.mkdir(parents=True)
    shutil.copy(CONFIG, folder)
    (pages / _PLOTLY).write_text(get_plotlyjs())
    waiting = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
    done = set()
    while waiting:
        source = waiting.pop()
        if source in done:
            continue
        done.add(source)
        place = pages / _place(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        text = _text(source)
        if text is None:
            shutil.copy(source, place)
            continue
        text, linked = _relinked(text, source)
        place.write_text(text)
        waiting += linked


def _place(source: Path) -> Path:
    """Where a file or folder of the repository is among the pages."""
    place = source.relative_to(ROOT)
    if place == Path("README.md"):
        return Path("index.md")
    if place.parts[0] == "docs":
        place = place.relative_to("docs")
    if source.is_dir():
        return place / "index.md"
    if source.suffix == ".ipynb" or source.suffix in _LANGUAGES:
        return place.with_name(f"{place.name}.md")
    return place


def _text(source: Path) -> str | None:
    """A file or folder as Markdown; None for what is copied as it is."""
    name = source.relative_to(ROOT)
    if source.is_dir():
        files = sorted(path.name for path in source.iterdir() if path.is_file())
        return f"# {name}/\n\n" + "".join(f"- [{file}]({file})\n" for file in files)
    if source.suffix == ".md":
        return source.read_text()
    if source.suffix == ".ipynb":
        return _notebook(source)
    if source.suffix in _LANGUAGES:
        return f"# {name}\n\n{_fenced(source.read_text(), _LANGUAGES[source.suffix])}"
    return None


def _fenced(text: str, language: str) -> str:
    mark = "````" if "```" in text else "```"
    return f"{mark}{language}\n{text.rstrip()}\n{mark}\n"


def _relinked(text: str, source: Path) -> tuple[str, list[Path]]:
    """A page's text with its links as they are among the pages, and what they lead to."""
    base = source if source.is_dir() else source.parent
    here = _place(source).parent
    linked = []

    def relink(match: re.Match[str]) -> str:
        path, hash_mark, anchor = match["target"].partition("#")
        target = Path(os.path.normpath(base / path))
        if not path or not target.is_relative_to(ROOT) or not target.exists():
            return match[0]
        linked.append(target)
        moved = Path(os.path.relpath(_place(target), here)).as_posix()
        return f"{match['before']}{moved}{hash_mark}{anchor}"

    parts = _FENCE.split(text)
    parts[::2] = [_LINK.sub(relink, prose) for prose in parts[::2]]
    return "".join(parts), linked


# ---- the notebook


def _notebook(source: Path) -> str:
    """A notebook as Markdown: its texts, its code, and what it printed."""
    parts = []
    for cell in nbformat.read(source, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(f"{cell.source}\n")
            continue
        parts.append(_fenced(cell.source, "py"))
        parts += _outputs(cell.outputs)
    return "\n".join(parts)


def _outputs(outputs: Iterable[Any]) -> list[str]:
    """What a cell printed, as Markdown and HTML."""
    texts = []
    for output in outputs:
        data = output.get("data", {})
        if "application/vnd.plotly.v1+json" in data:
            texts.append(_figure(data["application/vnd.plotly.v1+json"]))
        elif "text/html" in data:
            texts.append(_table(data["text/html"]))
        else:
            texts.append(_fenced(output.get("text") or data["text/plain"], "text"))
    return texts


def _table(html: str) -> str:
    """A table of pandas without its own style, so that the site's applies."""
    html = re.sub(r"<style.*?</style>", "", html, flags=re.DOTALL)
    html = html.replace('<table border="1" class="dataframe">', "<table>")
    return re.sub(r"\n\s*", "\n", html.strip()) + "\n"


def _figure(figure: Any) -> str:
    drawn = {"data": figure["data"], "layout": figure["layout"]}
    return to_html(drawn, full_html=False, include_plotlyjs=_PLOTLY, validate=False) + "\n"
