"""What PyTorch asks of an operator: schema, fake kernel, autograd, torch.compile, transforms, refusals."""

import math

import pytest
import torch
from torch.library import opcheck

from kdengine.ops import compiled, kd_loss, registration

from .test_kd_loss import GOOD, IDS, KINDS, logits, value_and_gradient

pytestmark = pytest.mark.usefixtures("compiled_backend")


@pytest.fixture(autouse=True)
def _loaded():
    assert compiled.takes(torch.zeros(1, 1))
    registration.ensure()


def operator():
    return torch.ops.kdengine.kd_loss.default


def calls():
    """Arguments of the operator that differ in what comes in and what goes out."""
    s, t = logits(4, 6).requires_grad_(), logits(4, 6, seed=1)
    labels, rows = torch.tensor([0, -100, 2, 5]), torch.tensor([1.0, 2.0, 0.5, 4.0])
    yield (s, t), {}
    yield (s, t, labels, 2.0, 0.9, 0.1), {"terms": True, "label_smoothing": 0.1}
    yield (s, t.clone().requires_grad_()), {"teacher_gradient": True, "divergence": 2, "beta": 0.3, "reduction": 0}
    yield (s.detach(), t), {"student_gradient": False, "temperatures": rows, "soft_weights": rows}
    yield (s, t, s.detach().softmax(-1)), {"hard_weights": rows, "mask": rows > 1, "reduction": 1, "divergence": 1}
    values, indices = t.log_softmax(-1).topk(3)
    yield (s, values), {"teacher_indices": indices, "tail": 1}
    yield (s.detach().t().requires_grad_(), t.t()), {"dim": 0}
    yield (s.detach().half().requires_grad_(), t.double()), {}


@pytest.mark.parametrize("case", range(8))
def test_opcheck(case):
    arguments, options = list(calls())[case]
    opcheck(operator(), arguments, options)


@pytest.mark.parametrize("case", range(8))
def test_the_fake_kernel_tells_shapes_dtypes_and_strides(case):
    arguments, options = list(calls())[case]
    real = operator()(*arguments, **options)
    with torch._subclasses.FakeTensorMode() as mode:

        def fake(value):
            return mode.from_tensor(value) if isinstance(value, torch.Tensor) else value

        found = operator()(*map(fake, arguments), **{name: fake(value) for name, value in options.items()})
    for a, b in zip(real, found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a.shape, a.dtype, a.device, a.stride()) == (b.shape, b.dtype, b.device, b.stride())


def test_the_operator_itself_is_differentiable():
    s, t = (logits(3, 5, seed=i, dtype=torch.float64).requires_grad_() for i in (1, 2))

    def fn(s, t):
        return torch.ops.kdengine.kd_loss(s, t, temperature=2.0, divergence=1, teacher_gradient=True)[0]

    assert torch.autograd.gradcheck(fn, (s, t))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(fn(s, t), s, create_graph=True)


def test_a_gradient_that_was_not_asked_for_is_missed_when_it_is_needed():
    s, t = logits(3, 5), logits(3, 5, seed=1).requires_grad_()
    with pytest.raises(RuntimeError, match="teacher_gradient=True"):
        torch.ops.kdengine.kd_loss(s, t)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_for_any_shape(kind):
    @torch.compile(fullgraph=True, dynamic=True)
    def fn(s, t, labels):
        return kd_loss(s * 2, t, labels, hard_weight=0.5, divergence=kind, temperature=2.0)

    for rows, classes in ((4, 5), (7, 33), (3, 1001)):
        s, t, labels = logits(rows, classes), logits(rows, classes, seed=1), torch.arange(rows) % classes
        found = value_and_gradient(fn, s, t, labels)
        expected = value_and_gradient(
            lambda s, t, labels: kd_loss(s * 2, t, labels, hard_weight=0.5, divergence=kind, temperature=2.0),
            s,
            t,
            labels,
        )
        torch.testing.assert_close(found, expected)


def test_a_schedule_does_not_recompile():
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    @torch.compile(fullgraph=True, backend=count)
    def fn(s, t, labels, temperature, weight):
        return kd_loss(s, t, labels, temperature=temperature, soft_weight=weight, hard_weight=1 - weight)

    s, t, labels = logits(4, 5).requires_grad_(), logits(4, 5, seed=1), torch.tensor([0, -100, 2, 3])
    for step in range(5):
        temperature, weight = 4.0 - step / 2, 0.9 - step / 10
        found = value_and_gradient(fn, s, t, labels, temperature, weight)
        expected = kd_loss(s, t, labels, temperature=temperature, soft_weight=weight, hard_weight=1 - weight)
        torch.testing.assert_close(found[0], expected.detach())
    assert len(graphs) <= 2
    targets = [node.target for node in graphs[-1].graph.nodes if node.op == "call_function"]
    assert torch.ops.kdengine.kd_loss in targets


def test_wrong_shapes_are_refused_while_a_graph_is_traced():
    fn = torch.compile(kd_loss, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"same shape but for the class dim 1.*\(4, 5\).*\(3, 5\)"):
        fn(torch.zeros(4, 5), torch.zeros(3, 5))
    with pytest.raises(Exception, match="labels came without hard_weight"):
        fn(torch.zeros(4, 5), torch.zeros(4, 5), IDS)


def test_vmap_without_gradient_loops_over_the_operator():
    s, t = logits(3, 4, 5), logits(4, 5, seed=1)
    with torch.no_grad():
        found = torch.func.vmap(lambda s: kd_loss(s, t))(s)
    torch.testing.assert_close(found, torch.stack([kd_loss(each, t) for each in s]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": torch.zeros(4, 5).long()}, "student must hold floating point"),
        ({"teacher": torch.zeros(4, 5).to(torch.complex64)}, "teacher must hold floating point"),
        ({"teacher": torch.zeros(3, 5)}, "differ in dimension 0"),
        ({"teacher": torch.zeros(5)}, "student has 2 dimensions, teacher has 1"),
        ({"student": torch.zeros(4, 5).to_sparse()}, "student must be a dense tensor|not.*Sparse"),
        ({"dim": 2}, "dim 2 is outside"),
        ({"dim": -3}, "dim -3 is outside"),
        ({"student": torch.zeros(4, 0), "teacher": torch.zeros(4, 0)}, "class dimension is empty"),
        ({"student": torch.tensor(1.0), "teacher": torch.tensor(1.0)}, "dim -1 is outside"),
        ({"divergence": 3}, r"divergence must lie in 0\.\.2, got 3"),
        ({"reduction": -1}, r"reduction must lie in 0\.\.2, got -1"),
        ({"tail": 2}, r"tail must lie in 0\.\.1, got 2"),
        ({"temperature": 0.0}, "greater than 0, got 0"),
        ({"temperature": math.nan}, "temperature must be finite"),
        ({"soft_weight": math.inf}, "soft_weight must be finite"),
        ({"temperatures": torch.ones(5)}, "temperature must be a number or have one value per row"),
        ({"soft_weights": torch.ones(4, 5)}, "soft_weight must be a number or have one value per row"),
        ({"hard_weights": torch.ones(4).bool()}, "hard_weight must hold real numbers"),
        ({"temperatures": torch.tensor([1.0, -1.0, 1.0, 1.0])}, "greater than 0 in every row"),
        ({"mask": torch.ones(4)}, "mask must hold bool"),
        ({"mask": torch.ones(5).bool()}, "mask must have one value per row"),
        ({"labels": IDS[:3], "hard_weight": 1.0}, "labels must have one class id per row"),
        ({"labels": IDS + 5, "hard_weight": 1.0}, "neither a class of student nor ignore_index"),
        ({"labels": IDS.bool(), "hard_weight": 1.0}, "labels must hold integers or floating point"),
        ({"labels": IDS.float(), "hard_weight": 1.0}, "labels as probabilities must have student's shape"),
        ({"teacher_indices": IDS}, "teacher_indices must have teacher's shape"),
        ({"teacher_indices": torch.zeros(4, 5)}, "teacher_indices must hold integers"),
        ({"teacher_indices": torch.full((4, 5), 7)}, "no class of student"),
        ({"teacher_indices": torch.arange(5).expand(4, 5)}, "log-probabilities"),
        ({"beta": 1.0}, "beta must lie strictly between 0 and 1"),
        ({"label_smoothing": -0.1}, "label_smoothing must lie between 0 and 1"),
    ],
)
def test_the_operator_refuses_what_no_kernel_may_see(change, message):
    arguments = GOOD | change
    with pytest.raises(RuntimeError, match=message):
        operator()(arguments.pop("student"), arguments.pop("teacher"), **arguments)


def test_a_subclass_runs_on_pure_pytorch():
    class Tagged(torch.Tensor):
        pass

    s, t = logits(3, 5).as_subclass(Tagged), logits(3, 5, seed=1)
    assert not compiled.takes(s)
    torch.testing.assert_close(kd_loss(s, t).as_subclass(torch.Tensor), kd_loss(s.as_subclass(torch.Tensor), t))
