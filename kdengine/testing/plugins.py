"""A plugin as a whole: what it offers, found as a run finds it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn

from kdengine.api import Batch, ConfigurationError, KDEngineError, Metric
from kdengine.api.errors import nearest
from kdengine.engine.metrics import make_metrics
from kdengine.host import KINDS, Component, Host
from kdengine.host.builtins import BUILTINS
from kdengine.host.discovery import Installed
from kdengine.recipe.signature import arguments, check_arguments
from kdengine.testing.certificate import Certificate
from kdengine.testing.loggers import check_logger
from kdengine.testing.losses import certify_loss, check_loss
from kdengine.testing.report import fail, require, require_finite
from kdengine.testing.samples import CLASSES, WIDTH, Shapes, random_output
from kdengine.testing.schedules import check_schedule


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one component.

    Attributes:
        component: what the plugin offers.
        outcome: ``"certified"`` (a loss) or ``"checked"``, ``"signature only"``, or ``"failed"``.
        message: what failed, or what must be given before it can be made.
        certificate: of a loss that could be made.
    """

    component: Component
    outcome: Literal["certified", "checked", "signature only", "failed"]
    message: str = ""
    certificate: Certificate | None = None

    @property
    def line(self) -> str:
        """The report in one line."""
        message = f" ({self.message})" if self.message else ""
        return f"{self.component.kind} {self.component.name}: {self.outcome}{message}"

    def facts(self) -> dict[str, Any]:
        """The report for JSON."""
        return {
            "kind": self.component.kind,
            "name": self.component.name,
            "outcome": self.outcome,
            "message": self.message,
            "certificate": None if self.certificate is None else self.certificate.facts(),
        }


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
    try:
        components = offered(package)
    except KDEngineError as error:
        fail(str(package), str(error), error)
    lines = []
    for component in components:
        factory = _load(component)
        _check_documented(component, factory)
        check = CHECKS.get(component.kind)
        alone = check is not None and not required(component, factory)
        if check is not None and alone:
            check(factory)
        lines.append(f"{component.kind} {component.name}: {'checked' if alone else 'signature only'}")
    return lines


def examine_plugin(
    package: str | object,
    *,
    arguments: Mapping[str, Mapping[str, Any]] | None = None,
    features: Shapes = None,
    processes: bool = False,
) -> Iterator[Report]:
    """Go through every component as :func:`check_plugin` does, whatever fails; losses get their certificates.

    Args:
        package: as for :func:`check_plugin`, or the distribution or module of an installed plugin.
        arguments: of components by their names, for those that cannot be made without.
        features: as for :func:`kdengine.testing.certify_loss`.
        processes: likewise.

    Raises:
        ConfigurationError: there is no such plugin, or an argument is not the component's.
        PluginError: the plugin is broken.
    """
    components = offered(package)
    given = arguments or {}
    _check_given(components, given)
    for component in components:
        yield _examine(component, given.get(component.name, {}), features, processes)


def _examine(component: Component, given: Mapping[str, Any], features: Shapes, processes: bool) -> Report:
    check = CHECKS.get(component.kind)
    try:
        factory = _load(component)
        _check_documented(component, factory)
        missing = [name for name in required(component, factory) if name not in given]
        if check is None or missing:
            needs = f"{', '.join(missing)} must be given" if check is not None else ""
            return Report(component, "signature only", needs)
        if component.kind == "losses":
            certificate = certify_loss(factory, features=features, processes=processes, **given)
            if certificate.held:
                return Report(component, "certified", "", certificate)
            return Report(component, "failed", certificate.summary(), certificate)
        check(factory, **given)
    except AssertionError as error:
        return Report(component, "failed", str(error))
    return Report(component, "checked")


def _check_given(components: Sequence[Component], given: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse arguments that no component has."""
    by_name = {component.name: component for component in reversed(components)}
    for name, values in given.items():
        if name not in by_name:
            raise ConfigurationError(
                f"arguments are given for {name!r}, which is not offered; {nearest(name, by_name)}"
            )
        _, problems = check_arguments(arguments(by_name[name].load()), values, (name,))
        wrong = [problem for problem in problems if problem.path[-1] in values]
        if wrong:
            raise ConfigurationError("; ".join(f"{'.'.join(item.path)}: {item.message}" for item in wrong))


def offered(package: str | object) -> list[Component]:
    """Everything that the plugin offers, of every kind.

    Raises:
        ConfigurationError: there is no such plugin.
        PluginError: it is broken.
    """
    dotted = package.__name__ if isinstance(package, ModuleType) else package
    if isinstance(dotted, str) and dotted in BUILTINS:
        module = importlib.import_module(dotted)
        own = {kind: set(getattr(module, f"kdengine_{kind}", dict)()) for kind in KINDS}
        return [component for component in _components(Host(autoload=False)) if component.name in own[component.kind]]
    host = Host([_plugin_of(package) if isinstance(package, str) else package], autoload=False)
    return [component for component in _components(host) if component.plugin == host.acting[0].name]


def _components(host: Host) -> list[Component]:
    return [component for kind in KINDS for component in host.components(kind)]


def _plugin_of(package: str) -> str:
    """The plugin that an installed distribution or module of this name has; else the name as it is."""
    installed = Installed()
    if package not in installed:
        for plugin in installed:
            if package in (plugin.distribution, plugin.source):
                return plugin.name
    return package


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


def required(component: Component, factory: Callable[..., Any]) -> list[str]:
    """The arguments that must be given before it can be made."""
    if component.kind == "projectors":
        return []
    return [name for name, argument in arguments(factory).items() if argument.required]


def check_metric(factory: Callable[..., Any], **arguments: Any) -> None:
    """Take in two batches, compute, forget."""
    name = getattr(factory, "__name__", "metric")
    generator = torch.Generator().manual_seed(0)
    is_metric = isinstance(factory, type) and issubclass(factory, Metric)
    given = factory(**arguments) if is_metric else partial(factory, **arguments)
    metric = make_metrics({name: given}, Host(autoload=False))[name]
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


def check_projector(factory: Callable[..., Any], **arguments: Any) -> None:
    """Between vectors, from one width to another; a projector for maps may refuse vectors."""
    name = getattr(factory, "__name__", "projector")
    for student, teacher in (((WIDTH,), (8,)), ((WIDTH, 4, 4), (8, 2, 2))):
        try:
            module = factory(student, teacher, **arguments)
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


CHECKS: dict[str, Callable[..., object]] = {
    "losses": check_loss,
    "schedules": check_schedule,
    "loggers": check_logger,
    "metrics": check_metric,
    "projectors": check_projector,
}
"""How a component of a kind is checked when it can be made without arguments."""
