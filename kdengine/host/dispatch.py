"""Compiled dispatch: one callable per callback hook, bound before the loop starts.

pluggy's own call collects arguments and results by name at every call. The loop instead tests one attribute for None
and calls a closure over a tuple of functions; which of them failed is worked out only when one has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from operator import length_hint
from time import perf_counter_ns
from typing import Any, Literal, NamedTuple, NoReturn, TypeAlias

from kdengine.api.batch import Batch, Output, describe
from kdengine.api.contexts import Decision
from kdengine.api.errors import PluginError
from kdengine.api.hooks import CALLBACKS, PASSES
from kdengine.host.registry import Implementation

Role: TypeAlias = Literal["contributor", "observer", "controller"]
Observer: TypeAlias = Callable[[Any], None]
Controller: TypeAlias = Callable[[Any], tuple[Decision, ...]]

PREFIX = "kdengine_on_"

ROLES: dict[str, Role] = {
    "fit_start": "observer",
    "epoch_start": "observer",
    "batch": "contributor",
    "step_start": "controller",
    "teacher_output": "contributor",
    "loss_terms": "observer",
    "backward_end": "observer",
    "optimizer_step": "controller",
    "step_end": "controller",
    "evaluate_start": "observer",
    "evaluate_end": "controller",
    "epoch_end": "controller",
    "checkpoint_saved": "observer",
    "exception": "observer",
    "fit_end": "observer",
}
"""Role of each callback, by its name without ``kdengine_on_``."""

SKIPPABLE = ("step_start", "optimizer_step")
"""The callbacks in which ``Decision.SKIP`` has a meaning."""

NOTHING: tuple[Decision, ...] = ()


class TraceRow(NamedTuple):
    """What one plugin's hook cost in a fit."""

    plugin: str
    hook: str
    calls: int
    seconds: float


class Dispatch:
    """The callbacks of a fit; an attribute is None when nobody implements it.

    An observer returns None. A contributor sets ``context.batch`` or ``context.output`` to what each implementation
    returns, so that the next one and the caller read it there. A controller returns the decisions, in order.

    Attributes:
        stateful: acting plugins with ``state_dict`` and ``load_state_dict``, by name.
    """

    __slots__ = (*ROLES, "_meters", "stateful")

    fit_start: Observer | None
    epoch_start: Observer | None
    batch: Observer | None
    step_start: Controller | None
    teacher_output: Observer | None
    loss_terms: Observer | None
    backward_end: Observer | None
    optimizer_step: Controller | None
    step_end: Controller | None
    evaluate_start: Observer | None
    evaluate_end: Controller | None
    epoch_end: Controller | None
    checkpoint_saved: Observer | None
    exception: Observer | None
    fit_end: Observer | None

    def __init__(
        self, implementations: Iterable[Implementation], stateful: dict[str, Any], *, trace: bool = False
    ) -> None:
        self.stateful = stateful
        self._meters: list[Meter] = []
        by_hook: dict[str, list[Implementation]] = {hook: [] for hook in CALLBACKS}
        for implementation in implementations:
            bound = with_context(implementation)
            if trace:
                self._meters.append(meter := Meter(bound))
                bound = replace(bound, function=meter)
            by_hook[bound.hook].append(bound)
        for name in ROLES:
            chain = by_hook[PREFIX + name]
            setattr(self, name, bind(name, chain) if chain else None)

    def report(self) -> list[TraceRow]:
        """Calls and time of each plugin and hook, the most expensive first; empty without trace."""
        rows = [meter.row() for meter in self._meters]
        return sorted(rows, key=lambda row: -row.seconds)


class Meter:
    """Counts and times the calls of one implementation."""

    __slots__ = ("calls", "function", "implementation", "nanoseconds")

    def __init__(self, implementation: Implementation) -> None:
        self.implementation = implementation
        self.function = implementation.function
        self.calls = 0
        self.nanoseconds = 0

    def __call__(self, context: Any) -> Any:
        """Call the implementation."""
        start = perf_counter_ns()
        try:
            return self.function(context)
        finally:
            self.nanoseconds += perf_counter_ns() - start
            self.calls += 1

    def row(self) -> TraceRow:
        """The record so far."""
        hook = self.implementation.hook.removeprefix(PREFIX)
        return TraceRow(self.implementation.plugin.name, hook, self.calls, self.nanoseconds * 1e-9)


def with_context(implementation: Implementation) -> Implementation:
    """Give a function without arguments one that it ignores."""
    if implementation.takes_context:
        return implementation
    function = implementation.function

    def ignore_context(_context: Any) -> Any:
        return function()

    return replace(implementation, function=ignore_context)


def bind(name: str, chain: Sequence[Implementation]) -> Observer | Controller:
    """Compile one callback's implementations, in order, according to its role."""
    if ROLES[name] == "observer":
        return bind_observer(chain)
    if ROLES[name] == "controller":
        return bind_controller(name, chain)
    return bind_batch(chain) if name == "batch" else bind_output(chain)


def bind_observer(chain: Sequence[Implementation]) -> Observer:
    """Call each; what they return is ignored."""
    functions = tuple(item.function for item in chain)
    if len(functions) == 1:
        (only,) = functions

        def observe_one(context: Any) -> None:
            try:
                only(context)
            except Exception as error:
                fail(chain[0], context, error)

        return observe_one

    def observe(context: Any) -> None:
        remaining = iter(functions)
        try:
            for function in remaining:
                function(context)
        except Exception as error:
            fail(current(chain, remaining), context, error)

    return observe


def bind_controller(name: str, chain: Sequence[Implementation]) -> Controller:
    """Call each and collect their decisions."""
    functions = tuple(item.function for item in chain)

    def control(context: Any) -> tuple[Decision, ...]:
        decisions = NOTHING
        remaining = iter(functions)
        try:
            for function in remaining:
                decision = function(context)
                if decision is not None:
                    check_decision(name, decision)
                    decisions += (decision,)
        except Exception as error:
            fail(current(chain, remaining), context, error)
        return decisions

    return control


def bind_batch(chain: Sequence[Implementation]) -> Observer:
    """Let each replace ``context.batch`` in turn."""
    functions = tuple(item.function for item in chain)

    def contribute_batch(context: Any) -> None:
        remaining = iter(functions)
        try:
            for function in remaining:
                batch = function(context)
                if batch is not None:
                    check_batch(batch, context.batch)
                    context.batch = batch
        except Exception as error:
            fail(current(chain, remaining), context, error)

    return contribute_batch


def bind_output(chain: Sequence[Implementation]) -> Observer:
    """Let each replace ``context.output`` in turn."""
    functions = tuple(item.function for item in chain)

    def contribute_output(context: Any) -> None:
        remaining = iter(functions)
        try:
            for function in remaining:
                output = function(context)
                if output is not None:
                    if not isinstance(output, Output):
                        raise TypeError(f"it returned {describe(output)}; expected a kdengine.api.Output or None")
                    context.output = output
        except Exception as error:
            fail(current(chain, remaining), context, error)

    return contribute_output


def check_decision(name: str, decision: object) -> None:
    """Refuse a controller's return value that the engine could not follow."""
    if not isinstance(decision, Decision):
        raise TypeError(f"it returned {decision!r}; expected a kdengine.Decision or None")
    if decision is Decision.SKIP and name not in SKIPPABLE:
        raise ValueError(f"it returned Decision.SKIP, which only {' and '.join(SKIPPABLE)} can follow")


def check_batch(batch: object, before: Batch | None) -> None:
    """Refuse a contributor's batch of another size: the items of the step are already counted."""
    if not isinstance(batch, Batch):
        raise TypeError(f"it returned {describe(batch)}; expected a kdengine.Batch or None")
    if before is not None and batch.size != before.size:
        raise ValueError(f"it returned a batch of {batch.size} items in place of {before.size}; expected as many")
    if before is not None and before.weights is not None and batch.weights is None:
        raise ValueError(
            "it returned a batch without the weights that its items had; make it with context.batch.replace(...), "
            "which keeps everything else, or give weights of 1"
        )


def current(chain: Sequence[Implementation], remaining: object) -> Implementation:
    """The implementation that an iterator over the chain gave last."""
    return chain[len(chain) - length_hint(remaining) - 1]


def fail(implementation: Implementation, context: Any, error: Exception) -> NoReturn:
    """Attribute an exception to its plugin.

    Raises:
        PluginError: with the original as its cause; what the plugin names in ``kdengine_passes`` is raised as it is.
    """
    plugin, hook = implementation.plugin, implementation.hook
    if isinstance(error, getattr(plugin.target, PASSES, ())):
        raise error
    step = getattr(context, "step", None)
    at = "" if step is None else f" at step {step}"
    raise PluginError(
        f"{plugin.title} failed in {hook}{at}: {type(error).__name__}: {error}",
        plugin=plugin.name,
        hook=hook,
        step=step,
    ) from error
