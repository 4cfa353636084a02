"""What a reader types after an answer: the command that trains the pick."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from effnet import custom
from scaling_search.data.named import NAMED
from scaling_search.data.sources import is_choice
from scaling_search.study.settings import Study
from scaling_search.verdict.verdict import Verdict

_LONGER = 10  # times the study's longest runs: what is proposed for the pick's own training


def config_file(folder: Path, v: Verdict, study: Study) -> Path:
    """Return where the pick of a verdict goes in the run folder."""
    if len(study.budgets) == 1:
        return folder / "config.json"
    # a budget may have any character in it, as "2x latency@8/cuda", a file's name may not
    return folder / f"config-{re.sub(r'[^A-Za-z0-9.@-]+', '-', str(v.budget))}.json"


def train_command(v: Verdict, study: Study, folder: Path, is_table: bool = False) -> str:
    """Return the command that trains a pick, with a comment that may be pasted with it.

    `is_table`: of a recorded table, which came without its data and from another machine."""
    epochs = _LONGER * study.rungs[-1]
    network, trained = folder, folder / "trained"
    if len(study.budgets) > 1:
        network = config_file(folder, v, study)
        trained = network.with_name(network.stem.replace("config", "trained"))
    words = ["scaling-search", "train", str(network), "--epochs", str(epochs)]
    if study.baseline.function is not None:
        words += ["--baseline", _from_here(study.baseline.name)]
        trained = trained.with_suffix(".safetensors")
    source = study.data.source
    is_named = "/" in source or source in NAMED or is_choice(source)  # a slash: of the Hub
    if is_table and not is_named:  # of the user's own files a table keeps the name alone
        words += ["--data", f"PATH/TO/{source}"]
    words += ["--to", str(trained)]
    minutes = round(_LONGER * v.seconds / 60)
    where = " where it was recorded" if is_table else ""
    time = f", some {minutes} minutes{where}" if minutes > 1 else ""
    return f"{shlex.join(words)}  # trains the pick {_LONGER} times as long as here{time}"


def _from_here(place: str) -> str:
    """Return the place of a function, its file relative to the working folder where it is below."""
    file, attribute = custom.split_place(place)
    path = Path(file)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        return f"{path.relative_to(Path.cwd())}:{attribute}"
    return place
