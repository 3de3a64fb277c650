"""The moving average of the student that is evaluated and exported in its place."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kdengine.api import ConfigurationError
from kdengine.api.copies import copied, follow_shapes


class MovingAverage(AveragedModel):
    """An exponential moving average of a model's parameters; buffers follow the model.

    With the parameters ``theta_n`` after the n-th step, ``theta'_1 = theta_1`` and
    ``theta'_n = d theta'_{n-1} + (1 - d) theta_n``. What is computed from parameters (``weight_norm``, a pruned weight)
    is computed from their averages.

    Args:
        model: begins as its average.
        decay: ``d``.

    Raises:
        ConfigurationError: the decay is not between 0 and 1, or the model cannot be copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0.0 < decay < 1.0:
            raise ConfigurationError(f"ema is the decay of the moving average, between 0 and 1, got {decay}")
        super().__init__(nn.Module(), multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
        try:
            self.module = copied(model)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            raise ConfigurationError(
                f"ema keeps a copy of the student, but a {type(model).__name__} cannot be copied: {error}; "
                "leave ema out, or give the student without what cannot be copied"
            ) from error

    def update_parameters(self, model: nn.Module) -> None:
        """Move towards the model."""
        follow_shapes(self.module, model)
        super().update_parameters(model)

    def confirm(self, model: nn.Module) -> None:
        """Raise when the model has other parameters than those that are averaged, as after pruning in mid-fit.

        Raises:
            ConfigurationError: it has.
        """
        own, given = ({name for name, _ in module.named_parameters()} for module in (self.module, model))
        if own != given:
            changed = ", ".join(repr(name) for name in sorted(own ^ given)[:3])
            raise ConfigurationError(
                f"ema averages the student's parameters by their place, but {changed} came or went during the fit; "
                "change the student (pruning, parametrizations) before the fit, or leave ema out"
            )
