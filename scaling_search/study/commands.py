"""Commands as people typed them, with a part taken out."""

from __future__ import annotations

import shlex


def without_option(command: str, option: str, setting: str = "") -> str:
    """Return the command without an option and its value, and without a --set of that setting."""
    kept = []
    words = iter(shlex.split(command))
    for word in words:
        if word == option:
            next(words, "")
        elif word == "--set":
            value = next(words, "")
            if not _sets(value, setting):
                kept += [word, value]
        elif not word.startswith(f"{option}=") and not _sets(word.removeprefix("--set="), setting):
            kept.append(word)
    return shlex.join(kept)


def _sets(value: str, setting: str) -> bool:
    """Whether the value of a --set, NAME=VALUE, is of this setting."""
    return bool(setting) and value.startswith(f"{setting}=")
