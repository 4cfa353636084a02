"""Writes the pages of docs/ that come from the code, and builds the site.

python docs/generate.py               write cli.md, interface.md
python docs/generate.py --check       exit status 1 where one of them is stale
python docs/generate.py --notebook    run study.ipynb and keep what it printed
python docs/generate.py --site        build the site into build/site (pip install -e '.[docs]')

The command line's page comes from what the parser itself is built from (cli/command.py,
study/reference.py), not from `--help`, whose layout differs from one Python to the next.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import interface

from scaling_search.cli import COMMANDS, STATUSES
from scaling_search.cli.command import EVERYWHERE, Argument, Command, OneOf
from scaling_search.study.flags import GROUPS
from scaling_search.study.reference import settings
from scaling_search.study.settings import PRESETS, preset_path, read

DOCS = Path(__file__).resolve().parent
NOTEBOOK = DOCS / "study.ipynb"

_HEAD = """\
# The command line

Written by `docs/generate.py` from the code: change the code, not this file.
`python run_search.py ...` is `scaling-search search ...`.

`SCALING_SEARCH_CACHE` names the folder that data sets are cached in (by default `scaling-search` in
the user's cache folder).

"""

_EVERYWHERE = """
Options of every command, before or after its name:

"""

_SETTINGS = """
## Settings of a study

What a study file (TOML) may hold, and `--set NAME=VALUE` may change, as in
`--set recipe.label_smoothing=0`. A preset says what differs from the defaults (its own column); a
flag of `search` goes over both.
"""


# ---- the commands


def _usage(command: Command) -> str:
    """The command with what it must be given."""
    words = ["scaling-search", command.name]
    words += [argument.usage for argument in command.each_argument() if argument.required]
    for item in command.arguments:
        if isinstance(item, OneOf) and item.required:
            choices = " | ".join(argument.usage for argument in item.arguments)
            words.append(f"({choices})")
    if command.arguments:
        words.append("[options]")
    return " ".join(words)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = []
    for cells in (head, ("---",) * len(head), *rows):
        escaped = " | ".join(cell.replace("|", r"\|") for cell in cells)
        lines.append(f"| {escaped} |\n")
    return "".join(lines)


def _arguments(arguments: list[Argument]) -> str:
    """A table of arguments, each with the setting that it sets where its name does not say so."""
    rows = []
    for argument in arguments:
        setting = argument.options.get("dest", "")
        meaning = argument.help
        if "." in setting:
            meaning += f" `{setting}`"
        rows.append((f"`{argument.usage}`", meaning))
    return _table(("argument", "meaning"), rows)


def _command(command: Command) -> str:
    """A command's section. Its options stand under the headings of --help."""
    text = f"\n## {command.name}\n\n{command.sentence}\n\n`{_usage(command)}`\n"
    for title in ("", *GROUPS):
        arguments = [a for a in command.each_argument() if a.group == title]
        if not arguments:
            continue
        if title:
            text += f"\n{title[:1].upper()}{title[1:]}:\n"
        text += f"\n{_arguments(arguments)}"
    return text


# ---- the settings


def _toml(value: Any) -> str:
    return "" if value is None else json.dumps(value)


def _settings() -> str:
    presets = [read(preset_path(preset)).changed() for preset in PRESETS]
    rows = []
    for setting in settings():
        different = [_toml(preset.get(setting.name)) for preset in presets]
        row = (f"`{setting.name}`", setting.description, setting.kind, _toml(setting.default))
        rows.append((*row, *different))
    head = ("setting", "meaning", "takes", "default", *PRESETS)
    return f"{_SETTINGS}\n{_table(head, rows)}"


def reference() -> str:
    """The whole of docs/cli.md."""
    commands = "".join(_command(command) for command in COMMANDS)
    statuses = [(str(status), meaning) for status, meaning in STATUSES.items()]
    head = _HEAD + _table(("exit status", "meaning"), statuses)
    return head + _EVERYWHERE + _arguments(list(EVERYWHERE)) + commands + _settings()


# ---- the notebook


def run_notebook(path: Path = NOTEBOOK) -> Any:
    """The notebook, executed in its own folder. Raises CellExecutionError where a cell fails."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    return notebook


def _keep(notebook: Any) -> None:
    """Write the notebook without plotly's script (4.8 MB a notebook) and what differs from machine
    to machine: times, warnings, paths."""
    import nbformat

    notebook.metadata.pop("language_info", None)
    for cell in notebook.cells:
        cell.metadata.clear()
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            if "application/vnd.plotly.v1+json" in output.get("data", {}):
                output.data.pop("text/html", None)
    nbformat.write(notebook, NOTEBOOK)


# ---- the site


def build_site(folder: Path) -> int:
    """Assemble the site's pages in `folder` and build them into its folder site. The exit status
    of zensical, which is 1 where a link leads nowhere."""
    import site_pages

    site_pages.assemble(folder)
    command = ["zensical", "build", "--clean", "--strict"]
    return subprocess.run([sys.executable, "-m", *command], cwd=folder, check=False).returncode


WRITTEN = {"cli.md": reference, "interface.md": interface.page}


def main() -> int:
    """Exit status 0; 1 where --check finds a page stale or the site has a broken link."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument(
        "--check", action="store_true", help="write nothing; 1 where a page is stale"
    )
    arguments.add_argument(
        "--notebook", action="store_true", help="run study.ipynb and keep what it printed"
    )
    arguments.add_argument(
        "--site",
        metavar="FOLDER",
        type=Path,
        nargs="?",
        const=DOCS.parent / "build",
        help="build the site into FOLDER/site (default: build/site)",
    )
    args = arguments.parse_args()
    if args.notebook:
        _keep(run_notebook())
        return 0
    if args.site is not None:
        return build_site(args.site)
    stale = False
    for name, write in WRITTEN.items():
        path, text = DOCS / name, write()
        if not args.check:
            path.write_text(text)
        elif not path.is_file() or path.read_text() != text:
            print(f"{name}: stale; python docs/generate.py")
            stale = True
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
