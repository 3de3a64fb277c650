"""Every method against the transcription of its paper: value and gradient, on random and on adversarial inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kdengine.api import Loss
from kdengine.engine.objective import Objective
from kdengine.losses import CC, DKD, JSD, KD, NKD, RKD, SP, TVD, LogitMSE, ReverseKL
from tests.losses.outputs import batch_of
from tests.losses.papers import logits as papers
from tests.losses.papers import relations

ITEMS, CLASSES = 6, 5
TOLERANCE = 1e-5


@dataclass(frozen=True)
class OfLogits:
    """A loss on logits, and each term of its paper for a batch, ``paper(s, t, y)``, of shape () or (B,)."""

    loss: Callable[[], Loss]
    paper: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]


LOGITS = {
    "kd": OfLogits(lambda: KD(3.0), lambda s, t, _: (papers.kd(s, t, 3.0),)),
    "reverse_kl": OfLogits(lambda: ReverseKL(2.0), lambda s, t, _: (papers.reverse_kl(s, t, 2.0),)),
    "jsd": OfLogits(lambda: JSD(2.0, beta=0.3), lambda s, t, _: (papers.jsd(s, t, 2.0, 0.3),)),
    "tvd": OfLogits(lambda: TVD(2.0), lambda s, t, _: (papers.tvd(s, t, 2.0),)),
    "logit_mse": OfLogits(LogitMSE, lambda s, t, _: (papers.logit_mse_code(s, t, center=False),)),
    "dkd": OfLogits(lambda: DKD(), lambda s, t, y: papers.dkd(s, t, y, 4.0, 1.0, 8.0)),
    "nkd": OfLogits(lambda: NKD(2.0), lambda s, t, y: papers.nkd(s, t, y, 2.0, 1.5)),
    "rkd": OfLogits(
        RKD, lambda s, t, _: (25.0 * relations.rkd_distance_code(s, t), 50.0 * relations.rkd_angle_code(s, t))
    ),
    "sp": OfLogits(SP, lambda s, t, _: (relations.sp(s, t),)),
    "cc": OfLogits(CC, lambda s, t, _: (relations.cc(s, t, 0.4, 2),)),
}

TRANSCRIPTIONS = {name: f"`papers.logits.{name}`" for name in LOGITS}
"""What docs/methods.md says of each method."""


def normal(seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(ITEMS, CLASSES, generator=generator, dtype=torch.float64)


def one_hot(large: float) -> Tensor:
    return large * torch.nn.functional.one_hot(torch.arange(ITEMS) % CLASSES, CLASSES).double()


INPUTS = {
    "random": (normal(0), normal(1)),
    "peaked": (normal(2, 10.0), normal(3, 10.0)),
    "shifted far from zero": (normal(4) + 1000.0, normal(5) - 1000.0),
    "nearly equal": (normal(6) + 1e-4 * normal(7), normal(6)),
    "a certain teacher": (normal(8), one_hot(30.0)),
    "a student certain of the wrong class": (one_hot(30.0).roll(1, dims=1), one_hot(30.0)),
    "a student that knows nothing": (1e-3 * normal(9), normal(10, 3.0)),
}
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def by_engine(loss: Loss, student: Tensor, teacher: Tensor) -> Tensor:
    """What the engine differentiates: each term's mean over the items."""
    objective = Objective({"loss": loss}, {})
    objective.place(torch.device("cpu"), torch.float64)
    batch = batch_of(student, teacher, LABELS)
    masks = objective.masks(batch)
    counts = objective.count(batch, masks)
    return objective.evaluate(batch, masks, counts, counts)[0]


def assert_close(got: Tensor, expected: Tensor, what: str) -> None:
    size = max(1.0, float(expected.abs().max()))
    worst = float((got - expected).abs().max())
    assert worst <= TOLERANCE * size, f"the {what} differs by {worst:.3g}, beside {size:.3g}"


@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("method", LOGITS.values(), ids=LOGITS)
def test_a_loss_on_logits_is_its_papers(method, inputs):
    results = []
    for compute in (
        lambda s, t: by_engine(method.loss(), s, t),
        lambda s, t: torch.stack([term.mean() for term in method.paper(s, t, LABELS)]).sum(),
    ):
        student = inputs[0].clone().requires_grad_()
        value = compute(student, inputs[1])
        results.append((value.detach(), torch.autograd.grad(value, student)[0]))
    (value, gradient), (expected, expected_gradient) = results
    assert_close(value, expected, "value")
    assert_close(gradient, expected_gradient, "gradient")
