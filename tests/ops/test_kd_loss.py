import doctest
import importlib
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from kdengine.ops import kd_loss

from . import transcription

pytestmark = pytest.mark.usefixtures("each_backend")

KINDS = ("forward_kl", "reverse_kl", "jsd")
CLASSES = (1, 2, 3, 7, 10, 33, 1000)
TEMPERATURES = (0.05, 0.5, 1.0, 2.0, 4.0, 20.0, 1000.0)
INF = math.inf


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def logits(*shape, seed=0, scale=2.0, dtype=torch.float32):
    return (scale * torch.randn(*shape, generator=generator(seed))).to(dtype)


def value_and_gradient(fn, student, *args, **kwargs):
    student = student.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    loss = fn(student, *args, **kwargs)
    loss.sum().backward()
    return loss.detach(), student.grad


def tolerance(s, t, temperature, dim=-1):
    """The specification's bound on the loss of each row, summed."""
    s, t = s.double(), t.double()
    top_s, top_t = s.amax(dim, keepdim=True), t.amax(dim, keepdim=True)
    p = (t / temperature).softmax(dim) + (s / temperature).softmax(dim)
    spread = (s - top_s).abs() + (t - top_t).abs() + math.log(s.shape[dim])
    spread = torch.where((p > 0) & spread.isfinite(), p * spread, 0)
    return 1e-6 * temperature * spread.sum().item()


def half_ulp(gradient):
    resolution = {torch.float64: 1e-15, torch.float32: 6e-8, torch.bfloat16: 2**-8, torch.float16: 2**-11}
    smallest = 3e-8 if gradient.dtype == torch.float16 else 0
    return resolution[gradient.dtype] * gradient.double().abs() + smallest


def assert_agrees(student, teacher, *args, floor=0.0, **kwargs):
    """Value and gradient equal the transcription's; `floor` is an absolute allowance per gradient entry."""
    dim = kwargs.get("dim", -1)
    temperature = kwargs.get("temperature", 1.0)
    highest = temperature.max().item() if isinstance(temperature, torch.Tensor) else temperature
    loss, gradient = value_and_gradient(kd_loss, student, teacher, *args, **kwargs)
    expected, exact = value_and_gradient(transcription.loss, student.double(), teacher.double(), *args, **kwargs)
    assert loss.dtype == (torch.float64 if student.dtype == torch.float64 else torch.float32)
    assert gradient.dtype == student.dtype
    shared = min(student.shape[dim], teacher.shape[dim])
    allowed = tolerance(student.narrow(dim, 0, shared), teacher.narrow(dim, 0, shared), highest, dim)
    torch.testing.assert_close(loss.double(), expected, rtol=5e-7, atol=allowed + 1e-12)
    row_largest = exact.abs().amax(dim, keepdim=True)
    error = (gradient.double() - exact).abs()
    relative = 1e-6 * max(1.0, 0.2 / temperature) if isinstance(temperature, float) else 1e-6  # rounding of s / T
    allowed = relative * row_largest + half_ulp(gradient) + 1e-14 * highest + floor
    assert (error <= allowed).all(), f"{(error / row_largest).max():.3g} of the row's largest"


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_equals_the_formula(kind, temperature, classes):
    s, t = logits(5, classes, seed=1), logits(5, classes, seed=2)
    # Between two one-hot rows JSD is flat: what is left of its gradient is below the rounding of log 2.
    floor = 1e-7 * temperature if kind == "jsd" and temperature < 0.5 else 0.0
    assert_agrees(s, t, temperature=temperature, divergence=kind, floor=floor)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_equals_the_formula_at_logits_of_ten_thousand(kind, temperature):
    s, t = logits(6, 33, seed=1, scale=1e4), logits(6, 33, seed=2, scale=1e4)
    # A gap of 1e4 to the largest logit is itself rounded to float32, which reverse KL multiplies by p (1 - p).
    assert_agrees(s, t, temperature=temperature, divergence=kind, floor=1e-4 if kind == "reverse_kl" else 0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_equals_the_formula_in_other_dtypes(kind, dtype):
    s, t = logits(5, 33, seed=1, dtype=dtype), logits(5, 33, seed=2, dtype=dtype)
    labels = torch.tensor([0, 1, 32, -100, 5])
    assert_agrees(s, t, labels, temperature=3.0, divergence=kind, hard_weight=0.3)


def test_float64_is_computed_in_float64():
    s, t = (logits(3, 7, seed=i, dtype=torch.float64) for i in (1, 2))
    options = {"mask": torch.tensor([True, True, True]), "hard_weight": 0.1, "temperature": 3.0}
    found = value_and_gradient(kd_loss, s, t, torch.tensor([0, 1, -100]), **options)
    expected = value_and_gradient(transcription.loss, s, t, torch.tensor([0, 1, -100]), **options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_mixed_dtypes_return_each_gradient_in_its_own():
    s = logits(4, 5, dtype=torch.float16).requires_grad_()
    t = logits(4, 5, seed=1, dtype=torch.float64).requires_grad_()
    loss = kd_loss(s, t)
    loss.backward()
    assert (loss.dtype, s.grad.dtype, t.grad.dtype) == (torch.float64, torch.float16, torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [0.0, 5.0, -1e4])
def test_ties_and_constant_rows(kind, tied):
    s = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0], [tied, tied, tied]])
    t = torch.tensor([[tied, tied, tied], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert_agrees(s, t, divergence=kind, temperature=2.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_is_exactly_zero_where_student_is_teacher(kind, dtype, temperature):
    t = logits(7, 33, scale=5.0, dtype=dtype)
    t[0, 3] = -INF
    loss, gradient = value_and_gradient(kd_loss, t, t, temperature=temperature, divergence=kind)
    assert loss == 0
    assert not gradient.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [1e-1, 1e-3, 1e-5])
def test_near_the_teacher_stays_positive_and_accurate(kind, step):
    t = logits(20, 33)
    s = t + logits(20, 33, seed=3, scale=step)
    loss, gradient = value_and_gradient(kd_loss, s, t, divergence=kind, reduction="none")
    expected, exact = value_and_gradient(transcription.loss, s, t, divergence=kind, reduction="none")
    assert (loss >= 0).all()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-3, atol=1e-7 * step)
    assert ((gradient.double() - exact).abs() <= 1e-6 * exact.abs().amax(-1, keepdim=True) + 1e-7).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_masked_on_both_sides_does_not_exist(kind):
    s, t = logits(4, 6), logits(4, 6, seed=1)
    s[:, 2] = t[:, 2] = -INF
    keep = [0, 1, 3, 4, 5]
    loss, gradient = value_and_gradient(kd_loss, s, t, divergence=kind)
    expected, inner = value_and_gradient(kd_loss, s[:, keep], t[:, keep], divergence=kind)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient[:, keep], inner)
    assert not gradient[:, 2].any()


@pytest.mark.parametrize("kind", ["forward_kl", "jsd"])
def test_a_class_masked_by_the_teacher_only(kind):
    s, t = logits(4, 6), logits(4, 6, seed=1)
    t[:, 2] = -INF
    assert_agrees(s, t, divergence=kind)


@pytest.mark.parametrize("kind", ["reverse_kl", "jsd"])
def test_a_class_masked_by_the_student_only(kind):
    s, t = logits(4, 6), logits(4, 6, seed=1)
    s[:, 2] = -INF
    assert_agrees(s, t, divergence=kind)


def test_mass_where_the_other_side_is_masked_is_infinite_and_not_nan():
    s, t = logits(2, 4), logits(2, 4, seed=1)
    s[0, 1] = -INF
    loss, gradient = value_and_gradient(kd_loss, s, t, reduction="none")
    assert loss[0] == INF
    assert loss[1].isfinite()
    assert gradient.isfinite().all()
    loss, gradient = value_and_gradient(kd_loss, t, s, divergence="reverse_kl", reduction="none")
    assert loss[0] == INF
    assert not gradient.isnan().any()
    assert gradient[1].isfinite().all()


def test_a_masked_label_class_is_infinite():
    s = logits(1, 4)
    s[0, 1] = -INF
    loss, gradient = value_and_gradient(kd_loss, s, s, torch.tensor([1]), hard_weight=1.0)
    assert loss == INF
    assert not gradient.isnan().any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_rows_without_part_cannot_poison(kind, reduction):
    s, t = logits(6, 5), logits(6, 5, seed=1)
    mask = torch.tensor([True, False, True, True, False, True])
    labels = torch.tensor([0, 99, 2, -100, -7, 4])
    options = {"temperature": 2.0, "hard_weight": 0.5, "divergence": kind, "reduction": reduction}
    expected, exact = value_and_gradient(transcription.loss, s, t, labels, mask=mask, **options)
    s[1], t[4], s[4] = math.nan, math.nan, -INF
    loss, gradient = value_and_gradient(kd_loss, s, t, labels, mask=mask, **options)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), exact.double(), rtol=1e-5, atol=1e-7)
    assert not gradient[[1, 4]].any()


def test_rows_of_zero_weight_cannot_poison_but_count():
    s, t = logits(4, 5), logits(4, 5, seed=1)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.0])
    s[1], t[3] = math.nan, math.nan
    labels = torch.tensor([0, 77, 2, 3])
    options = {"soft_weight": weight, "hard_weight": torch.tensor([0.5, 0.0, 0.0, 0.25])}
    loss, gradient = value_and_gradient(kd_loss, s, t, labels, **options)
    clean_s, clean_t = s.nan_to_num(0.0), t.nan_to_num(0.0)
    labels[1] = 0
    expected, exact = value_and_gradient(transcription.loss, clean_s, clean_t, labels, **options)
    torch.testing.assert_close(loss.double(), expected)
    torch.testing.assert_close(gradient.double(), exact.double(), rtol=1e-5, atol=1e-7)


def test_a_weight_of_zero_does_not_read_its_term():
    s, t = logits(3, 5), torch.full((3, 5), math.nan)
    labels = torch.tensor([1, 2, 3])
    loss, gradient = value_and_gradient(kd_loss, s, t, labels, soft_weight=0.0, hard_weight=1.0)
    expected, exact = value_and_gradient(cross_entropy, s, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, exact)


def test_a_nan_that_takes_part_is_seen_in_its_row_only():
    s, t = logits(3, 5), logits(3, 5, seed=1)
    s[1, 2] = math.nan
    loss, gradient = value_and_gradient(kd_loss, s, t, reduction="none")
    assert loss.isnan().tolist() == [False, True, False]
    assert gradient.isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_one_value_per_row(kind, reduction):
    s, t = logits(6, 7), logits(6, 7, seed=1)
    assert_agrees(
        s,
        t,
        torch.tensor([0, 1, 2, -1, 4, 5]),
        temperature=torch.tensor([0.5, 1.0, 2.0, 4.0, 1.0, 3.0]),
        soft_weight=torch.tensor([1.0, 0.5, 0.0, 2.0, -1.0, 1.0]),
        hard_weight=torch.tensor([0.1, 0.0, 0.3, 1.0, 1.0, 0.2]),
        mask=torch.tensor([True, True, True, True, False, True]),
        ignore_index=-1,
        divergence=kind,
        reduction=reduction,
    )


def test_a_number_a_tensor_and_equal_values_per_row_agree():
    s, t, labels = logits(4, 5), logits(4, 5, seed=1), torch.tensor([0, 1, 2, 3])
    number = kd_loss(s, t, labels, temperature=3.0, soft_weight=0.7, hard_weight=0.2)
    for shape in ((), (4,)):
        T, a, b = (torch.full(shape, x) for x in (3.0, 0.7, 0.2))
        torch.testing.assert_close(kd_loss(s, t, labels, temperature=T, soft_weight=a, hard_weight=b), number)


@pytest.mark.parametrize("kind", KINDS)
def test_images_with_classes_in_dim_one_and_strided_rows(kind):
    s, t = logits(2, 7, 3, 4), logits(2, 7, 3, 4, seed=1)
    labels = torch.randint(0, 7, (2, 3, 4), generator=generator())
    mask = torch.rand(2, 3, 4, generator=generator()) > 0.3
    options = {"temperature": 2.0, "hard_weight": 0.4, "mask": mask, "divergence": kind}
    assert_agrees(s, t, labels, dim=1, **options)
    assert_agrees(s.to(memory_format=torch.channels_last), t[..., ::1], labels, dim=-3, **options)
    expected = kd_loss(s.movedim(1, -1).contiguous(), t.movedim(1, -1).contiguous(), labels, **options)
    torch.testing.assert_close(kd_loss(s.movedim(1, -1), t.movedim(1, -1), labels, **options), expected)


def test_a_single_row_without_batch():
    s, t = logits(5), logits(5, seed=1)
    assert_agrees(s, t, torch.tensor(2), hard_weight=0.5, reduction="none")


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_hard_term_is_torch_cross_entropy(smoothing):
    s, t = logits(6, 9), logits(6, 9, seed=1)
    labels = torch.tensor([0, 8, -100, 3, 3, 1])
    options = {"soft_weight": 0.0, "hard_weight": 1.0, "label_smoothing": smoothing}
    loss, gradient = value_and_gradient(kd_loss, s, t, labels, **options)
    expected, exact = value_and_gradient(cross_entropy, s, labels, label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, exact)
    probabilities = logits(6, 9, seed=4).softmax(-1)
    loss, gradient = value_and_gradient(kd_loss, s, t, probabilities, **options)
    expected, exact = value_and_gradient(cross_entropy, s, probabilities, label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, exact)


def test_a_confident_student_keeps_the_digits_of_its_cross_entropy():
    s = torch.tensor([[30.0, 0.0, 1.0]])
    assert_agrees(s, s, torch.tensor([0]), hard_weight=1.0)


def test_rows_of_zero_probabilities_are_unlabelled():
    s, t = logits(4, 5), logits(4, 5, seed=1)
    labels = torch.eye(5)[:4]
    labels[2] = 0
    assert_agrees(s, t, labels, hard_weight=0.5)
    ids = torch.tensor([0, 1, -100, 3])
    torch.testing.assert_close(
        kd_loss(s, t, labels, hard_weight=0.5, label_smoothing=0.2),
        kd_loss(s, t, ids, hard_weight=0.5, label_smoothing=0.2),
    )


@pytest.mark.parametrize(("student", "teacher"), [(5, 8), (8, 5)])
@pytest.mark.parametrize("kind", KINDS)
def test_unequal_class_counts_share_the_leading_classes(student, teacher, kind):
    s, t = logits(4, student), logits(4, teacher, seed=1)
    t.requires_grad_()
    assert_agrees(s, t, torch.tensor([0, 1, 4, student - 1]), hard_weight=0.5, divergence=kind)
    _, gradient = value_and_gradient(kd_loss, s, t, divergence=kind)
    assert not gradient[:, 5:].any()
    assert not t.grad[:, 5:].any()


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)])
def test_no_rows_give_zero(shape):
    s, t = logits(*shape), logits(*shape)
    labels = torch.empty(shape[:-1], dtype=torch.long)
    loss, gradient = value_and_gradient(kd_loss, s, t, labels, hard_weight=1.0)
    assert loss == 0
    assert gradient.shape == shape
    assert kd_loss(s, t, reduction="none").shape == shape[:-1]


def test_no_participating_rows_give_zero():
    s, t = logits(3, 5), logits(3, 5, seed=1)
    labels = torch.full((3,), -100)
    loss, soft, hard = kd_loss(s, t, labels, hard_weight=1.0, return_terms=True)
    assert hard == 0
    assert loss == soft
    assert soft > 0
    loss, gradient = value_and_gradient(kd_loss, s, t, labels, hard_weight=1.0, mask=torch.zeros(3).bool())
    assert loss == 0
    assert not gradient.any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_terms_add_up_and_are_detached(reduction):
    s, t = logits(4, 5).requires_grad_(), logits(4, 5, seed=1)
    labels = torch.tensor([0, 1, -100, 2])
    options = {"temperature": 2.0, "hard_weight": 0.3, "reduction": reduction}
    loss, soft, hard = kd_loss(s, t, labels, return_terms=True, **options)
    assert torch.equal(loss, soft + hard)
    assert loss.requires_grad
    assert not soft.requires_grad
    assert not hard.requires_grad
    torch.testing.assert_close(soft, kd_loss(s, t, temperature=2.0, reduction=reduction).detach())
    _, _, none = kd_loss(s, t, return_terms=True, reduction=reduction)
    assert not none.any()
    assert none.shape == loss.shape


@pytest.mark.parametrize("kind", KINDS)
def test_teacher_gradient(kind):
    s, t = logits(4, 6), logits(4, 6, seed=1).requires_grad_()
    kd_loss(s, t, divergence=kind, temperature=2.0).backward()
    exact = t.detach().double().requires_grad_()
    transcription.loss(s, exact, divergence=kind, temperature=2.0).backward()
    torch.testing.assert_close(t.grad.double(), exact.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(kind, reduction):
    s, t = (logits(3, 5, seed=i, dtype=torch.float64).requires_grad_() for i in (1, 2))
    labels = torch.tensor([0, -100, 4])

    def fn(s, t):
        options = {"temperature": 2.0, "hard_weight": 0.3, "label_smoothing": 0.1}
        return kd_loss(s, t, labels, divergence=kind, beta=0.3, reduction=reduction, **options)

    assert torch.autograd.gradcheck(fn, (s, t))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", ["bin", "renormalize"])
def test_gradcheck_of_a_top_k_teacher(kind, tail):
    s = logits(3, 6, dtype=torch.float64).requires_grad_()
    t, indices = logits(3, 6, seed=1, dtype=torch.float64).log_softmax(-1).topk(3)
    t.requires_grad_()

    def fn(s, t):
        return kd_loss(s, t, teacher_indices=indices, tail=tail, divergence=kind, temperature=1.5)

    assert torch.autograd.gradcheck(fn, (s, t))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 4, 9])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_binned_tail_equals_the_formula(kind, k, temperature):
    s, full = logits(4, 9), logits(4, 9, seed=1, dtype=torch.float64)
    values, indices = full.log_softmax(-1).topk(k)
    if k == 4:
        values[1, 3], indices[1, 3] = -INF, -1  # an absent entry
        indices[1, 2] = 0

    def formula(s, **_):
        rows = [transcription.bin_row(*row) for row in zip(s.double(), values, indices, strict=True)]
        each = [transcription.soft_row(*row, temperature, kind, 0.5) for row in rows]
        return torch.stack(each).mean()

    options = {"temperature": temperature, "divergence": kind, "teacher_indices": indices}
    loss, gradient = value_and_gradient(kd_loss, s, values.float(), **options)
    expected, exact = value_and_gradient(formula, s)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, exact, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("tail", ["bin", "renormalize"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_all_classes_listed_is_the_full_divergence(tail, dtype, kind):
    s, t = logits(4, 9), logits(4, 9, seed=1).log_softmax(-1).to(dtype)
    values, indices = t.topk(9)
    options = {"temperature": 4.0, "divergence": kind}
    found = value_and_gradient(kd_loss, s, values, teacher_indices=indices, tail=tail, **options)
    torch.testing.assert_close(found, value_and_gradient(kd_loss, s, t, **options), rtol=1e-5, atol=1e-6)


def test_renormalized_tail_is_the_divergence_over_the_listed_classes():
    s, t = logits(2, 9, 3), logits(2, 9, 3, seed=1)
    values, indices = t.topk(4, dim=1)
    _, gradient = value_and_gradient(
        kd_loss, s, values, teacher_indices=indices, tail="renormalize", dim=1, temperature=2.0
    )
    loss, exact = value_and_gradient(lambda s: kd_loss(s.gather(1, indices), values, dim=1, temperature=2.0), s)
    torch.testing.assert_close(gradient, exact)
    options = {"teacher_indices": indices, "tail": "renormalize", "dim": 1, "temperature": 2.0}
    torch.testing.assert_close(kd_loss(s, values + 5, **options), loss)


@pytest.mark.parametrize("tail", ["bin", "renormalize"])
def test_top_k_of_the_student_itself_is_zero(tail):
    s = logits(4, 50)
    values, indices = s.log_softmax(-1).topk(8)
    loss, gradient = value_and_gradient(
        kd_loss, s, values, teacher_indices=indices, tail=tail, temperature=3.0, reduction="none"
    )
    assert (loss.abs() < 1e-6).all()
    assert (gradient.abs() < 1e-6).all()


def test_a_masked_row_of_a_top_k_teacher_is_not_read():
    s = logits(2, 9)
    values, indices = logits(2, 9, seed=1).log_softmax(-1).topk(3)
    expected = kd_loss(s[:1], values[:1], teacher_indices=indices[:1])
    s[1], values[1], indices[1] = math.nan, math.nan, 1000
    options = {"teacher_indices": indices, "mask": torch.tensor([True, False])}
    loss, gradient = value_and_gradient(kd_loss, s, values, **options)
    torch.testing.assert_close(loss, expected)
    assert not gradient[1].any()


def test_second_derivatives_raise():
    s, t = logits(3, 5).requires_grad_(), logits(3, 5, seed=1)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(kd_loss(s, t), s, create_graph=True)


@pytest.mark.parametrize(("transform", "shape"), [(torch.func.vmap, (3, 5)), (torch.func.grad, (5,))])
def test_function_transforms_raise(transform, shape):
    s, t = logits(*shape), logits(5, seed=1)
    with pytest.raises(RuntimeError, match="functorch"):
        transform(lambda s: kd_loss(s, t))(s)


def test_backward_twice_over_a_kept_graph_gives_the_same_gradient():
    s, t = logits(3, 5).requires_grad_(), logits(3, 5, seed=1)
    loss = kd_loss(s, t)
    first, second = (torch.autograd.grad(loss, s, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.autograd.grad(loss * 3, s)[0], first * 3)


def test_rows_can_be_weighted_behind_the_operator():
    s, t, w = logits(3, 5).requires_grad_(), logits(3, 5, seed=1), torch.tensor([1.0, 0.0, 3.0])
    (gradient,) = torch.autograd.grad((kd_loss(s, t, reduction="none") * w).sum(), s)
    (expected,) = torch.autograd.grad(kd_loss(s, t, soft_weight=w, reduction="sum"), s)
    torch.testing.assert_close(gradient, expected)


def test_a_loss_scale_beyond_float16_is_not_rounded_to_infinity():
    s, t = logits(64, 100, dtype=torch.float16).requires_grad_(), logits(64, 100, seed=1)
    (gradient,) = torch.autograd.grad(kd_loss(s, t) * 2**17, s)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_grad_mode_only_the_value_is_computed(context):
    s, t = logits(3, 5).requires_grad_(), logits(3, 5, seed=1)
    with context():
        loss = kd_loss(s, t)
    assert not loss.requires_grad
    assert loss == kd_loss(s, t).detach()


def test_autocast_changes_nothing():
    s, t = logits(3, 5, dtype=torch.bfloat16), logits(3, 5, seed=1)
    expected, exact = value_and_gradient(kd_loss, s, t, temperature=2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradient = value_and_gradient(kd_loss, s, t, temperature=2.0)
    assert torch.equal(loss, expected)
    assert torch.equal(gradient, exact)


def test_compiles_into_one_graph_and_does_not_recompile_for_every_temperature():
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    @torch.compile(fullgraph=True, backend=count)
    def compiled(s, t, labels, temperature, mask):
        return kd_loss(s, t, labels, temperature=temperature, hard_weight=0.5, mask=mask, return_terms=True)

    s, t = logits(4, 5).requires_grad_(), logits(4, 5, seed=1)
    labels, mask = torch.tensor([0, -100, 2, 3]), torch.tensor([True, True, False, True])
    for temperature in (4.0, 3.0, 2.0, 1.5):
        loss = compiled(s, t, labels, temperature, mask)[0]
        expected = kd_loss(s, t, labels, temperature=temperature, hard_weight=0.5, mask=mask)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss, s), torch.autograd.grad(expected, s))
    assert len(graphs) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_code_equals_eager(kind):
    compiled = torch.compile(kd_loss, fullgraph=True)
    s, t, labels = logits(4, 5), logits(4, 5, seed=1), torch.tensor([0, -100, 2, 3])
    options = {"temperature": 2.0, "hard_weight": 0.5, "divergence": kind}
    found = value_and_gradient(compiled, s, t, labels, **options)
    torch.testing.assert_close(found, value_and_gradient(kd_loss, s, t, labels, **options))


def test_what_cannot_be_checked_while_compiling_gives_nan_in_its_row():
    @torch.compile(fullgraph=True, backend="eager")
    def compiled(s, t, labels, temperature):
        return kd_loss(s, t, labels, temperature=temperature, hard_weight=0.5, reduction="none")

    labels, temperature = torch.tensor([0, 99, 2]), torch.tensor([1.0, 1.0, -1.0])
    loss, gradient = value_and_gradient(compiled, logits(3, 5), logits(3, 5, seed=1), labels, temperature)
    assert loss.isnan().tolist() == [False, True, True]
    assert gradient.isnan().any(1).tolist() == [False, True, True]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", [None, "bin", "renormalize"])
def test_no_value_is_read_off_the_cpu(kind, tail):
    with torch.device("meta"):  # stands for an accelerator: it refuses every read of a value
        s, t, row = torch.empty(4, 9, requires_grad=True), torch.empty(4, 9), torch.empty(4)
        mask, labels = torch.empty(4, dtype=torch.bool), torch.empty(4, dtype=torch.long)
    options = {"temperature": row, "soft_weight": row, "hard_weight": row, "mask": mask, "divergence": kind}
    if tail:
        options |= {"teacher_indices": t.long(), "tail": tail}
    kd_loss(s, t, labels, **options).backward()
    kd_loss(s, t, s.detach(), **options).backward()
    assert s.grad.shape == s.shape


@st.composite
def pairs(draw):
    rows, classes = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    value = st.one_of(st.floats(-20, 20, width=32), st.floats(-1e4, 1e4, width=32), st.sampled_from([0.0, 1.0]))
    row = st.lists(value, min_size=classes, max_size=classes)
    matrix = st.lists(row, min_size=rows, max_size=rows).map(torch.tensor)
    return draw(matrix), draw(matrix)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(pairs(), st.sampled_from(KINDS), st.sampled_from(TEMPERATURES))
def test_any_pair_gives_a_finite_non_negative_loss_whose_gradient_sums_to_zero(pair, kind, temperature):
    s, t = pair
    loss, gradient = value_and_gradient(kd_loss, s, t, temperature=temperature, divergence=kind, reduction="none")
    assert (loss >= 0).all()
    assert gradient.isfinite().all()
    assert (gradient.sum(-1).abs() <= 1e-5 * gradient.abs().sum(-1) + 1e-37).all()
    same = kd_loss(s.roll(1, -1), t.roll(1, -1), temperature=temperature, divergence=kind, reduction="none")
    torch.testing.assert_close(same, loss, rtol=1e-4, atol=tolerance(s, t, temperature))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(pairs(), st.sampled_from(TEMPERATURES))
def test_any_pair_agrees_with_the_formula(pair, temperature):
    s, t = pair
    loss, gradient = value_and_gradient(kd_loss, s, t, temperature=temperature, reduction="sum")
    expected, exact = value_and_gradient(
        transcription.loss, s.double(), t.double(), temperature=temperature, reduction="sum"
    )
    torch.testing.assert_close(loss.double(), expected, rtol=5e-7, atol=tolerance(s, t, temperature) + 1e-12)
    # Where p_s and p_t nearly agree, a logit's own rounding against its row's largest bounds the accuracy.
    # With AVX-512 the largest error found is 1.06e-6 of the row's largest, at a gradient of 6e-6.
    largest = 1.1e-6 * max(1.0, 0.2 / temperature) * exact.abs().amax(-1, keepdim=True)
    gap = 1 + (s - s.amax(-1, keepdim=True)).abs() / temperature
    floor = 2e-7 * temperature * gap * (s / temperature).softmax(-1) + 1e-15 * temperature
    assert ((gradient.double() - exact).abs() <= largest + floor).all()


GOOD = {"student": torch.zeros(4, 5), "teacher": torch.zeros(4, 5)}
IDS = torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"student": torch.zeros(4, 5).long()}, TypeError, r"student .*logits.*torch.int64"),
        ({"teacher": [1.0]}, TypeError, "teacher must be a tensor of logits, got list"),
        ({"teacher": torch.zeros(3, 5)}, ValueError, r"same shape but for the class dim 1.*\(4, 5\).*\(3, 5\)"),
        ({"teacher": torch.zeros(4, 5, device="meta")}, ValueError, r"teacher is on meta but student is on cpu"),
        ({"dim": 2}, ValueError, "dim=2"),
        ({"student": torch.zeros(4, 0)}, ValueError, "class dim 1 is empty"),
        ({"divergence": "foward_kl"}, ValueError, "did you mean 'forward_kl'"),
        ({"reduction": "men"}, ValueError, "did you mean 'mean'"),
        ({"tail": "renormalise"}, ValueError, "did you mean 'renormalize'"),
        ({"labels": IDS}, ValueError, "labels came without hard_weight"),
        ({"hard_weight": 0.1}, ValueError, "hard_weight came without labels"),
        ({"labels": IDS + 5, "hard_weight": 1.0}, ValueError, r"0\.\.4 for 5 classes.*ignore_index=-100; got 5"),
        ({"labels": IDS - 1, "hard_weight": 1.0}, ValueError, "got -1"),
        ({"labels": IDS[:3], "hard_weight": 1.0}, ValueError, r"labels must have one value per row, shape \(4,\)"),
        ({"labels": IDS.bool(), "hard_weight": 1.0}, TypeError, "labels must hold integer class ids"),
        ({"labels": IDS.float(), "hard_weight": 1.0}, ValueError, r"probabilities.*\(4, 5\).*integers"),
        ({"temperature": 0}, ValueError, "greater than 0, got 0"),
        ({"temperature": -1.0}, ValueError, "greater than 0, got -1"),
        ({"temperature": math.nan}, ValueError, "temperature must be finite"),
        ({"temperature": torch.tensor(math.nan)}, ValueError, "got nan"),
        ({"temperature": torch.tensor([1.0, 0.0, 1.0, 1.0])}, ValueError, "in every row that takes part, got 0"),
        ({"temperature": torch.ones(5)}, ValueError, "temperature must have one value per row"),
        ({"temperature": "hot"}, TypeError, "temperature must be a number or a tensor, got str"),
        ({"temperature": torch.tensor(1.0, requires_grad=True)}, ValueError, "temperature requires grad"),
        ({"soft_weight": INF}, ValueError, "soft_weight must be finite"),
        ({"soft_weight": True}, TypeError, "got bool"),
        ({"mask": torch.ones(4)}, TypeError, "mask must be a bool tensor"),
        ({"mask": torch.ones(4, 5).bool()}, ValueError, "mask must have one value per row"),
        ({"divergence": "jsd", "beta": 1.0}, ValueError, "strictly between 0 and 1"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing must be between 0 and 1"),
        ({"teacher_indices": IDS}, ValueError, r"teacher's shape \(4, 5\)"),
        ({"teacher_indices": torch.zeros(4, 5)}, TypeError, "teacher_indices must hold integer"),
        ({"teacher_indices": torch.full((4, 5), 7)}, ValueError, r"teacher_indices must lie in 0\.\.4"),
        ({"teacher_indices": torch.arange(5).expand(4, 5)}, ValueError, "log-probabilities over all classes"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(change, error, message):
    arguments = GOOD | change
    with pytest.raises(error, match=message):
        kd_loss(arguments.pop("student"), arguments.pop("teacher"), arguments.pop("labels", None), **arguments)


def test_a_temperature_that_is_not_read_is_not_refused():
    temperature, mask = torch.tensor([1.0, 0.0]), torch.tensor([True, False])
    assert kd_loss(logits(2, 3), logits(2, 3), temperature=temperature, mask=mask) == 0


@pytest.mark.parametrize("name", ["kd_loss"])
def test_examples_in_the_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(f"kdengine.ops.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_the_operator_needs_torch_alone():
    code = (
        "import sys; import torch; before = set(sys.modules); import kdengine.ops.kd_loss;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names);"
        "print(sorted(new))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(eval(found)) <= {"kdengine"}
