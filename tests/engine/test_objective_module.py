"""Student and losses as one module, for a loop that wraps and stores what it trains."""

from __future__ import annotations

import os
import warnings

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from kdengine.losses import CE, KD, Hint
from tests.engine.common import engine, items, mlp
from tests.engine.several import in_processes

LOSSES = {"kd": KD, "ce": CE, "hint": lambda: Hint("1", "1")}


def made(**options):
    return engine(mlp(), losses={label: make() for label, make in LOSSES.items()}, weights={}, **options)


def test_it_computes_the_objective_and_holds_student_and_losses_without_the_teacher():
    torch.manual_seed(0)
    trained, batch = made(), items()[:8]
    module = trained.as_module(batch)
    assert module(batch).item() == trained.objective(batch).item()
    named = dict(module.named_parameters())
    assert {name.split(".")[0] for name in named} == {"student", "losses"}
    assert len(named) == len(list(trained.student.parameters())) + len(trained.loss_parameters(batch))
    module.train()
    assert not any(part.training for part in trained.source.module.modules())
    module(batch).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_its_state_dict_brings_projectors_into_a_foreign_checkpoint():
    batch = items()[:8]
    modules = []
    for seed, trained in enumerate([made(), made()]):
        torch.manual_seed(seed)  # of the projector's first weights
        modules.append(trained.as_module(batch))
    first, second = modules
    assert first(batch).item() != pytest.approx(second(batch).item(), rel=1e-6)
    second.load_state_dict(first.state_dict())
    assert first(batch).item() == second(batch).item()


def trained_by_ddp(wrap_both):
    """Three steps of a loop of one's own under DDP: the projector's bits, and what was warned of."""
    torch.distributed.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    torch.manual_seed(0)
    trained, data = made(), items()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        batch = data[rank * 8 : rank * 8 + 8]
        own = [parameter for _, parameter in trained.loss_parameters(batch)]
        model = DistributedDataParallel(trained.as_module(batch) if wrap_both else trained.student)
        optimizer = torch.optim.SGD([*trained.student.parameters(), *own], lr=0.1)
        for _ in range(3):
            (model(batch) if wrap_both else trained.objective(batch, student=model)).backward()
            optimizer.step()
            optimizer.zero_grad()
    drift = [str(each.message) for each in told if "train its own" in str(each.message)]
    return [parameter.flatten().tolist() for parameter in own], len(drift)


def test_projectors_stay_the_same_in_all_processes_of_a_foreign_ddp_loop():
    first, second = in_processes(2, trained_by_ddp, True)
    assert first == second
    assert first[1] == 0


@pytest.mark.slow
def test_projectors_that_drift_apart_are_warned_of_once():
    first, second = in_processes(2, trained_by_ddp, False)
    assert first[0] != second[0]
    assert (first[1], second[1]) == (1, 1)
