"""Hints: layers of the student that regress layers of the teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdengine.api import Batch
from kdengine.losses.hints.pairs import FeatureLoss, Paths


class Hint(FeatureLoss):
    """Mean squared error between projected features of the student and features of the teacher (FitNets).

    ``1/2 || u_h(x) - r(v_g(x)) ||^2`` (Romero et al. 2015, equation 3), with the square averaged over the feature's
    elements, and the mean over pairs; r is a pair's regressor, trained with the student and left out of its export.

    Public codes (RepDistiller and those after it) average the square without the paper's 1/2: ``half=False`` is theirs,
    and so are its weights. With the default, a weight from there counts half as much: write it doubled.

    Shapes:
        features ``(B, ...)`` of any kind that the projector maps to one another, in float16, bfloat16 or wider.

    References:
        Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3; arXiv:1412.6550

    Args:
        student: path of a module of the student, or several, with wildcards if wanted (``layer?``); ``fc:input`` is
            what goes in.
        teacher: paths of modules of the teacher, as many.
        projector: name of a projector (``auto`` chooses by the shapes, and takes none where they are equal), or a
            factory ``fn(student_shape, teacher_shape) -> nn.Module``; each pair has its own.
        half: whether the square has the factor 1/2 of the paper.

    Example:
        >>> Hint(student="layer3", teacher="layer3").needs.student_features
        ('layer3',)
        >>> Hint(student=["layer?", "fc:input"], teacher=["layer?", "fc:input"]).needs.teacher_features
        ('layer?', 'fc:input')
    """

    def __init__(
        self,
        student: Paths,
        teacher: Paths,
        projector: str | Callable[..., nn.Module] = "auto",
        half: bool = True,
    ) -> None:
        super().__init__(student, teacher)
        self.projector = projector
        self.factor = 0.5 if half else 1.0  # no attribute half, which is a method of every module
        self.regressors = nn.ModuleList()

    def setup(self, example: Batch) -> None:
        """Make a regressor for the shapes of each pair, without their batch dimension."""
        self.regressors = self.make_projectors(example)

    def per_item(self, batch: Batch) -> Tensor:
        """Average the squared error of each item over a feature's elements, then over pairs, ``(B,)``."""
        errors = []
        for regressor, (student, teacher) in zip(self.regressors, self.pairs(batch), strict=True):
            errors.append((regressor(student) - teacher).square().flatten(1).mean(dim=1))
        return self.factor * torch.stack(errors).mean(dim=0)
