"""Whose exception it is, where it was raised, and what helps: a plugin's is never called a bug in kdengine."""

import errno

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from kdengine.cli import blame
from kdengine.cli.verdict import verdict

PLUGIN = """\
import kdengine
import torch
kdengine_hook_version = 1

class Boom(kdengine.Loss):
    "A loss that fails in its third step."
    calls = 0

    def per_item(self, batch):
        Boom.calls += batch.student.logits.requires_grad
        if Boom.calls > 2:
            raise {error}("size mismatch")
        return batch.student.logits.square().mean(-1)

class Sick(kdengine.Metric):
    "A metric that fails."
    def reset(self): ...
    def update(self, batch): ...
    def compute(self): raise {error}("size mismatch")

@kdengine.hookimpl
def kdengine_losses(): return {{"boom": Boom}}

@kdengine.hookimpl
def kdengine_metrics(): return {{"sick": Sick}}
"""


@pytest.fixture
def plugin(place):
    def write(error="RuntimeError"):
        (place / "mine.py").write_text(PLUGIN.format(error=error))
        return place / "mine.py"

    return write


@pytest.mark.parametrize("error", ["RuntimeError", "ValueError", "KeyError", "AssertionError"])
def test_a_loss_of_a_plugin_that_raises_is_told_with_file_line_and_resume(kd, plugin, error):
    path = plugin(error)
    code, _, err = kd("run", "small.toml", "-q", "--plugin", path, "--set", "losses.boom.weight=1.0", "--out", "r")
    assert code in (1, 2)
    assert "size mismatch" in err
    assert f"raised in per_item of plugin 'mine', {path}, line 12: raise {error}" in err
    assert "losses.boom" in err
    assert "at step 3" in err
    assert "bug in" not in err
    assert "kdengine run --resume --out r" in err


def test_a_metric_of_a_plugin_that_raises_is_told_as_the_plugins(kd, plugin):
    path = plugin()
    metrics = 'evaluate.metrics=["top1", "sick"]'
    code, _, err = kd("run", "small.toml", "-q", "--plugin", path, "--set", metrics, "--out", "r")
    assert code in (1, 2)
    assert f"raised in compute of plugin 'mine', {path}, line 19" in err
    assert "bug in" not in err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("DataLoader worker (pid(s) 4711) exited unexpectedly"), "data.workers"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "data.workers"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is ... shared memory"), "shm-size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nmore"), "data.batch_size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 bytes"), "data.batch_size"),
        (MemoryError(), "data.batch_size"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "data.batch_size"),
    ],
)
def test_what_the_system_does_is_no_bug_and_has_a_remedy(error, said):
    code, text = verdict(error)
    assert code == 1
    assert said in text
    assert "bug in" not in text


def test_only_what_no_other_code_is_in_may_be_a_bug_of_kdengines():
    code, text = verdict(RuntimeError("oh"))
    assert code == 1
    assert "Run again with --debug" in text
    assert "bug in kdengine" in text
    try:
        raise RuntimeError("oh")
    except RuntimeError as error:
        text = verdict(error)[1]
    assert "bug in" not in text
    assert "test_verdict.py, line" in text


class Ragged(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 2:
            raise IndexError("no such image")
        return torch.zeros(3)


def test_what_a_data_worker_raises_is_told_by_its_own_line():
    with pytest.raises(IndexError) as caught:
        list(DataLoader(Ragged(), 4, num_workers=1))
    _, text = verdict(caught.value)
    assert text.startswith("error: IndexError: no such image\n")
    assert "raised in __getitem__, " in text
    assert text.count("\n") == 2
    assert blame.message(caught.value) == ("IndexError", "no such image")
