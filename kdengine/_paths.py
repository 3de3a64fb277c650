"""Paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with a leading ``~`` or ``~name`` replaced by the home it means; any other stays as it is.

    A shell replaces it in a word of its own, but not behind the ``=`` of ``--out=~/run``, and nothing does in a recipe.

    >>> expanded("runs/~x")
    PosixPath('runs/~x')
    """
    found = Path(path)
    try:
        return found.expanduser()
    except RuntimeError:  # no such user, or no home: a file may have that name
        return found
