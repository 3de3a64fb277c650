"""What the system says of other processes of this machine."""

import os
from pathlib import Path


def is_running(pid: int) -> bool:
    """Whether a process of this machine runs; one that has died and waits for its parent to notice does not.

    >>> is_running(os.getpid())
    True
    """
    if os.name == "nt":  # signal 0 is Ctrl-C there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # no such file system, or gone meanwhile
        return True
    return state not in "ZX"
