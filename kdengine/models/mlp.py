"""A multi-layer perceptron."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Module):
    """Fully connected layers with ReLU; a hint names a hidden layer as ``hidden.0``, ``hidden.1`` and so on.

    ``inputs: (B, *input_shape)``, flattened; returns logits ``(B, classes)``.

    Args:
        hidden: width of each hidden layer; none makes a linear classifier.
        input_shape: shape of one input, without the batch.
        classes: number of classes.
        dropout: share of hidden values set to zero while training.

    Example:
        >>> sum(p.numel() for p in MLP([32], (1, 8, 8), 10).parameters())
        2410
    """

    def __init__(self, hidden: Sequence[int], input_shape: Sequence[int], classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        widths = [math.prod(input_shape), *hidden]
        layers = [
            nn.Sequential(nn.Linear(fan_in, fan_out), nn.ReLU(), nn.Dropout(dropout))
            for fan_in, fan_out in itertools.pairwise(widths)
        ]
        self.hidden = nn.Sequential(*layers)
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.fc(self.hidden(inputs.flatten(1)))
        return logits
