"""Networks from files: a baseline of one's own in TOML, a network in a config.json. No torch.

The TOML file has the keys of Baseline and Stage:

name = "mine"
resolution = 192                # px
stem_width = 32
stem_stride = 2
head_width = 1280               # 0: the classifier follows the last stage
stages = [
    { operator = "fused", expand = 1, kernel = 3, stride = 1, width = 16, repeats = 1 },
    { operator = "mbconv", expand = 6, kernel = 5, stride = 2, width = 40, repeats = 3 },
]
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from effnet.arch import GATED_OPERATORS, STAGE_KEYS, Arch, Baseline, Stage, parse_sides

# the channels of the images are the data's, and no part of a table
_KEYS = tuple([f.name for f in fields(Baseline) if f.name not in ("in_channels", "columns")])
_NEEDED = tuple([field.name for field in fields(Baseline) if field.default is MISSING])


def read_table(path: str | Path) -> dict[str, Any]:
    """The TOML table in a file, named after the file unless it states a name. Raises
    ValueError."""
    try:
        return {"name": Path(path).stem, **tomllib.loads(Path(path).read_text("utf-8-sig"))}
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: not TOML: {error}") from error


def read_baseline(path: str | Path) -> Baseline:
    """The baseline in a TOML file.

    Raises ValueError naming the file, the row and the key that is wrong, and what would be
    right."""
    return parse_baseline(read_table(path), str(path))


def parse_baseline(table: Mapping[str, Any], where: str) -> Baseline:
    """The baseline that a TOML table describes; raises ValueError as `read_baseline` does, with
    `where` for the file."""
    _check_keys(table, _KEYS, _NEEDED, where)
    rows = table["stages"]
    if not isinstance(rows, list) or not rows:
        raise ValueError(
            f'{where}: stages: at least one row such as {{ operator = "mbconv", expand = 6, ... }}'
        )
    stages = tuple([_stage(row, f"{where}: stage {i}") for i, row in enumerate(rows, 1)])
    try:
        sides = {}
        if isinstance(table["resolution"], str):  # "96x160"
            rows, columns = parse_sides(table["resolution"])
            sides = {"resolution": rows, "columns": columns}
        return Baseline(**{**table, **sides, "stages": stages})
    except ValueError as error:
        # the file is named already: not its baseline once more
        reason = str(error).removeprefix(f"baseline {table['name']}: ")
        raise ValueError(f"{where}: {reason}") from error


def _stage(row: Any, where: str) -> Stage:
    """One row of the table; `se_percent` may be left out, and is then the operator's usual."""
    if not isinstance(row, dict):
        raise ValueError(f"{where}: {row!r}: must be a table with {', '.join(STAGE_KEYS)}")
    needed = STAGE_KEYS[:-1]
    _check_keys(row, STAGE_KEYS, needed, where)
    se_percent = 25 if row["operator"] in GATED_OPERATORS else 0
    return Stage(**{"se_percent": se_percent, **row})


def _check_keys(
    table: Mapping[str, Any], known: Iterable[str], needed: Iterable[str], where: str
) -> None:
    for key in table:
        if key not in known:
            nearest = difflib.get_close_matches(key, list(known), n=1)
            hint = f"known are {', '.join(known)}"
            if nearest:
                hint = f"did you mean {nearest[0]}?"
            raise ValueError(f"{where}: unknown key {key}; {hint}")
    for key in needed:
        if key not in table:
            raise ValueError(f"{where}: {key} is missing")


def read_config(path: str | Path) -> Arch:
    """The network in a config.json: what a study chose, or what `effnet.nn.weights.save` wrote
    beside its weights.

    Raises ValueError for any other file."""
    try:
        return Arch.from_dict(json.loads(Path(path).read_text())["arch"])
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a config.json with an arch: {error}") from error
