"""Writes files that hold the old or the new content, never a mixture, even after a crash."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Replace the content of `path`. Raises OSError (a full disk, say), leaving `path` as it was.

    The content is written and synced under another name in the same folder, then renamed: within
    a file system POSIX's rename replaces a file atomically."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o644)  # mkstemp makes files that only their owner can read
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
