"""The two small networks of PyTorch's classic CIFAR-10 classifier tutorial."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class TutorialNet(nn.Module):
    """Two 5x5 convolutions, each with ReLU and 2x2 max-pooling; ``inputs: (B, channels, 32, 32)``.

    Args:
        channels: channels of an input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)

    def features(self, inputs: Tensor) -> Tensor:
        """What the head sees, ``(B, 400)``."""
        hidden = F.max_pool2d(F.relu(self.conv1(inputs)), 2)  # (B, 6, 14, 14)
        hidden = F.max_pool2d(F.relu(self.conv2(hidden)), 2)  # (B, 16, 5, 5)
        return hidden.flatten(1)


class TutorialTeacher(TutorialNet):
    """The tutorial's network: the convolutions and a head 400-120-84-classes.

    Submodules: ``conv1``, ``conv2``, ``fc1``, ``fc2``, ``fc3``. 62,006 parameters for 3 channels and 10 classes.

    Args:
        classes: number of classes.
        channels: channels of an input.
    """

    def __init__(self, classes: int = 10, channels: int = 3) -> None:
        super().__init__(channels)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(B, classes)``."""
        logits: Tensor = self.fc3(F.relu(self.fc2(F.relu(self.fc1(self.features(inputs))))))
        return logits


class TutorialStudent(TutorialNet):
    """The tutorial's network with a shorter head: 400-84-classes.

    Submodules: ``conv1``, ``conv2``, ``fc1``, ``fc2``. 37,406 parameters for 3 channels and 10 classes.

    Args:
        classes: number of classes.
        channels: channels of an input.
    """

    def __init__(self, classes: int = 10, channels: int = 3) -> None:
        super().__init__(channels)
        self.fc1 = nn.Linear(400, 84)
        self.fc2 = nn.Linear(84, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(B, classes)``."""
        logits: Tensor = self.fc2(F.relu(self.fc1(self.features(inputs))))
        return logits
