"""The command line: the commands, and what an error says.

Nothing here, and nothing that the command modules import when they load, imports torch: ``kdengine --help`` is quick.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from kdengine import _interrupts as interrupts
from kdengine._version import __version__
from kdengine.cli import build, compare, env, listing, output, running, runs, several
from kdengine.cli.prepared import prepared
from kdengine.cli.verdict import FAILURE, USAGE, verdict

app = typer.Typer(name="kdengine", add_completion=False, pretty_exceptions_enable=False)


COMMANDS: tuple[Callable[..., None], ...] = (
    running.run,
    running.check,
    compare.compare,
    runs.evaluate,
    runs.report,
    runs.export,
    runs.clean,
    listing.recipes,
    listing.new,
    listing.schema,
    env.env,
    build.build,
)
for command in COMMANDS:
    app.command()(prepared(command))
app.add_typer(listing.plugins_app, name="plugins")


@app.callback(invoke_without_command=True)
def kdengine(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
    _debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; works anywhere.")] = False,
) -> None:
    """Knowledge distillation: a teacher, a student and a recipe.

    Begin with: kdengine run digits
    """
    if version:
        typer.echo(f"kdengine {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """The ``kdengine`` command."""
    several.hush()
    with interrupts.watching():
        code = invoke(sys.argv[1:])
    if several.is_several():
        several.leave(code)
    sys.exit(code)


def invoke(arguments: Sequence[str]) -> int:
    """Carry out one command line; return its exit code.

    Args:
        arguments: what follows ``kdengine``. ``--debug`` may stand anywhere.
    """
    debug = "--debug" in arguments
    output.accept_any_text()
    try:
        with output.plain_warnings():
            code = typer.main.get_command(app).main(
                [argument for argument in arguments if argument != "--debug"], "kdengine", standalone_mode=False
            )
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:  # the reader left, as in `kdengine recipes | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except (Exception, KeyboardInterrupt, interrupts.Terminated) as error:
        if debug:
            traceback.print_exc()
        return explain(several.explain(error))


def explain(error: BaseException) -> int:
    """Say on standard error what went wrong and what to do; return the exit code."""
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, typer.Abort):
        tell("nothing was changed")
        return FAILURE
    if isinstance(error, usage_error()):
        error.show()  # type: ignore[attr-defined]
        return USAGE
    code, text = verdict(error)
    tell("\n".join([text, *getattr(error, "__notes__", ())]))
    return code


def usage_error() -> type[Exception]:
    """The class of what the parser refuses; typer has its own copy of click in some versions and not in others."""
    return next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def tell(text: str) -> None:
    """A message on standard error, as it is; which process speaks, unless it is the main one."""
    if not several.is_main():
        text = f"process {several.rank()}: {text}"
    print(text, file=sys.stderr, flush=True)
