"""Writes docs/cli.md from the code: the parsers of the command line, and the fields of a study.

python docs/generate.py               write it
python docs/generate.py --check       exit status 1 where it is stale
python docs/generate.py --notebook    run study.ipynb and keep what it printed

It reads the parsers rather than quoting `--help`, whose layout differs from one Python to the next.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from scaling_search.cli import _parser
from scaling_search.study.settings import PRESETS, Study, preset_path, read

DOCS = Path(__file__).resolve().parent
REFERENCE, NOTEBOOK = DOCS / "cli.md", DOCS / "study.ipynb"

_HEAD = """\
# The command line

Written by `docs/generate.py` from the code: change the code, not this file. `python run_search.py ...` is
`scaling-search search ...`.

Exit status: 0, done; 1, the command ran and its answer is no (no network of the budget finished, a run failed, a budget
is missed, a comparison is unequal); 2, what was given is wrong, or the machine fails, said in one line on stderr; 130,
stopped by Ctrl-C, or 143, by SIGTERM, and the same command goes on. `SCALING_SEARCH_CACHE` names the folder that data
sets are cached in (by default `scaling-search` in the user's cache folder).
"""

_SETTINGS = """
## Settings of a study

What a study file (TOML) may hold, and `--set NAME=VALUE` may change, as in `--set recipe.label_smoothing=0`. A preset
says what differs from the defaults; a flag of `search` goes over both.
"""


# ---- the parsers


def _value(action: argparse.Action) -> str:
    """What an argument takes, as it stands in a usage line."""
    if action.nargs == 0:
        return ""
    name = action.metavar if isinstance(action.metavar, str) else None
    if name is None:
        name = "|".join(map(str, action.choices)) if action.choices else action.dest.upper()
    return {"+": f"{name} ...", "*": f"[{name} ...]", "?": f"[{name}]"}.get(str(action.nargs), name)


def _name(action: argparse.Action) -> str:
    return f"{', '.join(action.option_strings)} {_value(action)}".strip()


def _help(action: argparse.Action) -> str:
    text = action.help or ""
    if "." in action.dest:
        text += f" (`{action.dest}`)"
    stated = (
        action.default not in (None, False, argparse.SUPPRESS, [])
        and "default" not in text
        and action.nargs != 0
    )
    return f"{text} (default: {action.default})".strip() if stated else text


def _usage(name: str, parser: argparse.ArgumentParser, actions: list[argparse.Action]) -> str:
    """The command with what it must be given."""
    groups = [g for g in parser._mutually_exclusive_groups if g.required]
    alone = [a for a in actions if a.option_strings and a.required]
    words = [*(_value(a) for a in actions if not a.option_strings), *map(_name, alone)]
    words += [f"({' | '.join(map(_name, g._group_actions))})" for g in groups]
    return " ".join(["scaling-search", name, *words, "[options]"])


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [
        " | ".join(cell.replace("|", r"\|") for cell in line)
        for line in (head, ("---",) * len(head), *rows)
    ]
    return "".join(f"| {line} |\n" for line in lines)


def _command(name: str, summary: str, parser: argparse.ArgumentParser) -> str:
    actions = [a for a in parser._actions if a.help != argparse.SUPPRESS and a.dest != "help"]
    end = "" if summary.endswith(("?", ".")) else "."
    text = f"\n## {name}\n\n{summary[:1].upper()}{summary[1:]}{end}\n"
    if not actions:
        return f"{text}\n`scaling-search {name}`\n"
    rows = [(f"`{_name(a) if a.option_strings else _value(a)}`", _help(a)) for a in actions]
    return f"{text}\n`{_usage(name, parser, actions)}`\n\n{_table(('argument', 'meaning'), rows)}"


# ---- the study


def _kind(annotation: Any) -> str:
    """`int | None` → 'int'; a Literal → its values."""
    if get_origin(annotation) is Literal:
        return " or ".join(map(str, get_args(annotation)))
    parts = [a for a in get_args(annotation) if a is not type(None) and a is not Ellipsis]
    if get_origin(annotation) is tuple:
        return f"list of {_kind(parts[0])}"
    if get_origin(annotation) is dict:
        return "table"
    return (
        _kind(parts[0])
        if parts
        else {"str": "text", "bool": "true or false"}.get(n := annotation.__name__, n)
    )


def _fields(study: Any, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """(name, kind, value) of every setting."""
    kinds = get_type_hints(type(study))
    names = (
        type(study).model_fields
        if isinstance(study, BaseModel)
        else [f.name for f in dataclasses.fields(study)]
    )
    for name in names:
        value = getattr(study, name)
        if isinstance(value, BaseModel) or dataclasses.is_dataclass(value):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, _kind(kinds[name]), value


def _toml(value: Any) -> str:
    return "" if value is None else json.dumps(value)


def _settings() -> str:
    presets = [{n: v for n, _, v in _fields(read(preset_path(p)))} for p in PRESETS]
    rows = []
    for name, kind, default in _fields(Study()):
        differs = [_toml(p[name]) if p[name] != default else "" for p in presets]
        rows.append((f"`{name}`", kind, _toml(default), *differs))
    return f"{_SETTINGS}\n{_table(('setting', 'takes', 'default', *PRESETS), rows)}"


def reference() -> str:
    parser = _parser("scaling-search")
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    summaries = {a.dest: a.help or "" for a in commands._choices_actions}
    return (
        _HEAD
        + "".join(_command(n, summaries[n], p) for n, p in commands.choices.items())
        + _settings()
    )


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
    """Without plotly's script (4.8 MB a notebook) and what differs from machine to machine: times,
    warnings, paths."""
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


def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument(
        "--check", action="store_true", help="write nothing; 1 where cli.md is stale"
    )
    arguments.add_argument(
        "--notebook", action="store_true", help="run study.ipynb and keep what it printed"
    )
    given = arguments.parse_args()
    if given.notebook:
        _keep(run_notebook())
        return 0
    text = reference()
    if given.check:
        stale = not REFERENCE.is_file() or REFERENCE.read_text() != text
        print(
            f"{REFERENCE.name}: stale; python docs/generate.py"
            if stale
            else f"{REFERENCE.name}: up to date"
        )
        return int(stale)
    REFERENCE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
