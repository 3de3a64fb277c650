"""Whether the C library keeps freed memory: fresh pages of a large tensor cost a page fault each."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 32 << 20
"""glibc maps anything larger than this anew, whatever it is told."""


@contextlib.contextmanager
def keeping(*, large: bool) -> Iterator[None]:
    """With `large`, blocks of up to 32 MiB are taken from memory that was freed before, as other allocators do."""
    if not sys.platform.startswith("linux"):
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, LARGEST if large else 128 << 10)
    libc.mallopt(M_TRIM_THRESHOLD, 1 << 30 if large else 128 << 10)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_THRESHOLD, 128 << 10)
        libc.mallopt(M_TRIM_THRESHOLD, 128 << 10)
