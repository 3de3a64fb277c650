"""Capturing a module's features: hooks that exist only while a fit needs them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdengine.api.errors import ConfigurationError, nearest


class Capture:
    """Forward hooks on the module paths that losses asked for.

    Use :meth:`attach` and :meth:`remove` around a fit; :meth:`take` after each forward hands over what arrived and
    forgets it, so that nothing leaks from one batch, or from an evaluation, into the next.
    """

    def __init__(self, module: nn.Module, paths: Iterable[str], role: str) -> None:
        self.module = module
        self.role = role
        self.paths = tuple(dict.fromkeys(paths))
        self._handles: list[RemovableHandle] = []
        self._seen: dict[str, Tensor] = {}
        known = dict(module.named_modules())
        for path in self.paths:
            if path not in known:
                raise ConfigurationError(
                    f"the {role} {type(module).__name__} has no module {path!r}; {nearest(path, filter(None, known))}"
                )

    def attach(self) -> None:
        """Set the hooks."""
        modules = dict(self.module.named_modules())
        for path in self.paths:
            self._handles.append(modules[path].register_forward_hook(self._hook(path)))

    def remove(self) -> None:
        """Take every hook away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()

    def discard(self) -> None:
        """Forget what the last forward gave; an evaluation asks for no features."""
        self._seen = {}

    def take(self) -> Mapping[str, Tensor]:
        """What the last forward gave.

        Raises:
            ConfigurationError: a declared feature did not arrive, for instance because its module never ran.
        """
        seen, self._seen = self._seen, {}
        missing = [path for path in self.paths if path not in seen]
        if missing:
            raise ConfigurationError(
                f"no feature arrived from {', '.join(map(repr, missing))} of the {self.role}: the module did not run "
                "in this forward, or its hook was compiled away"
            )
        return seen

    def _hook(self, path: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple | list) and output else output
            if not isinstance(value, Tensor):
                raise ConfigurationError(
                    f"the module {path!r} of the {self.role} returned {type(value).__name__}, expected a tensor"
                )
            self._seen[path] = value

        return keep
