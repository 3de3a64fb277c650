"""Who could have changed a compiled library of the cache: it runs as machine code, with the rights of this process."""

import os
import stat
from pathlib import Path

_TRUSTED_GROUP = 0


def distrust(file: Path, folders: int = 2) -> str | None:
    """Say why a library could have been made or changed by another user; None where only this one or root could.

    Its file and the folders that kdengine makes for it must belong to this user or to root and be writable by nobody
    else, as ssh asks of its files. Folders above are not asked: what their owner puts there is still not this user's.

    Args:
        file: the library; what does not exist is no danger.
        folders: how many of the folders around it are asked as well.

    >>> distrust(Path("/no/such/library")) is None
    True
    """
    if not hasattr(os, "geteuid"):  # Windows: the cache lies in the user's profile, which has its own list of rights
        return None
    for path in (file, *list(file.parents)[:folders]):
        if (reason := _why(path)) is not None:
            return reason
    return None


def protect(path: Path) -> None:
    """Take from others the right to write that a lenient umask has given them."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o022:
        path.chmod(mode & ~0o022)


def _why(path: Path) -> str | None:
    try:
        found = path.stat()
    except OSError:
        return None
    user = os.geteuid()
    if found.st_uid not in (0, user):
        return f"{path} belongs to user {found.st_uid}, and this process runs as user {user}"
    if _others_may_write(found):
        return f"{path} can be written by other users (chmod go-w mends that, if nobody has done so)"
    return None


def _others_may_write(found: os.stat_result) -> bool:
    """Whether somebody else may exchange a file, or what a folder holds.

    A user's private group, whose number is the user's, has no other member; group 0 is root's.
    """
    private = found.st_gid in (_TRUSTED_GROUP, found.st_uid)
    if found.st_mode & stat.S_IWGRP and not private:
        return True
    kept_apart = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX  # as /tmp: each its own entries
    return bool(found.st_mode & stat.S_IWOTH) and not kept_apart
