"""The CUDA kernels' logic, executed by an emulated device on the CPU. It is not a GPU: memory model, timing and the
exact rounding of its instructions are not tested here."""

import ctypes
import math

import pytest
import torch

from ..ops import test_kd_loss as spec
from .cuda_emulation.fixtures import emulated_device, emulated_library, emulated_operator  # noqa: F401

INF = math.inf
SMALL = {"shared_per_block": 40 << 10, "shared_per_processor": 200 << 10}
"""Shared memory for one float32 tile: rows of few thousand classes need clusters, or are read twice."""


def pair(rows, classes, dtype=torch.float32):
    return (spec.logits(rows, classes, seed=i, dtype=dtype) for i in (1, 2))


def labels_for(rows, classes):
    labels = torch.randint(0, classes, (rows,), generator=spec.generator(3))
    labels[0], labels[-1] = classes - 1, -100
    return labels


PLANS = [
    (4, {}, "few"),
    (10, {}, "few"),
    (64, {}, "few"),
    (200, {}, "warp"),
    (1001, {}, "block"),
    (4500, {}, "kept"),
    (4500, {"capability": 80, **SMALL}, "kept"),
    (9001, {"capability": 80, **SMALL}, "kept"),
    (9001, SMALL, "cluster"),
    (9001, {"largest_cluster": 2, **SMALL}, "cluster"),
]


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize(("classes", "properties", "path"), PLANS)
def test_every_path_equals_the_formula(device, classes, properties, path, hard):
    device.become(processors=2, **properties)
    s, t = pair(5, classes)
    options = {"hard_weight": 0.3} if hard else {}
    args = (s, t, labels_for(5, classes)) if hard else (s, t)
    assert device.plan(*args, **options)["path"] == path
    spec.assert_agrees(*args, temperature=2.0, **options)


@pytest.mark.parametrize(("classes", "properties", "path"), PLANS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_path_equals_the_formula_in_half_precision(device, classes, properties, path, dtype):
    device.become(processors=2, **properties)
    s, t = pair(3, classes, dtype)
    spec.assert_agrees(s, t, labels_for(3, classes), hard_weight=0.3, temperature=1.0)


@pytest.mark.parametrize("tiles", [2, 3, 5])
def test_a_cluster_reads_its_row_once(device, tiles):
    device.become(**SMALL)
    plan = device.plan(*pair(2, 4096 * tiles - 3))
    assert plan["cluster"] >= tiles
    assert plan["kept"] == plan["tiles"] == 1


def test_chips_without_clusters_read_what_does_not_fit_twice(device):
    device.become(capability=80, **SMALL)
    plan = device.plan(*pair(2, 12000))
    assert plan["kept"] == 1
    assert plan["tiles"] == 3


@pytest.mark.parametrize("classes", [128256, 262144])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hard", [False, True])
def test_vocabularies_are_read_once_on_an_h100(device, classes, dtype, hard):
    s = torch.empty(1, 1, dtype=dtype).expand(2, classes).contiguous()
    args, options = ((s, s, torch.zeros(2, dtype=torch.long)), {"hard_weight": 1.0}) if hard else ((s, s), {})
    plan = device.plan(*args, **options)
    # A row of 262144 float32 terms fills sixteen blocks to the last byte but for the vector that unaligned rows need.
    assert plan["tiles"] - plan["kept"] <= 1
    assert plan["path"] == "cluster"


@pytest.mark.parametrize(("classes", "properties", "path"), PLANS)
@pytest.mark.parametrize("seed", [1])
def test_the_order_of_blocks_and_threads_does_not_change_a_bit(device, classes, properties, path, seed):
    args = (*pair(5, classes), labels_for(5, classes))
    found = []
    for order in (0, seed):
        device.become(processors=3, seed=order, **properties)
        terms, gradients = device.run(*args, hard_weight=0.3)
        found.append((*terms, gradients[0]))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("classes", [3, 100, 1001, 4500])
@pytest.mark.parametrize("kind", spec.KINDS)
def test_one_launch_computes_value_and_gradient(device, classes, kind):
    mask = torch.tensor([True, False, True])
    device.run(*pair(3, classes), labels_for(3, classes), hard_weight=0.3, mask=mask, divergence=kind)
    assert device.device.launches == 1


@pytest.mark.parametrize("offset", [(0, 1), (1, 1), (3, 2)])
@pytest.mark.parametrize("classes", [10, 101, 1003, 4501])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unaligned_rows(device, offset, classes, dtype):
    s, t = (spec.logits(4, classes + 5, seed=i, dtype=dtype)[:, o : o + classes] for i, o in enumerate(offset))
    spec.assert_agrees(s, t, labels_for(4, classes), hard_weight=0.3, temperature=2.0)


@pytest.mark.parametrize("classes", [10, 101, 1003, 4501])
def test_expanded_and_transposed_inputs(device, classes):
    t = spec.logits(1, classes, seed=2).expand(3, classes)
    spec.assert_agrees(spec.logits(classes, 3, seed=1).T, t, temperature=2.0)


@pytest.mark.parametrize(("classes", "properties", "path"), PLANS)
def test_nothing_is_written_beside_a_row(device, classes, properties, path):
    device.become(**properties)
    s, t = pair(3, classes)
    around = torch.full((5, classes + 7), 7.0)
    problem, _, _, _keep = device.problem(s, t)
    problem.student_gradient.data = around[1, 3:].data_ptr()
    problem.student_gradient.outer = classes + 7
    assert device.library.emulated_kd_loss(ctypes.byref(problem)) == 0
    inside = torch.zeros_like(around, dtype=torch.bool)
    inside[1:4, 3 : classes + 3] = True
    assert (around[~inside] == 7).all()
    assert torch.equal(around[inside].view(3, classes), device.run(s, t)[1][0])


@pytest.mark.parametrize(("classes", "properties", "path"), PLANS)
def test_masks_over_leading_blocks_and_single_classes(device, classes, properties, path):
    device.become(**properties)
    s, t = pair(3, classes)
    s[0, : classes // 2] = t[0, : classes // 2] = -INF
    t[1, : classes // 2] = -INF
    t[2, 1::2] = -INF
    spec.assert_agrees(s, t, temperature=2.0)


@pytest.mark.parametrize(("classes", "properties", "path"), PLANS)
def test_what_float64_makes_infinite_or_nan(device, classes, properties, path):
    device.become(**properties)
    s, t = pair(4, classes)
    s[0, : classes // 2] = -INF
    s[1] = -INF
    t[2] = -INF
    terms, (gradient, _) = device.run(s, t, reduction="none")
    assert terms[0][0] == INF
    assert terms[0][1:].isnan().tolist() == [True, True, False]
    assert gradient.isfinite().all(1).tolist() == [True, False, False, True]


@pytest.mark.parametrize(("classes", "properties", "path"), PLANS)
@pytest.mark.parametrize("scale", [1e-5, 1e-2, 1e4])
def test_rising_falling_and_close_rows(device, classes, properties, path, scale):
    device.become(**properties)
    slope = torch.linspace(-9, 9, classes)
    t = torch.stack([slope, -slope, slope, torch.zeros(classes), slope * 0 - 1e4])
    s = t + spec.logits(5, classes, seed=1, scale=scale)
    loss, gradient = spec.value_and_gradient(device.kd_loss, s, t, temperature=1.0, reduction="none")
    expected, exact = spec.value_and_gradient(spec.transcription.loss, s.double(), t.double(), reduction="none")
    allowed = [spec.tolerance(*row, 1.0) for row in zip(s[:, None], t[:, None], strict=True)]
    assert ((loss.double() - expected).abs() <= 5e-7 * expected.abs() + torch.tensor(allowed)).all()
    largest = exact.abs().amax(1, keepdim=True)
    assert ((gradient.double() - exact).abs() <= 1e-6 * largest + spec.half_ulp(gradient) + 1e-14).all()


@pytest.mark.parametrize(("classes", "properties", "path"), PLANS)
def test_is_exactly_zero_at_the_teacher_on_every_path(device, classes, properties, path):
    device.become(**properties)
    t = spec.logits(3, classes, scale=5.0)
    terms, (gradient, _) = device.run(t, t.clone(), temperature=3.0)
    assert not terms[0].any()
    assert not gradient.any()


@pytest.mark.parametrize("classes", [10, 200, 1001])
@pytest.mark.parametrize("kind", spec.KINDS)
def test_faults_are_nan_in_their_rows(device, classes, kind):
    labels, temperature = torch.tensor([0, classes, -1, 2, -100]), torch.tensor([1.0, 1.0, 1.0, 0.0, math.nan])
    options = {"temperature": temperature, "hard_weight": 0.5, "divergence": kind, "reduction": "none"}
    terms, (gradient, _) = device.run(*pair(5, classes), labels, **options)
    assert terms[0].isnan().tolist() == [False, True, True, True, True]
    assert terms[1].isnan().tolist() == [False, False, False, True, True]
    assert terms[2].isnan().tolist() == [False, True, True, False, False]
    assert gradient.isnan().all(1).tolist() == gradient.isnan().any(1).tolist() == [False, True, True, True, True]


@pytest.mark.parametrize("tail", ["bin", "renormalize"])
def test_faults_of_a_top_k_teacher(device, tail):
    values, indices = spec.logits(3, 50, seed=1).log_softmax(-1).topk(4)
    indices[1, 2] = 50
    values[2] += 2
    options = {"teacher_indices": indices, "tail": tail, "reduction": "none"}
    terms, gradients = device.run(spec.logits(3, 50), values, needs=(True, True), **options)
    wrong = [False, True, tail == "bin"]
    assert terms[0].isnan().tolist() == wrong
    for gradient in gradients:
        assert gradient.isnan().all(1).tolist() == wrong


def test_a_class_listed_twice_adds_up(device):
    values, indices = torch.tensor([[-1.0, -2.0, -2.5]]), torch.tensor([[4, 1, 4]])
    s = spec.logits(1, 6)
    options = {"teacher_indices": indices, "tail": "renormalize", "hard_weight": 0.5}
    _, (gradient, _) = device.run(s, values, torch.tensor([4]), **options)
    gathered, exact = s.clone().requires_grad_(), torch.tensor([4])
    loss = spec.transcription.loss(gathered.double().gather(1, indices), values)
    (loss + 0.5 * torch.nn.functional.cross_entropy(gathered, exact)).backward()
    torch.testing.assert_close(gradient, gathered.grad)


@pytest.mark.parametrize("rows", [1, 8192, 8193, 20000])
def test_rows_of_a_mean_are_counted_by_the_blocks_or_ahead(device, rows):
    s, t = pair(rows, 3)
    labels, mask = torch.arange(rows) % 4 - 1, torch.arange(rows) % 3 != 1
    options = {"hard_weight": 0.3, "mask": mask, "ignore_index": -1}
    assert device.plan(s, t, labels, **options)["counted"] == (rows > 8192)
    device.device.processors = 2
    terms, (gradient, _) = device.run(s, t, labels, **options)
    leaf = s.double().requires_grad_()
    kl = torch.nn.functional.kl_div(leaf.log_softmax(1), t.double().log_softmax(1), log_target=True, reduction="none")
    entropy = torch.nn.functional.cross_entropy(leaf, labels, ignore_index=-1, reduction="none")
    both = mask & (labels >= 0)
    loss = kl.sum(1)[mask].mean() + 0.3 * (entropy[both].sum() / both.sum().clamp(min=1))
    loss.backward()
    torch.testing.assert_close(terms[0].double(), loss.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), leaf.grad, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["dense", "strided", "planes"])
def test_scale_multiplies_in_place(device, dtype, layout):
    whole = spec.logits(3, 21, 5, dtype=dtype)
    gradient = {"dense": whole[0], "strided": whole[:, ::2, 1], "planes": whole}[layout]
    rows = gradient.select(1, 0).shape
    for factor in (torch.tensor(1.0), torch.tensor(0.25), torch.rand(rows, generator=spec.generator())):
        expected = (gradient.double() * (factor.double().unsqueeze(1) if factor.ndim else factor.double())).to(dtype)
        untouched = whole.clone()
        device.scale(gradient, factor, 1)
        torch.testing.assert_close(gradient, expected)
        gradient.copy_(untouched[0] if layout == "dense" else gradient)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", spec.KINDS)
@pytest.mark.parametrize("classes", [1, 2, 3, 7, 10, 15, 16, 17, 31, 32, 33, 100, 1000, 1001, 2047, 2048, 2049])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 4.0, 1000.0])
def test_all_class_counts(device, kind, classes, dtype, temperature):
    s, t = pair(3, classes, dtype)
    floor = 1e-7 * temperature if kind == "jsd" and temperature < 0.5 else 0.0
    args, options = (s, t, labels_for(3, classes)), {"hard_weight": 0.3, "divergence": kind}
    spec.assert_agrees(*args, temperature=temperature, floor=floor, **options)


@pytest.mark.exhaustive
@pytest.mark.parametrize("classes", [50257, 128256, 262144])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("hard", [False, True])
def test_vocabularies(device, classes, dtype, capability, hard):
    device.become(capability=capability)
    args, options = (*pair(2, classes, dtype),), {}
    if hard:
        args, options = (*args, torch.tensor([classes // 2, 1])), {"hard_weight": 0.3}
    spec.assert_agrees(*args, temperature=2.0, **options)
