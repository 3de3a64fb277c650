"""The kit's two real processes."""

import re

import pytest
import torch

import kdengine
from kdengine.testing import certify_loss
from kdengine.testing.case import Case
from kdengine.testing.pair import Unreachable, address, describe

from .test_traps import Divergence


def wide(logits):
    return logits if logits.itemsize >= 4 else logits.float()


class Centred(kdengine.Loss):
    """Squared error to the teacher's logits without a moving average of them, written at the end of a step."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.register_buffer("centre", torch.zeros(5))

    def per_item(self, batch):
        if torch.is_grad_enabled():
            self.seen.append(wide(batch.teacher.logits).detach())
        return (wide(batch.student.logits) - wide(batch.teacher.logits) + self.centre).square().mean(-1)

    def gather(self, rows):
        return kdengine.gather(rows)

    def end_step(self):
        rows = torch.cat([*self.seen, torch.zeros(0, 5, device=self.centre.device, dtype=self.centre.dtype)])
        self.seen.clear()
        every = self.gather(rows)
        self.centre.lerp_(every.sum(0) / max(1, len(every)), 0.1)


class CentredAlone(Centred):
    """Each process remembers its own items."""

    def gather(self, rows):
        return rows


def two(loss, **arguments):
    return next(row for row in certify_loss(loss, processes=True, **arguments).rows if row.check == "two processes")


@pytest.mark.slow
@pytest.mark.parametrize("loss", [Divergence, Centred])
def test_two_processes_agree_with_one(loss):
    finding = two(loss)
    assert finding.outcome == "held", finding.message
    assert finding.deviation <= 1e-12


@pytest.mark.slow
def test_a_memory_that_is_not_shared_is_named():
    finding = two(CentredAlone)
    assert finding.outcome == "failed"
    assert re.search("in two processes, what they remember as 'centre' differs by", finding.message)


def test_the_rest_of_the_kit_accepts_a_memory_written_at_the_end_of_a_step():
    certificate = certify_loss(Centred)
    assert certificate.held, certificate.text()
    assert len([row for row in certificate.rows if row.check == "two processes"]) == 0


def test_a_loss_that_another_process_cannot_find_is_not_tried():
    class Local(Divergence):
        pass

    with pytest.raises(Unreachable, match="not at the top of an importable module"):
        address(Local)
    assert two(Local).outcome == "does not apply"


def test_arguments_that_json_cannot_say_are_refused():
    with pytest.raises(Unreachable, match="cannot be given its arguments"):
        describe(Case("Divergence", Divergence, {"temperature": kdengine.Linear(1.0, 2.0)}))
