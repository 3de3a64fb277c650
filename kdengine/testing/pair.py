"""Two processes, joined by gloo, that share a batch: started here, and what each of them does."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import reduce as fold
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdengine.testing.case import Case, differentiate, divide, memory
from kdengine.testing.samples import differentiable, without_outputs

PATIENCE = 120
"""Seconds that the processes may take."""


class Unreachable(ValueError):  # noqa: N818
    """Another process cannot make the same loss; the message says why."""


class Fallen(RuntimeError):  # noqa: N818
    """A process failed; the message is the last that it said."""


def run(case: Case, rows: Sequence[int]) -> list[dict[str, Tensor]]:
    """One step of the loss over processes with so many items each.

    Returns:
        what each process has then: the ``total``, the ``gradient`` of each leaf and parameter by its position, and what
        the loss remembers, as ``memory.NAME``.

    Raises:
        Unreachable: the loss cannot be made in another process.
        Fallen: a process failed.
    """
    order = json.dumps(describe(case) | {"rows": list(rows)})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    with TemporaryDirectory() as folder:
        start = f"from {__name__} import main; main()"
        commands = [[sys.executable, "-c", start, order, str(rank), folder] for rank in range(len(rows))]
        started = [subprocess.Popen(c, env=environment, stderr=subprocess.PIPE, text=True) for c in commands]
        try:
            said = [process.communicate(timeout=PATIENCE)[1] for process in started]
        except subprocess.TimeoutExpired as error:
            raise Fallen(f"the processes were not done after {PATIENCE} seconds") from error
        finally:
            for process in started:
                process.kill()
        for rank, (process, words) in enumerate(zip(started, said, strict=True)):
            if process.returncode:
                raise Fallen(f"process {rank} of {len(rows)} failed: {(words.strip().splitlines() or ['no word'])[-1]}")
        return [load_file(Path(folder) / f"{rank}.safetensors") for rank in range(len(rows))]


def describe(case: Case) -> dict[str, Any]:
    """The case as JSON; a class or a function by where it is found.

    Raises:
        Unreachable: JSON cannot say it.
    """
    sample = None if case.sample is None else address(case.sample)
    described = {
        "name": case.name,
        "factory": address(case.factory),
        "arguments": dict(case.arguments),
        "sample": sample,
        "features": case.features,
    }
    try:
        json.dumps(described)
    except TypeError as error:
        raise Unreachable(f"another process cannot be given its arguments: {error}") from error
    return described


def address(target: Callable[..., Any]) -> str:
    """Where a class or function is found, ``module:name``.

    Raises:
        Unreachable: it is in no module, or not under its name.

    >>> address(address)
    'kdengine.testing.pair:address'
    """
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", "")
    try:
        found = resolve(f"{module}:{name}") if module != "__main__" else None
    except (ImportError, AttributeError):
        found = None
    if found is not target:
        raise Unreachable(
            f"another process cannot find {name or target!r}: it is not at the top of an importable module"
        )
    return f"{module}:{name}"


def resolve(place: str) -> Any:
    """What is at ``module:name``."""
    module, _, name = place.partition(":")
    return fold(getattr, name.split("."), importlib.import_module(module))


def work(order: dict[str, Any], rank: int, folder: Path) -> dict[str, Tensor]:
    """One process's part: its own items, with counts and gradients summed over all."""
    rows = order.pop("rows")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder / 'meeting'}", rank=rank, world_size=len(rows), timeout=timedelta(seconds=PATIENCE)
    )
    sample = order.pop("sample")
    case = Case(factory=resolve(order.pop("factory")), sample=sample and resolve(sample), **order)
    loss = case.make()
    objective = case.objective(loss)
    batch, leaves = differentiable(case.batch(sum(rows)))
    own = divide(batch, rows)[rank]
    masks = objective.masks(without_outputs(own))
    counts = objective.count(own, masks)
    divisors = torch.tensor(counts)
    dist.all_reduce(divisors)
    total, _ = objective.evaluate(own, masks, counts, divisors.tolist())
    gradients = differentiate(total, [*leaves, *loss.parameters()])
    found = {"total": total.detach(), **{f"gradient.{at}": slope for at, slope in enumerate(gradients)}}
    for value in found.values():
        dist.all_reduce(value)
    objective.end_step()
    kept = {f"memory.{name}": value for name, value in memory(loss).items() if isinstance(value, Tensor)}
    dist.barrier()
    dist.destroy_process_group()
    return {name: value.contiguous() for name, value in {**found, **kept}.items()}


def main() -> None:
    """One of the processes: its order, rank and folder are on the command line."""
    _, order, rank, folder = sys.argv
    save_file(work(json.loads(order), int(rank), Path(folder)), Path(folder) / f"{rank}.safetensors")
