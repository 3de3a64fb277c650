"""What a sharded teacher takes in each process: its shard, and at the peak what is gathered."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdengine.api import Batch
from kdengine.engine.shards import local
from kdengine.engine.teacher import LiveTeacher
from tests.benchmarks.memory import peak_bytes
from tests.engine.several import device, in_processes

WIDTH, BLOCKS, ITEMS = 128, 6, 4
SLACK = 0.05
"""Of a block: biases and buffers of the collectives."""


class Block(nn.Module):
    """The layers of a transformer's block, with their usual sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        a, b, c = self.inner(x).chunk(3, dim=-1)
        x = x + self.out(a * b.sigmoid() * c)
        return x + self.down(self.up(x).relu())


def run_teacher(shard):
    """Bytes held, bytes more at the peak of a forward, bytes of one tensor of activations, and the output."""
    torch.manual_seed(0)
    module = nn.Sequential(*(Block() for _ in range(BLOCKS)))
    inputs = torch.randn(ITEMS, WIDTH)
    expected = module(inputs).detach()
    source = LiveTeacher(module, shard=shard)
    place = torch.device("cuda" if device() == "auto" else "cpu")
    source.place(place)
    batch = Batch(inputs.to(place))

    def run():
        with torch.no_grad():
            return source.forward(batch)

    assert torch.allclose(run().cpu(), expected, rtol=0, atol=1e-5)
    held = sum(local(parameter).nbytes for parameter in module.parameters())
    # the least of several: on a busy machine a thread of the collectives lets go of its buffers late
    return held, min(peak_bytes(run, place.type) for _ in range(8)), ITEMS * 4 * WIDTH * 4


@pytest.mark.parametrize(("shard", "blocks"), [("layers", 1), pytest.param(True, 3, marks=pytest.mark.slow)])
def test_a_process_holds_its_shard_and_at_the_peak_one_block_by_layers_or_three_by_blocks(shard, blocks):
    block = sum(parameter.nbytes for parameter in Block().parameters())
    for held, peak, activations in in_processes(2, run_teacher, shard):
        assert held == BLOCKS * block / 2
        assert (blocks - 0.5) * block < peak < (blocks + SLACK) * block + 4 * activations, (peak / block, blocks)
