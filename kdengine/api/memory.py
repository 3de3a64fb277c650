"""How much memory is left, asked before something large is allocated."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch

from kdengine.api.errors import ConfigurationError

ROOT = Path("/")


def require_memory(what: str, wanted: int, device: torch.device, advice: str) -> None:
    """Refuse to allocate what does not fit; where nobody knows what is free, anything passes.

    Args:
        what: what is to be allocated and for whom, the subject of the message.
        wanted: bytes.
        device: where.
        advice: what to do where it does not fit.

    Raises:
        ConfigurationError: less is free than wanted.

    Example:
        >>> require_memory("one number", 4, torch.device("cpu"), "take less")
    """
    free = free_memory(device)
    if free is not None and wanted > free:
        raise ConfigurationError(
            f"{what} would take {wanted:,} bytes ({_gib(wanted)}) on {device}, where {_gib(free)} are free; {advice}"
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device; None where that cannot be told.

    On CUDA what the device has free and what torch's allocator keeps unused; on the CPU what the system has available,
    and its control group lets this process have (of a container, say). Where the system does not tell what is
    available, all of its memory.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free_host_memory() if device.type == "cpu" else None


def free_host_memory(root: Path = ROOT) -> int | None:
    """Bytes that this process can still have of the host's memory.

    Args:
        root: where ``proc`` and ``sys`` are found.
    """
    limits = [_available(root), *_left_to_groups(root)]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else _physical()


def _available(root: Path) -> int | None:
    """``MemAvailable`` of Linux."""
    with suppress(OSError, ValueError, StopIteration):
        lines = (root / "proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    return None


def _left_to_groups(root: Path) -> list[int | None]:
    """What each control group around this process leaves, of version 2 and of version 1."""
    with suppress(OSError, ValueError):
        lines = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
        found: list[int | None] = []
        for _, controllers, path in lines:
            if controllers and "memory" not in controllers.split(","):
                continue
            mount = root / ("sys/fs/cgroup/memory" if controllers else "sys/fs/cgroup")
            inner = Path(path.lstrip("/"))
            found += [_left_to(mount / group, bool(controllers)) for group in (inner, *inner.parents)]
        return found
    return []


def _left_to(group: Path, first: bool) -> int | None:
    """A group's limit without what it uses; cached files give way, and so count as free."""
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if first else ("memory.max", "memory.current")
    with suppress(OSError, ValueError):  # no such group here, or no limit
        limit, used = (int((group / name).read_text()) for name in names)
        entries = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(entries.get("total_inactive_file" if first else "inactive_file", 0)))
    return None


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # no such question on this system
        return None


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
