"""Reverse Kullback-Leibler divergence."""

from __future__ import annotations

from kdengine.api import Scalar
from kdengine.losses.logits.divergence import Divergence


class ReverseKL(Divergence):
    """The divergence of the student from the teacher, ``T^2 * KL(softmax(s / T) || softmax(t / T))`` per item.

    The objective of MiniLLM (Gu et al. 2024, equation 1) for one distribution; T^2 keeps the gradient's size while T
    changes (Hinton et al. 2015, section 2). It seeks modes: mass where the teacher has none costs much, a
    mode left out little. Computed by :func:`kdengine.ops.kd_loss`: a class that the student gives mass and the
    teacher masks (-inf) costs +inf.

    References:
        Gu, Dong, Wei, Huang, "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024, section 2.1;
        arXiv:2306.08543

    Args:
        temperature: T > 0.
        standardize: whether to standardise the logits first (:func:`~kdengine.losses.logits.standardize.standardize`).

    Example:
        >>> ReverseKL().temperature
        1.0
    """

    label = "reverse_kl"

    def __init__(self, temperature: Scalar = 1.0, standardize: bool = False) -> None:
        super().__init__(temperature, "reverse_kl", standardize=standardize)
