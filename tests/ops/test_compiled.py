"""The compiled operator against the transcription, over what the specification lists, within its bounds."""

import math

import pytest
import torch

from kdengine.ops import kd_loss

from . import transcription
from .test_kd_loss import KINDS, half_ulp, logits, value_and_gradient

pytestmark = pytest.mark.usefixtures("compiled_backend")

INF = math.inf
TEMPERATURES = (0.05, 0.5, 1.0, 2.0, 3.0, 4.0, 20.0, 1000.0)
FEW = (1, 2, 3, 7, 10, 15, 16, 17, 31, 32, 33)
MANY = (100, 1000, 1001, 2047, 2048, 2049)
VOCABULARIES = (50257, 128256, 262144)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def loss_bound(s, t, expected, temperature):
    """1e-6 T^2 sum p (|s - m_s| + |t - m_t| + log V) / T of each row, for both distributions, plus 5e-7 relative."""
    p = (t / temperature).softmax(-1) + (s / temperature).softmax(-1)
    gap = (s - s.amax(-1, keepdim=True)).abs() + (t - t.amax(-1, keepdim=True)).abs() + math.log(s.shape[-1])
    row = torch.where((p > 0) & gap.isfinite(), p * gap, 0).sum(-1)
    return 1e-6 * temperature * row + 5e-7 * expected.abs() + 1e-300


def assert_within_bounds(s, t, labels=None, *, temperature=1.0, floor=0.0, **options):
    """Every row's loss and gradient of (rows, classes) logits; `floor` is allowed on top in each gradient entry."""
    options |= {"temperature": temperature, "reduction": "none"}
    loss, gradient = value_and_gradient(kd_loss, s, t, labels, **options)
    expected, exact = value_and_gradient(transcription.loss, s.double(), t.double(), labels, **options)
    s, t = s.double(), t.double()
    allowed = loss_bound(s, t, expected, temperature)
    error = (loss.double() - expected).abs()
    assert ((error <= allowed) | (loss == expected)).all(), f"loss: {(error / allowed).max():.3g} of what is allowed"
    # Below the smallest normal number there is no relative accuracy; and where p_s and p_t are both 1 or nearly so,
    # the transcription's own differences, of log probabilities too, have only what float64 leaves of them.
    spread = max((x[x.isfinite()].amax() - x[x.isfinite()].amin()).item() for x in (s, t) if x.isfinite().any())
    floor += torch.finfo(gradient.dtype).tiny + 1e-14 * temperature + 1e-15 * spread
    allowed = 1e-6 * exact.abs().amax(-1, keepdim=True) + half_ulp(gradient) + floor
    error = (gradient.double() - exact).abs()
    assert (error <= allowed).all(), f"gradient: {(error / allowed).max():.3g} of what is allowed"


@pytest.mark.parametrize("classes", FEW + MANY)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_class_counts_and_temperatures(kind, temperature, classes):
    s, t = logits(7, classes, seed=1), logits(7, classes, seed=2)
    # Between two one-hot rows JSD is flat: what is left of its gradient is below the rounding of log 2.
    floor = 2e-7 * temperature if kind == "jsd" and temperature <= 0.5 else 0.0
    assert_within_bounds(s, t, temperature=temperature, divergence=kind, floor=floor)


@pytest.mark.parametrize("classes", FEW + MANY)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_hard_labels_ride_along(classes, temperature):
    s, t = logits(7, classes, seed=1), logits(7, classes, seed=2)
    labels = torch.randint(0, classes, (7,), generator=torch.Generator().manual_seed(3))
    labels[2] = -100
    for options in ({}, {"label_smoothing": 0.1}):
        assert_within_bounds(s, t, labels, temperature=temperature, hard_weight=0.5, **options)


@pytest.mark.slow
@pytest.mark.parametrize("classes", VOCABULARIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_vocabularies(kind, temperature, classes):
    s, t = logits(3, classes, seed=1), logits(3, classes, seed=2)
    labels = torch.tensor([0, classes - 1, -100])
    floor = 2e-7 * temperature if kind == "jsd" and temperature <= 0.5 else 0.0
    assert_within_bounds(s, t, labels, temperature=temperature, divergence=kind, hard_weight=0.3, floor=floor)


@pytest.mark.parametrize("classes", [10, 33, 1001])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("teacher", DTYPES)
@pytest.mark.parametrize("student", DTYPES)
def test_pairs_of_dtypes(student, teacher, kind, classes):
    s, t = logits(5, classes, seed=1, dtype=student), logits(5, classes, seed=2, dtype=teacher)
    assert_within_bounds(s, t, torch.tensor([0, 1, 2, -100, 3]), temperature=2.0, divergence=kind, hard_weight=0.3)


@pytest.mark.parametrize("classes", [7, 33, 2049])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_logits_of_ten_thousand(temperature, classes):
    s, t = logits(7, classes, seed=1, scale=1e4), logits(7, classes, seed=2, scale=1e4)
    assert_within_bounds(s, t, temperature=temperature)
    assert_within_bounds(s.round(), s.round() + logits(7, classes, seed=3), temperature=temperature)


@pytest.mark.parametrize("classes", [2, 33, 2049])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [1e-1, 1e-2, 1e-4, 1e-6])
def test_near_the_teacher(kind, step, classes):
    t = logits(7, classes)
    s = t + logits(7, classes, seed=3, scale=step)
    for temperature in (1.0, 4.0):
        assert_within_bounds(s, t, temperature=temperature, divergence=kind, floor=1e-7 * step)


@pytest.mark.parametrize("classes", FEW + MANY)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_at_the_teacher_everything_is_zero(kind, dtype, classes):
    t = logits(7, classes, scale=5.0, dtype=dtype)
    if classes > 1:
        t[:, 0] = -INF
    for temperature in TEMPERATURES:
        loss, gradient = value_and_gradient(kd_loss, t, t.clone(), temperature=temperature, divergence=kind)
        assert loss == 0
        assert not gradient.any()


def masked(classes, where):
    s, t = logits(4, classes, seed=1), logits(4, classes, seed=2)
    leading = slice(0, max(1, classes // 2))
    for name, side in (("student", s), ("teacher", t)):
        if where in (name, "both"):
            side[:, leading] = -INF
    return s, t


@pytest.mark.parametrize("classes", [2, 33, 1000, 20000])
@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("forward_kl", "teacher"),
        ("forward_kl", "both"),
        ("reverse_kl", "student"),
        ("reverse_kl", "both"),
        ("jsd", "student"),
        ("jsd", "teacher"),
        ("jsd", "both"),
    ],
)
def test_leading_classes_masked(kind, where, classes):
    s, t = masked(classes, where)
    for temperature in (0.5, 1.0, 4.0):
        assert_within_bounds(s, t, temperature=temperature, divergence=kind, floor=1e-7 if kind == "jsd" else 0.0)


@pytest.mark.parametrize("classes", [3, 1000])
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_a_row_of_masks_only_is_nan_and_alone(side, classes):
    s, t = logits(3, classes), logits(3, classes, seed=1)
    for name, values in (("student", s), ("teacher", t)):
        if side in (name, "both"):
            values[1] = -INF
    loss, gradient = value_and_gradient(kd_loss, s, t, reduction="none")
    assert loss.isnan().tolist() == [False, True, False]
    assert gradient[[0, 2]].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [3, 33, 1000])
def test_ties_and_equal_rows(kind, classes):
    ties = logits(5, classes).round()
    ties[:, -1] = ties.amax(-1)
    for level in (0.0, 5.0, -1e4):
        assert_within_bounds(ties, torch.full_like(ties, level), temperature=2.0, divergence=kind)
        assert_within_bounds(torch.full_like(ties, level), ties, temperature=2.0, divergence=kind)


@pytest.mark.parametrize("classes", [10, 1000])
def test_underflowing_probabilities(classes):
    s, t = logits(5, classes), logits(5, classes, seed=1)
    s[:, 0] += 200.0
    t[:, -1] += 150.0
    for temperature in (0.5, 1.0, 2.0):
        assert_within_bounds(s, t, torch.arange(5), temperature=temperature, hard_weight=1.0)


def layouts(classes):
    """The same logits of shape (6, classes), laid out in memory in other ways."""
    plain = logits(6, classes)
    unaligned = torch.empty(6 * classes + 1)[1:].view(6, classes).copy_(plain)
    wide = torch.empty(6, classes + 3)[:, 1 : classes + 1].copy_(plain)
    every_other = torch.empty(12, 2 * classes)[::2, ::2].copy_(plain)
    return plain, {
        "unaligned": unaligned,
        "columns of a wider matrix": wide,
        "every other element": every_other,
        "transposed": plain.t().contiguous().t(),
        "expanded": plain[:1].expand(6, classes),
    }


@pytest.mark.parametrize("classes", [1, 10, 33, 1001])
@pytest.mark.parametrize("kind", KINDS)
def test_layouts_do_not_matter(kind, classes):
    plain, others = layouts(classes)
    t, labels = logits(6, classes, seed=1), torch.arange(6) % classes
    options = {"temperature": 2.0, "divergence": kind, "hard_weight": 0.3}
    for name, s in others.items():
        assert torch.equal(s, plain) or name == "expanded"
        for teacher in (t, t.t().contiguous().t(), t[:1].expand(6, classes)):
            found = value_and_gradient(kd_loss, s, teacher, labels, **options)
            expected = value_and_gradient(kd_loss, s.contiguous(), teacher.contiguous(), labels, **options)
            torch.testing.assert_close(found, expected, msg=lambda text, name=name: f"{name}: {text}")


def test_the_gradient_has_its_inputs_strides():
    s = logits(6, 10).t().contiguous().t()
    assert value_and_gradient(kd_loss, s, logits(6, 10, seed=1))[1].stride() == s.stride()
    image = logits(2, 5, 3, 4).to(memory_format=torch.channels_last)
    assert value_and_gradient(kd_loss, image, image + 1, dim=1)[1].stride() == image.stride()


@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 1, 6), (1, 5, 1, 6)])
def test_any_order_of_dimensions(shape):
    s, t = logits(*shape), logits(*shape, seed=1)
    mask = torch.rand(shape[:-1], generator=torch.Generator().manual_seed(5)) > 0.3
    labels = torch.arange(mask.numel()).reshape(mask.shape) % shape[-1]
    expected = value_and_gradient(kd_loss, s, t, labels, mask=mask, hard_weight=0.5)
    for d in range(len(shape)):
        moved = [x.movedim(-1, d) for x in (s, t)]
        for student in (moved[0], moved[0].contiguous()):
            loss, gradient = value_and_gradient(kd_loss, student, moved[1], labels, mask=mask, hard_weight=0.5, dim=d)
            torch.testing.assert_close((loss, gradient.movedim(d, -1)), expected)
    order = (*reversed(range(len(shape) - 1)), len(shape) - 1)
    back = s.permute(order).contiguous().permute(order)  # rows in another order in memory: they have no one stride
    torch.testing.assert_close(value_and_gradient(kd_loss, back, t, labels, mask=mask, hard_weight=0.5), expected)


def test_labels_mask_and_numbers_of_any_layout_and_integer_type():
    s, t = logits(6, 5), logits(6, 5, seed=1)
    labels, mask, weight = torch.tensor([0, 1, -100, 3, 4, 0]), torch.tensor([1, 1, 1, 0, 1, 1]).bool(), torch.rand(6)
    expected = kd_loss(s, t, labels, hard_weight=weight, mask=mask, temperature=2.0)

    def spread(x):
        return torch.stack([x, x], 1)[:, 0]

    for kind in (torch.int8, torch.int16, torch.int32):
        found = kd_loss(
            s,
            t,
            spread(labels.to(kind)),
            hard_weight=spread(weight),
            mask=spread(mask),
            temperature=torch.tensor(2, dtype=kind),
        )
        assert torch.equal(found, expected)
    for kind in (torch.float64, torch.bfloat16):
        assert torch.equal(
            kd_loss(s, t, temperature=torch.tensor(2.0).to(kind).expand(6)), kd_loss(s, t, temperature=2)
        )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_rows_ignored(reduction):
    s, t = torch.full((4, 9), math.nan), torch.full((4, 9), math.nan)
    labels = torch.full((4,), -100)
    for options in ({"mask": torch.zeros(4).bool()}, {"soft_weight": torch.zeros(4)}):
        loss, gradient = value_and_gradient(kd_loss, s, t, labels, hard_weight=1.0, reduction=reduction, **options)
        assert not loss.any()
        assert not gradient.any()


def everything(classes, dtype, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        s, t = logits(67, classes, seed=1, dtype=dtype), logits(67, classes, seed=2, dtype=dtype).requires_grad_()
        labels = torch.arange(67) % classes
        loss, gradient = value_and_gradient(kd_loss, s, t, labels, hard_weight=0.5, temperature=2.0)
        few, few_gradient = value_and_gradient(kd_loss, s[:2], t[:2], labels[:2], hard_weight=0.5, temperature=3.0)
        return loss, gradient, few, few_gradient, t.grad
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 10, 64, 1000, 50257])
def test_threads_do_not_change_a_bit(classes, dtype):
    if dtype != torch.float32 and classes > 1000:
        pytest.skip("one dtype with many classes is enough")
    one = everything(classes, dtype, 1)
    for threads in (2, 3):
        for a, b in zip(one, everything(classes, dtype, threads), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("factor", [1.0, 3.0, 65536.0])
@pytest.mark.parametrize("kept", [False, True])
def test_backward_scales_by_the_factor(dtype, factor, kept):
    s, t = logits(64, 100, dtype=dtype).requires_grad_(), logits(64, 100, seed=1)
    (plain,) = torch.autograd.grad(kd_loss(s, t), s)
    loss = kd_loss(s, t) * factor
    found = [torch.autograd.grad(loss, s, retain_graph=kept)[0] for _ in range(1 + kept)]
    for gradient in found:
        torch.testing.assert_close(
            gradient, (plain.double() * factor).to(dtype), rtol=1e-2 if dtype.itemsize < 4 else 0, atol=0
        )
    assert len({gradient.data_ptr() for gradient in found}) == len(found)


def test_backward_twice_without_keeping_the_graph_is_refused():
    s, t = logits(3, 5).requires_grad_(), logits(3, 5, seed=1)
    loss = kd_loss(s, t)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_a_leafs_gradient_is_not_copied():
    s, t = logits(3, 5).requires_grad_(), logits(3, 5, seed=1)
    loss = kd_loss(s, t)
    place = loss.grad_fn.saved_tensors[0].data_ptr()
    loss.backward()
    assert s.grad.data_ptr() == place


def test_both_gradients_agree_with_pure_pytorch(monkeypatch):
    s, t = logits(4, 9).requires_grad_(), logits(4, 9, seed=1).requires_grad_()
    found = torch.autograd.grad(kd_loss(s, t, divergence="jsd", beta=0.3), (s, t))
    monkeypatch.setenv("KDENGINE_BACKEND", "python")
    torch.testing.assert_close(found, torch.autograd.grad(kd_loss(s, t, divergence="jsd", beta=0.3), (s, t)))


def test_checkpointing_computes_the_gradient_anew():
    s, t = logits(3, 5).requires_grad_(), logits(3, 5, seed=1)
    loss = torch.utils.checkpoint.checkpoint(kd_loss, s, t, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(loss, s), torch.autograd.grad(kd_loss(s, t), s))
