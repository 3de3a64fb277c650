"""What people write without a fused operator: compared with it for its values in tests, for its speed in benchmarks."""

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Student logits, teacher logits, class ids -> 0-dim loss."""

TEMPERATURE = 2.0
SOFT, HARD = 0.9, 0.1


def kl(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """T^2 KL of the softened softmaxes, as in every tutorial; the labels are not used."""
    soft = kl_div(log_softmax(student / TEMPERATURE, -1), softmax(teacher / TEMPERATURE, -1), reduction="batchmean")
    return TEMPERATURE**2 * soft


def kl_and_ce(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The weighted sum with the cross-entropy of the labels."""
    return SOFT * kl(student, teacher, labels) + HARD * cross_entropy(student, labels)


def compiled(loss: Loss) -> Loss:
    """The same through torch.compile, one graph per shape, as a benchmark of fixed shapes gets it."""
    return torch.compile(loss, fullgraph=True, dynamic=False)


def liger(with_labels: bool) -> Loss | None:
    """Liger-Kernel's divergence (Triton, GPU only) on softened inputs; None where it is not installed."""
    if find_spec("liger_kernel") is None or not torch.cuda.is_available():
        return None
    from liger_kernel.transformers import LigerKLDIVLoss

    divergence = LigerKLDIVLoss(reduction="batchmean")

    def loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        log_p = log_softmax(student / TEMPERATURE, -1)
        value = TEMPERATURE**2 * divergence(log_p, softmax(teacher / TEMPERATURE, -1))
        return SOFT * value + HARD * cross_entropy(student, labels) if with_labels else value

    return loss
