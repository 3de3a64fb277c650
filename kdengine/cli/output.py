"""Output that any stream takes: what its encoding lacks is written in the nearest plain characters."""

from __future__ import annotations

import codecs
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from kdengine.cli import planning

HANDLER: Final = "kdengine.plain"
_PLAIN: Final = {
    "\N{NARROW NO-BREAK SPACE}": " ",
    "\N{NO-BREAK SPACE}": " ",
    "\N{MINUS SIGN}": "-",
    "\N{EN DASH}": "-",
    "\N{EM DASH}": "-",
    "\N{PLUS-MINUS SIGN}": "+/-",
    "\N{MULTIPLICATION SIGN}": "x",
    "\N{HORIZONTAL ELLIPSIS}": "...",
    "\N{LEFT SINGLE QUOTATION MARK}": "'",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{BOX DRAWINGS LIGHT HORIZONTAL}": "-",
    "\N{BOX DRAWINGS HEAVY HORIZONTAL}": "-",
    "\N{BOX DRAWINGS LIGHT VERTICAL}": "|",
}


def plain(error: UnicodeError) -> tuple[str, int]:
    r"""Replace what cannot be encoded: by its likeness where there is one, else by its escape, as in ``\u4e2d``.

    >>> codecs.register_error("plain", plain)
    >>> "0.5 ± 0.1, 中".encode("ascii", errors="plain")
    b'0.5 +/- 0.1, \\u4e2d'
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    likeness = (_PLAIN.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in lost)
    return "".join(likeness), error.end


def accept_any_text() -> None:
    """Let standard output and error take every text: a terminal of another code page, a name that is no Unicode.

    Otherwise the table at the end of a long training could not be printed, and would end it with an error.
    """
    codecs.register_error(HANDLER, plain)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=HANDLER)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print kdengine's warnings as a line each: where in typer they were raised helps nobody."""
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        if category.__module__.partition(".")[0] == "kdengine":
            planning.warn(str(message))
        else:
            before(message, category, *args, **kwargs)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before
