"""Processes that tell each other what they decide, and who of them is lost."""

from __future__ import annotations

import os
import signal

import pytest
import torch

import kdengine
from kdengine.api.processes import ALONE, join
from kdengine.losses import CE
from tests.engine.common import engine, items
from tests.engine.several import device, in_processes, outcome, start


def conversation():
    processes = join()
    rank = processes.rank
    said = {
        "gathered": processes.gather([rank, 7]),
        "shared": processes.share({"rank": rank}),
        "largest": processes.largest([rank, -rank]),
        "main": processes.on_main(lambda: f"from {rank}"),
    }
    try:
        processes.on_main(lambda: 1 // 0)
    except (ZeroDivisionError, kdengine.ProcessError) as error:
        said["failure"] = f"{type(error).__name__}: {error}"
    return said


def test_every_process_hears_the_same():
    first, second = in_processes(2, conversation)
    failures = first.pop("failure"), second.pop("failure")
    assert (
        first
        == second
        == {
            "gathered": [[0, 7], [1, 7]],
            "shared": [{"rank": 0}, {"rank": 1}],
            "largest": [1, 0],
            "main": "from 0",
        }
    )
    assert failures[0].startswith("ZeroDivisionError")
    assert failures[1] == f"ProcessError: process 0 of 2 failed: {failures[0]}"


def test_a_process_on_its_own_hears_itself():
    assert join() is ALONE
    assert (ALONE.gather([3]), ALONE.share("x"), ALONE.largest([1, 2])) == ([[3]], ["x"], [1, 2])


class Fate:
    kdengine_hook_version = 1

    def __init__(self, rank, how):
        self.rank, self.how = rank, how

    @kdengine.hookimpl
    def kdengine_on_step_end(self, context):
        if join().rank == self.rank and context.step == 2:
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("out of luck")


def doomed(rank, how, strategy):
    engine(device=device(), strategy=strategy, plugins=[Fate(rank, how)]).fit(kdengine.loader(items(), 4), epochs=9)


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("world", "rank"), [(2, 1), pytest.param(4, 2, marks=pytest.mark.slow), pytest.param(4, 3, marks=pytest.mark.slow)]
)
def test_a_killed_process_ends_the_others_with_a_message_that_names_it(world, rank, strategy):
    outcomes = [outcome(*started) for started in start(world, doomed, rank, "killed", strategy)]
    for other, (kind, said) in enumerate(outcomes):
        if other == rank:
            assert (kind, said) == ("died", -signal.SIGKILL)
        else:
            assert kind == "failed"
            assert f"ProcessError: process {other} of {world} lost another" in said
            assert f"process {rank} (pid " in said


def test_a_process_that_fails_is_named_with_its_reason():
    outcomes = [outcome(*started) for started in start(2, doomed, 1, "failed", "ddp")]
    assert "out of luck" in outcomes[1][1]
    assert "process 1 ended with PluginError" in outcomes[0][1]


class Decides:
    """Says one thing once, in one hook."""

    kdengine_hook_version = 1

    def __init__(self, hook, decision):
        self.hook, self.decision = hook, decision

    def _decide(self, hook, step):
        return self.decision if (hook, step) == (self.hook, 2) else None

    @kdengine.hookimpl
    def kdengine_on_step_start(self, context):
        return self._decide("step_start", context.step)

    @kdengine.hookimpl
    def kdengine_on_optimizer_step(self, context):
        return self._decide("optimizer_step", context.step)

    @kdengine.hookimpl
    def kdengine_on_step_end(self, context):
        return self._decide("step_end", context.step)

    @kdengine.hookimpl
    def kdengine_on_evaluate_end(self, context):
        return self._decide("evaluate_end", context.epoch + 2)

    @kdengine.hookimpl
    def kdengine_on_epoch_end(self, context):
        return self._decide("epoch_end", context.epoch + 2)


DECISIONS = {
    "step_start": (kdengine.Decision.SKIP, (8, 1, 2)),
    "optimizer_step": (kdengine.Decision.SKIP, (8, 1, 2)),
    "step_end": (kdengine.Decision.STOP, (3, 0, 1)),
    "evaluate_end": (kdengine.Decision.STOP, (4, 0, 1)),
    "epoch_end": (kdengine.Decision.STOP, (4, 0, 1)),
}


def one_decides(rank, folder):
    found = {}
    for hook, (decision, _) in DECISIONS.items():
        plugins = [Decides(hook, decision)] if join().rank == rank else []
        trained = engine(device=device(), plugins=plugins, metrics={"top1": "top1"}, out=folder / hook)
        data = items()
        result = trained.fit(kdengine.loader(data, 8), kdengine.loader(data, 8, shuffle=False), epochs=2)
        checkpoints = len(list((folder / hook / "checkpoints").iterdir()))
        found[hook] = result.steps, result.skipped, checkpoints
    return found


@pytest.mark.parametrize("rank", [0, 1])
def test_what_a_plugin_of_one_process_decides_is_done_by_all(rank, tmp_path):
    expected = {hook: outcome for hook, (_, outcome) in DECISIONS.items()}
    assert in_processes(2, one_decides, rank, tmp_path) == [expected, expected]


def of_own(counts, strategy):
    rank = join().rank
    labelled = items()[:]
    batches = [tuple(part[start::7][:3] for part in labelled) for start in range(counts[rank])]
    steps = []
    trained = engine(
        losses={"ce": CE()},
        weights={},
        device=device(),
        strategy=strategy,
        accumulate=2,
        log_every=1,
        loggers=[lambda record, step: steps.append(step)],
    )
    result = trained.fit(batches, epochs=2, sharded=True)
    return result.steps, torch.cat([p.detach().cpu().flatten() for p in trained.student.parameters()]).tolist()


@pytest.mark.parametrize("counts", [(4, 1), pytest.param((1, 4), marks=pytest.mark.slow), (3, 2)])
def test_processes_with_fewer_batches_keep_up_with_the_others(counts):
    found = in_processes(2, of_own, counts, "ddp")
    assert found[0] == found[1]
    assert found[0][0] == 2 * -(-max(counts) // 2)


def with_bare_loader():
    with pytest.raises(kdengine.ConfigurationError, match=r"kdengine\.loader"):
        engine(device=device()).fit(torch.utils.data.DataLoader(items(), 4), epochs=1)
    data = items()
    sampler = torch.utils.data.DistributedSampler(data, seed=3)
    return engine(device=device()).fit(torch.utils.data.DataLoader(data, 4, sampler=sampler), epochs=2).steps


def test_a_bare_loader_is_refused_and_one_with_a_distributed_sampler_is_not():
    assert in_processes(2, with_bare_loader) == [8, 8]
