"""Compiling a module so that hooks keep firing.

A compiled module is not compiled anew when a hook is set on a module inside it, because PyTorch leaves out the guards
that would notice: a hook that is set after the first run never fires. With the guards on, it does.
"""

from __future__ import annotations

import sys

from torch import nn


def compile_in_place(module: nn.Module) -> None:
    """``module.compile()``, with guards on hooks."""
    from torch._dynamo import config  # a second of imports, only where something is compiled

    config.skip_nnmodule_hook_guards = False
    module.compile()


def guard_hooks() -> None:
    """Have whatever is compiled from here on notice its hooks; nothing where nothing was compiled."""
    if (dynamo := sys.modules.get("torch._dynamo")) is not None:
        dynamo.config.skip_nnmodule_hook_guards = False
