"""What the commands show in tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from kdengine.recipe.estimate import Estimate
    from kdengine.recipe.schema import Recipe

Cells = Sequence[str]


def show(columns: Cells, rows: Iterable[Cells], *, right: bool = False) -> None:
    """Print a table: the first column to the left, the others to the right if asked for.

    Off a terminal a table is as wide as it needs to be, so that nothing in it is cut or folded.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for position, column in enumerate(columns):
        side = "right" if right and position else "left"
        table.add_column(Text(column), justify=side, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    width = None if sys.stdout.isatty() else 400
    console = Console(file=sys.stdout, width=width, highlight=False)
    with console.capture() as captured:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def show_json(value: Any) -> None:
    """Print JSON."""
    typer.echo(json.dumps(value, indent=2, default=str))


def show_outcome(summary: Mapping[str, Any]) -> None:
    """The models of a run beside each other, and how much of the labels the student saw."""
    from kdengine.cli.report import formats

    entries = [
        (label, summary[key])
        for key, label in (("teacher", "teacher"), ("baseline", "student alone"), ("student", "student distilled"))
        if summary.get(key) is not None
    ]
    names = list(dict.fromkeys(name for _, entry in reversed(entries) for name in entry["metrics"]))
    typer.echo()
    show(
        ["", *(formats.metric_name(name) for name in names), "parameters", "training time"],
        [
            [
                label,
                *(metric(name, entry["metrics"].get(name)) for name in names),
                f"{entry['parameters']:,}",
                seconds(entry),
            ]
            for label, entry in entries
        ],
        right=True,
    )
    for line in remarks(summary):
        typer.echo(line)
    typer.echo()


def metric(name: str, raw: Any) -> str:
    """A metric of a summary, with its spread where there is one; a dash where there is no number."""
    from kdengine.cli.report import formats
    from kdengine.cli.report.values import value

    read = value(raw)
    return "-" if read is None else formats.spread_measure(name, read)


def seconds(entry: Mapping[str, Any]) -> str:
    """How long a model trained."""
    from kdengine.cli.report import formats
    from kdengine.cli.report.values import value

    read = value(entry["seconds"])
    if read is None:
        return "-"
    spread = f" ± {read.sd:.1f}" if read.sd is not None else ""
    return f"{formats.duration(read.mean)}{spread}{' (cached)' if entry.get('cached') else ''}"


def remarks(summary: Mapping[str, Any]) -> list[str]:
    """What must be known to read the table."""
    from kdengine.cli.report.formats import whole_percent

    lines = []
    data, seeds = summary["data"], summary.get("seeds", [])
    if data["labelled"] < 1:
        share = whole_percent(data["labelled"])
        counted = f"{data['labelled_items']:,} of {data['train_items']:,}"
        lines.append(f"the student sees labels for {share} of the training images ({counted})")
    if len(seeds) > 1:
        lines.append(f"mean ± standard deviation over seeds {', '.join(map(str, seeds))}")
    return lines


def show_estimate(recipe: Recipe, found: Estimate) -> None:
    """What a recipe would take."""
    typer.echo(
        f"data: {recipe.data.use}, {found.train_items:,} items to train on ({found.labelled_items:,} labelled), "
        f"{found.test_items:,} to test on, inputs {tuple(found.input_shape)}, {found.classes} classes"
    )
    if found.teacher_note:
        typer.echo(f"teacher: {found.teacher_note}")
    typer.echo()
    show(
        ["", "parameters", "weights", "gradients", "optimizer", "activations", "together", "epochs", "steps"],
        [
            [
                fit.name,
                f"{fit.parameters:,}",
                amount(fit.weights),
                amount(fit.gradients),
                amount(fit.optimizer),
                amount(fit.activations),
                amount(fit.total),
                f"{fit.epochs:,}",
                f"{fit.steps:,}",
            ]
            for fit in found.fits
        ],
        right=True,
    )
    typer.echo(
        f"memory is an estimate for batches of {recipe.data.batch_size} on {found.device}: weights of the models that "
        "run, those of losses, and what backward keeps; torch itself and the data are not counted"
    )


def amount(size: int) -> str:
    """A number of bytes.

    >>> amount(3 << 20), amount(5 << 30), amount(1024)
    ('3.0 MiB', '5.0 GiB', '1.0 KiB')
    """
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= 0.95 * unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 2**10:.1f} KiB" if size else "0"
