"""Flow of the solution procedure: how one layer's channels go together with another's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from kdengine.api import Batch, ConfigurationError, Output
from kdengine.api.features import resolve
from kdengine.api.loss import wide
from kdengine.losses.arguments import check_choice
from kdengine.losses.hints.maps import POOLS, Pool, require_maps, same_size
from kdengine.losses.hints.pairs import FeatureLoss

Flows = Sequence[str] | Sequence[Sequence[str]]
"""The paths of a first and of a last layer, or several such pairs."""


class Flow(NamedTuple):
    """The first and the last layer of a flow: their paths, and what they gave."""

    names: tuple[str, str]
    first: Tensor
    last: Tensor

    def __str__(self) -> str:
        """Paths and shapes, for a message."""
        ends = zip(self.names, (self.first, self.last), strict=True)
        return " to ".join(f"{name!r} ({', '.join(map(str, value.shape))})" for name, value in ends)


class FSP(FeatureLoss):
    """The student's matrices of the flow of the solution procedure (FSP) regress the teacher's.

    The matrix of a flow from a first layer F to a last layer L holds the inner products of their channels over
    positions, ``G_ij = sum_hw F_ihw L_jhw / (H W)`` (equation 1). For each item, summed over flows n of m x m' matrices
    (equation 2)::

        sum_n 1/(m m') || G_n^T - G_n^S ||_F^2

    The paper adds up the squares of a matrix. Here they are averaged, as in the comparison of Tian et al. 2020, whose
    weight is 50: the value does not grow with the channels then. The paper's weights lambda_n are all the same: they
    are the weight of this loss. The value grows with the fourth power of the activations, and its gradient with the
    third, which float16 holds for activations up to about 40.

    The paper trains in two stages: the student's layers by this loss alone, then all of the student by the labels.

    Where the layers of a flow differ in size, the larger one is pooled. ``pool="max"`` is the paper's (max pooling,
    section 3.2); the default, ``"average"``, is that of the comparison of Tian et al. 2020, whose weight it has.

    Shapes:
        maps ``(B, C, H, W)``. A layer of the student has as many channels as the teacher's; heights and widths may
        differ.

    References:
        Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
        Learning", CVPR 2017, equations 1 and 2

    Args:
        student: paths of the first and of the last layer of a flow in the student, or several such pairs. With
            wildcards, as in ``["layer?:input", "layer?"]``, the first of one goes with the first of the other.
        teacher: as many in the teacher.
        pool: ``average``, or ``max`` as in the paper, of the larger layer of a flow.

    Example:
        >>> FSP(student=["layer?:input", "layer?"], teacher=["layer?:input", "layer?"]).needs.student_features
        ('layer?:input', 'layer?')
        >>> flows = [["conv1", "layer1"], ["layer1", "layer2"]]
        >>> FSP(student=flows, teacher=flows).needs.student_features
        ('conv1', 'layer1', 'layer2')
    """

    at_equality: ClassVar[Literal["zero", "minimum"] | None] = "zero"

    def __init__(self, student: Flows, teacher: Flows, pool: Pool = "average") -> None:
        self._ends = {"student": ends(student, "student"), "teacher": ends(teacher, "teacher")}
        paths = {who: list(dict.fromkeys(path for pair in pairs for path in pair)) for who, pairs in self._ends.items()}
        super().__init__(paths["student"], paths["teacher"])
        check_choice("fsp", "pool", pool, POOLS)
        self.pool: Pool = pool

    def setup(self, example: Batch) -> None:
        """See that the flows make pairs, and that their channels agree.

        Raises:
            ConfigurationError: they do not; it names paths and shapes.
        """
        for ours, theirs in self.flows(example):
            try:
                require_maps(*ours[1:], *theirs[1:])
                if (ours.first.shape[1], ours.last.shape[1]) != (theirs.first.shape[1], theirs.last.shape[1]):
                    raise ConfigurationError("expected as many channels in the student as in the teacher")
            except ValueError as error:
                raise ConfigurationError(f"FSP: student {ours} and teacher {theirs}: {error}") from error

    def per_item(self, batch: Batch) -> Tensor:
        """The mean squared error of the matrices of each item, summed over flows, ``(B,)``."""
        errors = []
        for ours, theirs in self.flows(batch):
            difference = matrix(ours.first, ours.last, self.pool) - matrix(theirs.first, theirs.last, self.pool)
            errors.append(difference.square().mean(dim=(1, 2)))
        return torch.stack(errors).sum(dim=0)

    def flows(self, batch: Batch) -> list[tuple[Flow, Flow]]:
        """The flows of the student and their counterparts, in one dtype of float32 or wider.

        Raises:
            ConfigurationError: there are not as many of one as of the other.
        """
        students = self._flows(batch.student, "student")
        teachers = self._flows(batch.teacher, "teacher")
        if len(students) != len(teachers):
            shown = " and ".join(
                f"{who}={[list(pair) for pair in self._ends[who]]} names {len(found)}"
                for who, found in (("student", students), ("teacher", teachers))
            )
            raise ConfigurationError(f"FSP compares flows in pairs, but {shown}")
        dtype = students[0].first.dtype
        return [
            (ours, Flow(theirs.names, theirs.first.to(dtype), theirs.last.to(dtype)))
            for ours, theirs in zip(students, teachers, strict=True)
        ]

    def _flows(self, output: Output, who: str) -> list[Flow]:
        found = []
        for pair in self._ends[who]:
            first, last = (resolve(output.features, [path]) for path in pair)
            if len(first) != len(last):
                raise ConfigurationError(
                    f"FSP: {who}={list(pair)} names {len(first)} first layers ({', '.join(first)}) and {len(last)} "
                    f"last layers ({', '.join(last)}); expected as many"
                )
            for names in zip(first, last, strict=True):
                found.append(Flow(names, *(wide(output.features[name]) for name in names)))
        return found


def matrix(first: Tensor, last: Tensor, pool: Pool = "average") -> Tensor:
    """Compute the inner products of channels over positions, divided by the number of positions: ``(B, C, C')``.

    Args:
        first: ``(B, C, H, W)``.
        last: ``(B, C', H', W')``.
        pool: how the larger one comes to the size of the smaller.

    Example:
        >>> matrix(torch.full((1, 1, 2, 2), 3.0), torch.ones(1, 2, 2, 2))
        tensor([[[3., 3.]]])
    """
    first, last = (feature.flatten(2) for feature in same_size(first, last, pool))
    return first @ last.transpose(1, 2) / first.shape[2]


def ends(flows: Flows, argument: str) -> list[tuple[str, str]]:
    """Pairs of paths from what a user gave.

    Raises:
        ConfigurationError: it is neither two paths nor pairs of them.

    Example:
        >>> ends(["conv1", "layer1"], "student")
        [('conv1', 'layer1')]
    """
    one = not isinstance(flows, str) and all(isinstance(path, str) for path in flows)
    pairs: Sequence[Sequence[str]] = [[str(path) for path in flows]] if one else list(flows)
    if pairs and all(is_pair(pair) for pair in pairs):
        return [(first, last) for first, last in pairs]
    raise ConfigurationError(
        f"FSP: {argument} must be the paths of a first and of a last layer, or several such pairs, got {flows!r}"
    )


def is_pair(value: Sequence[str]) -> bool:
    """Whether these are two paths; a string is one."""
    return not isinstance(value, str) and len(value) == 2 and all(isinstance(path, str) for path in value)
