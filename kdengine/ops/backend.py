"""Which implementation of the operator runs, and why."""

import os
from dataclasses import dataclass

VARIABLE = "KDENGINE_BACKEND"
ACCEPTED = ("auto", "python")


@dataclass(frozen=True)
class BackendInfo:
    """The implementation behind `kdengine.ops.kd_loss`.

    Attributes:
        name: the implementation, here always `"python"` (pure PyTorch).
        reason: one sentence that says why this one was taken.
    """

    name: str
    reason: str


def backend_info() -> BackendInfo:
    """Tell which implementation `kd_loss` uses in this process.

    The environment variable `KDENGINE_BACKEND` is read at every call: unset, `auto` and `python` are accepted.

    Returns:
        The name of the implementation and the reason for it.

    Raises:
        ValueError: `KDENGINE_BACKEND` names an implementation that this version does not have.

    Example:
        >>> backend_info().name
        'python'
    """
    wanted = os.environ.get(VARIABLE) or "auto"
    if wanted not in ACCEPTED:
        raise ValueError(
            f"{VARIABLE}={wanted!r}: this version has the pure PyTorch implementation only; "
            f"unset {VARIABLE} or set it to one of {', '.join(map(repr, ACCEPTED))}"
        )
    if wanted == "python":
        return BackendInfo("python", f"{VARIABLE}=python asks for pure PyTorch")
    return BackendInfo("python", "pure PyTorch is the only implementation in this version")
