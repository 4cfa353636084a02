"""How should a ConvNet's depth, width and resolution be scaled, for this data, device and
budget?"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from scaling_search.opening import StudyResults

__all__ = ["UserError", "__version__", "open", "without_secrets"]

__version__ = "0.1.0"


def open(run: str | Path, store: str | None = None) -> StudyResults:
    """Open a study from Python: a run folder, a recorded study's folder or its curves.parquet.

    `store`: the address of the database that holds the results, where the folder does not. Raises
    UserError for anything else."""
    # Not before: a worker has torch and numpy alone.
    from scaling_search.opening import open_study

    return open_study(run, store)


def without_secrets(text: str) -> str:
    """An address as it may be shown or written into results: no password, no query. Anything else
    as it is."""
    scheme, mark, address = text.partition("://")
    if not mark:
        return text
    login, at, location = address.rpartition("@")
    user, colon, _ = login.partition(":")
    location, question, _ = location.partition("?")
    password = ":***" if colon else ""
    query = "?***" if question else ""
    return f"{scheme}://{user}{password}{at}{location}{query}"


class UserError(ValueError):
    """Something the user gave cannot be used. The message is one line: what is wrong, where, and
    what would be right. The command line prints it and exits with status 2."""
