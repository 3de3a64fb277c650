"""The how-tos, executed section by section."""

import pytest
import torch

import kdengine
from kdengine.host import Host
from kdengine.host.discovery import looks_like_path
from kdengine.losses import CE, KD
from kdengine.recipe import load
from kdengine.recipe.load import Source
from kdengine.recipe.models import make_model
from kdengine.recipe.plan import make_plan
from kdengine.recipe.run import Options, run
from tests.docs.markdown import DOCS, blocks, run_python, titled

HOW_TO = DOCS / "how-to.md"
BLOCKS = blocks(HOW_TO)
FIRST = BLOCKS[0]
SECTIONS = list(dict.fromkeys(block.heading for block in BLOCKS))


@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_runs_and_its_recipe_is_one(title, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace = {}
    run_python(FIRST, HOW_TO, namespace)
    for block in BLOCKS:
        if block.heading != title or block is FIRST:
            continue
        if block.title is not None:
            (tmp_path / block.title).write_text(block.text)
        if block.language == "toml":
            check_recipe(block, tmp_path)
        else:
            assert block.language == "python", f"line {block.line}"
            run_python(block, HOW_TO, namespace)


@pytest.mark.parametrize("title", ["stages.toml"])
def test_a_recipe_trains_to_its_end(title, tmp_path, monkeypatch):
    monkeypatch.setenv("KDENGINE_CACHE", str(tmp_path / "cache"))
    source = Source(title, titled(HOW_TO, title).text, tmp_path)
    short = ["train.epochs=12", "teacher.train.epochs=6", "lr_schedule.T_0=6", "loggers=[]"]
    plan = make_plan(load.load(source, short), Host(autoload=False), source)
    summary = run(plan, Options(out=tmp_path / "run", say=lambda _: None))
    assert summary["student"]["metrics"]["top1"] > 0.5


class Trainer:
    """The arithmetic of a Trainer that accumulates: it divides unless the model is said to take the number of items."""

    def __init__(self, model):
        self.model, self.model_accepts_loss_kwargs = model, True

    def get_batch_samples(self, batches, count, device):
        return [next(batches) for _ in range(count)], 16

    def step(self, batches, count):
        samples, items = self.get_batch_samples(iter(batches), count, None)
        for inputs in samples:
            loss = self.compute_loss(self.model, inputs, num_items_in_batch=items)
            (loss if self.model_accepts_loss_kwargs else loss / len(samples)).backward()


def test_a_trainer_that_accumulates_has_the_gradient_of_one_large_batch():
    namespace = {}
    run_python(FIRST, HOW_TO, namespace)
    (block,) = [block for block in BLOCKS if "class Distils" in block.text]
    student, data = namespace["student"], namespace["data"].tensors
    losses = {"kd": KD(hard_weight=0.5), "ce": CE()}
    namespace["engine"] = kdengine.Engine(student, namespace["teacher"], losses=losses, loggers=[])
    run_python(block, HOW_TO, namespace)
    trainer = type("Distiller", (namespace["Distils"], Trainer), {})(student)
    gradients = []
    for sizes in ([16], [4, 12]):
        student.zero_grad()
        parts = zip(*(part[:16].split(sizes) for part in data), strict=True)
        trainer.step(list(parts), len(sizes))
        gradients.append([parameter.grad.clone() for parameter in student.parameters()])
    for whole, accumulated in zip(*gradients, strict=True):
        torch.testing.assert_close(accumulated, whole)


def check_recipe(block, folder):
    """Everything that ``kdengine check`` would, but for files that the text only mentions."""
    source = Source(block.title, block.text, folder)
    recipe = load.load(source)
    plugins = [str(folder / name) if looks_like_path(name) else name for name in recipe.plugins]
    plan = make_plan(recipe, Host(plugins, autoload=False), source)
    for split in ("train", "test"):
        assert len(plan.data(split)) > 0
    inputs = plan.data("train")[0][0]
    facts = {"classes": len(plan.data("train").classes), "input_shape": tuple(inputs.shape)}
    assert make_model(plan.student, {**facts, "input_dtype": inputs.dtype}, seed=0, role="student") is not None
