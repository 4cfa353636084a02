"""Says a line on the terminal, as every command does."""

from __future__ import annotations

from rich.console import Console


def say(console: Console, label: str, text: str) -> None:
    """Print one aligned line, never wrapped, its text taken literally."""
    console.print(f"{label:<9} {text}", soft_wrap=True, markup=False, highlight=False)
