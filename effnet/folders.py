"""Where what can be made again is kept: data sets as they are trained on, counts, checks."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$SCALING_SEARCH_CACHE, or scaling-search under the user's cache folder. Raises RuntimeError
    where there is neither, as for a user without a home."""
    own = os.environ.get("SCALING_SEARCH_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scaling-search"
