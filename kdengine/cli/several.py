"""One command line in several processes, as ``torchrun`` starts it: one of them speaks, all leave together."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from kdengine._launch import ALONE, Launch, launched


def rank() -> int:
    """This process among those that torchrun has started, from 0."""
    return _launched().rank


def is_several() -> bool:
    """Whether torchrun has started several processes."""
    return _launched().world > 1


def _launched() -> Launch:
    """What the environment says; where it makes no sense each process speaks, and joining the others says why."""
    try:
        return launched()
    except ValueError:
        return ALONE


def is_main() -> bool:
    """Whether this process speaks."""
    return rank() == 0


def hush() -> None:
    """Close standard output in every process but the main one; errors are still told."""
    if not is_main():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - as long as the process lives


def explain(error: BaseException) -> BaseException:
    """What to tell of an error: which process was lost, where that is the reason."""
    if not is_several():
        return error
    from kdengine.api.processes import joined

    return joined().explain(error)


def leave(code: int) -> NoReturn:
    """End this process, together with the others if all went well.

    A process group that Python tears down may abort at exit, so what has to be done is done here.
    """
    if is_several() and code == 0:
        from kdengine.api.processes import joined

        joined().end()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
