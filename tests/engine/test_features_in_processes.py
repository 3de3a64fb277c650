"""Features of students that are copied to, or sharded over, two processes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kdengine
from kdengine.api.processes import join
from kdengine.engine.shards import whole
from kdengine.losses import CE, KD, Hint
from tests.engine.common import engine, items
from tests.engine.several import device, in_processes


class Block(nn.Module):
    """What FSDP2 gathers at once, with modules inside."""

    def __init__(self, width):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, width)

    def forward(self, inputs):
        return inputs + self.fc2(self.act(self.fc1(inputs)))


class Network(nn.Module):
    """A stem and a head that belong to no block."""

    def __init__(self, width):
        super().__init__()
        torch.manual_seed(width)
        self.stem, self.head = nn.Linear(12, width), nn.Linear(width, 5)
        self.blocks = nn.Sequential(Block(width), Block(width))

    def forward(self, inputs):
        return self.head(self.blocks(self.stem(inputs).view(len(inputs), -1)))


CASES = {
    "beside a loss on logits": (["stem", "blocks.*.fc1", "blocks.1.act:input", "head:input"], True),
    "the first thing of all": ("stem", False),
    "inside the first block": ("blocks.0.fc1", False),
    "inside the second block": (["blocks.1.act:input", "blocks.1.fc2"], False),
    "into a block, and out of it": (["blocks.1:input", "blocks.1"], False),
}


def weights(strategy, paths, with_logits):
    """The student after a few steps of two micro-batches."""
    student = Network(8)
    losses = {"hint": Hint(paths, paths), **({"ce": CE()} if with_logits else {})}
    trained = engine(
        student,
        Network(16),
        losses=losses,
        weights={},
        device=device(),
        strategy=strategy,
        seed=0,
        accumulate=2,
        clip=1.0,
        optimizer=lambda named: torch.optim.AdamW([p for _, p in named], lr=0.01, weight_decay=0.1),
        metrics={"agreement": "agreement"},
    )
    loader = kdengine.loader(items(24), 4, seed=1)
    trained.fit(loader, kdengine.loader(items(8), 8, shuffle=False), epochs=2)
    return torch.cat([whole(parameter).detach().flatten().cpu() for parameter in student.parameters()])


def all_weights(strategy):
    found = {name: weights(strategy, *case).tolist() for name, case in CASES.items()}
    return found if join().rank == 0 else None


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_features_of_any_layer_give_the_steps_of_one_process_whatever_else_is_in_the_loss(strategy):
    found, _ = in_processes(2, all_weights, strategy)
    for name, case in CASES.items():
        furthest = (torch.tensor(found[name]) - weights("ddp", *case)).abs().max()
        assert furthest <= 1e-5, f"{name}: off by {furthest}"


def gradient_of_a_foreign_loop(*, wrap):
    """What a foreign loop's DDP student gets: the mean of the processes' gradients."""
    student = Network(8)
    losses = {"hint": Hint("blocks.*", "blocks.*"), "kd": KD()}
    foreign = engine(student, Network(16), losses=losses, weights={}, optimizer=None, device="cpu")
    inputs, labels = items(16)[:]
    rank, world = (join().rank, join().world) if wrap else (0, 1)
    wrapped = nn.parallel.DistributedDataParallel(student) if wrap else student
    for _ in range(2):
        student.zero_grad()
        foreign.objective((inputs[rank::world], labels[rank::world]), student=wrapped).backward()
        assert not any(module._forward_hooks for module in student.modules())
    return torch.cat([parameter.grad.flatten() for parameter in student.parameters()]).tolist()


def gradients():
    return gradient_of_a_foreign_loop(wrap=True)


def test_a_foreign_loop_gets_the_features_of_its_ddp_student():
    expected = torch.tensor(gradient_of_a_foreign_loop(wrap=False))
    for found in in_processes(2, gradients):
        assert torch.allclose(torch.tensor(found), expected, rtol=0, atol=1e-6)
