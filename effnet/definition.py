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
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any

from effnet import custom
from effnet.arch import (
    GATED_OPERATORS,
    STAGE_KEYS,
    Baseline,
    Network,
    Stage,
    network_from_dict,
    parse_sides,
    typed_sides,
)
from effnet.custom import CustomArch, Function, FunctionError

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
        resolution = table["resolution"]
        if not isinstance(resolution, str):
            return Baseline(**{**table, "stages": stages})
        rows, _ = parse_sides(resolution)
        return Baseline(**{**table, "resolution": rows, "stages": stages}).at(resolution)
    except ValueError as error:
        # the file is named already: not its baseline once more
        reason = str(error).removeprefix(f"baseline {table['name']}: ")
        raise ValueError(f"{where}: {reason}") from error


def baseline_table(base: Baseline) -> dict[str, Any]:
    """The table that describes a baseline, its stages as tables too; `parse_baseline` is the
    inverse, but for the channels of the images."""
    whole = asdict(base)
    table = {key: whole[key] for key in _KEYS}
    if base.columns:
        table["resolution"] = typed_sides(base.resolution, base.columns)
    return {**table, "stages": list(whole["stages"])}


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


# ---- config.json

_CONFIG = "config.json"


def is_config_path(name: str) -> bool:
    """Whether a text that names no network can be the path of a run folder or a config.json."""
    return name.endswith(".json") or len(Path(name).parts) > 1 or Path(name).is_dir()


def find_config(path: str | Path) -> Path:
    """The config.json that a path names: the file itself, or the one in a folder, which is a
    search's run folder or what `effnet.nn.weights.save` wrote.

    Raises ValueError where there is none, or one for each of several budgets."""
    path = Path(path)
    if path.suffix == ".json" and not path.is_dir():
        return path
    if not path.is_dir():
        raise ValueError(f"{path}: no such run folder, and no config.json either")
    if (path / _CONFIG).is_file():
        return path / _CONFIG
    of_budgets = sorted(path.glob("config-*.json"), key=lambda file: (len(file.name), file.name))
    if len(of_budgets) == 1:
        return of_budgets[0]
    if of_budgets:
        files = ", ".join(map(str, of_budgets))
        raise ValueError(
            f"{path}: holds a pick for each of {len(of_budgets)} budgets; give {files}"
        )
    if (path / "study.toml").is_file():
        raise ValueError(
            f"{path}: holds no config.json, which the search writes with its answer; go on with it "
            "until two networks have finished"
        )
    raise ValueError(f"{path}: no run folder, which has a study.toml and a config.json")


def read_config(path: str | Path, function: str | None = None) -> Network:
    """The network in a config.json: what a study chose, or what `effnet.nn.weights.save` wrote
    beside its weights. `path`: the file or its folder.

    A function's network can be costed from what is recorded of it; to be built it needs its
    `function`, as file.py:build, whose file is run. Raises ValueError for any other file, for a
    folder with the picks of several budgets, and for another function than the network's."""
    file = find_config(path)
    config = _read_json(file)
    try:
        net = network_from_dict(config["arch"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: not a config.json with an arch: {error}") from error
    if function is None:
        return net
    if not isinstance(net, CustomArch):
        raise ValueError(f"{file}: {net.name} is of a table, and takes no function ({function})")
    return custom.supplied(net, function)


def read_config_baseline(path: str | Path) -> Baseline:
    """The baseline of the search that wrote a config.json: what its multipliers are multiples of.
    `path`: the file or its folder.

    Raises ValueError where the file does not state it, or it is a function."""
    file = find_config(path)
    table = _read_json(file).get("baseline")
    if not isinstance(table, dict):
        raise ValueError(
            f"{file}: does not say which baseline its network was scaled from; `scaling-search "
            "report` writes it into a run folder"
        )
    if "function" in table:
        raise FunctionError(
            f"{file}: its baseline is the function {table['function']}; give it itself, as "
            "FILE.py:FUNCTION"
        )
    base = parse_baseline(table, f"{file}: baseline")
    # the table of a baseline is of any images; the search's had these
    return replace(base, in_channels=read_config(file).in_channels)


def baseline_settings(base: Baseline | Function) -> dict[str, Any]:
    """A search's baseline as its config.json states it: a table, or which function at which width
    and resolution, without the folders of this machine."""
    if isinstance(base, Baseline):
        return baseline_table(base)
    return {
        "function": base.name,
        "digest": base.digest,
        "width": base.width,
        "resolution": base.resolution,
    }


def _read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError."""
    try:
        config = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{file}: not a config.json with an arch: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file}: not a config.json with an arch: no object")
    return config
