"""The angle between features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from kdengine.api import Batch, ConfigurationError
from kdengine.losses.hints.maps import unit
from kdengine.losses.hints.pairs import Pair, Paths
from kdengine.losses.hints.pairwise import PairwiseLoss


class Cosine(PairwiseLoss):
    """One minus the cosine between projected features of the student and features of the teacher.

    With r a pair's projector, each item's value is, averaged over positions and over pairs::

        1 - r(s) . t / (|r(s)| |t|)

    where the vectors are the channels at a position of a map, the last dimension of tokens, and a whole vector. This is
    the loss that DistilBERT has between hidden states. The value is between 0 and 2, whatever the features' size.
    Where the projector is none and the features are equal, it is 0. The cosine with a vector of zeros counts as 0, and
    it gets no gradient.

    Shapes:
        features ``(B, ...)`` of any kind that the projector maps to one another.

    References:
        Sanh, Debut, Chaumond, Wolf, "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter",
        2019, section 2 (L_cos); arXiv:1910.01108

    Args:
        student: paths of modules of the student; see :class:`~kdengine.losses.hints.pairs.FeatureLoss`.
        teacher: paths of modules of the teacher, as many.
        projector: name of a projector (``auto`` chooses by the shapes, and takes none where they are equal), or a
            factory ``fn(student_shape, teacher_shape) -> nn.Module``; each pair has its own.

    Example:
        >>> Cosine(student="encoder.layer.?", teacher="encoder.layer.?").projector
        'auto'
    """

    def __init__(self, student: Paths, teacher: Paths, projector: str | Callable[..., nn.Module] = "auto") -> None:
        super().__init__(student, teacher)
        self.projector = projector

    def prepare(self, pair: Pair, names: tuple[str, str], example: Batch) -> nn.Module:
        """The projector of a pair."""
        if not callable(self.projector):
            raise ConfigurationError(f"projector must be a name or a factory, got {self.projector!r}")
        ours, theirs = (tuple(feature.shape[1:]) for feature in pair)
        return self.projector(ours, theirs)

    def compare(self, student: Tensor, teacher: Tensor, learned: nn.Module) -> Tensor:
        """One minus the mean cosine of each item, ``(B,)``."""
        axis = 1 if teacher.ndim == 4 else -1
        cosines = (unit(learned(student), axis) * unit(teacher, axis)).sum(dim=axis)
        return 1.0 - (cosines.flatten(1).mean(dim=1) if cosines.ndim > 1 else cosines)

    def combine(self, values: Sequence[Tensor]) -> Tensor:
        """All pairs as one, ``(B,)``: their mean."""
        return super().combine(values) / len(values)
