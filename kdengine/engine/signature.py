"""What must be the same when a fit is resumed: the parts it consists of, and what each of them was made with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch.nn.parameter import is_lazy

from kdengine._untrusted import shown
from kdengine.api import TeacherSource
from kdengine.api.given import UNKNOWN, Given, plain, settings
from kdengine.engine.fit import Fit
from kdengine.engine.shards import is_sharded
from kdengine.engine.wrappers import WRAPPER_CLASSES, class_name

SETTINGS: Final = "settings"
"""The key of what the parts were made with; a checkpoint from before it was kept has none."""
HORIZON: Final = "lr_scheduler."
"""What the names of settings begin with that may depend on the length of the fit."""
_HOW: Final = frozenset({"params", "param_names", "initial_lr", "foreach", "fused", "capturable", "differentiable"})
"""Options of an optimizer that say how it computes, or that are none of its own."""
_ONE_CYCLE: Final = ("max_lr", "min_lr", "base_momentum", "max_momentum")
"""Options that a scheduler adds to the optimizer's groups."""
_WHERE: Final = frozenset(
    {"cache_dir", "compile", "device", "devices", "folder", "mesh", "num_workers", "path", "rank", "root", "shard",
     "verbose", "workers", "world", "world_size"}
)  # fmt: skip
"""Arguments that say where and how something runs, not what it computes; a string that is a path is none either."""


def signature(fit: Fit, options: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that must be the same.

    Args:
        fit: as it was assembled.
        options: of its optimizer, see :func:`optimizer_options`.
    """
    order = getattr(fit.feed.loader, "order", None)
    objective = fit.objective
    return {
        "name": fit.settings.name,
        "student": _shape_of(fit.models.student),
        "evolving teacher": _evolution(fit.models.evolving_source),
        "losses": {label: type(loss).__name__ for label, loss in objective.losses.items()},
        "weights": {k: v for k, v in objective.weights.items() if f"weights.{k}" not in objective.schedules},
        "optimizer": type(fit.optimizer).__name__,
        "lr_scheduler": type(fit.lr_scheduler).__name__,
        "precision": fit.precision.name,
        "accumulate": fit.feed.accumulate,
        "clip": fit.settings.clip,
        "seed": fit.settings.seed,
        "batch_transforms": [type(transform).__name__ for transform in fit.transforms],
        "steps_per_epoch": fit.feed.steps_per_epoch,
        "data": None if order is None else {"items": order.items, "batch_size": order.batch_size, "seed": order.seed},
        SETTINGS: dict(options) | dict(_settings(fit)),
    }


def _shape_of(student: torch.nn.Module) -> dict[str, Any]:
    sizes = (parameter.numel() for parameter in student.parameters() if not is_lazy(parameter))
    return {"class": class_name(student), "parameters": sum(sizes)}


def _evolution(source: TeacherSource | None) -> dict[str, Any] | None:
    """Of a teacher that evolves: its kind and its size. A frozen one may be served by any source."""
    if source is None:
        return None
    modules = source.modules()
    return {"source": type(source).__name__, "parameters": sum(p.numel() for m in modules for p in m.parameters())}


def _settings(fit: Fit) -> Iterator[tuple[str, Any]]:
    """What each part was made with, by a name that a user knows."""
    for label, loss in fit.objective.losses.items():
        yield from _of(f"losses.{label}", loss)
    for name, schedule in fit.objective.schedules.items():
        yield name, plain(schedule)
    for position, transform in enumerate(fit.transforms):
        yield from _of(f"batch_transforms.{position}", transform)
    yield "ema", fit.settings.ema
    yield "classes", plain(getattr(fit.models.align, "classes", None))
    yield from _of_teacher(fit)
    yield from _of_data(fit.feed.loader)
    yield from scheduler_settings(fit.lr_scheduler)


def _of(name: str, component: object) -> Iterator[tuple[str, Any]]:
    if isinstance(component, Given):
        for argument, value in settings(component).items():
            if argument not in _WHERE and not (isinstance(value, str) and ("/" in value or "\\" in value)):
                yield f"{name}.{argument}", value


def _of_teacher(fit: Fit) -> Iterator[tuple[str, Any]]:
    """Who teaches: the classes and a hash of the weights of a frozen teacher, whatever source serves it."""
    source, guard = fit.models.source, fit.models.guard
    if source is not None:
        own = _of(f"teacher.{type(source).__name__}", source)
        yield from ((name, value) for name, value in own if name.rpartition(".")[2] not in ("module", "members"))
    if guard is not None and not any(is_sharded(p) for root in guard.roots for p in root.parameters()):
        yield "teacher.class", [class_name(root) for root in guard.roots]
        yield "teacher.weights", f"{guard.state:016x}"


def _of_data(loader: Any) -> Iterator[tuple[str, Any]]:
    """What a loader says of its order: that of kdengine, or a ``DataLoader``."""
    if (order := getattr(loader, "order", None)) is not None:
        yield from (("data.shuffle", order.shuffle), ("data.drop_last", order.drop_last))
    elif isinstance(loader, torch.utils.data.DataLoader):
        yield "loader.batch_size", loader.batch_size


def optimizer_options(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The options of an optimizer's groups, as given and not as scheduled: asked before a scheduler is made."""
    found = {}
    for position, group in enumerate(optimizer.param_groups):
        given = {**group, "lr": group.get("initial_lr", group.get("lr"))}
        cycled = ("momentum", "betas") if "max_momentum" in group else ()
        for name, value in given.items():
            value = float(value) if isinstance(value, torch.Tensor) and value.numel() == 1 else value
            if name in _HOW or name in _ONE_CYCLE or name in cycled or (value := plain(value)) is UNKNOWN:
                continue
            found[f"optimizer.{position}.{name}"] = value
    return found


def scheduler_settings(scheduler: Any, name: str = HORIZON.removesuffix(".")) -> Iterator[tuple[str, Any]]:
    """What a learning-rate scheduler keeps of its arguments, and those inside it."""
    if scheduler is None:
        return
    for position, inner in enumerate(getattr(scheduler, "_schedulers", ())):
        yield f"{name}.{position}", type(inner).__name__
        yield from scheduler_settings(inner, f"{name}.{position}")
    for argument in (*_arguments(scheduler), "_milestones", "_schedule_phases"):
        if (value := plain(getattr(scheduler, argument, UNKNOWN))) is not UNKNOWN:
            yield f"{name}.{argument.lstrip('_')}", value
    groups = getattr(getattr(scheduler, "optimizer", None), "param_groups", ())
    yield from ((f"{name}.max_lr.{at}", float(group["max_lr"])) for at, group in enumerate(groups) if "max_lr" in group)


def _arguments(scheduler: Any) -> list[str]:
    code = getattr(type(scheduler).__init__, "__code__", None)
    names = () if code is None else code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return [name for name in names if name not in ("self", "optimizer", "last_epoch", "verbose")]


class Record:
    """The signature of an engine's fits, of which training may change a part: rates, a loss's own numbers.

    What is as the last fit has left it counts as it was when that one began.
    """

    def __init__(self) -> None:
        self._first: dict[str, Any] = {}
        self._left: dict[str, Any] = {}

    def begin(self, present: dict[str, Any]) -> dict[str, Any]:
        """The signature of a fit that begins."""
        now = present[SETTINGS]
        self._first = {
            name: self._first[name] if name in self._left and self._left[name] == value else value
            for name, value in now.items()
        }
        return {**present, SETTINGS: dict(self._first)}

    def end(self, present: dict[str, Any]) -> None:
        """Take in what a fit has left."""
        self._left = present[SETTINGS]


def differences(stored: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """What is not the same, in words."""
    keys = sorted({*stored, *present})
    return [f"{k} was {shown(stored.get(k))}, is {present.get(k)!r}" for k in keys if stored.get(k) != present.get(k)]


def changes(stored: Mapping[str, Any], present: Mapping[str, Any], *, longer: bool) -> list[str]:
    """How the signature of a checkpoint differs from that of the fit that goes on with it.

    Args:
        stored: of the checkpoint. Settings that it does not know are not compared.
        present: of the fit.
        longer: whether the fit has become longer or shorter, on which a scheduler's numbers depend.
    """
    before, now = dict(stored), dict(present)
    old, new = before.pop(SETTINGS, {}), now.pop(SETTINGS, {})
    if isinstance(student := before.get("student"), dict) and student.get("class") in WRAPPER_CLASSES:
        before["student"] = {**student, "class": now["student"]["class"]}  # written when a wrapper's class counted
    both = [name for name in new if name in old and not (longer and name.startswith(HORIZON))]
    return differences(before, now) + differences(
        {name: old[name] for name in both}, {name: new[name] for name in both}
    )
