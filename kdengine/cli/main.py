"""The command line: the commands, and what an error says.

Nothing here, and nothing that the command modules import when they load, imports torch: ``kdengine --help`` is quick.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Annotated, Any

import typer

from kdengine import _interrupts as interrupts
from kdengine._version import __version__
from kdengine.cli import build, compare, env, listing, running, runs, several

app = typer.Typer(name="kdengine", add_completion=False, pretty_exceptions_enable=False)


class CommandInterruptedError(Exception):
    """A signal; typer would leave with the exit code alone, without a word.

    Attributes:
        code: the exit code.
        word: what became of the command.
    """

    def __init__(self, reason: BaseException) -> None:
        super().__init__()
        terminated = isinstance(reason, interrupts.Terminated)
        self.code, self.word = (TERMINATED, "terminated") if terminated else (INTERRUPTED, "interrupted")
        for note in getattr(reason, "__notes__", ()):
            self.add_note(note)


def interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """Let a signal leave a command as an exception that typer passes on, with its notes."""

    @wraps(command)
    def call(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (KeyboardInterrupt, interrupts.Terminated) as error:
            raise CommandInterruptedError(error) from error

    return call


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
    app.command()(interruptible(command))
app.add_typer(listing.plugins_app, name="plugins")

USAGE, FAILURE, INTERRUPTED, TERMINATED = 2, 1, 130, 143
"""Exit codes: what the user can mend, everything else that went wrong, Ctrl-C, and SIGTERM."""


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
    try:
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


def verdict(error: BaseException) -> tuple[int, str]:
    """The exit code and the message of an exception."""
    if isinstance(error, KeyboardInterrupt | interrupts.Terminated):
        error = CommandInterruptedError(error)
    if isinstance(error, CommandInterruptedError):
        return error.code, error.word
    if isinstance(error, OSError):
        return USAGE, f"error: {describe_os_error(error)}"
    from kdengine.api.errors import KDEngineError, NonFiniteError

    if isinstance(error, NonFiniteError):
        return FAILURE, f"error: {error}"
    if isinstance(error, KDEngineError):
        return USAGE, f"error: {error}"
    from kdengine.ops.library import EnvironmentSettingError, UnavailableError

    if isinstance(error, EnvironmentSettingError | UnavailableError):
        return USAGE, f"error: {error}"
    return FAILURE, (
        f"error: {type(error).__name__}: {error}\n"
        "Run again with --debug for the traceback; this is a bug in kdengine or a plugin."
    )


def describe_os_error(error: OSError) -> str:
    """What the system refused, and where: ``no space left on device: runs/digits``."""
    reason = error.strerror or str(error)
    place = f": {error.filename}" if error.filename is not None and str(error.filename) not in reason else ""
    return f"{reason[:1].lower()}{reason[1:]}{place}"


def tell(text: str) -> None:
    """A message on standard error, as it is; which process speaks, unless it is the main one."""
    if not several.is_main():
        text = f"process {several.rank()}: {text}"
    print(text, file=sys.stderr, flush=True)
