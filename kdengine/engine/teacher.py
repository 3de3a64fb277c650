"""The teacher as a source: a live module, and what else a user may give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import torch
from torch import Tensor, nn

from kdengine.api import ConfigurationError, TeacherSource
from kdengine.api.batch import Batch
from kdengine.api.processes import join
from kdengine.api.teacher import FrozenModel
from kdengine.engine.batching import call_model, cast, device_of, move
from kdengine.engine.compiled import compile_in_place
from kdengine.host import Host

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class LiveTeacher(FrozenModel):
    """A module that runs beside the student, frozen.

    Args:
        module: the teacher.
        device: where it runs; None for the student's device.
        dtype: floating type of its parameters and inputs; None leaves them.
        transform: applied to the inputs before the teacher sees them (another normalisation or size).
        compile: whether to run it under ``torch.compile``.
        shard: whether several processes keep shards of it, gathered block by block as it runs, instead of copies.
            ``"layers"`` gathers layer by layer: less memory at the peak, more messages, and no module may read the
            parameters of another.
        mesh: which processes share one copy that is sharded, for instance those of one machine; all by default.
        ignore_buffers: names or shell patterns of buffers that may change although the teacher is frozen: counters of
            tokens or calls, ``"*.tokens_per_expert"`` for instance.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        transform: Callable[[Any], Any] | None = None,
        compile: bool = False,
        shard: bool | Literal["layers"] = False,
        mesh: DeviceMesh | None = None,
        ignore_buffers: str | Sequence[str] = (),
    ) -> None:
        if shard and device is not None:
            raise ConfigurationError("a sharded teacher runs on the device of its process: leave device out")
        super().__init__(module)
        self.device = None if device is None else torch.device(device)
        self.dtype = dtype
        self.transform = transform
        self.compile = compile
        self.shard = shard
        self.mesh = mesh
        self.ignore_buffers = patterns(ignore_buffers)

    def place(self, device: torch.device) -> None:
        """Freeze the module and move it."""
        freeze(self.module)
        self.module.to(device=self.device or device, dtype=self.dtype)
        if self.shard and join().world > 1:
            from kdengine.engine import fsdp

            fsdp.shard(self.module, mesh=self.mesh, frozen=True, by_layer=self.shard == "layers")
        if self.compile:
            compile_in_place(self.module)

    def forward(self, batch: Batch) -> Any:
        """Run the module; its output comes back to the batch's device when it runs on another."""
        inputs = batch.inputs if self.transform is None else self.transform(batch.inputs)
        if self.device is None and self.dtype is None:
            return call_model(self.module, inputs)
        home = device_of(inputs)
        output = call_model(self.module, cast(move(inputs, self.device or home), self.dtype))
        return move(output, home)


def patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    """Names or patterns; one may be given by itself.

    >>> patterns("*.counter")
    ('*.counter',)
    """
    return (given,) if isinstance(given, str) else tuple(given)


def freeze(module: nn.Module) -> None:
    """Evaluation mode and no gradient, for scripted modules too.

    Raises:
        ConfigurationError: the module has no modes.
    """
    try:
        module.eval()
    except NotImplementedError as error:
        raise ConfigurationError(
            f"the teacher, a {type(module).__name__}, cannot be put into evaluation mode ({error}); give the module "
            "that it was exported from, or torch.export.unflatten(program) of one exported in evaluation mode"
        ) from error
    for parameter in module.parameters():
        parameter.requires_grad_(False)


TeacherLike: TypeAlias = nn.Module | TeacherSource | Sequence[nn.Module | TeacherSource]


def as_source(teacher: TeacherLike | None, host: Host) -> TeacherSource | None:
    """A module becomes a :class:`LiveTeacher`, several teachers an ensemble; a source and None stay as they are."""
    if teacher is None or isinstance(teacher, TeacherSource):
        return teacher
    if isinstance(teacher, list | tuple | nn.ModuleList):
        ensemble: TeacherSource = host.component("teachers", "builtin:ensemble").load()(list(teacher))
        return ensemble
    if isinstance(teacher, nn.Module):
        return LiveTeacher(teacher)
    raise ConfigurationError(
        f"teacher must be an nn.Module, a kdengine.TeacherSource, a list of these or None, got {type(teacher).__name__}"
    )


class SourceModel(nn.Module):
    """What a source says, as a model: for whatever measures or compares models.

    Its modules stay where the source has placed them.

    Args:
        source: placed on its device.
    """

    def __init__(self, source: TeacherSource) -> None:
        super().__init__()
        self.source = source
        self.models = nn.ModuleList(source.modules())

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The teacher's output; it sees no labels."""
        given: Any = named or (inputs[0] if len(inputs) == 1 else inputs)
        return self.source.forward(Batch(given))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return self
