"""Files that hold the old or the new text, never a mixture, whatever happens between."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Write beside `path`, sync, rename. Raises OSError (a full disk, say), leaving `path` as it
    was."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o644)  # mkstemp's is for the owner alone
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
