"""A killed run that is resumed ends with the bits of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import kdengine
from kdengine.engine.ledger import Ledger
from kdengine.losses import CE, KD, Hint
from tests.engine.common import StopAt, engine, flat, items, mlp

SCRIPT = '''
import os, signal, sys
import torch
from torch import nn
from torchvision.transforms import v2
import kdengine
from kdengine.losses import CE, KD

out, workers, kill_at = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

class Crops:
    """Random crops of fixed noise."""
    def __init__(self):
        self.images = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        self.transform = v2.Compose([v2.RandomCrop(8, padding=2), v2.RandomHorizontalFlip()])
    def __len__(self):
        return 24
    def __getitem__(self, index):
        return self.transform(self.images[index]), index % 5

class Kill:
    kdengine_hook_version = 1
    @kdengine.hookimpl
    def kdengine_on_step_end(self, context):
        if context.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

def net(width):
    torch.manual_seed(width)
    head = nn.Flatten(), nn.Dropout(0.3), nn.Linear(width * 36, 5)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), *head)

engine = kdengine.Engine(
    net(4), net(8), losses={"kd": KD(temperature=kdengine.Cosine(4.0, 1.0)), "ce": CE()}, weights={"ce": 0.1},
    optimizer=lambda named: torch.optim.AdamW([p for _, p in named], lr=1e-2),
    lr_scheduler=lambda opt, steps: torch.optim.lr_scheduler.OneCycleLR(opt, 1e-2, total_steps=steps),
    ema=0.9, accumulate=2, checkpoint_every=2, seed=0, out=out, loggers=[], plugins=[Kill()],
    metrics={"top1": "top1"}, device="cpu",
)
loader = kdengine.loader(Crops(), 4, seed=3, workers=workers)
engine.fit(loader, kdengine.loader(Crops(), 12, shuffle=False), epochs=3, resume="auto")
'''


def train(tmp_path: Path, out: str, workers: int, kill_at: int = -1) -> int:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    arguments = [sys.executable, str(script), str(tmp_path / out), str(workers), str(kill_at)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(arguments, env=environment, check=False).returncode


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_in_the_middle_of_an_epoch_and_resumed_gives_the_same_bits(tmp_path, workers):
    assert train(tmp_path, "whole", workers=0) == 0
    assert train(tmp_path, "killed", workers, kill_at=4) == -signal.SIGKILL
    assert train(tmp_path, "killed", workers) == 0
    for name in ("student.safetensors", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


def fitted(out, epochs=2, **options):
    student = options.pop("student", None) or mlp(dropout=0.2)
    defaults = {
        "seed": 1,
        "optimizer": lambda named: torch.optim.Adam([p for _, p in named], lr=1e-2),
        "lr_scheduler": lambda opt, steps: torch.optim.lr_scheduler.MultiStepLR(opt, [3, 5]),
        "metrics": {"top1": "top1"},
    }
    loader = options.pop("loader", None) or kdengine.loader(items(), 8, seed=2)
    resume = options.pop("resume", "auto")
    trained = engine(student, options.pop("teacher", None), out=out, **{**defaults, **options})
    return student, trained.fit(loader, kdengine.loader(items(), 16, shuffle=False), epochs=epochs, resume=resume)


@pytest.mark.parametrize("at", range(0, 8))
def test_interrupted_after_any_step_and_resumed_twice_gives_the_same_bits(tmp_path, at):
    whole, expected = fitted(tmp_path / "whole")
    for step in (at, min(at + 1, 7)):
        with pytest.raises(KeyboardInterrupt):
            fitted(tmp_path / "cut", checkpoint_every=1, plugins=[StopAt(step)])
    resumed, result = fitted(tmp_path / "cut", checkpoint_every=1)
    assert torch.equal(flat(whole), flat(resumed))
    assert (result.metrics, result.history) == (expected.metrics, expected.history)


class LateLedger(Ledger):
    """Reports come one step late, as on an accelerator."""

    waiting = None

    def close(self, *step):
        report, self.waiting = self.waiting, super().close(*step)
        return report

    def flush(self):
        report, self.waiting = self.waiting, None
        return report


@pytest.mark.parametrize("at", [1, 4])
def test_losses_that_come_late_are_in_the_records_of_a_resumed_run(tmp_path, monkeypatch, at):
    monkeypatch.setattr("kdengine.engine.engine.Ledger", LateLedger)
    _, expected = fitted(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "cut", checkpoint_every=1, plugins=[StopAt(at)])
    _, result = fitted(tmp_path / "cut", checkpoint_every=1)
    assert result.history == expected.history
    assert (tmp_path / "cut" / "steps.jsonl").read_text() == (tmp_path / "whole" / "steps.jsonl").read_text()


def test_a_users_own_shuffled_loader_resumes_in_the_middle_of_an_epoch(tmp_path):
    def loader():
        return torch.utils.data.DataLoader(items(), 8, shuffle=True)

    whole, _ = fitted(tmp_path / "whole", loader=loader())
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "cut", loader=loader(), checkpoint_every=1, plugins=[StopAt(2)])
    resumed, _ = fitted(tmp_path / "cut", loader=loader(), checkpoint_every=1)
    assert torch.equal(flat(whole), flat(resumed))


def test_a_finished_run_returns_what_is_stored(tmp_path):
    _, first = fitted(tmp_path / "run")
    _, second = fitted(tmp_path / "run")
    assert (first.metrics, first.steps, first.seconds) == (second.metrics, second.steps, second.seconds)


def test_more_epochs_train_on_and_rewrite_the_summary(tmp_path):
    fitted(tmp_path / "run")
    _, result = fitted(tmp_path / "run", epochs=3)
    assert result.steps == 12
    assert kdengine.load_run(tmp_path / "run").summary["steps"] == 12


def test_a_used_directory_is_refused_without_resume_and_nothing_is_lost(tmp_path):
    fitted(tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(kdengine.ConfigurationError, match="already holds a run"):
        fitted(tmp_path / "run", resume=None)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_every_difference_to_the_checkpoint_is_listed(tmp_path):
    fitted(tmp_path / "run")
    with pytest.raises(kdengine.CheckpointError) as caught:
        fitted(tmp_path / "run", accumulate=2, clip=1.0, losses={"kd": KD()}, weights={}, epochs=3)
    for what in ("accumulate was 1, is 2", "clip was None, is 1.0", "losses was", "steps_per_epoch was 4, is 2"):
        assert what in str(caught.value)


@pytest.mark.parametrize(
    ("student", "said"),
    [
        (mlp(hidden=9), "student was .*parameters.*, is "),
        (nn.Sequential(*reversed(mlp(dropout=0.2))), "of another student.*size mismatch"),
    ],
    ids=["of another size", "of the same size in another shape"],
)
def test_a_checkpoint_of_another_student_is_refused_and_stays_as_it_is(tmp_path, student, said):
    fitted(tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(kdengine.CheckpointError, match=f"(?s)checkpoints.*{said}"):
        fitted(tmp_path / "run", student=student, epochs=3)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path):
    whole, _ = fitted(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "cut", checkpoint_every=2, plugins=[StopAt(6)])
    newest = sorted((tmp_path / "cut" / "checkpoints").glob("step-*"))[-1]
    data = bytearray((newest / "tensors.safetensors").read_bytes())
    data[-1] ^= 1
    (newest / "tensors.safetensors").write_bytes(data)
    messages = []

    class Listener(kdengine.Logger):
        def message(self, text):
            messages.append(text)

    resumed, _ = fitted(tmp_path / "cut", checkpoint_every=2, loggers=[Listener()])
    assert any("damaged" in text and newest.name in text for text in messages)
    assert torch.equal(flat(whole), flat(resumed))


def test_resume_true_insists_on_a_checkpoint(tmp_path):
    with pytest.raises(kdengine.ConfigurationError, match="nothing to resume"):
        fitted(tmp_path / "run", resume=True)


def test_state_that_no_checkpoint_can_hold_is_an_error_at_the_start_that_names_plugin_and_key(tmp_path):
    class Stateful:
        kdengine_hook_version = 1
        kdengine_name = "hoarder"

        def state_dict(self):
            return {"callback": lambda: None}

        def load_state_dict(self, state):
            pass

        @kdengine.hookimpl
        def kdengine_on_step_end(self, context):
            raise AssertionError("training began")

    with pytest.raises(kdengine.ConfigurationError, match=r"plugins\.hoarder\.callback"):
        fitted(tmp_path / "run", plugins=[Stateful()])


def test_the_fp16_loss_scale_goes_through_the_checkpoint(tmp_path):
    losses = {"kd": KD(), "ce": CE()}
    whole, _ = fitted(tmp_path / "whole", precision="fp16", losses=losses)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "cut", precision="fp16", losses=losses, checkpoint_every=1, plugins=[StopAt(5)])
    resumed, _ = fitted(tmp_path / "cut", precision="fp16", losses=losses)
    assert torch.equal(flat(whole), flat(resumed))


class Residual(nn.Module):
    """A block whose input has four readers: two layers, a shortcut, and a loss."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.inner, self.other = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x.tanh() + self.inner(x).relu() + self.other(x))


@pytest.mark.parametrize("features", ["stem", "inner:input"])
@pytest.mark.parametrize("cut", ["an epoch's end", "the middle of an epoch"])
def test_hints_on_features_with_several_readers_resume_to_the_same_bits(tmp_path, features, cut):
    def trained(out, epochs=3, **options):
        losses = {"hint": Hint(features, features), "kd": KD(), "ce": CE()}
        options = {"losses": losses, "teacher": Residual(7), "weights": {}, **options}
        return fitted(out, epochs, student=Residual(0), **options)

    whole, expected = trained(tmp_path / "whole")
    stop = {"plugins": [StopAt(4)]} if cut == "an epoch's end" else {"plugins": [StopAt(6)], "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", **stop)
    resumed, result = trained(tmp_path / "cut")
    assert torch.equal(flat(whole), flat(resumed))
    assert result.history == expected.history


def test_gradient_shares_are_those_of_the_undisturbed_run_where_nothing_but_the_evaluation_was_left(tmp_path):
    class Shift(kdengine.BatchTransform):
        def __call__(self, batch, generator):
            batch.inputs = batch.inputs + torch.randn((), generator=generator)
            return batch

    class StopBefore:
        kdengine_hook_version = 1

        @kdengine.hookimpl
        def kdengine_on_evaluate_start(self, context):
            raise KeyboardInterrupt

    options = {"gradient_shares": True, "epochs": 1, "checkpoint_every": 1, "batch_transforms": [Shift()]}
    fitted(tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "cut", plugins=[StopBefore()], **options)
    fitted(tmp_path / "cut", **options)

    def shares(out):
        records = kdengine.load_run(tmp_path / out).records
        return [{k: v for k, v in each.items() if k.startswith("gradient_share")} for each in records if "top1" in each]

    assert shares("cut") == shares("whole")
    assert len(shares("whole")[0]) == 2


def test_what_moves_bits_between_two_processes_is_said(tmp_path, monkeypatch):
    messages = []

    class Listener(kdengine.Logger):
        def message(self, text):
            messages.append(text)

    fitted(tmp_path / "run")
    fitted(tmp_path / "run", epochs=3, loggers=[Listener()])
    assert not any("equal bits" in text for text in messages)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    fitted(tmp_path / "run", epochs=4, loggers=[Listener()])
    assert any("equal bits: float32 products was 'highest', is 'medium'" in text for text in messages)
