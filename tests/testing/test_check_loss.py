"""The kit refuses losses that break one promise each, and says which."""

import pytest
import torch

import kdengine
from kdengine.api import Batch, Needs, Output
from kdengine.losses import LogitMSE
from kdengine.testing import check_loss


class Good(kdengine.Loss):
    def per_item(self, batch):
        return wide(batch.student.logits, batch.teacher.logits).square().mean(-1)


def wide(student, teacher):
    student, teacher = (x if x.itemsize >= 4 else x.float() for x in (student, teacher))
    return student - teacher


class MeanOverBatch(Good):
    def per_item(self, batch):
        return super().per_item(batch).mean()


class MeanSpreadOverBatch(Good):
    def per_item(self, batch):
        value = super().per_item(batch)
        return value.mean().expand(value.shape)


class RunningCentre(Good):
    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(()))

    def per_item(self, batch):
        value = super().per_item(batch)
        self.centre = 0.9 * self.centre + 0.1 * value.detach().sum()
        return value * (1 + self.centre)


class WritesToTeacher(Good):
    def per_item(self, batch):
        batch.teacher.logits.mul_(0.5)
        return super().per_item(batch)


class AsksForTeacherGradients(Good):
    def per_item(self, batch):
        batch.teacher.logits.requires_grad_()
        return super().per_item(batch)


class Poisoned(Good):
    """Fused, and reads every row."""

    def weighted_sum(self, batch, weights):
        total = (self.per_item(batch) * weights["loss"]).sum()
        return total, {"loss": total.detach()}


class ForgetsWeights(Good):
    def weighted_sum(self, batch, weights):
        total = self.per_item(batch).sum()
        return total, {"loss": total.detach()}


class GraphInShares(Good):
    def weighted_sum(self, batch, weights):
        total, _ = super().weighted_sum(batch, weights)
        return total, {"loss": total}


class OtherTerms(Good):
    terms = ("a", "b")

    def per_item(self, batch):
        return {"a": super().per_item(batch)}


class ReadsOutputsInValid(Good):
    def valid(self, batch):
        return batch.student.logits.amax(-1) > 0


class HalfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 2


class WrongGradient(Good):
    def per_item(self, batch):
        return HalfGradient.apply(super().per_item(batch))


class Overflows(kdengine.Loss):
    def per_item(self, batch):
        return (batch.student.logits - batch.teacher.logits).square().mean(-1)


class FrozenScalar(Good):
    def __init__(self, factor: kdengine.Scalar = 2.0):
        super().__init__()
        self.factor = factor
        self.square = self.factor**2

    def per_item(self, batch):
        return super().per_item(batch) * self.square


class HiddenScalar(Good):
    def __init__(self, factor: kdengine.Scalar = 2.0):
        super().__init__()
        self._factor = factor

    def per_item(self, batch):
        return super().per_item(batch) * self._factor


class StateLeftOut(Good):
    """Made in setup, and not in the state."""

    def setup(self, example):
        self.register_buffer("noise", torch.rand(1, generator=SHARED), persistent=False)

    def per_item(self, batch):
        return super().per_item(batch) * self.noise


SHARED = torch.Generator().manual_seed(0)


class NanWithoutItems(Good):
    def weighted_sum(self, batch, weights):
        total, shares = super().weighted_sum(batch, weights)
        return total + 0 / torch.tensor(float(batch.size)), shares


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (MeanOverBatch, r"shape \(\) .* must not be reduced"),
        (MeanSpreadOverBatch, r"with micro-batches of \(3, 4\) .* differs by [0-9.e-]+; the tolerance"),
        (RunningCentre, "differs by"),
        (WritesToTeacher, "changed a tensor of the batch in place, by|weighted_sum"),
        (AsksForTeacherGradients, "require a gradient, which needs does not declare"),
        (Poisoned, "NaN in items that do not count reached the loss"),
        (ForgetsWeights, "weighted_sum against Loss.weighted_sum with a number: the total differs by"),
        (GraphInShares, "shares with a graph"),
        (OtherTerms, r"returned the terms \['a'\], declared \('a', 'b'\)"),
        (ReadsOutputsInValid, r"valid\(\) must look at inputs"),
        (WrongGradient, "not that of finite differences"),
        (Overflows, r"logits of \+-10000 in float16: the loss: \d of \d values are not finite"),
        (FrozenScalar, "with factor scheduled to 1, not given as 1, the loss differs by"),
        (HiddenScalar, "self.factor is None where factor is a schedule"),
        (StateLeftOut, "after a round trip of its state, the loss differs by"),
        (NanWithoutItems, "a batch of 0 items: the loss"),
        (lambda: 3, "gives a int; expected a kdengine.Loss"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_loss_is_refused(loss, said):
    with pytest.raises(AssertionError, match=said):
        check_loss(loss)


def test_a_good_loss_passes():
    check_loss(Good)


def test_a_changed_teacher_is_reported_with_the_amount():
    class Once(Good):
        def per_item(self, batch):
            value = super().per_item(batch)
            batch.teacher.logits.nan_to_num_(0.0).clamp_(-0.5, 0.5)
            return value

    with pytest.raises(AssertionError, match=r"in place|differs by"):
        check_loss(Once)


def test_a_relational_loss_need_not_keep_its_value_when_split():
    class Relational(kdengine.Loss):
        scope = "batch"

        def value(self, batch):
            s, t = batch.student.logits, batch.teacher.logits
            s, t = (x if x.itemsize >= 4 else x.float() for x in (s, t))
            return (s @ s.mT / 1e4 - t @ t.mT / 1e4).square().mean()

    check_loss(Relational)


def test_a_loss_that_trains_the_teacher_must_reach_it():
    class Mutual(Good):
        needs = Needs(teacher_gradients=True)

    class Detached(Mutual):
        def per_item(self, batch):
            return wide(batch.student.logits, batch.teacher.logits.detach()).square().mean(-1)

    check_loss(Mutual)
    with pytest.raises(AssertionError, match="no gradient reaches the teacher"):
        check_loss(Detached)


def test_a_sample_of_ones_own_is_used():
    sizes = []

    def sample(size, generator):
        sizes.append(size)
        batch = Batch(torch.zeros(size, 1))
        for who in ("student", "teacher"):
            value = torch.randn(size, 3, generator=generator, dtype=torch.float64)
            setattr(batch, who, Output({"logits": value}, value))
        return batch

    check_loss(LogitMSE, sample=sample)
    assert {0, 1} <= set(sizes)


def test_from_callable_passes():
    criterion = torch.nn.MSELoss(reduction="none")
    check_loss(lambda: kdengine.from_callable(criterion))
    check_loss(lambda: kdengine.from_callable(torch.nn.CrossEntropyLoss(reduction="none"), "labels"))
