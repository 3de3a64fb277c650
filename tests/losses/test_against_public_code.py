"""Losses against numbers that the methods' own public code gave, in float64 on inputs that a formula makes.

A number is a value, and the Euclidean length of the gradient at what the student gave.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdengine.api import Batch, Loss, Output
from kdengine.losses import FSP, ICD, OFD, VID, Factor, Hint, MultiLevel, ReviewKD
from kdengine.losses.relations.contrast import contrast
from kdengine.projectors.projectors import auto
from tests.losses.outputs import batch_of
from tests.losses.papers import hints, relations

SAME = 1e-9


def wave(phase: float, *shape: int) -> Tensor:
    """The sine of ``0.7 n + phase`` over the elements n of a tensor."""
    return torch.sin(0.7 * torch.arange(math.prod(shape), dtype=torch.float64) + phase).reshape(shape)


STUDENT, TEACHER = wave(0, 4, 6, 8, 8), wave(1.5, 4, 6, 8, 8)
SMALL_STUDENT, SMALL_TEACHER = wave(2, 4, 5, 4, 4), wave(3, 4, 5, 4, 4)

Named = Mapping[str, Tensor]


def prepared(loss: Loss, student: Named, teacher: Named, module: nn.Module | None = None) -> tuple[Loss, Batch]:
    """A loss after its setup, in float64, and the batch that it sees."""
    batch = Batch(torch.zeros(4, 1))
    batch.student = Output(None, None, {name: feature.clone().requires_grad_() for name, feature in student.items()})
    batch.teacher = Output(None, None, dict(teacher), module)
    if isinstance(loss.projector, str):
        loss.projector = auto
    loss.setup(batch)
    return loss.double(), batch


def measured(loss: Loss, batch: Batch) -> tuple[float, float]:
    """The mean over items of the sum of all terms, and the length of its gradient."""
    values: Any = loss.per_item(batch) if loss.scope == "item" else loss.value(batch)
    terms = values.values() if isinstance(values, Mapping) else [values]
    total = torch.stack([term.mean() for term in terms]).sum()
    gradients = torch.autograd.grad(total, list(batch.student.features.values()))
    return total.item(), torch.stack([gradient.norm() for gradient in gradients]).norm().item()


@torch.no_grad()
def fill(parameters: Any, factors: Any, phases: Any) -> None:
    """Give parameters in turn the values of waves."""
    for parameter, factor, phase in zip(parameters, factors, phases, strict=True):
        parameter.copy_(factor * wave(phase, *parameter.shape))


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [part for part in module.modules() if isinstance(part, nn.Conv2d)]


def test_fsp_with_average_pooling():
    ends = ["first", "last"]
    student = {"first": STUDENT, "last": SMALL_STUDENT}
    loss = prepared(FSP(ends, ends), student, {"first": TEACHER, "last": SMALL_TEACHER})
    assert measured(*loss) == pytest.approx((0.00101822120981, 0.00181668087765), rel=SAME, abs=0)


def test_fsp_with_max_pooling():
    ends = ["first", "last"]
    student = {"first": STUDENT, "last": SMALL_STUDENT}
    loss = prepared(FSP(ends, ends, pool="max"), student, {"first": TEACHER, "last": SMALL_TEACHER})
    assert measured(*loss)[0] == pytest.approx(0.00329032345586, rel=SAME, abs=0)


def test_vid():
    loss, batch = prepared(VID("f", "f"), {"f": STUDENT}, {"f": TEACHER})
    fill([layer.weight for layer in convolutions(loss.learned)], [0.5] * 3, range(3))
    assert measured(loss, batch) == pytest.approx((0.858638544298, 0.000373817287748), rel=SAME, abs=0)


def test_ofd():
    normalization = nn.BatchNorm2d(6).double()
    with torch.no_grad():
        normalization.weight.copy_(1 + 0.5 * wave(3, 6))
        normalization.bias.copy_(wave(4, 6))
    loss, batch = prepared(OFD("f", "f"), {"f": STUDENT}, {"f": TEACHER}, nn.ModuleDict({"f": normalization}))
    fill([layer.weight for layer in convolutions(loss.learned)], [0.5], [2])
    value, slope = (0.001 * number for number in measured(loss, batch))
    assert (value, slope) == pytest.approx((0.496122339992, 0.00571035799784), rel=2e-9, abs=0)


def test_factor_transfer():
    loss, batch = prepared(Factor("f", "f", reconstruction_weight=0.0), {"f": STUDENT}, {"f": TEACHER})
    fill(loss.learned[0].translator.parameters(), [0.3] * 6, range(6))
    fill(loss.learned[0].paraphraser.parameters(), [0.3] * 6, range(20, 26))
    assert measured(loss, batch) == pytest.approx((30.1586336223, 11.9177235854), rel=SAME, abs=0)


def test_reviewkd():
    names = ["shallow", "deep", "vector"]
    students = dict(zip(names, (STUDENT, SMALL_STUDENT, wave(5, 4, 5)), strict=True))
    teachers = dict(zip(names, (wave(1.5, 4, 9, 8, 8), wave(3, 4, 7, 4, 4), wave(6, 4, 7)), strict=True))
    loss, batch = prepared(ReviewKD(names, names), students, teachers)
    for at, fusion in enumerate(loss.learned):
        fill([fusion.enter[0].weight, fusion.leave[0].weight], [0.4, 0.2], [10 * at, 10 * at + 1])
        if fusion.attention is not None:
            fill([fusion.attention.weight, fusion.attention.bias], [0.3, 0.1], [10 * at + 2, 10 * at + 3])
    assert measured(loss, batch) == pytest.approx((3.40042285534, 0.192953964682), rel=SAME, abs=0)


def test_icd_of_unequal_channels():
    loss, batch = prepared(ICD("f", "f", normalize=True), {"f": wave(0, 4, 6, 4, 4)}, {"f": SMALL_TEACHER})
    fill([loss.projections[0].conv.weight], [0.5], [2])
    assert measured(loss, batch) == pytest.approx((1.32810353921, 0.0577533779172), rel=SAME, abs=0)


def test_icd_of_equal_channels_which_the_code_projects():
    student, teacher = {"f": SMALL_STUDENT}, {"f": SMALL_TEACHER}
    loss, batch = prepared(ICD("f", "f", normalize=True, always_project=True), student, teacher)
    fill([loss.projections[0].conv.weight], [0.5], [2])
    assert measured(loss, batch)[0] == pytest.approx(1.8966286799, rel=SAME, abs=0)
    plain = measured(*prepared(ICD("f", "f", normalize=True), student, teacher))
    assert plain[0] == pytest.approx(0.0134633423936, rel=SAME, abs=0)


def test_the_hint_of_public_code_has_no_half():
    public, paper = (
        measured(*prepared(Hint("f", "f", half=half), {"f": STUDENT}, {"f": TEACHER})) for half in (False, True)
    )
    assert public[0] == pytest.approx(0.929259829802, rel=SAME, abs=0)
    assert paper == pytest.approx((0.464629914901, public[1] / 2), rel=SAME, abs=0)
    assert measured(*prepared(Hint("f", "f"), {"f": STUDENT}, {"f": TEACHER})) == paper


def test_multi_level_standardises_the_soft_term_alone():
    batch = batch_of(5 * wave(0, 8, 10), 5 * wave(1, 8, 10))
    found = {given: MultiLevel(standardize=given).value(batch) for given in (True, "all", False)}
    levels = {given: [float(terms[name]) for name in ("batch", "class")] for given, terms in found.items()}
    assert levels[True] == levels[False] == pytest.approx([0.00240615506, 0.0107330935], rel=3e-9, abs=0)
    assert levels["all"] == pytest.approx([2.7597694e-05, 0.000676621972], rel=2e-9, abs=0)
    assert found[True]["instance"] == found["all"]["instance"] != found[False]["instance"]


def unit_rows(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


OWN = torch.tensor([3, 0, 11])
NEGATIVES = torch.tensor([[1, 2, 5, 19, 7], [4, 4, 8, 13, 16], [0, 6, 9, 10, 18]])
CRD_VALUE, CRD_SLOPE = 16.9593465456, 11.119569309
"""Of the published contrast, which adds 1e-7 to a denominator."""


def test_the_contrast_of_crd():
    anchors, bank = unit_rows(wave(0, 3, 4)).requires_grad_(), unit_rows(wave(1, 20, 4))
    counts = torch.zeros(3, 20, dtype=torch.float64).scatter_add_(1, NEGATIVES, torch.ones(3, 5, dtype=torch.float64))
    shift = torch.tensor(30 * 5 / 20, dtype=torch.float64).log()
    value = contrast(anchors, bank, OWN, counts, temperature=0.07, shift=shift).mean()
    (gradient,) = torch.autograd.grad(value, anchors)
    assert value.item() == pytest.approx(CRD_VALUE, rel=1.5e-7, abs=0)
    assert gradient.norm().item() == pytest.approx(CRD_SLOPE, rel=1e-7, abs=0)


def test_the_transcription_of_crd_has_the_digits_of_the_code_with_its_small_constant():
    anchors, bank = unit_rows(wave(0, 3, 4)).requires_grad_(), unit_rows(wave(1, 20, 4))
    value = relations.crd_nce(anchors, bank[OWN], bank[NEGATIVES], Z=30, N=20, T=0.07, eps=1e-7).mean()
    (gradient,) = torch.autograd.grad(value, anchors)
    assert value.item() == pytest.approx(CRD_VALUE, rel=SAME, abs=0)
    assert gradient.norm().item() == pytest.approx(CRD_SLOPE, rel=SAME, abs=0)


SIZES: dict[tuple[int, int], Callable[[Tensor], Tensor]] = {
    (4, 4): lambda teacher: teacher.repeat_interleave(2, 2).repeat_interleave(2, 3),
    (16, 16): lambda teacher: teacher.unflatten(3, (8, 2)).unflatten(2, (8, 2)).mean(dim=(3, 5)),
    (4, 16): lambda teacher: teacher.repeat_interleave(2, 2).unflatten(3, (8, 2)).mean(dim=4),
}
"""Teachers' sizes beside a student of 8 x 8, and what brings them to it."""


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_teacher_of_ofd_comes_to_the_size_of_the_student(size):
    teacher = wave(3, 4, 5, *size)
    loss, batch = prepared(OFD("f", "f", margin=-0.3, norm="none"), {"f": STUDENT}, {"f": teacher})
    (convolution,) = convolutions(loss.learned)
    fill([convolution.weight], [0.5], [2])
    target = hints.margin_relu(SIZES[size](teacher), torch.full((5,), -0.3, dtype=torch.float64))
    expected = hints.partial_l2(torch.einsum("oi,bihw->bohw", convolution.weight[:, :, 0, 0], STUDENT), target)
    assert loss.per_item(batch).tolist() == pytest.approx(expected.tolist(), rel=1e-12, abs=0)
