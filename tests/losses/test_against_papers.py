"""Every method against the transcription of its paper: value and gradient, on random and on adversarial inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from kdengine.api import Batch, Loss, Output
from kdengine.engine.objective import Objective
from kdengine.losses import (
    AB,
    BCE,
    CC,
    CRD,
    DIST,
    DKD,
    FSP,
    ICD,
    JSD,
    KD,
    MSE,
    NKD,
    NST,
    OFD,
    PKT,
    RKD,
    SP,
    TVD,
    VID,
    WSLD,
    Attention,
    BinaryKL,
    Cosine,
    Factor,
    Hard,
    Hint,
    LogitMSE,
    MultiLevel,
    ReverseKL,
    ReviewKD,
    SoftCE,
    kdengine_losses,
)
from kdengine.losses.hints import LOSSES as of_features
from kdengine.losses.logits import LOSSES as of_logits
from kdengine.losses.relations import LOSSES as of_relations
from kdengine.losses.relations.negatives import count_negatives
from kdengine.projectors.projectors import auto
from tests.losses.outputs import batch_of
from tests.losses.papers import hints, logits, relations

ITEMS, CLASSES = 6, 5
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
TOLERANCE = 1e-8
"""Of the largest element that the paper gives; so a loss that is 0 everywhere passes nowhere."""
ROUNDING = 16 * torch.finfo(torch.float64).eps
"""Of a sum of probabilities times logits, which are about 1, however small it is itself."""

Terms = tuple[Tensor, ...]
"""The paper's value of each term: of shape (), or (B,), of which the engine takes the mean."""


@dataclass(frozen=True)
class OfLogits:
    """A loss, and its terms by the paper, ``paper(s, t, y)``."""

    loss: Callable[[], Loss]
    paper: Callable[[Tensor, Tensor, Tensor], Terms]
    tolerance: float = TOLERANCE


@dataclass(frozen=True)
class OfFeatures:
    """A loss on features, their shapes in both models, and its terms by the paper, ``paper(loss, s, t)``.

    What a loss has learned (projectors, variances) is applied by the loss itself, and is no part of the comparison.
    """

    loss: Callable[[], Loss]
    paper: Callable[[Any, Sequence[Tensor], Sequence[Tensor]], Terms]
    student: tuple[tuple[int, ...], ...] = ((3, 4, 4),)
    teacher: tuple[tuple[int, ...], ...] = ((3, 4, 4),)


def standardized(z: Tensor) -> Tensor:
    return logits.standardize(z, eps=1e-7, unbiased=False)


LOGITS = {
    "kd": OfLogits(lambda: KD(3.0), lambda s, t, _: (logits.kd(s, t, 3.0),)),
    "kd standardized": OfLogits(
        lambda: KD(3.0, standardize=True), lambda s, t, _: (logits.kd(standardized(s), standardized(t), 3.0),)
    ),
    "logit_mse": OfLogits(LogitMSE, lambda s, t, _: (logits.logit_mse_code(s, t, center=False),)),
    "logit_mse centred": OfLogits(
        lambda: LogitMSE(center=True), lambda s, t, _: (logits.logit_mse_code(s, t, center=True),)
    ),
    "reverse_kl": OfLogits(lambda: ReverseKL(2.0), lambda s, t, _: (logits.reverse_kl(s, t, 2.0),)),
    "jsd": OfLogits(lambda: JSD(2.0, beta=0.3), lambda s, t, _: (logits.jsd(s, t, 2.0, 0.3),)),
    "tvd": OfLogits(lambda: TVD(2.0), lambda s, t, _: (logits.tvd(s, t, 2.0),)),
    "dkd": OfLogits(DKD, lambda s, t, y: logits.dkd(s, t, y, 4.0, 1.0, 8.0)),
    "nkd": OfLogits(lambda: NKD(2.0), lambda s, t, y: logits.nkd(s, t, y, 2.0, 1.5)),
    "dist": OfLogits(lambda: DIST(4.0, beta=2.0), lambda s, t, _: logits.dist(s, t, 4.0, 2.0, 1.0)),
    "wsld": OfLogits(WSLD, lambda s, t, y: (logits.wsld(s, t, y, 2.0),)),
    "multi_level": OfLogits(lambda: MultiLevel([2.0, 3.0]), lambda s, t, _: logits.multi_level(s, t, [2.0, 3.0])),
    "multi_level standardized": OfLogits(
        lambda: MultiLevel([2.0, 3.0], standardize=True),
        lambda s, t, _: (
            logits.multi_level(standardized(s), standardized(t), [2.0, 3.0])[0],
            *logits.multi_level(s, t, [2.0, 3.0])[1:],
        ),
    ),
    "soft_ce": OfLogits(SoftCE, lambda s, t, _: (logits.soft_ce(s, t, 4.0),)),
    "hard": OfLogits(Hard, lambda s, t, _: (logits.hard(s, t),)),
    "mse": OfLogits(MSE, lambda s, t, _: (logits.mse(s, t),)),
    "bce": OfLogits(lambda: BCE(2.0), lambda s, t, _: (logits.bce(s, t, 2.0),)),
    "binary_kl": OfLogits(lambda: BinaryKL(2.0), lambda s, t, _: (logits.binary_kl(s, t, 2.0),)),
    "rkd": OfLogits(
        RKD, lambda s, t, _: (25.0 * relations.rkd_distance_code(s, t), 50.0 * relations.rkd_angle_code(s, t))
    ),
    "sp": OfLogits(SP, lambda s, t, _: (relations.sp(s, t),)),
    "cc": OfLogits(CC, lambda s, t, _: (relations.cc(s, t, 0.4, 2),)),
    # 1e-7 is added to the kernel, whose logarithm would be infinite between opposite items
    "pkt": OfLogits(PKT, lambda s, t, _: (relations.pkt(s, t) / len(s),), tolerance=1e-5),
}

FEATURES = {
    "hint": OfFeatures(
        lambda: Hint("0", "0"),
        lambda loss, s, t: (hints.hint(loss.regressors[0](s[0]), t[0]) / t[0][0].numel(),),
        teacher=((4, 2, 2),),
    ),
    "hint without the half": OfFeatures(
        lambda: Hint("0", "0", half=False),
        lambda loss, s, t: (hints.hint_code(loss.regressors[0](s[0]), t[0]),),
        teacher=((4, 2, 2),),
    ),
    "attention": OfFeatures(
        lambda: Attention("0", "0"), lambda _, s, t: (hints.attention_code(s[0], t[0], 2),), teacher=((5, 4, 4),)
    ),
    "attention by its norm": OfFeatures(
        lambda: Attention("0", "0", distance="norm"), lambda _, s, t: (hints.attention(s[0], t[0], 2),)
    ),
    "nst": OfFeatures(lambda: NST("0", "0"), lambda _, s, t: (hints.nst_polynomial(s[0], t[0]),), teacher=((5, 4, 4),)),
    "nst linear": OfFeatures(lambda: NST("0", "0", kernel="linear"), lambda _, s, t: (hints.nst_linear(s[0], t[0]),)),
    "fsp of layers of unequal sizes": OfFeatures(
        lambda: FSP(["0", "1"], ["0", "1"]),
        lambda _, s, t: (hints.fsp_code(*hints.one_size(s[0], s[1]), *hints.one_size(t[0], t[1])),),
        student=((3, 8, 8), (2, 4, 4)),
        teacher=((3, 3, 5), (2, 6, 5)),
    ),
    "fsp with max pooling": OfFeatures(
        lambda: FSP(["0", "1"], ["0", "1"], pool="max"),
        lambda _, s, t: (hints.fsp_code(*hints.one_size(s[0], s[1], max_=True), *hints.one_size(*t, max_=True)),),
        student=((3, 8, 8), (2, 4, 4)),
        teacher=((3, 3, 5), (2, 6, 5)),
    ),
    "fsp": OfFeatures(
        lambda: FSP(["0", "1"], ["0", "1"]),
        lambda _, s, t: (hints.fsp_code(s[0], s[1], t[0], t[1]),),
        student=((3, 4, 4), (2, 4, 4)),
        teacher=((3, 4, 4), (2, 4, 4)),
    ),
    "ofd": OfFeatures(
        lambda: OFD("0", "0", margin=-0.2, norm="none"),
        lambda loss, s, t: (
            hints.partial_l2(
                loss.learned[0].connector(s[0]), hints.margin_relu(t[0], torch.full((5,), -0.2, dtype=torch.float64))
            ),
        ),
        teacher=((5, 4, 4),),
    ),
    "vid": OfFeatures(
        lambda: VID("0", "0"),
        lambda loss, s, t: (hints.vid_code(loss.learned[0].mean(s[0]), t[0], loss.learned[0].alpha, 1e-5),),
        teacher=((5, 4, 4),),
    ),
    "reviewkd": OfFeatures(
        lambda: ReviewKD(["0", "1"], ["0", "1"], norm="none"),
        lambda loss, s, t: tuple(hints.hcl(*maps) for maps in zip(reviewed(loss, s), t, strict=True)),
        student=((3, 8, 8), (4, 4, 4)),
        teacher=((5, 8, 8), (6, 4, 4)),
    ),
    "cosine": OfFeatures(
        lambda: Cosine("0", "0"),
        lambda loss, s, t: (hints.cosine(loss.learned[0](s[0]), t[0]),),
        teacher=((5, 4, 4),),
    ),
    "ab": OfFeatures(
        lambda: AB("0", "0", norm="none"),
        lambda loss, s, t: (hints.ab(loss.learned[0](s[0]), t[0], 1.0),),
        teacher=((5, 4, 4),),
    ),
    "factor": OfFeatures(
        lambda: Factor("0", "0", p=2),
        lambda loss, s, t: (
            500.0 * hints.factor_code(loss.learned[0].translator(s[0]), loss.learned[0].paraphraser(t[0]).detach(), 2),
            (t[0] - loss.learned[0].decoder(loss.learned[0].paraphraser(t[0]))).square().flatten(1).mean(dim=1),
        ),
        teacher=((5, 4, 4),),
    ),
    "icd": OfFeatures(lambda: ICD("0", "0", batch_norm=False), lambda _, s, t: (relations.icd(s[0], t[0]),)),
    "icd normalized": OfFeatures(
        lambda: ICD("0", "0", normalize=True, batch_norm=False), lambda _, s, t: (relations.icd_code(s[0], t[0]),)
    ),
    "icd that always projects": OfFeatures(
        lambda: ICD("0", "0", normalize=True, batch_norm=False, always_project=True),
        lambda loss, s, t: (relations.icd_code(loss.projections[0](s[0].flatten(2)), t[0].flatten(2)),),
    ),
    "rkd of features": OfFeatures(
        lambda: RKD(student="0", teacher="0"),
        lambda _, s, t: (
            25.0 * relations.rkd_distance_code(s[0], t[0]),
            50.0 * relations.rkd_angle_code(s[0], t[0]),
        ),
        teacher=((7,),),
    ),
}


def reviewed(loss: Any, students: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """What the fusions of two levels give, from the deeper one to the shallower one."""
    shallow, deep = loss.learned
    second, handed_on = deep(students[1], None, torch.Size((4, 4)))
    return shallow(students[0], handed_on, torch.Size((8, 8)))[0], second


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(seed: int, scale: float = 1.0) -> Tensor:
    return normal(ITEMS, CLASSES, seed=seed, scale=scale)


def one_hot(large: float, seed: int) -> Tensor:
    """Rows with one large logit; the others differ, since equal probabilities are a kink of some losses."""
    return large * torch.nn.functional.one_hot(torch.arange(ITEMS) % CLASSES, CLASSES).double() + rows(seed)


INPUTS = {
    "random": (rows(0), rows(1)),
    "peaked": (rows(2, 10.0), rows(3, 10.0)),
    "shifted far from zero": (rows(4) + 1000.0, rows(5) - 1000.0),
    "nearly equal": (rows(6) + 1e-4 * rows(7), rows(6)),
    "a certain teacher": (rows(8), one_hot(30.0, 11)),
    "a student certain of the wrong class": (one_hot(30.0, 12).roll(1, dims=1), one_hot(30.0, 11)),
    "a student that knows nothing": (1e-3 * rows(9), rows(10, 3.0)),
}
"""Logits of student and teacher."""

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "random": lambda feature: feature,
    "after a ReLU": torch.relu,
    "large": lambda feature: 30.0 * feature,
    "tiny": lambda feature: 1e-4 * feature,
    "a channel of zeros": lambda feature: feature.index_fill(1, torch.tensor([0]), 0.0),
}
"""What features may be like."""


def by_engine(loss: Loss, batch: Batch) -> Tensor:
    """What the engine differentiates: each term's mean over the items."""
    objective = Objective({"loss": loss}, {})
    objective.place(torch.device("cpu"), torch.float64)
    masks = objective.masks(batch)
    counts = objective.count(batch, masks)
    return objective.evaluate(batch, masks, counts, counts)[0]


def by_paper(terms: Terms) -> Tensor:
    return torch.stack([term.mean() for term in terms]).sum()


def assert_same(
    got: Tensor, expected: Tensor, leaves: Sequence[Tensor], tolerance: float = TOLERANCE, rounding: float = 0.0
) -> None:
    """Two values of the same inputs, and their gradients."""
    assert_close(got.detach(), expected.detach(), "value", tolerance, rounding)
    for own, papers in zip(*(torch.autograd.grad(value, leaves) for value in (got, expected)), strict=True):
        assert_close(own, papers, "gradient", tolerance, rounding)


def assert_close(got: Tensor, expected: Tensor, what: str, tolerance: float, rounding: float) -> None:
    size = float(expected.abs().max())
    worst = float((got - expected).abs().max())
    allowed = max(tolerance * size, rounding)
    assert allowed < size, f"a {what} of 0 would pass beside {size:.3g}: these inputs test nothing"
    assert worst <= allowed, f"the {what} differs by {worst:.3g}, beside {size:.3g}"


@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("method", LOGITS.values(), ids=LOGITS)
def test_a_loss_on_logits_is_its_papers(method, inputs):
    student, teacher = inputs[0].clone().requires_grad_(), inputs[1]
    got = by_engine(method.loss(), batch_of(student, teacher, LABELS))
    assert_same(got, by_paper(method.paper(student, teacher, LABELS)), [student], method.tolerance, ROUNDING)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("method", FEATURES.values(), ids=FEATURES)
def test_a_loss_on_features_is_its_papers(method, kind):
    students = [kind(normal(ITEMS, *shape, seed=at)).requires_grad_() for at, shape in enumerate(method.student)]
    teachers = [kind(normal(ITEMS, *shape, seed=10 + at)) for at, shape in enumerate(method.teacher)]
    batch = Batch(torch.zeros(ITEMS, 1))
    batch.student = Output(None, None, {str(at): feature for at, feature in enumerate(students)})
    batch.teacher = Output(None, None, {str(at): feature for at, feature in enumerate(teachers)})
    torch.manual_seed(0)
    loss = prepared(method.loss(), batch)
    assert_same(by_engine(loss, batch), by_paper(method.paper(loss, students, teachers)), students)


def prepared(loss: Loss, batch: Batch) -> Loss:
    """A loss as a fit has it after its setup."""
    if isinstance(loss.projector, str):
        loss.projector = auto
    loss.setup(batch)
    return loss.double()


def test_crd_is_its_papers():
    items, negatives = 40, 12
    torch.manual_seed(0)
    student, teacher = rows(0).requires_grad_(), rows(1)
    batch = batch_of(student, teacher)
    batch.index = torch.tensor([3, 39, 0, 11, 7, 20])
    loss = prepared(CRD(items=items, feat_dim=4, nce_k=negatives), batch)
    own = batch.index
    counts = count_negatives(loss.key, loss.steps, own, items, negatives, torch.float64)
    drawn = torch.stack([torch.arange(items).repeat_interleave(row.long()) for row in counts])

    def of_side(anchors, bank, log_z):
        z = items * float(log_z.exp())
        return relations.crd_nce(anchors, bank[own], bank[drawn], Z=z, N=items, T=0.07)

    s, t = (unit_rows(part) for part in (loss.student_map(student), loss.teacher_map(teacher)))
    expected = of_side(s, loss.teacher_bank.embeddings, loss.log_z[0])
    expected = expected + of_side(t, loss.student_bank.embeddings, loss.log_z[1])
    assert_same(by_engine(loss, batch), expected.mean(), [student, *loss.teacher_map.parameters()])


def unit_rows(z: Tensor) -> Tensor:
    return z / z.square().sum(dim=-1, keepdim=True).sqrt()


TRANSCRIPTIONS = {
    name: f"`papers.{folder}`"
    for folder, losses in {"logits": of_logits, "hints": of_features, "relations": of_relations}.items()
    for name in losses
    if name in (*LOGITS, *FEATURES, "crd")
}
"""What docs/methods.md says of each method."""


def test_every_method_is_compared_with_its_paper():
    assert set(kdengine_losses()) - {*LOGITS, *FEATURES} == {"ce", "crd"}
