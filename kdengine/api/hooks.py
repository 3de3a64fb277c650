"""Every hook: its signature, its role and the meaning of what it returns.

Contribution hooks offer named components. Callback hooks take one ``context``; each states its role:

* *contributor*: returns a value that the engine composes, or None to leave it as it is;
* *observer*: sees detached values and changes nothing; its return value is ignored;
* *controller*: returns a :class:`~kdengine.api.contexts.Decision`, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar, overload

import pluggy

from kdengine.api.batch import Batch, Output
from kdengine.api.contexts import (
    CheckpointContext,
    Decision,
    EvaluateContext,
    ExceptionContext,
    FitContext,
    StepContext,
)

PROJECT = "kdengine"
"""Name of the pluggy project and of the entry-point group."""

HOOK_VERSION = 1
"""Version of the hooks in this module; a plugin declares it as ``kdengine_hook_version = 1``."""

PASSES = "kdengine_passes"
"""Attribute of a plugin: the class of exceptions, or a tuple of them, that its hooks raise on purpose."""

Components: TypeAlias = Mapping[str, Callable[..., Any] | str]
"""Name of a component -> its class or factory, or ``"module:attribute"``, imported when it is used."""

F = TypeVar("F", bound=Callable[..., Any])

hookspec = pluggy.HookspecMarker(PROJECT)
_mark = pluggy.HookimplMarker(PROJECT)
PRIORITY = "kdengine_priority"


@overload
def hookimpl(function: F) -> F: ...
@overload
def hookimpl(*, priority: int = 0) -> Callable[[F], F]: ...
def hookimpl(function: F | None = None, *, priority: int = 0) -> F | Callable[[F], F]:
    """Mark a function as the implementation of the hook of the same name.

    Args:
        function: the function, when the decorator is used without arguments.
        priority: implementations run in order of (priority, plugin name); lower runs earlier.

    Example:
        >>> @hookimpl
        ... def kdengine_on_step_end(context):
        ...     return None
    """

    def mark(implementation: F) -> F:
        setattr(implementation, PRIORITY, priority)
        return _mark(implementation)

    return mark if function is None else mark(function)


class HookSpecs:
    """The hooks of kdengine; an implementation leaves out ``self`` when it is a plain function."""

    # Contributions

    @hookspec
    def kdengine_losses(self) -> Components:
        """Offer losses: classes derived from :class:`kdengine.Loss`."""
        raise NotImplementedError

    @hookspec
    def kdengine_schedules(self) -> Components:
        """Offer schedules of scalars: classes derived from :class:`kdengine.Schedule`."""
        raise NotImplementedError

    @hookspec
    def kdengine_loggers(self) -> Components:
        """Offer loggers: classes derived from :class:`kdengine.Logger`, or factories of ``fn(record, step=n)``."""
        raise NotImplementedError

    @hookspec
    def kdengine_metrics(self) -> Components:
        """Offer metrics: classes derived from :class:`kdengine.Metric`."""
        raise NotImplementedError

    @hookspec
    def kdengine_models(self) -> Components:
        """Offer models: factories that return an ``nn.Module``.

        A factory that has the arguments ``classes`` (number of classes) or ``input_shape`` (shape of one input,
        without the batch) gets them from the data set unless the recipe gives them.
        """
        raise NotImplementedError

    @hookspec
    def kdengine_datasets(self) -> Components:
        """Offer data sets: factories called as ``factory(split, **arguments)`` with split ``"train"`` or ``"test"``.

        The data set has ``__len__``, ``__getitem__ -> (input, label)``, ``classes`` (names) and ``targets`` (labels).
        """
        raise NotImplementedError

    @hookspec
    def kdengine_transforms(self) -> Components:
        """Offer transforms: of one sample's input (callables), or of a batch (:class:`kdengine.BatchTransform`)."""
        raise NotImplementedError

    @hookspec
    def kdengine_optimizers(self) -> Components:
        """Offer optimizers: classes called with parameter groups and their own keyword arguments."""
        raise NotImplementedError

    @hookspec
    def kdengine_teachers(self) -> Components:
        """Offer teacher sources: classes derived from :class:`kdengine.TeacherSource`, called with the model first.

        What else it may be made of says :attr:`kdengine.TeacherSource.wraps`. One that has the argument ``items`` gets
        the number of training items unless the recipe gives it.
        """
        raise NotImplementedError

    @hookspec
    def kdengine_projectors(self) -> Components:
        """Offer projectors: factories ``factory(student_shape, teacher_shape) -> nn.Module`` between features."""
        raise NotImplementedError

    # Callbacks, in the order of a fit

    @hookspec
    def kdengine_on_fit_start(self, context: FitContext) -> None:
        """Observer: models are placed, the optimizer is made and a checkpoint, if any, is loaded."""

    @hookspec
    def kdengine_on_epoch_start(self, context: FitContext) -> None:
        """Observer: an epoch begins (not repeated when a resume enters it in the middle)."""

    @hookspec
    def kdengine_on_batch(self, context: StepContext) -> Batch | None:
        """Contributor: a micro-batch is read, still on the host; return another of as many items to use instead."""

    @hookspec
    def kdengine_on_step_start(self, context: StepContext) -> Decision | None:
        """Controller: an optimizer step begins; ``Decision.SKIP`` leaves it out."""

    @hookspec
    def kdengine_on_teacher_output(self, context: StepContext) -> Output | None:
        """Contributor: the teacher ran; return another output for the losses to use."""

    @hookspec
    def kdengine_on_loss_terms(self, context: StepContext) -> None:
        """Observer: the losses of one micro-batch ran; ``context.terms`` holds detached device tensors."""

    @hookspec
    def kdengine_on_backward_end(self, context: StepContext) -> None:
        """Observer: the gradients of the whole step are complete, before clipping."""

    @hookspec
    def kdengine_on_optimizer_step(self, context: StepContext) -> Decision | None:
        """Controller: the update is about to run; ``Decision.SKIP`` leaves it out."""

    @hookspec
    def kdengine_on_step_end(self, context: StepContext) -> Decision | None:
        """Controller: the step is complete; ``Decision.SAVE`` writes a checkpoint, ``Decision.STOP`` ends the fit."""

    @hookspec
    def kdengine_on_evaluate_start(self, context: EvaluateContext) -> None:
        """Observer: an evaluation begins."""

    @hookspec
    def kdengine_on_evaluate_end(self, context: EvaluateContext) -> Decision | None:
        """Controller: the metrics are there; ``Decision.STOP`` ends the fit (early stopping)."""

    @hookspec
    def kdengine_on_epoch_end(self, context: FitContext) -> Decision | None:
        """Controller: an epoch is complete, its evaluation included."""

    @hookspec
    def kdengine_on_checkpoint_saved(self, context: CheckpointContext) -> None:
        """Observer: a checkpoint is complete on the disk."""

    @hookspec
    def kdengine_on_exception(self, context: ExceptionContext) -> None:
        """Observer: an exception is about to end the fit; it is raised again afterwards."""

    @hookspec
    def kdengine_on_fit_end(self, context: FitContext) -> None:
        """Observer: the fit is over, also after an exception."""


CONTRIBUTIONS = tuple(name for name in vars(HookSpecs) if name.startswith("kdengine_") and "_on_" not in name)
CALLBACKS = tuple(name for name in vars(HookSpecs) if name.startswith("kdengine_on_"))
