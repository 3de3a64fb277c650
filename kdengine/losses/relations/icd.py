"""Correlations between the channels of a feature."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kdengine.api import Batch, ConfigurationError
from kdengine.losses.hints.pairs import FeatureLoss, Paths
from kdengine.losses.relations.embeddings import unit


class ICD(FeatureLoss):
    """Inter-channel correlation: the student's channels are as alike as the teacher's.

    ``1/c^2 || G(F_t) - G(P(F_s)) ||_F^2`` per item (Liu et al. 2021, section 3), where F holds one of c channels in
    each row, ``G(F) = F F^T`` sums over positions, and P is a 1x1 convolution with batch normalisation where the
    numbers of channels differ, trained with the student and left out of its export.

    The published code compares matrices whose rows have length 1, and divides by c: ``normalize``. It also has P where
    the numbers of channels are equal: ``always_project``. Together they are its loss, and its weight is theirs. Without
    ``normalize`` the gradient grows with the third power of the activations: choose the weight accordingly, and not
    float16.

    With ``batch_norm`` the scope is ``"batch"``, since the statistics are those of a micro-batch, and the value is the
    mean over items; without, it is ``"item"``: any split of a batch gives the same gradient.

    References:
        Liu et al., "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation", ICCV 2021,
        section 3; arXiv:2202.03680

    Args:
        student: paths of features in the student: maps ``(B, C, ...)``, tokens ``(B, tokens, C)`` or vectors. Of
            several pairs the values are added.
        teacher: as many paths in the teacher; the features of a pair have equally many positions.
        normalize: whether each row of G is divided by its length, and the sum by c instead of c^2.
        batch_norm: whether P normalises over the batch.
        always_project: whether P stands between equal numbers of channels as well.

    Example:
        >>> ICD("layer4", "layer4").scope, ICD("layer4", "layer4", batch_norm=False).scope
        ('batch', 'item')
    """

    at_equality: ClassVar[Literal["zero", "minimum"] | None] = "zero"

    def __init__(
        self,
        student: Paths,
        teacher: Paths,
        normalize: bool = False,
        batch_norm: bool = True,
        always_project: bool = False,
    ) -> None:
        super().__init__(student, teacher)
        self.normalize = normalize
        self.batch_norm = batch_norm
        self.always_project = always_project
        if always_project:
            self.at_equality = None  # type: ignore[misc]  # what P makes of the teacher's feature is another one
        self.projections = nn.ModuleList()
        if batch_norm:
            self.scope = "batch"  # type: ignore[misc]  # a property of the arguments here, of the class elsewhere

    def setup(self, example: Batch) -> None:
        """Make a projection for each pair, by default where the numbers of channels differ."""
        pairs = [(student.shape[1], teacher.shape[1]) for student, teacher in self.channels(example)]
        self.projections = nn.ModuleList(
            Projection(student, teacher, batch_norm=self.batch_norm)
            if self.always_project or student != teacher
            else nn.Identity()
            for student, teacher in pairs
        )

    def per_item(self, batch: Batch) -> Tensor:
        """The squared difference of each item's correlations, ``(B,)``."""
        pairs = zip(self.projections, self.channels(batch), strict=True)
        values = [self.distance(project(student), teacher) for project, (student, teacher) in pairs]
        return torch.stack(values).sum(dim=0)

    def value(self, batch: Batch) -> Tensor:
        """The mean over items."""
        return self.per_item(batch).mean()

    def channels(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """The features of each pair as ``(B, C, positions)``.

        Raises:
            ConfigurationError: the numbers of positions differ.
        """
        pairs = [(by_channel(student), by_channel(teacher)) for student, teacher in self.pairs(batch)]
        for at, (student, teacher) in enumerate(pairs):
            if student.shape[2] != teacher.shape[2]:
                raise ConfigurationError(
                    f"icd: pair {at + 1} of student={list(self.student)} and teacher={list(self.teacher)} has "
                    f"{student.shape[2]} positions in the student and {teacher.shape[2]} in the teacher; expected "
                    "equally many, over which correlations are summed: name layers of the same height and width"
                )
        return pairs

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of features ``(B, C, positions)``: ``(B,)``."""
        ours, theirs = (feature @ feature.transpose(1, 2) for feature in (student, teacher))
        if not self.normalize:
            return (ours - theirs).square().mean(dim=(1, 2))
        return (unit(ours) - unit(theirs)).square().sum(dim=2).mean(dim=1)


def by_channel(feature: Tensor) -> Tensor:
    """A map ``(B, C, ...)``, tokens ``(B, tokens, C)`` or vectors ``(B, C)`` as ``(B, C, positions)``.

    >>> [tuple(by_channel(torch.zeros(2, *shape)).shape) for shape in ((3, 4, 5), (7, 3), (3,))]
    [(2, 3, 20), (2, 3, 7), (2, 3, 1)]
    """
    if feature.ndim == 3:
        return feature.transpose(1, 2)
    return feature.flatten(2) if feature.ndim > 3 else feature[:, :, None]


class Projection(nn.Module):
    """A 1x1 convolution of ``(B, C, positions)`` to another number of channels, and batch normalisation where asked.

    Args:
        student: channels that come in.
        teacher: channels that come out.
        batch_norm: whether they are normalised.
    """

    def __init__(self, student: int, teacher: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(student, teacher, 1, bias=False)
        self.norm = nn.BatchNorm1d(teacher) if batch_norm else None

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, student, positions)`` to ``(B, teacher, positions)``."""
        projected: Tensor = self.conv(feature)
        if self.norm is None:
            return projected
        if self.training and projected.shape[0] * projected.shape[2] == 1:  # a single value has no variance
            norm = self.norm
            return F.batch_norm(projected, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        normalised: Tensor = self.norm(projected)
        return normalised
