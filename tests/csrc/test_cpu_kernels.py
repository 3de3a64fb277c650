"""The CPU kernels, every instruction set, against the formulas in float64."""

import hashlib
import math
import os
import subprocess
import sys

import pytest
import torch
from filelock import FileLock

from .. import session
from ..ops import transcription
from . import cpu_library
from .cpu_library import Library, build, compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="the kernels cannot be built: there is no C++ compiler")

INF = math.inf
KINDS = ("forward_kl", "reverse_kl", "jsd")
CLASSES = (1, 2, 3, 7, 10, 15, 16, 17, 31, 32, 33, 64, 65, 100, 1000, 1001, 2047, 2048, 2049)
TEMPERATURES = (0.05, 0.5, 1.0, 2.0, 3.0, 4.0, 20.0, 1000.0)
SOME_OF_THEM = [0.05, 2.0, 3.0, 1000.0, *(pytest.param(t, marks=pytest.mark.slow) for t in (0.5, 1.0, 4.0, 20.0))]
FLAGS = tuple(os.environ.get("KERNEL_FLAGS", "").split())  # a sanitizer's


def build_once(factory, name, **options):
    """Built by the first of the test processes, used by all."""
    folder = session.folder(factory) / name
    with FileLock(f"{folder}.lock"):
        library = folder / "kernels.so"
        if not library.exists():
            folder.mkdir(exist_ok=True)
            build(folder, FLAGS, **options)
        return library


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    return build_once(tmp_path_factory, "kernels")


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """AVX-512 on SIMDe, where the processor has none."""
    if not cpu_library.has_simde():
        pytest.skip("AVX-512 is neither in this processor nor emulated: libsimde-dev is not installed")
    return build_once(tmp_path_factory, "emulated", emulate_avx512=True)


@pytest.fixture(scope="session", params=[pytest.param("avx512", marks=pytest.mark.slow), "avx2", "portable"])
def library(request, built):
    found = Library(built, request.param)
    if found.name is None and request.param == "avx512":
        found = Library(request.getfixturevalue("emulated"), "avx512")
    if found.name is None:
        pytest.skip(f"this processor has no {request.param}")
    return found


def logits(*shape, seed=0, scale=2.0, dtype=torch.float32):
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def class_ids(*shape, classes, seed=5):
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed))


KNOWN = {}


def fingerprint(tensor):
    bits = tensor.double().contiguous().numpy().tobytes()
    return hashlib.sha256(bits).hexdigest(), tensor.dtype, tensor.shape


def exact_value(student, teacher, *args, formula=None, **options):
    """Value and both gradients in float64; kept, as every instruction set asks for the same."""
    given = (student, teacher, *args, *options.values())
    key = (tuple(options), *(fingerprint(x) if isinstance(x, torch.Tensor) else x for x in given))
    if formula is not None:
        return evaluate(formula, student, teacher, *args, **options)
    if key not in KNOWN:
        KNOWN[key] = evaluate(transcription.loss, student, teacher, *args, **options)
    return KNOWN[key]


def evaluate(formula, student, teacher, *args, **options):
    s, t = (x.detach().double().requires_grad_() for x in (student, teacher))
    loss = formula(s, t, *args, **options)
    if loss.requires_grad:
        loss.sum().backward()
    return loss.detach(), *(torch.zeros_like(x) if x.grad is None else x.grad for x in (s, t))


def bound(s, t, temperature, dim):
    """What the specification allows the loss to be off by, summed over rows."""
    s, t = s.double().movedim(dim, -1), t.double().movedim(dim, -1)
    shared = min(s.shape[-1], t.shape[-1])
    s, t = s[..., :shared], t[..., :shared]
    temperature = (
        temperature.unsqueeze(-1) if isinstance(temperature, torch.Tensor) and temperature.ndim else temperature
    )
    p = (t / temperature).softmax(-1) + (s / temperature).softmax(-1)
    spread = (s - s.amax(-1, keepdim=True)).abs() + (t - t.amax(-1, keepdim=True)).abs() + math.log(shared)
    return (1e-6 * temperature * torch.where((p > 0) & spread.isfinite(), p * spread, 0)).sum().item()


def resolution(gradient):
    """Half a unit in the last place."""
    step = {torch.float64: 1e-15, torch.float32: 6e-8, torch.bfloat16: 2**-8, torch.float16: 2**-11}[gradient.dtype]
    return step * gradient.double().abs() + (3e-8 if gradient.dtype == torch.float16 else 1e-37)


def assert_gradient(found, exact, dim, share=1e-6, floor=0.0):
    """Within a share of the row's largest."""
    assert not found.isnan().any()
    error, largest = (found.double() - exact).abs(), exact.abs().amax(dim, keepdim=True)
    floor += 1e-15  # what float64's own p_s - p_t is off by
    assert (error <= share * largest + resolution(found) + floor).all(), f"{(error / largest).nan_to_num().max():.3g}"


def assert_agrees(library, student, teacher, labels=None, *, to_teacher=False, share=1e-6, floor=0.0, **options):
    dim, temperature = options.get("dim", -1), options.get("temperature", 1.0)
    loss, exact_s, exact_t = exact_value(student, teacher, labels, **options)
    found = library.kd_loss(student, teacher, labels, gradients=(True, to_teacher), **options)
    allowed = 5e-7 * loss.abs() + bound(student, teacher, temperature, dim) + 1e-12
    assert ((found[0].double() - loss).abs() <= allowed).all(), (found[0], loss)
    assert torch.equal(found[0], found[1] + found[2])
    assert_gradient(found[3], exact_s, dim, share, floor)
    if to_teacher:
        assert_gradient(found[4], exact_t, dim, share, floor)
    assert found[5] == 0
    return found


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("temperature", SOME_OF_THEM)
def test_forward_kl_with_and_without_labels(library, classes, temperature):
    s, t = logits(5, classes, seed=1), logits(5, classes, seed=2)
    labels = class_ids(5, classes=classes)
    assert_agrees(library, s, t, temperature=temperature)
    assert_agrees(library, s, t, labels, temperature=temperature, hard_weight=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [50257, 128256, 262144])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.5, 2.0, 3.0])
def test_vocabularies(library, classes, dtype, temperature):
    s, t = logits(3, classes, seed=1, dtype=dtype), logits(3, classes, seed=2, dtype=dtype)
    labels = torch.tensor([classes - 1, -100, 7])
    assert_agrees(library, s, t, labels, temperature=temperature, hard_weight=0.3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [3, 33, 1001])
@pytest.mark.parametrize("temperature", [0.5, 2.0, 20.0])
def test_every_divergence_and_both_gradients(library, kind, classes, temperature):
    s, t = logits(5, classes, seed=1), logits(5, classes, seed=2)
    labels = torch.tensor([0, classes - 1, -100, 1, 2])
    options = {"divergence": kind, "temperature": temperature, "hard_weight": 0.3, "label_smoothing": 0.1}
    assert_agrees(library, s, t, labels, to_teacher=True, floor=1e-7 * temperature if kind == "jsd" else 0, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("student", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("teacher", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_pair_of_dtypes(library, kind, student, teacher):
    for classes in (10, 1500):
        s, t = logits(5, classes, seed=1, dtype=student), logits(5, classes, seed=2, dtype=teacher)
        labels = class_ids(5, classes=classes)
        for to_teacher in (False, True):
            options = {"temperature": 2.0, "hard_weight": 0.3, "divergence": kind}
            assert_agrees(library, s, t, labels, to_teacher=to_teacher, **options)


def test_float64_keeps_its_digits(library):
    s, t = logits(4, 40, seed=1, dtype=torch.float64), logits(4, 40, seed=2, dtype=torch.float64)
    for kind in KINDS:
        found = library.kd_loss(s, t, temperature=3.0, divergence=kind, gradients=(True, True))
        exact = exact_value(s, t, temperature=3.0, divergence=kind)
        torch.testing.assert_close((found[0], *found[3:5]), exact, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounds_gradients_to_nearest_even(library, dtype):
    """As torch rounds what float32 inputs of the same values give."""
    s, t = logits(6, 500, seed=1, dtype=dtype), logits(6, 500, seed=2, dtype=dtype)
    for scale in (1.0, 1e-6):  # denormal numbers of float16 too
        half = library.kd_loss(s, t, soft_weight=scale, reduction="sum")[3]
        full = library.kd_loss(s.float(), t.float(), soft_weight=scale, reduction="sum")[3]
        assert torch.equal(half, full.to(dtype))


@pytest.mark.parametrize("classes", [33, 1500])
@pytest.mark.parametrize("temperature", SOME_OF_THEM)
def test_logits_of_ten_thousand(library, classes, temperature):
    s, t = logits(6, classes, seed=1, scale=1e4), logits(6, classes, seed=2, scale=1e4)
    assert_agrees(library, s, t, temperature=temperature)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [0.0, 5.0, -1e4])
def test_ties_and_constant_rows(library, kind, tied):
    s = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0], [tied, tied, tied]]).repeat(1, 30)
    t = torch.tensor([[tied, tied, tied], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]).repeat(1, 30)
    assert_agrees(library, s, t, divergence=kind, temperature=2.0, floor=1e-9)
    assert_agrees(library, s[:, :3], t[:, :3], divergence=kind, temperature=2.0, floor=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [10, 2100])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_is_exactly_zero_where_student_is_teacher(library, kind, classes, dtype):
    t = logits(5, classes, scale=5.0, dtype=dtype)
    t[0, 3] = -INF
    t[1, :5] = -INF
    for temperature in TEMPERATURES:
        found = library.kd_loss(t, t, temperature=temperature, divergence=kind, gradients=(True, True))
        assert found[0] == 0
        assert not found[3].any()
        assert not found[4].any()
        if kind == "forward_kl":
            assert not library.kd_loss(t, t, temperature=temperature)[3].any()


@pytest.mark.parametrize("classes", [33, 2100])
@pytest.mark.parametrize("step", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_near_the_teacher(library, classes, step, offset):
    t = logits(8, classes)
    s = t + logits(8, classes, seed=3, scale=step) + offset
    found = library.kd_loss(s, t, reduction="none")
    loss, exact, _ = exact_value(s, t, reduction="none")
    assert (found[0] >= 0).all()
    torch.testing.assert_close(found[0].double(), loss, rtol=1e-5, atol=1e-8)
    assert_gradient(found[3], exact, -1)


@pytest.mark.parametrize("kind", ["reverse_kl", "jsd"])
@pytest.mark.parametrize("step", [1e-1, 1e-3, 1e-5])
def test_other_divergences_near_the_teacher(library, kind, step):
    t = logits(20, 33)
    s = t + logits(20, 33, seed=3, scale=step)
    found = library.kd_loss(s, t, divergence=kind, reduction="none")
    loss, exact, _ = exact_value(s, t, divergence=kind, reduction="none")
    assert (found[0] >= 0).all()
    torch.testing.assert_close(found[0].double(), loss, rtol=1e-3, atol=1e-7 * step)
    assert_gradient(found[3], exact, -1, floor=1e-7)


@pytest.mark.parametrize("classes", [20, 3000])
@pytest.mark.parametrize("place", ["one", "first block", "last"])
def test_a_class_masked_on_both_sides_does_not_exist(library, classes, place):
    gone = {"one": slice(2, 3), "first block": slice(0, classes // 2), "last": slice(classes - 1, classes)}[place]
    s, t = logits(4, classes), logits(4, classes, seed=1)
    s[:, gone] = t[:, gone] = -INF
    keep = (s[0] != -INF).nonzero().squeeze(1)
    labels = keep[:4].clone()
    for kind in KINDS:
        options = {"divergence": kind, "temperature": 2.0, "hard_weight": 0.2}
        found = library.kd_loss(s, t, labels, gradients=(True, True), **options)
        loss, exact_s, exact_t = exact_value(s[:, keep], t[:, keep], torch.arange(4), **options)
        torch.testing.assert_close(found[0].double(), loss, rtol=2e-6, atol=0)
        assert_gradient(found[3][:, keep], exact_s, -1)
        assert_gradient(found[4][:, keep], exact_t, -1)
        assert not found[3][:, gone].any()
        assert not found[4][:, gone].any()
        assert_gradient(library.kd_loss(s, t, labels, **options)[3][:, keep], exact_s, -1)


@pytest.mark.parametrize("classes", [20, 3000])
@pytest.mark.parametrize("gone", [slice(2, 3), slice(0, 10), slice(0, 1500)])
def test_classes_masked_by_one_side(library, classes, gone):
    s, t = logits(4, classes), logits(4, classes, seed=1)
    gone = slice(gone.start, min(gone.stop, classes - 5))
    t[:, gone] = -INF
    for kind in ("forward_kl", "jsd"):
        assert_agrees(library, s, t, divergence=kind, temperature=2.0)
    s, t = t, s
    for kind in ("reverse_kl", "jsd"):
        assert_agrees(library, s, t, divergence=kind, temperature=2.0, floor=2e-7 if kind == "jsd" else 0)
    for to_teacher in (False, True):
        found = library.kd_loss(s, t, reduction="none", gradients=(True, to_teacher))
        assert (found[0] == INF).all()
        assert found[3].isfinite().all()
    found = library.kd_loss(t, s, divergence="reverse_kl", reduction="none")
    assert (found[0] == INF).all()
    assert not found[3].isnan().any()


@pytest.mark.parametrize("classes", [6, 1500])
def test_a_row_without_any_class_is_nan_and_alone(library, classes):
    s, t = logits(4, classes), logits(4, classes, seed=1)
    s[1], t[2] = -INF, -INF
    for kind in KINDS:
        for to_teacher in (False, True):
            found = library.kd_loss(s, t, divergence=kind, reduction="none", gradients=(True, to_teacher))
            assert found[0].isnan().tolist() == [False, True, True, False]
            assert found[3].isnan().all(1).tolist() == [False, True, True, False]


@pytest.mark.parametrize("classes", [6, 1500])
@pytest.mark.parametrize("side", [0, 1])
def test_a_nan_that_takes_part_is_seen_in_its_row_only(library, classes, side):
    for values in (slice(2, 3), slice(0, classes)):
        pair = logits(4, classes), logits(4, classes, seed=1)
        pair[side][1, values] = math.nan
        for kind in KINDS:
            found = library.kd_loss(*pair, divergence=kind, reduction="none")
            assert found[0].isnan().tolist() == [False, True, False, False]
            assert found[3].isnan().all(1).tolist() == [False, True, False, False]


def test_a_nan_in_a_leading_block_stays(library):
    s, t = logits(2, 3000), logits(2, 3000, seed=1)
    s[0, :1024] = math.nan
    found = library.kd_loss(s, t, reduction="none")
    assert found[0].isnan().tolist() == [True, False]


def test_a_masked_label_class_is_infinite(library):
    for classes in (4, 100):
        s = logits(2, classes)
        s[0, 1] = -INF
        found = library.kd_loss(s, s, torch.tensor([1, 1]), hard_weight=1.0, reduction="none")
        assert found[0].isinf().tolist() == [True, False]
        assert not found[3].isnan().any()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 3.0])
@pytest.mark.parametrize("classes", [3, 1500])
def test_a_confident_student_keeps_the_digits_of_its_cross_entropy(library, classes, temperature):
    s = logits(3, classes)
    s[:, 1] += torch.tensor([30.0, 60.0, 200.0])
    labels = torch.tensor([1, 1, 0])
    found = library.kd_loss(s, s, labels, hard_weight=1.0, temperature=temperature, reduction="none")
    others = (s.double() - s.double().gather(1, labels[:, None])).scatter(1, labels[:, None], -INF).exp()
    # A gap of 200 is itself rounded to float32: half a unit in its last place, 8e-6, is the exponential's error.
    torch.testing.assert_close(found[0].double(), others.sum(1).log1p(), rtol=1e-5, atol=1e-37)
    exact = others.scatter(1, labels[:, None], -others.sum(1, keepdim=True)) / (1 + others.sum(1, keepdim=True))
    assert_gradient(found[3], exact, -1, share=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("classes", [7, 100, 1500])
def test_one_value_per_row(library, kind, reduction, classes):
    s, t = logits(6, classes), logits(6, classes, seed=1)
    options = {
        "temperature": torch.tensor([0.5, 1.0, 2.0, 4.0, 1.0, 3.0]),
        "soft_weight": torch.tensor([1.0, 0.5, 0.0, 2.0, -1.0, 1.0]),
        "hard_weight": torch.tensor([0.1, 0.0, 0.3, 1.0, 1.0, 0.2]),
        "mask": torch.tensor([True, True, True, True, False, True]),
        "ignore_index": -1,
        "divergence": kind,
        "reduction": reduction,
    }
    labels = torch.tensor([0, 1, 2, -1, 4, 5])
    # A negative weight cancels in the sum: the bound of the loss does not know it.
    loss, exact, _ = exact_value(s, t, labels, **options)
    found = library.kd_loss(s, t, labels, **options)
    torch.testing.assert_close(found[0].double(), loss, rtol=2e-6, atol=2e-6)
    assert_gradient(found[3], exact, -1)


@pytest.mark.parametrize("classes", [5, 1500])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_rows_without_part_cannot_poison(library, classes, reduction):
    s, t = logits(6, classes), logits(6, classes, seed=1)
    mask = torch.tensor([True, False, True, True, False, True])
    labels = torch.tensor([0, 99999, 2, -100, -7, 4])
    for kind in KINDS:
        options = {"temperature": 2.0, "hard_weight": 0.5, "divergence": kind, "reduction": reduction, "mask": mask}
        loss, exact, _ = exact_value(s, t, labels, **options)
        bad_s, bad_t = s.clone(), t.clone()
        bad_s[1], bad_t[4], bad_s[4] = math.nan, math.nan, -INF
        found = library.kd_loss(bad_s, bad_t, labels, **options)
        torch.testing.assert_close(found[0].double(), loss, rtol=1e-6, atol=1e-6)
        assert_gradient(found[3], exact, -1)
        assert not found[3][[1, 4]].any()
        assert found[5] == 0


def test_a_weight_of_zero_does_not_read_its_term(library):
    for classes in (5, 1500):
        s, t = logits(4, classes), torch.full((4, classes), math.nan)
        labels = torch.tensor([1, 2, 3, 4])
        found = library.kd_loss(s, t, labels, soft_weight=0.0, hard_weight=1.0)
        expected = torch.nn.functional.cross_entropy(s.double(), labels)
        torch.testing.assert_close(found[0].double(), expected, rtol=1e-6, atol=0)
        weight = torch.tensor([1.0, 0.0, 2.0, 0.0])
        t = logits(4, classes, seed=1)
        t[1] = math.nan
        found = library.kd_loss(s, t, soft_weight=weight)
        t[1] = 0
        loss, exact, _ = exact_value(s, t, soft_weight=weight)
        torch.testing.assert_close(found[0].double(), loss, rtol=1e-6, atol=0)
        assert_gradient(found[3], exact, -1)


@pytest.mark.parametrize("classes", [9, 1500])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_smoothing_and_probabilities(library, classes, smoothing):
    s, t = logits(6, classes), logits(6, classes, seed=1)
    labels = torch.tensor([0, 8, -100, 3, 3, 1])
    options = {"hard_weight": 1.0, "label_smoothing": smoothing, "temperature": 2.0}
    assert_agrees(library, s, t, labels, **options)
    probabilities = logits(6, classes, seed=4).softmax(-1)
    probabilities[2] = 0
    assert_agrees(library, s, t, probabilities, **options)


@pytest.mark.parametrize(("student", "teacher"), [(5, 8), (8, 5), (1500, 1400), (1400, 1500)])
@pytest.mark.parametrize("kind", KINDS)
def test_unequal_class_counts_share_the_leading_classes(library, student, teacher, kind):
    s, t = logits(4, student), logits(4, teacher, seed=1)
    labels = torch.tensor([0, 1, 4, student - 1])
    found = assert_agrees(library, s, t, labels, hard_weight=0.5, divergence=kind, to_teacher=True)
    assert not found[4][:, student:].any()
    found = library.kd_loss(s, t, divergence=kind)
    assert not found[3][:, teacher:].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [7, 70, 2100])
@pytest.mark.parametrize("spots", [(3, 4), (5, 7)])
def test_classes_in_dim_one(library, kind, dtype, classes, spots):
    s, t = logits(2, classes, *spots, dtype=dtype), logits(2, classes, *spots, seed=1, dtype=dtype)
    labels = class_ids(2, *spots, classes=classes)
    mask = torch.rand(2, *spots, generator=torch.Generator().manual_seed(3)) > 0.3
    options = {"temperature": 2.0, "hard_weight": 0.4, "mask": mask, "divergence": kind, "dim": 1}
    assert_agrees(library, s, t, labels, **options)
    last = [x.to(memory_format=torch.channels_last) for x in (s, t)]
    assert_agrees(library, *last, labels, **options)
    found = library.kd_loss(s, t, labels, out=torch.empty_like(last[0]), **options)
    torch.testing.assert_close(found[3], library.kd_loss(s, t, labels, **options)[3], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("classes", [7, 16, 40, 1500])
def test_unaligned_expanded_and_strided_rows(library, classes):
    options = {"temperature": 2.0, "hard_weight": 0.4}
    labels = class_ids(20, classes=classes)
    s, t = logits(20 * classes + 1)[1:].view(20, classes), logits(20, 2 * classes, seed=1)[:, ::2]
    out = torch.empty(20 * classes + 1)[1:].view(20, classes)
    assert_agrees(library, s, t, labels, **options)
    _, exact, _ = exact_value(s, t, labels, **options)
    assert_gradient(library.kd_loss(s, t, labels, out=out, **options)[3], exact, -1)
    assert_agrees(library, s, t[:1].expand(20, classes), labels, **options)
    wide = logits(20, classes + 3, seed=2)
    assert_agrees(library, s, wide[:, 1 : classes + 1], labels, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("classes", "k"), [(9, 1), (9, 4), (9, 9), (1500, 1), (1500, 40)])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_binned_tail(library, kind, classes, k, temperature):
    s, full = logits(4, classes), logits(4, classes, seed=1, dtype=torch.float64)
    values, indices = full.log_softmax(-1).topk(k)
    if k >= 4:
        values[1, 3], indices[1, 3] = -INF, -1  # an absent entry
        indices[1, 2] = 0 if not (indices[1] == 0).any() else indices[1, 2]

    def formula(s, t):
        rows = [transcription.bin_row(*row) for row in zip(s, t, indices, strict=True)]
        return torch.stack([transcription.soft_row(*row, temperature, kind, 0.5) for row in rows]).mean()

    options = {"temperature": temperature, "divergence": kind, "teacher_indices": indices}
    found = library.kd_loss(s, values.float(), gradients=(True, True), **options)
    loss, exact_s, exact_t = exact_value(s, values, formula=formula)
    torch.testing.assert_close(found[0].double(), loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[3].double(), exact_s, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(found[4].double(), exact_t.nan_to_num(0), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("classes", "k"), [(9, 4), (1500, 40)])
def test_renormalized_tail_is_the_divergence_over_the_listed_classes(library, kind, classes, k):
    s, t = logits(2, classes, 3), logits(2, classes, 3, seed=1)
    values, indices = t.topk(k, dim=1)
    options = {"tail": "renormalize", "dim": 1, "temperature": 2.0, "divergence": kind}
    found = library.kd_loss(s, values, teacher_indices=indices, gradients=(True, True), **options)
    loss, exact_s, exact_t = exact_value(
        s,
        values,
        formula=lambda s, t: transcription.loss(s.gather(1, indices), t, dim=1, temperature=2.0, divergence=kind),
    )
    torch.testing.assert_close(found[0].double(), loss, rtol=1e-6, atol=1e-6)
    assert_gradient(found[3], exact_s, 1)
    assert_gradient(found[4], exact_t, 1)


def test_faults_are_told_and_give_nan_in_their_rows(library):
    for classes in (5, 1500):
        s, t = logits(4, classes), logits(4, classes, seed=1)
        temperature = torch.tensor([1.0, 0.0, math.nan, 1.0])
        found = library.kd_loss(s, t, temperature=temperature, reduction="none")
        assert (found[0].isnan().tolist(), found[5]) == ([False, True, True, False], 2)
        assert found[3].isnan().all(1).tolist() == [False, True, True, False]
        labels = torch.tensor([0, -1, classes, 1])
        found = library.kd_loss(s, t, labels, hard_weight=1.0, reduction="none")
        assert (found[0].isnan().tolist(), found[5]) == ([False, True, True, False], 1)
        assert found[3].isnan().all(1).tolist() == [False, True, True, False]
        values, indices = t.log_softmax(-1).topk(3)
        indices[2, 1] = classes
        found = library.kd_loss(s, values, teacher_indices=indices, reduction="none")
        assert (found[0].isnan().tolist(), found[5]) == ([False, False, True, False], 4)
        found = library.kd_loss(s, values + 3, teacher_indices=indices.clamp(max=classes - 1))
        assert found[5] == 8


@pytest.mark.parametrize("shape", [(0, 5), (0, 1500)])
def test_no_rows_give_zero(library, shape):
    found = library.kd_loss(logits(*shape), logits(*shape), torch.empty(0, dtype=torch.long), hard_weight=1.0)
    assert [float(x) for x in found[:3]] == [0, 0, 0]
    assert library.kd_loss(logits(*shape), logits(*shape), reduction="none")[0].shape == (0,)


def test_no_participating_rows_give_zero(library):
    for classes in (5, 1500):
        s, t = logits(3, classes), logits(3, classes, seed=1)
        labels = torch.full((3,), -100)
        loss, soft, hard, *_ = library.kd_loss(s, t, labels, hard_weight=1.0)
        assert hard == 0
        assert loss == soft > 0
        found = library.kd_loss(s, t, labels, hard_weight=1.0, mask=torch.zeros(3).bool())
        assert found[0] == 0
        assert not found[3].any()


@pytest.mark.parametrize(
    ("rows", "classes"), [(4096, 10), (100, 1000), (7, 3000), (1, 100_003), (3, 70_001), (5, 40_000), (40, 60_001)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_does_not_change_a_bit(library, rows, classes, dtype):
    s, t = logits(rows, classes, dtype=dtype), logits(rows, classes, seed=1, dtype=dtype)
    labels = class_ids(rows, classes=classes)
    results = []
    for library.threads in (1, 2, 3):
        results.append(library.kd_loss(s, t, labels, temperature=3.0, hard_weight=0.2)[:4])
    library.threads = 1
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))
    assert not (results[0][3] == 77.0).any()


def test_the_value_alone_is_the_same(library):
    for classes in (10, 1500):
        s, t = logits(20, classes), logits(20, classes, seed=1)
        for kind in KINDS:
            assert torch.equal(
                library.kd_loss(s, t, divergence=kind)[0],
                library.kd_loss(s, t, divergence=kind, gradients=(False, False))[0],
            )


def test_an_unknown_instruction_set_is_refused(built):
    refused = Library(built, "avx1024")
    assert refused.name is None
    message = refused.functions.harness_refusal().decode()
    assert "KDENGINE_CPU_ISA=avx1024" in message
    assert "portable" in message


@pytest.mark.exhaustive
def test_under_sanitizers():
    """Every kernel and layout once more, in a process that AddressSanitizer and UndefinedBehaviorSanitizer watch."""
    runtime = [
        subprocess.run(
            [compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=all -g -O1"
    environment = os.environ | {
        "LD_PRELOAD": " ".join(runtime),
        "ASAN_OPTIONS": "detect_leaks=0",
        "KERNEL_FLAGS": flags,
    }
    chosen = "dim_one or unaligned or tail or threads or faults or no_rows or smoothing or one_value or dtypes"
    command = [sys.executable, "-m", "pytest", __file__, "-n", "0", "-x", "-k", chosen]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=cpu_library.ROOT)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
