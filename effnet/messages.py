"""What an exception says, for a line of a terminal or a record."""

from __future__ import annotations


def first_line(error: BaseException, named: bool = False) -> str:
    """The first line of its message, at most 300 characters; `named`: after the kind of error.
    torch's messages go on with stack traces and advice."""
    lines = str(error).strip().splitlines() or [""]
    text = lines[0][:300]
    kind = type(error).__name__
    if named:
        return f"{kind}: {text}"
    return text or kind


def last_line(output: str, otherwise: str = "") -> str:
    """The last line of what a program has printed, or `otherwise` where it printed nothing. A
    Python program that fails names its error there."""
    lines = output.strip().splitlines() or [otherwise]
    return lines[-1].strip()
