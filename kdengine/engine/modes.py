"""Modes of modules: which of a student's train, which stay in evaluation mode, and giving all back as found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from kdengine.engine.notices import Notices

SHOWN = 3
"""Most modules that a warning names."""


def set_modes(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    """Set every module's own mode; those around a module come before it, as ``named_modules`` orders them.

    ``train(mode)`` is called rather than an attribute set: a module may do more in it (LoRA folds its weights into
    the layer's for evaluation, and takes them out again for training).
    """
    for module, training in modes:
        if module.training != training:
            module.train(training)
    for module, training in modes:
        if module.training != training:  # a module that keeps a mode of its own whatever it is told
            module.training = training


def modes_of(*roots: nn.Module) -> list[tuple[nn.Module, bool]]:
    """Every module once, with its mode."""
    found = {id(module): (module, module.training) for root in roots for module in root.modules()}
    return list(found.values())


@contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode; each returns to the mode that it had."""
    before = modes_of(*modules)
    for root in modules:
        root.eval()
    try:
        yield
    finally:
        set_modes(before)


class TrainingModes:
    """Which of a model's modules train: all, but those that its owner has put into evaluation mode.

    A model of which some modules are in training mode and some in evaluation mode keeps the latter there: a frozen
    backbone, say. One that is wholly in evaluation mode, as ``from_pretrained`` gives it or one's own evaluation leaves
    it, trains as it did when it was last seen with some modules in training mode, or else wholly.

    Args:
        model: as its owner gives it.
        role: what a warning calls it.
    """

    def __init__(self, model: nn.Module, role: str = "student") -> None:
        self.model = model
        self._role = role
        self._resting: list[nn.Module] = []
        self.look()

    def look(self) -> None:
        """Take in the modes that the model has now, unless it is wholly in evaluation mode."""
        if any(module.training for module in _leaves(self.model)):
            self._resting = [module for module in self.model.modules() if not module.training]

    def enter(self) -> None:
        """Put the model into the modes in which it trains."""
        self.model.train()  # which may leave some in evaluation mode by itself
        resting = set(map(id, self._resting))
        set_modes([(part, part.training and id(part) not in resting) for part in self.model.modules()])

    def warn(self, notices: Notices) -> None:
        """Say once what the modes and ``requires_grad`` of the model leave in doubt; after :meth:`enter`."""
        if names := frozen_but_moving(self.model):
            notices.once(
                f"no parameter of the {self._role}'s {_listed(names)} trains, but running statistics in there do, as "
                f"it is in training mode: a frozen part would change. Keep it as it is by {self._role}.train() and "
                f"then {_called(self._role, names[0])}.eval() before the fit; modules in evaluation mode stay there"
            )
        if names := trained_in_evaluation_mode(self.model):
            notices.once(
                f"the {self._role}'s {_listed(names)} stays in evaluation mode as it was given, though its parameters "
                "train: dropout is off in there and running statistics stay. If that is not meant (from_pretrained "
                f"returns models in evaluation mode), call {self._role}.train() before the fit"
            )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(repr(name) for name in names[:SHOWN]) + more


def _leaves(model: nn.Module) -> list[nn.Module]:
    """The modules that compute: those with parameters or buffers of their own, or without children.

    A container's flag alone does not say that the model is in training mode: ``for m in model.modules()`` loops that
    put layers into evaluation mode leave it behind.
    """
    return [module for module in model.modules() if not module._modules or module._parameters or module._buffers]


def _called(role: str, name: str) -> str:
    """How a module is written in Python.

    >>> _called("student", "layers.0.norm")
    'student.layers[0].norm'
    """
    parts = [f"[{part}]" if part.isdigit() else f".{part}" for part in name.split(".")]
    return role + "".join(parts)


def frozen_but_moving(model: nn.Module) -> list[str]:
    """The outermost modules in which no parameter trains but running statistics do."""
    found: list[str] = []
    for name, module in model.named_modules():
        if name and not _inside(name, found) and _is_frozen(module) and _gathers(module):
            found.append(name)
    return found


def _inside(name: str, outer: Iterable[str]) -> bool:
    return any(name.startswith(f"{path}.") for path in outer)


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _gathers(module: nn.Module) -> bool:
    """Whether a module, or one inside, updates running statistics in the mode that it has."""
    return any(part.training and isinstance(getattr(part, "running_mean", None), Tensor) for part in module.modules())


def trained_in_evaluation_mode(model: nn.Module) -> list[str]:
    """The outermost modules that stay in evaluation mode with layers that train and others whose mode matters.

    A normalization layer that is put into evaluation mode by itself is a decision about its statistics, and not told.
    """
    found: list[str] = []
    resting: list[str] = []
    for name, module in model.named_modules():
        if not name or module.training or _inside(name, resting):
            continue
        resting.append(name)
        if any(map(_mode_matters, module.modules())) and any(map(_trains, module.modules())):
            found.append(name)
    return found


def _mode_matters(module: nn.Module) -> bool:
    dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    return dropout or isinstance(getattr(module, "running_mean", None), Tensor)


def _trains(module: nn.Module) -> bool:
    """Whether a module that does not gather statistics has parameters of its own that train."""
    return not _mode_matters(module) and any(p.requires_grad for p in module.parameters(recurse=False))


class AsFound:
    """How models were: modes, ``requires_grad`` and devices, to give them back after a refusal.

    Args:
        roots: the models.
    """

    def __init__(self, *roots: nn.Module) -> None:
        self._modes = modes_of(*roots)
        self._parameters = [(p, p.requires_grad, p.device) for root in roots for p in root.parameters()]
        self._buffers = [
            (module, name, buffer.device)
            for module, _ in self._modes
            for name, buffer in module.named_buffers(recurse=False)
        ]

    def give_back(self) -> None:
        """Give every module its mode, and every tensor its ``requires_grad`` and device."""
        set_modes(self._modes)
        for parameter, required, device in self._parameters:
            if parameter.device != device:
                parameter.data = parameter.data.to(device)
            if parameter.requires_grad != required:
                parameter.requires_grad_(required)
        for module, name, device in self._buffers:
            buffer = module._buffers.get(name)
            if buffer is not None and buffer.device != device:
                module._buffers[name] = buffer.to(device)


@contextmanager
def lent(
    trained: Sequence[nn.Module], others: Sequence[nn.Module] = (), *, begun: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Give models back when the context ends: those that train in the modes that they had, all as found on a refusal.

    Args:
        trained: the student, and a teacher that learns.
        others: what else is moved and frozen; it stays so unless the context is left by an exception.
        begun: whether training has begun, after which an exception is no refusal any more.
    """
    found = None if begun() else AsFound(*trained, *others)
    modes = modes_of(*trained)
    try:
        yield
    except BaseException:
        if found is not None and not begun():
            found.give_back()
        raise
    finally:
        set_modes(modes)
