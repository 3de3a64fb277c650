"""The engine as a script uses it."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import nn

import kdengine
from kdengine.losses import CE, KD, Hint
from tests.engine.common import CLASSES, INPUTS, engine, flat, items, mlp, sgd


@pytest.mark.slow
def test_the_script_of_the_readme_runs_on_a_torchvision_pair(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    images = torch.utils.data.TensorDataset(torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,)))
    loader = torch.utils.data.DataLoader(images, 4)
    records = []
    trained = kdengine.Engine(
        teacher=torchvision.models.resnet34(num_classes=10),
        student=torchvision.models.resnet18(num_classes=10),
        losses={"kd": KD(temperature=4.0), "ce": CE(), "hint": Hint(student="layer3", teacher="layer3")},
        weights={"kd": 0.9, "ce": 0.1, "hint": kdengine.Linear(1.0, 0.0)},
        optimizer=lambda named: torch.optim.SGD([p for _, p in named], lr=0.01, momentum=0.9, weight_decay=5e-4),
        lr_scheduler=lambda opt, steps: torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps),
        metrics={"top1": "top1", "mine": lambda logits, labels: (logits.argmax(-1) == labels).float()},
        loggers=[lambda record, step: records.append((step, record))],
        precision="bf16",
        ema=0.9,
        log_every=1,
        out=tmp_path / "r18",
        device="cpu",
    )
    result = trained.fit(loader, loader, epochs=2, resume="auto")
    assert result.steps == 4
    assert result.metrics["top1"] == result.metrics["mine"]
    assert {"loss", "kd", "ce", "hint", "weights.hint"} <= records[0][1].keys()
    assert len(result.history) == 2
    run = kdengine.load_run(tmp_path / "r18")
    assert run.summary["student"]["metrics"] == result.metrics
    assert not any(name.startswith("losses") for name in run.student()), "projectors stay out of the export"


class TextOutput(NamedTuple):
    logits: torch.Tensor
    hidden: torch.Tensor


class TextModel(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, hidden)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = (self.embed(input_ids) * attention_mask.unsqueeze(-1)).mean(dim=1)
        return {"hidden": hidden, "logits": self.head(hidden)}


def text_batches() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": torch.randint(0, 20, (4, 6), generator=generator),
            "attention_mask": torch.ones(4, 6),
            "labels": torch.randint(0, CLASSES, (4,), generator=generator),
        }
        for _ in range(5)
    ]


def test_a_pair_with_dict_batches_and_dict_outputs_trains():
    student, teacher = TextModel(4), TextModel(16)
    before = flat(student)
    result = engine(student, teacher, metrics={"top1": "top1", "agreement": "agreement"}).fit(
        text_batches(), text_batches(), epochs=2
    )
    assert result.steps == 10
    assert not torch.equal(before, flat(student))
    assert 0.0 <= result.metrics["agreement"] <= 1.0


def test_a_second_fit_in_the_same_process_starts_over_from_the_weights_that_are_there():
    student = mlp()
    trained = engine(student)
    loader = kdengine.loader(items(), 8)
    first = trained.fit(loader, epochs=2)
    middle = flat(student)
    second = trained.fit(loader, epochs=1)
    assert (first.steps, second.steps) == (8, 4)
    assert len(second.history) == 1
    assert not torch.equal(middle, flat(student))


def test_no_hook_and_no_gradient_is_left_behind_even_after_an_interrupt():
    student, teacher = mlp(), mlp(32)

    class Interrupt:
        kdengine_hook_version = 1

        @kdengine.hookimpl
        def kdengine_on_step_end(self, context):
            raise KeyboardInterrupt

    losses = {"hint": Hint(student="1", teacher="1")}
    with pytest.raises(KeyboardInterrupt):
        engine(student, teacher, losses=losses, weights={}, plugins=[Interrupt()]).fit(
            kdengine.loader(items(), 8), epochs=1
        )
    assert all(not module._forward_hooks for root in (student, teacher) for module in root.modules())
    assert all(parameter.grad is None for parameter in student.parameters())


def test_the_objective_serves_a_foreign_loop_with_the_same_gradient_as_the_engine():
    dataset = items()
    by_engine, by_hand = mlp(), mlp()
    plain_sgd = lambda named: torch.optim.SGD([p for _, p in named], lr=0.1)  # noqa: E731
    engine(by_engine, optimizer=plain_sgd).fit([dataset[:8], dataset[8:16]], epochs=1)
    foreign = engine(by_hand, optimizer=None)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    for batch in (dataset[:8], dataset[8:16]):
        optimizer.zero_grad()
        foreign.objective(batch).backward()
        optimizer.step()
    assert torch.allclose(flat(by_engine), flat(by_hand), rtol=0, atol=1e-7)


def test_a_foreign_loop_gets_the_losses_own_parameters_and_may_wrap_the_student():
    student = mlp()
    foreign = engine(student, losses={"hint": Hint(student="1", teacher="1")}, weights={}, optimizer=None)
    named = foreign.loss_parameters(items()[:4])
    assert [name for name, _ in named] == [
        "losses.hint.regressors.0.linear.weight",
        "losses.hint.regressors.0.linear.bias",
    ]
    wrapped = nn.DataParallel(student)
    foreign.objective(items()[:4], student=wrapped).backward()
    assert named[0][1].grad is not None
    assert student[0].weight.grad is not None


def test_train_step_takes_micro_batches_in_someones_own_loop():
    whole, split = mlp(), mlp()
    data = items(8)[:]
    values = engine(whole).train_step([data])
    engine(split).train_step([tuple(part[:3] for part in data), tuple(part[3:] for part in data)])
    assert values.keys() == {"loss", "kd", "ce"}
    assert values["loss"] == pytest.approx(0.9 * values["kd"] + 0.1 * values["ce"])
    assert torch.allclose(flat(whole), flat(split), rtol=0, atol=1e-7)


def test_plain_training_needs_no_teacher():
    result = kdengine.Engine(mlp(), losses=[CE()], optimizer=sgd, loggers=[]).fit(kdengine.loader(items(), 8), epochs=1)
    assert result.steps == 4


def test_an_evaluation_may_be_a_function_of_the_student():
    seen = []

    def measure(student: nn.Module) -> dict[str, float]:
        seen.append(student.training)
        return {"answer": 42}

    student = mlp()
    result = engine(student).fit(kdengine.loader(items(), 8), measure, epochs=2)
    assert result.metrics == {"answer": 42.0}
    assert seen == [False, False]
    assert student.training


def test_nothing_is_written_without_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    engine().fit(kdengine.loader(items(), 8), epochs=1)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_logger_is_reported_once_and_does_not_stop_training():
    messages = []

    class Listener(kdengine.Logger):
        def message(self, text):
            messages.append(text)

    def broken(record, step):
        raise OSError("disk full")

    result = engine(loggers=[broken, Listener()], log_every=1).fit(kdengine.loader(items(), 8), epochs=2)
    assert result.steps == 8
    assert [text for text in messages if "disk full" in text] == messages
    assert len(messages) == 1


def test_a_logger_whose_state_cannot_be_had_is_left_out_and_the_checkpoint_is_written(tmp_path):
    messages = []

    class Broken(kdengine.Logger):
        def state_dict(self):
            raise OSError("No space left on device")

    class Listener(kdengine.Logger):
        def message(self, text):
            messages.append(text)

    engine(loggers=[Broken(), Listener()], out=tmp_path / "run").fit(kdengine.loader(items(), 8), epochs=1)
    assert [text for text in messages if "'broken' failed in state_dict and is left out" in text] == messages
    assert len(messages) == 1


def test_accumulation_clipping_precision_and_a_moving_average_work_together():
    student = mlp()
    result = engine(student, accumulate=3, clip=0.01, precision="bf16", ema=0.5, metrics={"top1": "top1"}).fit(
        kdengine.loader(items(), 5), kdengine.loader(items(), 8), epochs=2
    )
    assert result.steps == 2 * 3, "7 micro-batches make 3 steps, the last of one micro-batch"


def test_fp16_scales_the_loss_and_logs_it_unscaled():
    records = []
    engine(precision="fp16", loggers=[lambda record, step: records.append(record)], log_every=1).fit(
        kdengine.loader(items(), 16), epochs=1
    )
    reference = []
    engine(loggers=[lambda record, step: reference.append(record)], log_every=1).fit(
        kdengine.loader(items(), 16), epochs=1
    )
    assert records[0]["loss"] == pytest.approx(reference[0]["loss"], rel=0.02)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"losses": {"kd": nn.MSELoss()}}, "from_callable"),
        ({"weights": {"kdd": 1.0}}, "did you mean 'kd'"),
        ({"precision": "fp8"}, "'fp32', 'bf16' or 'fp16'"),
        ({"metrics": {"top1": "topp1"}}, "top1"),
        ({"nonfinite": "rollback"}, "out="),
        ({"device": "cuda:99"}, "cannot be used here"),
        ({"ema": 1.5}, "between 0 and 1"),
        ({"optimizer": None}, "needs an optimizer"),
        ({"accumulate": 0}, "at least 1"),
    ],
)
def test_arguments_that_cannot_work_are_refused_with_what_to_do(options, said):
    with pytest.raises(kdengine.ConfigurationError, match=said):
        engine(**options).fit(kdengine.loader(items(), 8), epochs=1)


def test_a_student_without_trainable_parameters_is_refused():
    with pytest.raises(kdengine.ConfigurationError, match="no trainable parameter"):
        engine(mlp().requires_grad_(False)).fit(kdengine.loader(items(), 8), epochs=1)


def test_different_class_counts_are_refused_unless_a_mapping_says_how():
    loader = kdengine.loader(items(), 8)
    with pytest.raises(kdengine.ConfigurationError, match="5 classes and the teacher 7"):
        engine(mlp(), mlp(32, classes=7)).fit(loader, epochs=1)
    for classes in ("shared", [6, 5, 4, 3, 2]):
        assert engine(mlp(), mlp(32, classes=7), classes=classes).fit(loader, epochs=1).steps == 4
    with pytest.raises(kdengine.ConfigurationError, match="maps 3 student classes"):
        engine(mlp(), mlp(32, classes=7), classes=[0, 1, 2]).fit(loader, epochs=1)


def test_class_counts_do_not_matter_without_a_logits_loss():
    losses = {"hint": Hint(student="1", teacher="1")}
    assert (
        engine(mlp(), mlp(32, classes=7), losses=losses, weights={}).fit(kdengine.loader(items(), 8), epochs=1).steps
        == 4
    )


def test_after_a_fit_its_losses_serve_an_evaluation_and_a_foreign_loop_as_they_were_trained():
    trained = engine(losses={"hint": Hint(student="1", teacher="1"), "ce": CE()}, weights={})
    trained.fit(kdengine.loader(items(), 8), epochs=1)
    before = {name: value.clone() for name, value in trained._fit.objective.modules.state_dict().items()}
    assert before
    trained.objective(items()[:4])
    found = dict(trained.loss_parameters(items()[:4]))
    assert set(found) == {f"losses.{name}" for name in before}
    assert all(torch.equal(found[f"losses.{name}"], value) for name, value in before.items())


def test_a_scheduler_instance_beside_loss_parameters_is_refused():
    student = mlp()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    losses = {"hint": Hint(student="1", teacher="1")}
    with pytest.raises(kdengine.ConfigurationError, match="pass factories"):
        engine(student, losses=losses, weights={}, optimizer=optimizer, lr_scheduler=scheduler).fit(
            kdengine.loader(items(), 8), epochs=1
        )


def test_an_optimizer_instance_gets_the_losses_own_parameters():
    student = mlp()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    engine(student, losses={"hint": Hint(student="1", teacher="1")}, weights={}, optimizer=optimizer).fit(
        kdengine.loader(items(), 8), epochs=1
    )
    assert len(optimizer.param_groups) == 2
    with pytest.raises(kdengine.ConfigurationError, match="no parameter of the student"):
        engine(mlp(9), optimizer=optimizer).fit(kdengine.loader(items(), 8), epochs=1)


def test_labels_out_of_range_are_refused():
    inputs = torch.randn(4, INPUTS)
    with pytest.raises((ValueError, IndexError)):
        engine().fit([(inputs, torch.tensor([0, 1, 2, CLASSES]))], epochs=1)


class Remembers(kdengine.Loss):
    """Says what it needs and reads it late, or in its setup."""

    def __init__(self, *, early=False, **needs):
        super().__init__()
        self.early = early
        self.needs = kdengine.Needs(teacher=False, **needs)

    def setup(self, example):
        if self.early:
            raise KeyError("no such class")

    def per_item(self, batch):
        return batch.student.logits.square()


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (CE(), r"the loss ce needs labels, but the loader gives none; expected \(input, labels\) or a mapping"),
        (
            Remembers(labels=True),
            r"the loss remembers needs labels, but the loader gives none; expected \(input, labels\)",
        ),
        (Remembers(index=True), r"the loss remembers needs the items' index; use kdengine\.loader"),
    ],
)
def test_a_loss_without_what_it_needs_of_the_data_is_named_by_its_label(loss, said):
    with pytest.raises(kdengine.ConfigurationError, match=rf"^losses\.mine: {said}"):
        engine(losses={"kd": KD(), "mine": loss}, weights={}).fit([torch.randn(4, INPUTS)], epochs=1)


def test_whatever_a_setup_raises_says_whose_it_is():
    with pytest.raises(
        kdengine.LossError, match=r"^losses\.mine: Remembers .* raised KeyError at test_engine\.py:"
    ) as caught:
        engine(losses={"mine": Remembers(early=True)}, weights={}).fit([torch.randn(4, INPUTS)], epochs=1)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_batch_and_an_output_of_unknown_form_list_what_was_seen():
    with pytest.raises(kdengine.ConfigurationError, match=r"a str .*Engine\(batch=fn\)"):
        engine().fit(["what"], epochs=1)
    student = nn.Sequential(mlp(), nn.Identity())
    student.forward = lambda inputs: {"scores": mlp()(inputs)}
    with pytest.raises(kdengine.ConfigurationError, match=r"\['scores'\].*Engine\(output=fn\)"):
        engine(student).fit([items()[:4]], epochs=1)
    fixed = engine(student, output=lambda output: output["scores"] if isinstance(output, dict) else output)
    assert fixed.fit([items()[:4]], epochs=1).steps == 1
