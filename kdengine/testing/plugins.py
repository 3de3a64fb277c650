"""A plugin as a whole: what it offers, found as a run finds it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import nn

from kdengine.api import Batch, KDEngineError, Metric
from kdengine.engine.metrics import make_metrics
from kdengine.host import KINDS, Component, Host
from kdengine.host.builtins import BUILTINS
from kdengine.recipe.signature import arguments
from kdengine.testing.loggers import check_logger
from kdengine.testing.losses import check_loss
from kdengine.testing.report import fail, require, require_finite
from kdengine.testing.samples import CLASSES, WIDTH, random_output
from kdengine.testing.schedules import check_schedule


def check_plugin(package: str | object) -> list[str]:
    """Load a plugin as a run would and check every component that it offers.

    A component must load, have a docstring, and name each of its arguments there. A loss, schedule, logger, metric or
    projector whose arguments all have defaults is made and put through its own check.

    Args:
        package: an installed plugin's name, a module or its dotted name, a path, or an object with hooks.

    Returns:
        a line per component: ``"losses focal: checked"``, or ``"signature only"``.

    Raises:
        AssertionError: the first thing that does not hold.

    Example:
        >>> check_plugin("kdengine.schedules")[0]
        'schedules constant: signature only'
    """
    lines = []
    for component in offered(package):
        factory = _load(component)
        _check_documented(component, factory)
        check = CHECKS.get(component.kind)
        alone = check is not None and not required(component, factory)
        if check is not None and alone:
            check(factory)
        lines.append(f"{component.kind} {component.name}: {'checked' if alone else 'signature only'}")
    return lines


def offered(package: str | object) -> list[Component]:
    """Everything that the plugin offers, of every kind."""
    dotted = package.__name__ if isinstance(package, ModuleType) else package
    builtin = dotted in BUILTINS if isinstance(dotted, str) else False
    try:
        host = Host([] if builtin else [package], autoload=False)
        found = [component for kind in KINDS for component in host.components(kind)]
    except KDEngineError as error:
        fail(str(package), str(error), error)
    if not builtin:
        return [component for component in found if component.plugin == host.acting[0].name]
    module = importlib.import_module(str(dotted))
    own = {kind: set(getattr(module, f"kdengine_{kind}", dict)()) for kind in KINDS}
    return [component for component in found if component.name in own[component.kind]]


def _load(component: Component) -> Callable[..., Any]:
    try:
        return component.load()
    except KDEngineError as error:
        fail(component.qualified, str(error), error)


def _check_documented(component: Component, factory: Callable[..., Any]) -> None:
    """A person who writes a recipe reads the docstring."""
    text = factory.__doc__ or ""
    require(bool(text.strip()), component.qualified, "has no docstring; say what it does and what its arguments mean")
    text += (factory.__init__.__doc__ or "") if isinstance(factory, type) else ""  # type: ignore[misc]
    try:
        known = list(arguments(factory))
    except (TypeError, ValueError) as error:
        fail(component.qualified, f"its signature cannot be read: {error}", error)
    if component.kind in ("optimizers", "projectors", "datasets") or _is_foreign(factory):
        return  # called with what their kind's contract says, or documented by somebody else
    missing = [name for name in known if not re.search(rf"\b{re.escape(name)}\b", text)]
    require(not missing, component.qualified, f"its docstring does not say what {', '.join(missing)} means")


def _is_foreign(factory: Callable[..., Any]) -> bool:
    """Whether a component is another package's, such as a model of torchvision."""
    home = (getattr(factory, "__module__", None) or "").partition(".")[0]
    return home in ("torch", "torchvision")


def required(component: Component, factory: Callable[..., Any]) -> bool:
    """Whether something must be given before it can be made."""
    if component.kind == "projectors":
        return False
    return any(argument.required for argument in arguments(factory).values())


def check_metric(factory: Callable[..., Any]) -> None:
    """Take in two batches, compute, forget."""
    name = getattr(factory, "__name__", "metric")
    generator = torch.Generator().manual_seed(0)
    is_metric = isinstance(factory, type) and issubclass(factory, Metric)
    metric = make_metrics({name: factory}, Host(autoload=False))[name] if not is_metric else factory()
    results = []
    for _ in range(2):
        metric.reset()
        generator.manual_seed(0)
        for size in (4, 3):
            metric.update(_labelled(size, generator))
        value: Any = metric.compute()
        good = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        require(good, name, f"compute returned {value!r}; expected a number or None")
        results.append(value)
    require(results[0] == results[1], name, f"gives {results[0]!r}, and {results[1]!r} after reset on the same batches")


def _labelled(size: int, generator: torch.Generator) -> Batch:
    batch = Batch(torch.zeros(size, 1), torch.randint(CLASSES, (size,), generator=generator))
    batch.student = random_output(size, (), generator)
    batch.teacher = random_output(size, (), generator)
    return batch


def check_projector(factory: Callable[..., Any]) -> None:
    """Between vectors, from one width to another; a projector for maps may refuse vectors."""
    name = getattr(factory, "__name__", "projector")
    for student, teacher in (((WIDTH,), (8,)), ((WIDTH, 4, 4), (8, 2, 2))):
        try:
            module = factory(student, teacher)
        except ValueError:
            continue
        require(isinstance(module, nn.Module), name, f"gives a {type(module).__name__}; expected an nn.Module")
        output = module(torch.randn(2, *student))
        require(
            tuple(output.shape) == (2, *teacher),
            name,
            f"turns features of shape {student} into {tuple(output.shape[1:])}; expected {teacher}",
        )
        require_finite(name, "its output", [output])


CHECKS: dict[str, Callable[[Callable[..., Any]], object]] = {
    "losses": check_loss,
    "schedules": check_schedule,
    "loggers": check_logger,
    "metrics": check_metric,
    "projectors": check_projector,
}
"""How a component of a kind is checked when it can be made without arguments."""
