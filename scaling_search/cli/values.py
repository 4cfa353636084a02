"""Values as they are typed on the command line."""

from __future__ import annotations

import tomllib
from typing import Any


def plain(text: str) -> Any:
    """A value on the command line as TOML reads it, else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
