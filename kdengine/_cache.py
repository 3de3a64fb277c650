"""Where kdengine keeps what it can make again: its only place."""

import os
from pathlib import Path

from kdengine._paths import expanded

VARIABLE = "KDENGINE_CACHE"


def cache_folder() -> Path:
    """`$KDENGINE_CACHE`, else `kdengine` below the user's cache folder.

    Raises:
        OSError: the user has no home, and no variable names a folder.
    """
    if named := os.environ.get(VARIABLE):
        return expanded(named)
    if usual := os.environ.get("XDG_CACHE_HOME"):
        return expanded(usual) / "kdengine"
    try:
        return Path.home() / ".cache" / "kdengine"
    except RuntimeError as error:
        raise OSError(f"there is no home directory to keep a cache in; name a folder with {VARIABLE}") from error


def why_unwritable(folder: Path) -> str | None:
    """Why nothing can be written into a folder, which need not be there yet, and what to do; None where it can.

    Only looks: a command that writes nothing may ask, too.

    >>> import tempfile
    >>> why_unwritable(Path(tempfile.gettempdir()) / "new" / "folder") is None
    True
    """
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        reason = f"{there} is no folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        reason = f"{there} cannot be written, as in a container whose home is read-only"
    else:
        return None
    return f"the cache {folder} cannot be used: {reason}; name a folder that can be written with {VARIABLE}"
