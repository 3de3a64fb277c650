"""What kdengine runs on."""

from __future__ import annotations

import os
import platform
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from kdengine._version import __version__
from kdengine.cli import tables

if TYPE_CHECKING:
    from kdengine.ops import BackendInfo

EXTRAS = {
    "vision": ("torchvision",),
    "report": ("matplotlib", "jinja2"),
    "demo": ("sklearn", "matplotlib", "jinja2"),
}


def env(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Tell what kdengine runs on, and which implementation of the loss it uses."""
    facts = environment()
    if as_json:
        tables.show_json(facts)
        return
    width = max(map(len, facts))
    for name, fact in facts.items():
        typer.echo(f"{name:<{width}}  {', '.join(fact) if isinstance(fact, list) else fact}")


def environment() -> dict[str, str | list[str]]:
    """Names and facts."""
    import torch

    from kdengine.api import ConfigurationError
    from kdengine.host.discovery import DISABLE_AUTOLOAD, autoload_enabled
    from kdengine.ops import backend_info
    from kdengine.recipe.teacher import teachers_folder

    try:
        backend = backend_info()
    except ValueError as error:  # a variable of the environment
        raise ConfigurationError(str(error)) from error
    devices = [f"cuda:{k} {torch.cuda.get_device_name(k)}" for k in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    return {
        "kdengine": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": str(torch.__version__),
        "devices": ["cpu", *devices],
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} processors",
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        **implementation(backend),
        "extras": [name if extra_present(name) else f"{name} (missing)" for name in EXTRAS],
        "plugin autoload": "on" if autoload_enabled() else f"off, by {DISABLE_AUTOLOAD}",
        "teacher cache": str(teachers_folder()),
    }


def implementation(backend: BackendInfo) -> dict[str, str | list[str]]:
    """Facts of the implementation of the loss."""
    from kdengine.ops import build

    facts: dict[str, str | list[str]] = {"backend": f"{backend.name}: {backend.reason}"}
    if backend.library is not None:
        facts["library"] = f"{backend.library}, instruction set {backend.isa}"
    facts["backend on cuda"] = backend.cuda_reason
    if backend.cuda_library is not None:
        facts["cuda library"] = f"{backend.cuda_library}, for {', '.join(f'sm_{arch}' for arch in backend.cuda_archs)}"
    facts["library cache"] = str(build.libraries_folder())
    return facts


def extra_present(name: str) -> bool:
    """Whether what an extra installs can be imported."""
    return all(find_spec(module) is not None for module in EXTRAS[name])
