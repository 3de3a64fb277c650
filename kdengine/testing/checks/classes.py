"""Classes without probability: a divergence is a sum over classes, and more of nothing changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from kdengine.api import Batch
from kdengine.testing.case import Case, Sample, differentiate, remembered, terms_of
from kdengine.testing.samples import change, differentiable
from kdengine.testing.trial import Trial, promises

NEVER = -1e5
"""A logit whose softmax is exactly 0 at any usual temperature."""
SAME = 1e-9

Terms = Mapping[str, tuple[Tensor, Tensor]]
"""Values of each term, and its gradient at the first classes."""


@promises(
    "classes", "a term on softmax probabilities is a sum over classes: classes without probability change nothing"
)
def classes(case: Case, trial: Trial) -> None:
    """As many classes again, of a very low logit and masked by -inf.

    A term is on softmax probabilities if it sees neither how low the logits of such classes are nor a shift of all
    logits of an item. So an error of logits, a term on sigmoids and standardised logits are left alone.
    """
    made = case.make()
    if not (case.item_scope and made.needs.logits and made.needs.teacher):
        trial.skip("it is no loss of scope 'item' between logits")
    if list(made.parameters()):
        trial.skip("it has parameters of its own, whose shapes the classes may decide")
    plain = _terms(case, None)
    try:
        low, lower = _terms(case, _pad(NEVER, NEVER)), _terms(case, _pad(2 * NEVER, 3 * NEVER, spread=True))
    except Exception as error:
        trial.skip(f"it takes no other number of classes ({type(error).__name__}: {error})")
    concerned = [term for term in low if plain[term][1].any() and _agree(low[term], lower[term])]
    if not concerned:
        trial.skip("no term is on softmax probabilities: each sees how low a logit without probability is")
    trial.tries(f"{', '.join(concerned)} with as many classes again, their logits {NEVER:g} and -inf")
    for term in concerned:
        _same(trial, f"with twice as many classes, the new ones without probability, {term!r}", low[term], plain[term])
    masked = _terms(case, _pad(-torch.inf, -torch.inf))
    for term in concerned:
        what = f"with masked classes (logits of -inf on both sides), {term!r}"
        values, slopes = masked[term]
        advice = "; a probability of 0 times infinity is NaN: fill in 0 where the probability is 0"
        trial.require(bool(values.isfinite().all()), f"{what} is not finite{advice}")
        trial.require(bool(slopes.isfinite().all()), f"{what} has a gradient that is not finite{advice}")
        _same(trial, what, masked[term], plain[term])


def _same(trial: Trial, what: str, got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    ratio = float(got[0].sum() / expected[0].sum())
    said = f"{what} is {ratio:.3g} times what it was (does it divide by the number of classes?), it"
    trial.close(said, [got[0]], [expected[0]], SAME)
    trial.close(f"{what}: its gradient", [got[1]], [expected[1]], SAME)


def _agree(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return all(bool(((a - b).abs().max() <= SAME * b.abs().max()).item()) for a, b in zip(one, other, strict=True))


def _terms(case: Case, pad: Callable[[Batch], Batch] | None) -> Terms:
    """Values and gradients of every term, with classes added to the batch, for the loss's setup as well."""
    width = case.batch().student.logits.shape[-1]
    if pad is not None:
        case = replace(case, sample=_padded(case, pad))
    loss = case.make()
    batch, _ = differentiable(case.batch())
    logits = batch.student.logits
    with remembered(loss):
        return {
            term: (value.detach(), differentiate(value.sum(), [logits])[0][..., :width])
            for term, value in terms_of(loss, batch).items()
        }


def _padded(case: Case, pad: Callable[[Batch], Batch]) -> Sample:
    def sample(size: int, generator: torch.Generator) -> Batch:
        return pad(case.batch(size, generator.initial_seed()))

    return sample


def _pad(student: float, teacher: float, *, spread: bool = False) -> Callable[[Batch], Batch]:
    """Add as many classes as there are, with these logits.

    Args:
        student: logit of the new classes.
        teacher: likewise.
        spread: whether they differ, opposite ways in student and teacher, and all logits of an item are shifted.
    """

    def widen(batch: Batch) -> Batch:
        labels, shift = batch.labels, 1.0 if spread else 0.0
        wide = change(batch, lambda tensor: tensor, _append(student, shift), _append(teacher, -2 * shift))
        if labels is not None and labels.is_floating_point() and labels.shape == batch.student.logits.shape:
            wide.labels = _append(0.0)(labels)
        return wide

    return widen


def _append(value: float, shift: float = 0.0) -> Callable[[Tensor], Tensor]:
    def append(tensor: Tensor) -> Tensor:
        new = torch.full_like(tensor, value)
        if shift:
            steps = torch.arange(tensor.shape[-1], dtype=tensor.dtype) / tensor.shape[-1]
            new = new * (1 + (steps if shift > 0 else 1 - steps))
        return torch.cat([tensor + shift, new], dim=-1)

    return append
