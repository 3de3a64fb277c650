"""``kdengine plugins check``: the certificates of a plugin's losses.

The one place in the package that uses the test kit, and only when the command runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import typer

from kdengine.cli import tables

if TYPE_CHECKING:
    from kdengine.testing.plugins import Report

FAILED = 1
"""Exit code where something does not hold, or the plugin is broken; a command that cannot be followed ends with 2."""


def check(package: str, settings: Iterable[str], features: str | None, *, processes: bool, as_json: bool) -> None:
    """Check a plugin and print what was found.

    Args:
        package: as a person names it.
        settings: ``NAME.ARGUMENT=VALUE``.
        features: a shape, ``8,4,4``.
        processes: whether to start two processes.
        as_json: whether to print JSON.
    """
    from kdengine.api import PluginError
    from kdengine.testing.plugins import examine_plugin

    reports = examine_plugin(
        package, arguments=read_settings(settings), features=read_shape(features), processes=processes
    )
    found = []
    try:
        for report in reports:
            found.append(report)
            if not as_json:
                typer.echo(text_of(report))
    except PluginError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(FAILED) from error
    failed = [report for report in found if report.outcome == "failed"]
    if as_json:
        facts = [report.facts() for report in found]
        untried = [report.component.qualified for report in found if report.outcome == "signature only"]
        tables.show_json({"plugin": package, "held": not failed, "untried": untried, "components": facts})
    else:
        typer.echo(summary(package, found, failed))
    if failed:
        raise typer.Exit(FAILED)


def read_settings(settings: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The arguments of each component by its name.

    >>> read_settings(["hint.student=layer1", "hint.teacher=layer2"])
    {'hint': {'student': 'layer1', 'teacher': 'layer2'}}

    Raises:
        ConfigurationError: a setting names no component, or an argument of an argument.
    """
    from kdengine.api import ConfigurationError
    from kdengine.recipe.load import apply_override

    tree: dict[str, Any] = {}
    for setting in settings:
        if setting.partition("=")[0].count(".") != 1:
            raise ConfigurationError(f"--set expects NAME.ARGUMENT=VALUE, such as hint.student=layer1; got {setting!r}")
        apply_override(tree, setting)
    return tree


def read_shape(text: str | None) -> tuple[int, ...] | None:
    """A shape as it is typed.

    >>> read_shape("8,4,4")
    (8, 4, 4)

    Raises:
        ConfigurationError: it is none.
    """
    from kdengine.api import ConfigurationError

    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ConfigurationError(f"--features expects a shape without the batch, such as 8,4,4; got {text!r}")
    return tuple(int(part) for part in parts)


def text_of(report: Report) -> str:
    """A certificate, or one line."""
    if report.certificate is None:
        return report.line
    return f"{report.certificate.text()}\n"


def summary(package: str, found: list[Report], failed: list[Report]) -> str:
    """The last lines: how many components held, which failed, and which were not tried at all."""
    if not found:
        return f"{package} offers no component"
    untried = [report for report in found if report.outcome == "signature only"]
    held = len(found) - len(failed) - len(untried)
    count = f"{len(found)} component{'s' if len(found) != 1 else ''}"
    parts = [f"{held} held"] if held else []
    parts += [f"{len(failed)} failed: {named(failed)}"] if failed else []
    parts += [f"{len(untried)} looked at by signature alone: {named(untried)}"] if untried else []
    told = "all hold" if held == len(found) else f"of which {'; '.join(parts)}"
    lines = [f"{package}: {count}, {told}"]
    if any(report.message for report in untried):
        lines.append("--set NAME.ARGUMENT=VALUE gives a component what it needs to be made and tried")
    return "\n".join(lines)


def named(reports: list[Report]) -> str:
    """The components of reports, in a row."""
    return ", ".join(f"{report.component.kind} {report.component.name}" for report in reports)
