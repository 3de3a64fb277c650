"""Compile the loss kernels ahead of their first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kdengine.ops.sources import Library


def build(
    cuda: Annotated[
        bool | None, typer.Option("--cuda/--no-cuda", help="The CUDA library as well; by default if a GPU is here.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compile even what is there.")] = False,
) -> None:
    """Compile the loss kernels ahead of their first use."""
    import torch

    from kdengine.ops.sources import CPU, CUDA

    show(CPU, force)
    if torch.cuda.is_available() if cuda is None else cuda:
        show(CUDA, force)


def show(library: Library, force: bool) -> None:
    """Compile one library, unless it is there, and tell where it lies."""
    from kdengine.api import ConfigurationError
    from kdengine.ops import build as building
    from kdengine.ops.library import UnavailableError, architectures, instruction_set, obtain, shipped

    try:
        if force and shipped(library) is None:
            building.build(library, force=True)
        found = obtain(library)
        isa = instruction_set()
    except (building.BuildError, UnavailableError) as error:
        raise ConfigurationError(f"the {library.name} library cannot be had: {error}") from error
    except ValueError as error:  # KDENGINE_CPU_ISA
        raise ConfigurationError(str(error)) from error
    gpus = ", ".join(f"sm_{arch}" for arch in architectures()) if library.name == "cuda" else ""
    computes = gpus or f"instruction set {isa}"
    typer.echo(f"{found.path} {found.origin} ({computes})")
