"""What every logit loss is asked, whatever its formula."""

import math

import torch

from kdengine.testing import tiny_run

from ..outputs import batch_of, logits

LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
INFINITE = float("-inf")


def softened(row, temperature=1.0):
    """softmax(row / T) by plain Python."""
    shifted = [(value - max(row)) / temperature for value in row]
    weights = [math.exp(value) for value in shifted]
    return [value / sum(weights) for value in weights]


def total_of(loss, batch):
    """The unweighted sum of all terms, with a graph."""
    return loss.weighted_sum(batch, dict.fromkeys(loss.terms, 1.0))[0]


def evaluated(loss, student, teacher, labels=LABELS):
    """Value and gradient of the sum over terms and items."""
    leaf = student.clone().requires_grad_()
    total = total_of(loss, batch_of(leaf, teacher, labels[: len(student)]))
    (gradient,) = torch.autograd.grad(total, leaf)
    return total.detach(), gradient


def assert_equality(loss, tolerance=1e-12):
    """What the loss claims of a student that gives its teacher's logits."""
    for teacher in (logits(), logits(seed=3) * 20, torch.zeros(6, 5).double()):
        value, gradient = evaluated(loss, teacher, teacher)
        assert float(gradient.abs().max()) <= tolerance
        if loss.at_equality == "zero":
            assert abs(float(value)) <= tolerance
        else:
            assert loss.at_equality == "minimum"
            moved = teacher + 0.3 * logits(seed=8)
            assert float(evaluated(loss, moved, teacher)[0]) > float(value)


def assert_finite_at_extremes(loss):
    """Half-precision logits of +-1e4, also all of one sign, against one another and against themselves."""
    signs = [logits(seed=seed).sign() * 1e4 for seed in range(4)]
    signs += [torch.full((6, 5), 1e4), torch.full((6, 5), -1e4), torch.zeros(6, 5)]
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for student in signs:
            for teacher in signs:
                value, gradient = evaluated(loss, student.to(dtype), teacher.to(dtype))
                assert torch.isfinite(value)
                assert torch.isfinite(gradient).all()


def assert_masked_classes_change_nothing(loss, labels=LABELS):
    """Classes of -inf on both sides are as if they were not there, and get no gradient."""
    student, teacher = logits(), logits(seed=1)
    value, gradient = evaluated(loss, student, teacher, labels)
    absent = torch.full((6, 2), INFINITE).double()
    wide, wide_gradient = evaluated(loss, torch.cat([student, absent], 1), torch.cat([teacher, absent], 1), labels)
    torch.testing.assert_close(wide, value)
    torch.testing.assert_close(wide_gradient[:, :5], gradient)
    assert not wide_gradient[:, 5:].any()


def assert_a_fit_lowers(loss, terms=("loss",), epochs=6, **options):
    """The mean of the sum of all terms over the last epoch is below that over the first, and each term is logged."""
    history = tiny_run({"own": loss}, epochs=epochs, **options).result.history
    assert history[-1]["loss"] < history[0]["loss"]
    assert {"own" if term == "loss" else f"own.{term}" for term in terms} <= set(history[0])
