"""Where kdengine keeps what it can make again: its only place."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$KDENGINE_CACHE`, else `kdengine` below the user's cache folder."""
    named = os.environ.get("KDENGINE_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdengine"
