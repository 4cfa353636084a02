"""Says a line on the terminal, as every command does."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console

_LABEL = 10  # columns of the label and the space after it
_LEAST = 20  # columns of text: a narrower terminal wraps by itself


def say(console: Console, label: str, text: str) -> None:
    """Print a label and its text, taken literally. On a terminal the text is wrapped at its width,
    indented under itself; elsewhere it stays one line, for grep and for logs."""
    lines = [text]
    if console.is_terminal:
        lines = wrap(text, max(console.width - _LABEL, _LEAST))
    console.print(
        f"{label:<{_LABEL - 1}} " + f"\n{' ' * _LABEL}".join(lines),
        soft_wrap=True,
        markup=False,
        highlight=False,
    )


def wrap(text: str, width: int) -> list[str]:
    """Break a text at its spaces into lines of at most `width` columns. A longer word, such as a
    path, stays whole, so that it can be copied."""
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if line and cell_len(longer) > width:
            lines.append(line.rstrip())
            line = word
        else:
            line = longer
    return [*lines, line]


def clock(seconds: float) -> str:
    """83.4 → '1:23', 5025 → '1:23:45'."""
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
