"""Teachers that are several, or that learn, against the transcriptions of their papers."""

import pytest
import torch
from torch import nn

from kdengine.api import Batch
from kdengine.engine.objective import Objective
from kdengine.losses import KD
from kdengine.teachers.ema import EMA
from kdengine.teachers.ensemble import Ensemble
from tests.losses.outputs import batch_of, logits
from tests.losses.papers import relations


class Given(nn.Module):
    """A teacher whose answer is known."""

    def __init__(self, answer):
        super().__init__()
        self.register_buffer("answer", answer)

    def forward(self, inputs):
        return self.answer


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weights", [None, [2.0, 1.0, 0.5]])
def test_a_loss_sees_the_weighted_mean_of_the_teachers_distributions(weights, temperature, scale):
    answers = [scale * logits(seed=seed) for seed in range(3)]
    source = Ensemble([Given(answer) for answer in answers], weights=weights, temperature=temperature)
    found = source.forward(Batch(torch.zeros(6, 1)))
    expected = relations.several_teachers(answers, weights or [1.0, 1.0, 1.0], temperature)
    torch.testing.assert_close((found / temperature).softmax(dim=-1), expected, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("members", [2, 3])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_confidence_gives_the_gradient_of_the_paper_and_so_many_times_that_of_its_code(temperature, members):
    labels = torch.tensor([0, 3, 1, 4, 2, 2])
    answers = [2.0 * logits(seed=seed) for seed in range(members)]
    source = Ensemble([Given(answer) for answer in answers], temperature=temperature, confidence="labels")
    student = logits(seed=9).requires_grad_()
    teacher = source.forward(Batch(torch.zeros(6, 1), labels))
    values = [
        KD(temperature=temperature).per_item(batch_of(student, teacher)),
        relations.confidence_kd(student, answers, labels, temperature),
        members * relations.confidence_kd_code(student, answers, labels, temperature),
    ]
    ours, paper, code = (torch.autograd.grad(value.mean(), student)[0] for value in values)
    torch.testing.assert_close(ours, paper, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(ours, code, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_two_networks_learn_from_each_other_as_in_deep_mutual_learning(scale):
    objective = Objective({"kd": KD(temperature=1.0)}, {}, mutual=True)
    objective.place(torch.device("cpu"), torch.float64)
    leaves = [(scale * logits(seed=seed)).requires_grad_() for seed in range(2)]
    batch = batch_of(*leaves)
    masks = objective.masks(batch)
    counts = objective.count(batch, masks)
    got = objective.evaluate(batch, masks, counts, counts)[0]
    expected = torch.stack([term.mean() for term in relations.dml(*leaves, 1.0)]).sum()
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=0.0)
    gradients = [torch.autograd.grad(value, leaves) for value in (got, expected)]
    for own, papers in zip(*gradients, strict=True):
        torch.testing.assert_close(own, papers, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_mean_teacher_follows_its_equation(decay):
    student = nn.Linear(3, 2, dtype=torch.float64)
    source = EMA(decay=decay, warmup=False)
    source.prepare(student)
    expected = [parameter.detach().clone() for parameter in student.parameters()]
    for _ in range(5):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        source.update(student)
        pairs = zip(expected, student.parameters(), strict=True)
        expected = [relations.mean_teacher(average, parameter.detach(), decay) for average, parameter in pairs]
    for own, papers in zip(source.modules()[0].parameters(), expected, strict=True):
        torch.testing.assert_close(own, papers, rtol=1e-12, atol=0.0)
