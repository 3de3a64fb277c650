"""From what is typed to a checked plan."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from kdengine._paths import expanded
from kdengine.cli import several

if TYPE_CHECKING:
    from kdengine.recipe.load import Source
    from kdengine.recipe.plan import Plan


def warn(text: str) -> None:
    """A warning on standard error, from the main process alone."""
    if not several.is_main():
        return
    print(f"warning: {text}", file=sys.stderr, flush=True)


def prepare(
    source: Source, overrides: Iterable[str], plugins: Iterable[str] = (), disabled: Iterable[str] = ()
) -> Plan:
    """Load a recipe, find its plugins and check everything against them.

    Args:
        source: the recipe's text.
        overrides: ``key.path=value``.
        plugins: that act beside the recipe's own.
        disabled: that neither act nor offer.
    """
    from kdengine.host import Host
    from kdengine.ops import backend_info
    from kdengine.recipe.load import read
    from kdengine.recipe.plan import make_plan

    backend_info()  # refuses what the environment asks for before anything is written
    recipe, problems = read(source, overrides)
    acting = [placed(name, source.folder) for name in recipe.plugins]
    acting += [name for given in plugins if (name := placed(given, Path())) not in acting]
    recipe = recipe.model_copy(update={"plugins": acting})
    return make_plan(recipe, Host(acting, disabled=list(disabled), warn=warn), source, problems)


def placed(plugin: str, folder: Path) -> str:
    """A plugin as a recipe in any directory may name it: a path becomes absolute, a name stays.

    >>> placed("focal>=1.2", Path("recipes"))
    'focal>=1.2'
    """
    is_path = plugin.endswith(".py") or "/" in plugin or "\\" in plugin
    return str((folder / expanded(plugin)).resolve()) if is_path else plugin
