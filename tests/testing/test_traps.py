"""A deliberately wrong loss for each trap: the kit names the trap, and lets the correct twin pass."""

import pytest
import torch

import kdengine
from kdengine.testing import certify_loss, check_loss


def wide(logits):
    return logits if logits.itemsize >= 4 else logits.float()


def softened(batch, temperature):
    student, teacher = (wide(output.logits) / temperature for output in (batch.student, batch.teacher))
    return student.log_softmax(-1), teacher.log_softmax(-1)


class Divergence(kdengine.Loss):
    """KL(p_t || p_s) of softened probabilities times T^2: the correct twin of most of what follows."""

    at_equality = "zero"

    def __init__(self, temperature: kdengine.Scalar = 4.0):
        super().__init__()
        self.temperature = temperature

    def elements(self, batch):
        student, teacher = softened(batch, self.temperature)
        probability = teacher.exp()
        difference = torch.where(probability > 0, teacher - student, 0.0)
        return self.temperature**2 * probability * difference

    def per_item(self, batch):
        return self.elements(batch).sum(-1)


class MeanOverClasses(Divergence):
    def per_item(self, batch):
        return self.elements(batch).mean(-1)


class WithoutSquare(Divergence):
    def per_item(self, batch):
        return super().per_item(batch) / self.temperature**2


class WithOneFactor(Divergence):
    def per_item(self, batch):
        return super().per_item(batch) / self.temperature


class Standardised(Divergence):
    def elements(self, batch):
        with_mean_zero = kdengine.Batch(batch.inputs, size=batch.size)
        for who in ("student", "teacher"):
            logits = wide(getattr(batch, who).logits)
            deviation = logits.var(-1, keepdim=True, correction=0).add(1e-12).sqrt()
            scaled = (logits - logits.mean(-1, keepdim=True)) / deviation
            setattr(with_mean_zero, who, kdengine.Output(None, scaled))
        return super().elements(with_mean_zero)


class StandardisedWithoutSquare(Standardised):
    def per_item(self, batch):
        return super().per_item(batch) / self.temperature**2


class TimesItems(Divergence):
    def per_item(self, batch):
        return super().per_item(batch) * batch.size


class SumOverItems(Divergence):
    def per_item(self, batch):
        return super().per_item(batch).sum().expand(batch.size)


class TeacherTrains(Divergence):
    def per_item(self, batch):
        batch.teacher.module.train()
        return super().per_item(batch)


class StudentRests(Divergence):
    def per_item(self, batch):
        batch.student.module.eval()
        return super().per_item(batch)


class TeacherWantsGradients(Divergence):
    def per_item(self, batch):
        batch.teacher.module.requires_grad_(True)
        return super().per_item(batch)


class MovesStatistics(Divergence):
    def per_item(self, batch):
        with torch.no_grad():
            batch.teacher.module.classify.weight.mul_(0.99)
        return super().per_item(batch)


class LogOfZero(Divergence):
    def elements(self, batch):
        student, teacher = (
            (wide(output.logits) / self.temperature).softmax(-1) for output in (batch.student, batch.teacher)
        )
        return self.temperature**2 * teacher * (teacher.log() - student.log())


class LogOfMasked(Divergence):
    """Finite wherever logits are; where both are -inf it is 0 times NaN."""

    def elements(self, batch):
        student, teacher = softened(batch, self.temperature)
        return self.temperature**2 * teacher.exp() * (teacher - student)


class InPlace(Divergence):
    def per_item(self, batch):
        batch.teacher.logits.clamp_(-0.5, 0.5)
        return super().per_item(batch)


class InPlaceOnInputs(Divergence):
    def per_item(self, batch):
        batch.inputs.zero_()
        return super().per_item(batch)


class NotZero(Divergence):
    """The cross-entropy of two distributions is the teacher's entropy where they are equal."""

    def elements(self, batch):
        student, teacher = softened(batch, self.temperature)
        probability = teacher.exp()
        return -(self.temperature**2) * probability * torch.where(probability > 0, student, 0.0)


class Lowest(NotZero):
    at_equality = "minimum"


class NotLowest(Lowest):
    def per_item(self, batch):
        return -super().per_item(batch)


class NotFlat(Lowest):
    def per_item(self, batch):
        return super().per_item(batch) + wide(batch.student.logits).mean(-1)


class Root(kdengine.Loss):
    """The distance between logits; its square root has no slope at 0."""

    def per_item(self, batch):
        return (wide(batch.student.logits) - wide(batch.teacher.logits)).square().sum(-1).sqrt()


class OtherWhenCompiled(Divergence):
    def per_item(self, batch):
        return super().per_item(batch) * (2.0 if torch.compiler.is_compiling() else 1.0)


class Reads(Divergence):
    def per_item(self, batch):
        value = super().per_item(batch)
        return value if value.sum().item() > 0 else -value


class Branches(Divergence):
    def per_item(self, batch):
        value = super().per_item(batch)
        return value.abs() if (value < 0).any() else value


class Selects(Divergence):
    def per_item(self, batch):
        value = super().per_item(batch)
        result = torch.zeros_like(value)
        result[value > 0] = value[value > 0]
        return result


class Lists(Divergence):
    def per_item(self, batch):
        value = super().per_item(batch)
        return value * (1 + 0 * len(batch.teacher.logits.tolist()))


class CopiesFromHost(Divergence):
    def per_item(self, batch):
        value = super().per_item(batch)
        return value * torch.tensor([1.0], dtype=value.dtype, device=value.device)


class LivesOnHost(Divergence):
    def per_item(self, batch):
        value = super().per_item(batch)
        return value + 0 * torch.arange(batch.size)


class Solves(Divergence):
    def per_item(self, batch):
        value = super().per_item(batch)
        return value + 0 * torch.linalg.inv(torch.eye(2, dtype=value.dtype, device=value.device)).sum()


class Remembers(kdengine.Loss):
    """Squared error to a moving average of the teacher's logits, which is in the state."""

    scope = "batch"

    def setup(self, example):
        self.register_buffer("average", torch.zeros(example.teacher.logits.shape[-1]))

    def value(self, batch):
        with torch.no_grad():
            seen = wide(batch.teacher.logits).mean(0).to(self.average.dtype)
            self.average = 0.9 * self.average + 0.1 * seen
        return (wide(batch.student.logits) - self.average).square().mean()


class ForgetsAverage(Remembers):
    def setup(self, example):
        self.register_buffer("average", torch.zeros(example.teacher.logits.shape[-1]), persistent=False)


class ForgetsSteps(Remembers):
    steps = 0

    def value(self, batch):
        self.steps += 1
        return super().value(batch) / self.steps


class KeepsSteps(ForgetsSteps):
    def get_extra_state(self):
        return {"steps": self.steps}

    def set_extra_state(self, state):
        self.steps = state["steps"]


class KeepsAFunction(Remembers):
    def get_extra_state(self):
        return {"rule": wide}

    def set_extra_state(self, state):
        pass


class ForgetsProjection(Divergence):
    """Random and fixed, made in setup and not in the state."""

    def setup(self, example):
        classes = example.teacher.logits.shape[-1]
        self.projection = torch.rand(classes, dtype=torch.float64)

    def per_item(self, batch):
        noise = self.projection.to(wide(batch.student.logits).dtype)
        return (self.elements(batch) * noise).sum(-1)


class Draws(Divergence):
    """Other numbers at each call, from a generator outside of the state."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def per_item(self, batch):
        return super().per_item(batch) * torch.rand((), generator=self.generator).item()


class CrossEntropy(kdengine.Loss):
    """A loss with labels that leaves to the base class which items have one."""

    needs = kdengine.Needs(teacher=False, labels=True)

    def per_item(self, batch):
        labels = torch.where(batch.labels == -100, 0, batch.labels)
        return -wide(batch.student.logits).log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


class CountsUnlabelled(CrossEntropy):
    def valid(self, batch):
        return None


TRAPS = [
    (
        CountsUnlabelled,
        "labels",
        r"items whose label is -100 \(ignore_index\) count in every term.*leave valid\(batch\)",
    ),
    (MeanOverClasses, "classes", r"'loss' is 0.5 times what it was \(does it divide by the number of classes\?\)"),
    (
        WithoutSquare,
        "temperature",
        r"'loss' is softened and multiplied by temperature\*\*0: .* give 1 times",
    ),
    (WithOneFactor, "temperature", r"multiplied by temperature\*\*1: .* expected 4; multiply it by temperature\*\*2"),
    (StandardisedWithoutSquare, "temperature", r"gradient of 'loss' falls to 0\.2\d* of its size; .*temperature\*\*2"),
    (TimesItems, "split", r"with micro-batches of \(3, 4\) in place of \(7,\), the loss differs by"),
    (SumOverItems, "split", r"with micro-batches of \(3, 4\) in place of \(7,\), the loss differs by"),
    (TeacherTrains, "models", "put the teacher's model, which was in evaluation mode, in training mode"),
    (StudentRests, "models", "put the student's model, which was in training mode, in evaluation mode"),
    (TeacherWantsGradients, "models", "turned requires_grad of weight in the teacher's classify to True"),
    (MovesStatistics, "models", r"changed weight in the teacher's classify, by [\d.e-]+"),
    (LogOfZero, "precision", r"logits of \+-10000 in float16: the loss: \d of \d values are not finite"),
    (LogOfMasked, "classes", r"with masked classes \(logits of -inf on both sides\).* not finite"),
    (InPlace, "tensors", r"changed a tensor of the batch in place, by [\d.e-]+"),
    (InPlaceOnInputs, "tensors", r"changed a tensor of the batch in place, by [\d.e-]+"),
    (NotZero, "equality", "loss is [0-9.]+ where student and teacher are equal; at_equality claims zero"),
    (NotLowest, "equality", "costs .*, less than the .* of one that equals its teacher"),
    (NotFlat, "equality", "gets a gradient of .* where it equals its teacher; at_equality claims 'minimum'"),
    (Root, "no spread", "a student equal to its teacher: the gradient: .* not finite"),
    (OtherWhenCompiled, "compile", "under torch.compile, the value differs by"),
    (Reads, "synchronization", r"at test_traps.py:\d+: torch.Tensor.item \(aten::_local_scalar_dense\) waits"),
    (Branches, "synchronization", r"torch.Tensor.__bool__ \(aten::_local_scalar_dense\) waits"),
    (Selects, "synchronization", r"torch.Tensor.__getitem__ \(aten::index\) waits: the size of its result depends"),
    (Lists, "synchronization", "torch.Tensor.tolist waits: it reads values on the host"),
    (CopiesFromHost, "synchronization", "torch.tensor waits: it copies data from the host"),
    (LivesOnHost, "synchronization", r"torch.Tensor.add \(aten::add\) waits: it mixes a tensor of the host"),
    (Solves, "synchronization", r"torch.linalg.inv \(aten::_linalg_check_errors\) waits: it asks on the host"),
    (ForgetsAverage, "repeats", "the loss differs by .* what a loss remembers must be in its state"),
    (ForgetsSteps, "repeats", "the loss differs by .* what a loss remembers must be in its state"),
    (KeepsAFunction, "state", "its state cannot be checkpointed"),
    (ForgetsProjection, "state", "after a round trip of its state, the loss differs by"),
    (Draws, "repeats", "the second time on the same batch, after another one, the loss differs by"),
]


@pytest.mark.parametrize(("loss", "check", "said"), TRAPS, ids=[f"{loss.__name__}" for loss, _, _ in TRAPS])
def test_the_kit_names_the_trap(loss, check, said):
    with pytest.raises(AssertionError, match=said):
        check_loss(loss)


@pytest.mark.parametrize("twin", [Divergence, Standardised, Lowest, Remembers, KeepsSteps, CrossEntropy])
def test_the_correct_twin_passes(twin):
    check_loss(twin)


def failed(certificate):
    return {finding.check: finding.message for finding in certificate.failed}


@pytest.mark.parametrize("loss", [ForgetsAverage, ForgetsSteps])
def test_state_that_is_lost_in_a_checkpoint_shows_there_as_well(loss):
    assert "after a round trip of its state, the loss differs by" in failed(certify_loss(loss))["state"]


def test_a_certificate_goes_on_after_the_first_failure():
    class Several(MeanOverClasses):
        def per_item(self, batch):
            batch.teacher.module.train()
            return super().per_item(batch) / self.temperature**2

    assert set(failed(certify_loss(Several))) == {"models", "temperature", "classes"}


class Weighted(kdengine.Loss):
    """Squared error with a weight that is computed from the outputs and held constant."""

    detaches = True

    def weigh(self, error):
        return (1 / (1 + error)).detach()

    def per_item(self, batch):
        error = (wide(batch.student.logits) - wide(batch.teacher.logits)).square().mean(-1)
        return self.weigh(error) * error


class WeightedWithoutGraph(Weighted):
    def weigh(self, error):
        with torch.no_grad():
            weight = 1 / (1 + error)
            return weight * 1.0


class WeightedUndeclared(Weighted):
    detaches = False


class WeightedWrong(Weighted):
    def per_item(self, batch):
        value = super().per_item(batch)
        return value + 0.5 * (value - value.detach())

    def weigh(self, error):
        return Half.apply(1 / (1 + error))


class Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value * 1.0

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 2


@pytest.mark.parametrize("loss", [Weighted, WeightedWithoutGraph])
def test_a_constant_that_is_declared_is_held_while_the_gradient_is_compared(loss):
    check_loss(loss)


def test_a_constant_that_is_not_declared_is_an_error_of_the_gradient():
    with pytest.raises(AssertionError, match=r"not that of finite differences: .* let the class say detaches = True"):
        check_loss(WeightedUndeclared)


def test_a_wrong_gradient_is_found_beside_a_declared_constant():
    with pytest.raises(AssertionError, match=r"not that of finite differences: .* they give [\d.e+-]+$"):
        check_loss(WeightedWrong)
