"""A plugin that listens to every callback."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kdengine.api.hooks import CALLBACKS, HOOK_VERSION, hookimpl

PREFIX = "kdengine_on_"


class HookRecorder:
    """Implements every callback hook and records the calls in order.

    Args:
        answers: by hook name without ``kdengine_on_``: a function of the context, called when the hook fires; what
            it returns is what the hook returns.

    Attributes:
        calls: ``(hook, step)`` of every call, the step as its context has it.

    Example:
        >>> from kdengine.testing import tiny_run
        >>> recorder = HookRecorder()
        >>> _ = tiny_run(plugins=[recorder], epochs=1)
        >>> recorder.calls[0], recorder.calls[-1]
        (('fit_start', 0), ('fit_end', 4))
    """

    kdengine_hook_version = HOOK_VERSION
    kdengine_name = "hook-recorder"

    def __init__(self, answers: Mapping[str, Callable[[Any], Any]] | None = None) -> None:
        self.answers = dict(answers or {})
        unknown = sorted(name for name in self.answers if PREFIX + name not in CALLBACKS)
        if unknown:
            raise ValueError(f"no callback is named {', '.join(unknown)}")
        self.calls: list[tuple[str, int]] = []

    @property
    def hooks(self) -> list[str]:
        """Names of the hooks that fired, in order."""
        return [hook for hook, _ in self.calls]

    def record(self, hook: str, context: Any) -> Any:
        """Note one call and give its answer."""
        self.calls.append((hook, context.step))
        answer = self.answers.get(hook)
        return None if answer is None else answer(context)


def _listener(name: str) -> Callable[[HookRecorder, Any], Any]:
    def listen(self: HookRecorder, context: Any) -> Any:
        return self.record(name.removeprefix(PREFIX), context)

    listen.__name__ = name
    return hookimpl(listen)


for _name in CALLBACKS:
    setattr(HookRecorder, _name, _listener(_name))
