"""What there is: plugins, components, recipes and the recipe's schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kdengine.cli import planning, scaffold, tables
from kdengine.cli.prepared import prepared

plugins_app = typer.Typer(invoke_without_command=True, help="List plugins; show, check or begin one.")
plugins_app.command("new")(prepared(scaffold.new))

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Acting = Annotated[
    list[str] | None, typer.Option("--plugin", metavar="NAME_OR_PATH", help="Look at this plugin as well.")
]


def recipes() -> None:
    """List the recipes that come with kdengine."""
    from kdengine.recipe.load import Source, load, shipped

    known = {name: load(Source(name, text, Path())) for name, text in shipped().items()}
    tables.show(["recipe", "what it shows"], [[name, recipe.description or ""] for name, recipe in known.items()])
    typer.echo("\nkdengine run NAME carries one out; kdengine new FILE --from NAME copies it to be changed")


def new(
    file: Annotated[Path, typer.Argument(help="The recipe file to write.")],
    origin: Annotated[str, typer.Option("--from", metavar="NAME", help="The recipe to begin with.")],
) -> None:
    """Copy a recipe that comes with kdengine, to be changed."""
    from kdengine.api import ConfigurationError
    from kdengine.recipe.load import find

    source = find(origin)
    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(source.text)
    except FileExistsError:
        raise ConfigurationError(f"{file} is there already and stays as it is; choose another name") from None
    typer.echo(f"wrote {file}: change it, then kdengine check {file}")


def schema(out: Annotated[Path | None, typer.Option(help="Write it to a file.")] = None) -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from kdengine import _files as files
    from kdengine.recipe.schema import Recipe

    text = json.dumps(Recipe.model_json_schema(), indent=2)
    if out is None:
        typer.echo(text)
        return
    files.write_text(out, f"{text}\n")
    typer.echo(f"wrote {out}")


@plugins_app.callback()
def plugins(context: typer.Context, acting: Acting = None, as_json: Json = False) -> None:
    """List plugins, or show one: kdengine plugins show kd."""
    if context.invoked_subcommand is not None:
        return
    from kdengine.cli.describe import status
    from kdengine.host import KINDS, Host

    host = Host(acting or (), warn=planning.warn)
    host.components(KINDS[0])  # imports what is installed: a broken plugin shows as such
    rows = [
        {
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "origin": plugin.origin,
            "source": plugin.source,
            "status": status(plugin),
        }
        for plugin in host.plugins()
    ]
    if as_json:
        tables.show_json(rows)
        return
    columns = list(rows[0])
    tables.show(columns, [[str(row[column] or "-") for column in columns] for row in rows])


@plugins_app.command("show")
@prepared
def show(
    name: Annotated[str, typer.Argument(help="A plugin, or a component such as kd or builtin:kd.")],
    acting: Acting = None,
    as_json: Json = False,
) -> None:
    """Show a plugin or a component: what it is, its arguments, and a recipe table to paste."""
    from kdengine.cli.describe import describe
    from kdengine.host import Host

    found = describe(Host(acting or (), warn=planning.warn), name)
    if as_json:
        tables.show_json([item.facts() for item in found])
        return
    typer.echo("\n\n".join(item.text() for item in found))


@plugins_app.command("check")
@prepared
def check(
    package: Annotated[str, typer.Argument(help="An installed plugin or its distribution, a file, or a module.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME.ARGUMENT=VALUE", help="Give a component an argument.")
    ] = None,
    features: Annotated[
        str | None, typer.Option(metavar="SHAPE", help="Shape of features without the batch, such as 8,4,4.")
    ] = None,
    processes: Annotated[bool, typer.Option("--processes", help="Also run each loss in two processes.")] = False,
    as_json: Json = False,
) -> None:
    """Put every component of a plugin through the test kit; print the certificates of its losses."""
    from kdengine.cli import checking

    checking.check(package, settings or (), features, processes=processes, as_json=as_json)
