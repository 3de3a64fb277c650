"""What the tests of relational losses share: batches, items that relations stumble over, a tiny fit."""

import torch

from kdengine.api import Batch, Output
from kdengine.testing import tiny_run

from ..outputs import batch_of, logits

AWKWARD = {
    "one item": lambda: logits(1),
    "two items": lambda: logits(2),
    "an item twice": lambda: logits(5)[[0, 1, 1, 2, 3]],
    "the same item only": lambda: logits(1).expand(4, -1).clone(),
    "an item of zeros": lambda: logits(4) * torch.tensor([1.0, 0.0, 1.0, 1.0]).double()[:, None],
    "zeros only": lambda: torch.zeros(4, 5).double(),
    "opposite items": lambda: torch.cat([logits(2), -logits(2)]),
    "tiny items": lambda: 1e-30 * logits(4),
}
"""Embeddings by what is awkward about them."""


def on_features(student, teacher):
    """A batch with features of both models at the path ``hidden``, and no logits."""
    batch = Batch(torch.zeros(len(student), 1), index=torch.arange(len(student)))
    batch.student, batch.teacher = (Output(None, None, {"hidden": value}) for value in (student, teacher))
    return batch


def features(student_shape, teacher_shape):
    """A sampler for the kit, with features of these shapes."""

    def sample(size, generator):
        shapes = ((size, *shape) for shape in (student_shape, teacher_shape))
        return on_features(*(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes))

    return sample


def value_and_gradient(loss, student, teacher, dtype=torch.float64):
    """The sum of a loss's terms on logits, and its gradient."""
    student = student.to(dtype).requires_grad_()
    found = loss.value(batch_of(student, teacher.to(dtype)))
    total = found if isinstance(found, torch.Tensor) else sum(found.values())
    total.backward()
    return float(total.detach()), student.grad


def course(loss, **options):
    """The mean loss of each epoch of a tiny fit."""
    return [record["loss"] for record in tiny_run({"own": loss}, epochs=6, **options).result.history]
