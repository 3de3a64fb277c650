"""The record of one plugin: what it is called, where it came from and whether it acts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from packaging.utils import canonicalize_name

from kdengine.api.errors import ConfigurationError

Origin: TypeAlias = Literal["builtin", "installed", "file", "object"]

BUILTIN: Final = "builtin"
"""The name that all builtins share, so that ``builtin:kd`` picks kdengine's own component."""

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Plugin:
    """One plugin that the host knows.

    Attributes:
        name: the name that people write; the builtins share :data:`BUILTIN`.
        origin: where it came from.
        source: dotted name, entry point, path or class, for people to find it.
        target: the imported module or object; None while an installed plugin is not imported.
        distribution: distribution that installed it, or None.
        version: version of the distribution, ``sha256:...`` of a file, ``__version__`` of an object, or None.
        acting: whether its callbacks run.
        disabled: whether it was switched off.
        error: why it is broken, or None.
    """

    name: str
    origin: Origin
    source: str
    target: object | None = field(default=None, compare=False, repr=False)
    distribution: str | None = None
    version: str | None = None
    acting: bool = False
    disabled: bool = False
    error: str | None = None

    @property
    def key(self) -> str:
        """What identifies the plugin in a host: ``My_plugin`` and ``my-plugin`` are one name."""
        return self.source if self.origin == BUILTIN else canonicalize_name(self.name)

    @property
    def title(self) -> str:
        """The plugin and where it came from, for messages.

        >>> Plugin("focal", "installed", "focal_kd", distribution="kd-focal", version="1.2").title
        "plugin 'focal' (kd-focal 1.2)"
        >>> Plugin("mine", "file", "plugins/mine.py").title
        "plugin 'mine' (plugins/mine.py)"
        """
        where = f"{self.distribution} {self.version}" if self.distribution else self.source
        return f"builtin ({where})" if self.origin == BUILTIN else f"plugin {self.name!r} ({where})"


def describe_failure(error: BaseException) -> str:
    """Say why a plugin's code failed; one that ends the process is told what it must not do.

    >>> describe_failure(ValueError("no"))
    'ValueError: no'
    """
    if isinstance(error, SystemExit):
        code = "" if error.code is None else repr(error.code)
        return f"it calls sys.exit({code}); keep what ends the process behind if __name__ == '__main__'"
    return f"{type(error).__name__}: {error}"


def check_name(name: object, source: str) -> str:
    """Return ``name`` when a plugin may have it; ``plugin:component`` must stay readable.

    Raises:
        ConfigurationError: the name is reserved, or not made of letters, digits, ``.``, ``_`` and ``-``.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{source} cannot be a plugin under the name {name!r}: expected letters, digits and '.', '_' or '-' "
            "between them; rename it, or set kdengine_name in it"
        )
    if canonicalize_name(name) == BUILTIN:
        raise ConfigurationError(
            f"{source} cannot be a plugin under the name {name!r}, which stands for kdengine's own components; "
            "rename it, or set kdengine_name in it"
        )
    return name
