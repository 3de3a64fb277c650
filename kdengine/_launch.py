"""What a launcher such as ``torchrun`` tells this process through the environment: who it is among how many."""

from __future__ import annotations

import os
from typing import Final, NamedTuple

ADVICE: Final = "start the processes with torchrun --nproc-per-node N, which sets all of them"
_LARGEST_PORT: Final = 65535


class Launch(NamedTuple):
    """This process among those that were started together.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
        local_rank: its number among those of this machine.
    """

    rank: int
    world: int
    local_rank: int


ALONE: Final = Launch(0, 1, 0)


def launched() -> Launch:
    """Read the environment; a variable that is empty counts as absent.

    Raises:
        ValueError: what it says cannot be; the message names the variable.
    """
    world = _number("WORLD_SIZE", 1, lowest=1)
    if world == 1:
        return ALONE
    rank = _number("RANK", None, highest=world - 1)
    local_rank = _number("LOCAL_RANK", 0, highest=world - 1)
    if not os.environ.get("MASTER_ADDR"):
        raise ValueError(f"WORLD_SIZE is {world}, but MASTER_ADDR is not set; {ADVICE}")
    _number("MASTER_PORT", None, lowest=1, highest=_LARGEST_PORT)
    return Launch(rank, world, local_rank)


def local_rank() -> int | None:
    """This process's number among those of its machine, or None where no launcher has said one.

    Raises:
        ValueError: what ``LOCAL_RANK`` says is no number.
    """
    return _number("LOCAL_RANK", 0) if os.environ.get("LOCAL_RANK") else None


def _number(name: str, default: int | None, lowest: int = 0, highest: int | None = None) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        if default is None:
            raise ValueError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {name} is not set; {ADVICE}")
        return default
    try:
        value = int(text)
    except ValueError:
        value = lowest - 1
    if value < lowest or (highest is not None and value > highest):
        expected = f"from {lowest} to {highest}" if highest is not None else f"of {lowest} or more"
        raise ValueError(f"{name} is {text!r}, expected a whole number {expected}; {ADVICE}")
    return value
