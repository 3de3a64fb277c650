"""What each model is given of a batch, and whether what it gives back is of the batch's items."""

from __future__ import annotations

from typing import Any

from torch import nn

from kdengine.api import Batch, ConfigurationError, KDEngineError, Output
from kdengine.api.batch import describe
from kdengine.api.errors import InputsError
from kdengine.api.inputs import swallowed_weights
from kdengine.engine.fit import Models
from kdengine.engine.notices import Notices


def given_to(models: Models, role: str, batch: Batch) -> Any:
    """The inputs of the student or the teacher: those of the batch, or what its own function makes of them.

    Raises:
        ConfigurationError: the function returned nothing.
    """
    function = models.own_inputs.get(role)
    if function is None:
        return batch.inputs
    made = function(batch.inputs)
    if made is None:
        raise ConfigurationError(
            f"Engine({role}_inputs=fn): fn returned None for {describe(batch.inputs)}; expected the {role}'s inputs: a "
            "tensor, a mapping of keywords or a tuple of positions"
        )
    return made


class told_whose:  # noqa: N801 - a context manager
    """An error about the inputs of a model that runs in here says whose model it is."""

    def __init__(self, role: str) -> None:
        self.role = role

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InputsError) and error.role == "model":
            raise error.of(self.role) from error.__cause__
        if isinstance(error, Exception) and not isinstance(error, KDEngineError):
            error.add_note(f"raised by the forward of the {self.role}")


def doubt_weights(student: nn.Module, inputs: Any, notices: Notices) -> None:
    """Say that what looks like sample weights goes to a model which takes whatever it is given."""
    for key in swallowed_weights(student, inputs):
        notices.once(
            f"{key!r} of the loader's items goes to the models as an input, and {type(student).__name__}.forward takes "
            "it by **kwargs: it weighs nothing in the losses. If these are sample weights, say so: "
            f"Engine(batch=lambda item: kdengine.Batch(inputs, labels, weights=item[{key!r}]))"
        )


def check_size(role: str, output: Output, batch: Batch) -> None:
    """Refuse logits that are not of as many items as the batch: every mean would be divided by a wrong number.

    Raises:
        ConfigurationError: it says what was counted, and what came.
    """
    if output.logits.ndim == 1 and batch.size != output.logits.size(0):
        raise ConfigurationError(
            f"the {role}'s logits are {describe(output.logits)}, those of one item: the loader seems to give items "
            f"({describe(batch.inputs)}) rather than batches; make batches of a data set by "
            "kdengine.loader(dataset, batch_size)"
        )
    if output.logits.shape[:1] != (batch.size,):
        raise ConfigurationError(
            f"the {role}'s logits are {describe(output.logits)}, but the batch has {batch.size} items, by the first "
            f"dimension of the first tensor in its inputs ({describe(batch.inputs)}) or as its size= says. The "
            "first dimension of the logits must be the items: say how many they are by "
            "Engine(batch=lambda item: kdengine.Batch(inputs, labels, size=...)), or bring the output into that "
            "form by Engine(output=fn), where fn(output) returns the logits"
        )
