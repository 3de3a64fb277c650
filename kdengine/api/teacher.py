"""The contract of a teacher source: where a batch's teacher output comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdengine.api.batch import Batch
from kdengine.api.given import Given
from kdengine.api.models import call_model, find_logits


class TeacherSource(Given, ABC):
    """Gives the teacher's output for a batch.

    The engine puts the modules of a *frozen* source into evaluation mode without ``requires_grad``, runs it without
    gradients and checks that it stays as it was, after the first step and at the end. A source that declares itself
    *evolving* (mutual learning, an average of the student) is exempt: its state joins the checkpoint.

    Attributes:
        evolving: whether the source changes while the student trains.
        learns: of an evolving source: whether the engine trains its modules beside the student, by the student's losses
            with the roles exchanged. Their parameters join the optimizer, and :meth:`forward` keeps its graph.
        wraps: what its constructor takes first when a recipe names it: the teacher's ``"model"``, a list with the
            ``"sources"`` of several, or ``"nothing"`` where the source needs the student alone.
        gives_features: whether its modules run for every batch, so that features can be captured.
        gives_logits: whether :meth:`forward` returns logits themselves, rather than what a model returns.
        ignore_buffers: of a frozen source: names or shell patterns of buffers in its modules that may change, such as
            counters; of several modules, behind their numbers (``0.counter``). One that is not persistent may anyway.
        find_logits: finds the logits in what a model returns; the engine puts ``Engine(output=...)`` in its place.
    """

    evolving: ClassVar[bool] = False
    learns: ClassVar[bool] = False
    wraps: ClassVar[Literal["model", "sources", "nothing"]] = "model"
    gives_features: bool = True
    gives_logits: ClassVar[bool] = False
    ignore_buffers: Sequence[str] = ()
    find_logits: Callable[[Any], Tensor | None] = staticmethod(find_logits)

    def modules(self) -> list[nn.Module]:
        """The live modules behind this source; empty for a cache.

        Features are named by their path inside the module; where there are several, inside a list of them
        (``0.layer3``).
        """
        return []

    def prepare(self, student: nn.Module) -> None:
        """Called when a fit is assembled, before :meth:`place`, with the student as it is before any step."""

    def place(self, device: torch.device) -> None:
        """Move what must be moved before the fit."""

    @abstractmethod
    def forward(self, batch: Batch) -> Any:
        """The teacher's output for a batch: whatever a model would return, or the logits (see ``gives_logits``).

        Evaluations give no labels.
        """

    def state_dict(self) -> dict[str, Any]:
        """State of an evolving source."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""

    def update(self, student: nn.Module) -> None:
        """Called of an evolving source after every optimizer step, also after one whose update was left out."""


class FrozenModel(TeacherSource):
    """A module that runs beside the student, frozen.

    Args:
        module: the teacher.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def modules(self) -> list[nn.Module]:
        """The module itself."""
        return [self.module]

    def place(self, device: torch.device) -> None:
        """Freeze the module and move it."""
        self.module.eval().requires_grad_(False).to(device)

    def forward(self, batch: Batch) -> Any:
        """Run the module."""
        return call_model(self.module, batch.inputs)
