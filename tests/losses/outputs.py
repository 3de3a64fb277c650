"""Batches with outputs, for the tests of losses."""

import torch

from kdengine.api import Batch, Output


def batch_of(student, teacher=None, labels=None, mask=None):
    made = Batch(torch.zeros(len(student), 1), labels, mask=mask)
    made.student = Output(student, student)
    if teacher is not None:
        made.teacher = Output(teacher, teacher)
    return made


def logits(rows=6, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, classes, generator=generator, dtype=torch.float64)


def tokens(labelled):
    """A sampler for the kit: logits of four tokens per item, the last one unlabelled."""

    def sample(size, generator):
        labels = torch.randint(1, 5, (size, 4), generator=generator)
        labels[:, -1:] = -100
        student, teacher = (torch.randn(size, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
        return batch_of(student, teacher, labels if labelled else None)

    return sample


def probabilities(size, generator):
    """A sampler for the kit: class probabilities, every third row unlabelled (zeros)."""
    labels = torch.rand(size, 5, generator=generator, dtype=torch.float64).softmax(-1)
    labels[2::3] = 0.0
    student, teacher = (torch.randn(size, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    return batch_of(student, teacher, labels)
