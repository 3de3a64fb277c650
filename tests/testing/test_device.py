"""Which operations the kit takes for waits of an accelerator."""

import pytest
import torch

from kdengine.testing.device import Unavailable, Waits, watched

MASK = torch.empty(4, dtype=torch.bool, device="meta")
VALUES = torch.empty(4, 5, device="meta")
SQUARE = torch.empty(3, 3, device="meta")
HOST = torch.ones(4, 5)


def put(target, index, value):
    target[index] = value


WAITING = {
    "item": (lambda: VALUES.sum().item(), "reads values"),
    "float": (lambda: float(VALUES.sum()), "reads values"),
    "branch": (lambda: 1 if VALUES.isnan().any() else 0, "reads values"),
    "max of rows": (lambda: max(VALUES.sum(1)), "reads values"),
    "index by a value": (lambda: [1, 2][MASK.sum()], "reads values"),
    "slice by a value": (lambda: VALUES[: MASK.sum()], "reads values"),
    "tolist": (lambda: VALUES.tolist(), "reads values"),
    "tolist of one": (lambda: VALUES.sum().tolist(), "reads values"),
    "numpy": (lambda: VALUES.numpy(), "reads values"),
    "cpu": (lambda: VALUES.cpu(), "reads values"),
    "to the host": (lambda: VALUES.to("cpu"), "reads values"),
    "equal": (lambda: torch.equal(VALUES, VALUES), "reads values"),
    "allclose": (lambda: torch.allclose(VALUES, VALUES), "reads values"),
    "one_hot without classes": (lambda: torch.nn.functional.one_hot(MASK.long()), "reads values"),
    "nonzero": (lambda: MASK.nonzero(), "size of its result"),
    "where with one argument": (lambda: torch.where(MASK), "size of its result"),
    "masked_select": (lambda: VALUES.masked_select(MASK[:, None]), "size of its result"),
    "index by a mask": (lambda: VALUES[MASK], "size of its result"),
    "values at a mask": (lambda: put(VALUES.clone(), MASK, torch.empty(2, 5, device="meta")), "size of its result"),
    "unique": (lambda: MASK.long().unique(), "size of its result"),
    "bincount": (lambda: MASK.long().bincount(), "size of its result"),
    "repeat_interleave": (lambda: VALUES.repeat_interleave(MASK.long(), dim=0), "size of its result"),
    "inverse": (lambda: torch.linalg.inv(SQUARE), "whether it succeeded"),
    "eigenvalues": (lambda: torch.linalg.eigh(SQUARE), "whether it succeeded"),
    "singular values": (lambda: torch.linalg.svd(SQUARE), "whether it succeeded"),
    "tensor": (lambda: torch.tensor([1.0], device="meta"), "copies data from the host"),
    "new_tensor": (lambda: VALUES.new_tensor([1.0]), "copies data from the host"),
    "from the host": (lambda: HOST.to("meta"), "copies data from the host"),
    "copy_ from the host": (lambda: VALUES.clone().copy_(HOST), "copies data from the host"),
    "sum with the host": (lambda: VALUES + HOST, "mixes a tensor of the host"),
    "index of the host": (lambda: VALUES[torch.arange(4)], "mixes a tensor of the host"),
}

PATIENT = {
    "where": lambda: torch.where(MASK[:, None], VALUES, 0.0),
    "a number at a mask": lambda: put(VALUES.clone(), MASK, 0.0),
    "masked_fill": lambda: VALUES.masked_fill(MASK[:, None], 0.0),
    "a scalar of the host": lambda: VALUES + torch.ones(()),
    "full": lambda: torch.full((2,), 1.0, device="meta") + VALUES.new_zeros(2),
    "arange": lambda: VALUES[torch.arange(4, device="meta")],
    "one_hot with classes": lambda: torch.nn.functional.one_hot(MASK.long(), 5),
    "repeat_interleave to a size": lambda: VALUES.repeat_interleave(MASK.long(), dim=0, output_size=6),
    "inv_ex": lambda: torch.linalg.inv_ex(SQUARE),
    "asynchronous copy": lambda: HOST.to("meta", non_blocking=True),
    "cross_entropy": lambda: torch.nn.functional.cross_entropy(VALUES, MASK.long(), reduction="none"),
    "work on the host": lambda: HOST.sum().item() + len(HOST.nonzero()) + float(torch.tensor([1.0]).sum()),
    "shape": lambda: VALUES.shape[0] + len(VALUES) + VALUES.numel(),
    "norm": lambda: VALUES.norm() + VALUES.std() + torch.cdist(VALUES, VALUES).sum(),
}


@pytest.mark.parametrize("name", WAITING)
def test_an_operation_that_waits_is_refused_by_name_and_reason(name):
    operation, reason = WAITING[name]
    with pytest.raises(Waits, match=rf"^torch\S* (\(aten::\w+\) )?waits: .*{reason}"), watched():
        operation()


@pytest.mark.parametrize("name", PATIENT)
def test_an_operation_that_does_not_wait_is_let_through(name):
    with watched():
        PATIENT[name]()


def test_a_backward_pass_is_watched_too():
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * gradient.sum().item()

    leaf = VALUES.clone().requires_grad_()
    with pytest.raises(Waits, match="reads values"), watched():
        Reads.apply(leaf).sum().backward()


def test_an_operation_that_cannot_be_tried_is_no_wait():
    library = torch.library.Library("kdengine_test_device", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: 2 * x, "CPU")
    with pytest.raises(Unavailable, match="twice"), watched():
        torch.ops.kdengine_test_device.twice(VALUES)
