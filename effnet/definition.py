"""A baseline of one's own, from a TOML file with the same rows as the tables in families.py. No torch.

name = "mine"
resolution = 192                # px
stem = { width = 32, stride = 2 }
head = { width = 1280 }         # leave it out: the classifier follows the last stage
stages = [
    { operator = "mbconv", expand = 1, kernel = 3, stride = 1, width = 16, repeats = 1 },
    { operator = "mbconv", expand = 6, kernel = 5, stride = 2, width = 40, repeats = 3, se = 0.25 },
]
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from effnet.arch import STAGE_KEYS, Baseline, Stage

_PARTS = {
    "stem": {"width": "stem_width", "kernel": "stem_kernel", "stride": "stem_stride", "pool": "stem_pool"},
    "head": {"width": "head_width"},
}
_PLAIN = ("name", "resolution", "rounding", "divisor", "width", "activation")
_ROW = (*STAGE_KEYS[:-1], "se")


def read_table(path: str | Path) -> dict[str, Any]:
    """The TOML table in a file, named after the file unless it has a name. Raises ValueError."""
    try:
        return {"name": Path(path).stem, **tomllib.loads(Path(path).read_text())}
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: not TOML: {error}") from None


def read_baseline(path: str | Path) -> Baseline:
    """The baseline in a TOML file.

    Raises ValueError naming the file, the row and the key that is wrong, and what would be right."""
    return parse_baseline(read_table(path), str(path))


def parse_baseline(table: Mapping[str, Any], where: str) -> Baseline:
    """The baseline that a TOML table describes; raises ValueError as `read_baseline` does."""
    _known(table, (*_PLAIN, "dropout", "stem", "head", "stages"), where)
    settings = {key: table[key] for key in _PLAIN if key in table}
    for part, names in _PARTS.items():
        given = table.get(part, {})
        if not isinstance(given, dict):
            raise ValueError(f"{where}: {part} = {given!r}: must be a table such as {part} = {{ width = 32 }}")
        _known(given, names, f"{where}: {part}")
        settings |= {names[key]: value for key, value in given.items()}
    for key, default in (("stem_stride", 2), ("head_width", 0)):
        settings.setdefault(key, default)
    for key, spelled in (("name", "name"), ("stem_width", "stem.width"), ("resolution", "resolution")):
        if key not in settings:
            raise ValueError(f"{where}: {spelled} is missing")
    rows = table.get("stages")
    if not isinstance(rows, list) or not rows:
        raise ValueError(f'{where}: stages: at least one row such as {{ operator = "mbconv", expand = 6, ... }}')
    settings["stages"] = tuple(_stage(row, f"{where}: stage {i}") for i, row in enumerate(rows, 1))
    settings["dropout_percent"] = _percent(table.get("dropout", 0.0), f"{where}: dropout", 0.99)
    for key, kind in (("name", str), ("rounding", str), ("activation", str), ("width", int | float)):
        if key in settings and (not isinstance(settings[key], kind) or isinstance(settings[key], bool)):
            raise ValueError(
                f"{where}: {key} = {settings[key]!r}: must be a {'number' if key == 'width' else 'string'}"
            )
    try:
        return Baseline(**settings)
    except ValueError as error:
        raise ValueError(f"{where}: {str(error).removeprefix('baseline ' + settings['name'] + ': ')}") from None


def _stage(row: Any, where: str) -> Stage:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: {row!r}: must be a table with {', '.join(_ROW)}")
    _known(row, _ROW, where)
    for key in STAGE_KEYS[:-1]:
        if key not in row:
            raise ValueError(f"{where}: {key} is missing")
    se = row.get("se", 0.25 if str(row["operator"]).startswith("mbconv") else 0.0)
    return Stage(**{key: row[key] for key in STAGE_KEYS[:-1]}, se_percent=_percent(se, f"{where}: se", 1.0))


def _percent(value: Any, where: str, most: float) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f"{where} = {value!r}: must be a number from 0 to {most:g}, such as 0.25")
    return round(100 * value)


def _known(table: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    for key in table:
        if key not in keys:
            near = difflib.get_close_matches(key, list(keys), 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(keys)}"
            raise ValueError(f"{where}: unknown key {key}; {hint}")
