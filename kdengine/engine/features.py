"""Capturing features by the paths of modules: hooks that exist only while a fit needs them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdengine.api.batch import describe, first_tensor
from kdengine.api.errors import ConfigurationError, LossError, in_loss
from kdengine.api.features import INPUT, expand
from kdengine.engine.compiled import guard_hooks
from kdengine.engine.gradient_checks import warn_of_constant_features
from kdengine.engine.wrappers import unwrapped


class Capture:
    """Forward hooks on the modules that losses asked for.

    Use :meth:`attach` and :meth:`remove` around a fit, :meth:`start` before a forward whose features are wanted and
    :meth:`take` after it. Any other forward, such as an evaluation's, is not captured: nothing leaks from it.

    What is captured of a module is the first tensor of what it returns, looked for inside tuples, lists and mappings;
    with ``:input`` behind the path, the first tensor among its positional, then its keyword arguments. A module that
    runs several times in a forward gives what it gave last. Features are copies: a later module may change the tensor
    in place (a ReLU, usually). Every forward copies, whether or not a change was ever seen: a copy is a node of the
    graph, which decides the order in which autograd adds the gradients of a feature with several readers, and that
    order may not depend on how long the process has lived.

    Args:
        module: the model; wrappers around it (``torch.compile``, DistributedDataParallel) are not part of paths.
        asked: paths and patterns by label of the loss that asks.
        role: whose features they are.

    Attributes:
        paths: what is captured, in the order of the model's modules.

    Raises:
        LossError: a path names nothing, or lies inside a module in which hooks do not fire.
    """

    def __init__(
        self, module: nn.Module, asked: Mapping[str, Iterable[str]], role: Literal["student", "teacher"]
    ) -> None:
        self.module = unwrapped(module)
        self.role = role
        modules = dict(self.module.named_modules(remove_duplicate=False))
        self._askers: dict[str, str] = {}
        for label, patterns in asked.items():
            with in_loss(label, role):
                for path in _expand(patterns, modules):
                    check_hookable(modules, path.removesuffix(INPUT))
                    self._askers.setdefault(path, label)
        self.paths = tuple(name + end for name in modules for end in (INPUT, "") if name + end in self._askers)
        self._hooks = {path: self._hook(path) for path in self.paths}
        self._handles: list[RemovableHandle] = []
        self._depth = 0
        self._wanted = False
        self._differentiable = False
        self._seen: dict[str, Tensor] = {}
        self._looked = False

    def attach(self) -> None:
        """Set the hooks; may be nested."""
        self._depth += 1
        if self._depth > 1:
            return
        guard_hooks()
        modules = dict(self.module.named_modules(remove_duplicate=False))
        for block, inside in inside_shards(self.paths, modules).items():
            carry, unload = self._carriers(inside)
            self._handles.append(modules[block].register_forward_hook(carry, prepend=True))
            self._handles.append(modules[block].register_forward_hook(unload))
        for path, hook in self._hooks.items():
            module = modules[path.removesuffix(INPUT)]
            self._handles.append(
                module.register_forward_pre_hook(hook, with_kwargs=True)
                if path.endswith(INPUT)
                else module.register_forward_hook(hook)
            )

    def remove(self) -> None:
        """Take every hook away, where :meth:`attach` first set them."""
        self._depth -= 1
        if self._depth > 0:
            return
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._forget()

    def start(self) -> None:
        """The features of the forward that follows are wanted."""
        self._forget()
        self._wanted, self._differentiable = True, torch.is_grad_enabled()

    def take(self) -> dict[str, Tensor]:
        """What the forward gave, by path, in the order of the model's modules.

        Raises:
            LossError: a declared feature did not arrive, for instance because its module never ran.
        """
        seen, differentiable = self._seen, self._differentiable
        self._forget()
        for path in self.paths:
            if path not in seen:
                raise self._error(
                    path,
                    f"no feature arrived from {path!r}: either the module did not run in this forward, or its hook was "
                    "compiled away; a model that you compile yourself needs "
                    "torch._dynamo.config.skip_nnmodule_hook_guards = False before its first run (compile=True sees "
                    "to it)",
                )
        features = {path: seen[path] for path in self.paths}
        if differentiable and self.role == "student" and not self._looked:
            self._looked = True
            warn_of_constant_features(features)
        return features

    def _forget(self) -> None:
        self._wanted = False
        self._seen = {}

    def _hook(self, path: str) -> Callable[..., None]:
        def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
            self._keep(path, [*args, *kwargs.values()])

        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            self._keep(path, output)

        return before if path.endswith(INPUT) else after

    def _carriers(self, inside: Iterable[str]) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Hooks that pass features by FSDP's own hook on the block around them, as if the block returned them.

        FSDP gathers a block's parameters again when a gradient arrives at what the block returned. A loss on a feature
        inside may send none there.
        """

        def carry(_module: nn.Module, _args: Any, output: Any) -> Any:
            if not (self._wanted and torch.is_grad_enabled()):
                return None
            found = {path: self._seen[path] for path in inside if path in self._seen}
            return Carried(output, found)

        def unload(_module: nn.Module, _args: Any, output: Any) -> Any:
            if not isinstance(output, Carried):
                return None
            self._seen.update(output.features)
            return output.output

        return carry, unload

    def _keep(self, path: str, given: Any) -> None:
        """Keep a copy of a feature."""
        if not self._wanted:
            return
        value = first_tensor(given)
        if value is None:
            raise self._error(path, f"expected a tensor from {path!r}, got {describe(given)}")
        if self._differentiable and self.role == "student" and not torch.is_grad_enabled():
            raise self._error(
                path,
                f"the feature {path!r} was computed with gradients switched off, so a loss on it would train nothing "
                "before it: its module runs either inside torch.no_grad(), or inside torch.utils.checkpoint, which "
                "needs use_reentrant=False here (model.gradient_checkpointing_enable(gradient_checkpointing_kwargs="
                "{'use_reentrant': False}) in transformers); or name a module outside of it",
            )
        self._seen[path] = value.clone()

    def _error(self, path: str, reason: str) -> LossError:
        return LossError(reason, self._askers[path], self.role)


class Carried(NamedTuple):
    """What a block returned, and features from inside of it."""

    output: Any
    features: dict[str, Tensor]


def inside_shards(paths: Iterable[str], modules: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """The innermost block of FSDP2 around each path's module, with the paths inside."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    found: dict[str, list[str]] = {}
    if fsdp is None:
        return found
    for path in paths:
        own = path.removesuffix(INPUT)
        around = [outer for outer in _ancestors(own) if outer != own and isinstance(modules[outer], fsdp.FSDPModule)]
        if around:
            found.setdefault(around[-1], []).append(path)
    return found


def _expand(patterns: Iterable[str], modules: Mapping[str, nn.Module]) -> list[str]:
    try:
        return expand(patterns, list(modules))
    except ConfigurationError as error:
        if not any(isinstance(module, torch.fx.GraphModule) for module in modules.values()):
            raise
        raise ConfigurationError(f"{error} (it has a traced graph inside, in which modules may be gone)") from error


def check_hookable(modules: Mapping[str, nn.Module], path: str) -> None:
    """Refuse a module in which hooks do not fire.

    Args:
        modules: all modules of a model, by path.
        path: of one of them.

    Raises:
        ConfigurationError: it is (in) a scripted module, or in a traced one that does not call it.
    """
    for outer in _ancestors(path):
        module = modules[outer]
        if isinstance(module, torch.jit.ScriptModule):
            raise ConfigurationError(
                f"the module {path!r} is scripted (torch.jit, from {outer!r} on), where hooks do not fire; give the "
                "model as it was before torch.jit, or name a module outside of the scripted one"
            )
        if isinstance(module, torch.fx.GraphModule) and outer != path and not _calls(module, path, outer):
            raise ConfigurationError(
                f"the module {path!r} is inside a traced graph (torch.export or torch.fx, from {outer!r} on) that does "
                "not call it, so that its hook would not fire; give the model as it was before it was traced, "
                "torch.export.unflatten(program), or name a module outside of the graph"
            )


def _ancestors(path: str) -> Iterator[str]:
    """The model itself, every module on the way, and the module."""
    yield ""
    parts = path.split(".") if path else []
    for length in range(1, len(parts) + 1):
        yield ".".join(parts[:length])


def _calls(graph: torch.fx.GraphModule, path: str, outer: str) -> bool:
    """Whether a graph calls a module, or one around it."""
    inner = path[len(outer) + 1 :] if outer else path
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    return any(name in called for name in _ancestors(inner))
