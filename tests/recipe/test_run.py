from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest
import safetensors.torch
import torch

import kdengine
from kdengine.api import CheckpointError, ConfigurationError
from kdengine.engine import rundir
from kdengine.recipe.data import make_data
from kdengine.recipe.load import load
from kdengine.recipe.problems import RecipeError
from kdengine.recipe.run import rehearse

from .conftest import SMALL

STEPS_PER_EPOCH = 5


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def records(folder: Path, kind: str) -> list[dict]:
    return [record for record in rundir.read_records(folder / "metrics.jsonl") if record["kind"] == kind]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "student.safetensors")


def tree(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_a_run_writes_what_the_design_says(carry_out, tmp_path):
    summary = carry_out()
    out = tmp_path / "run"
    assert summary == summary_of(out)
    assert {path.name for path in out.iterdir()} >= {
        "recipe.toml",
        "summary.json",
        "metrics.jsonl",
        "checkpoints",
        "student.safetensors",
        "baseline",
        "disagreements.json",
    }
    for role, parameters in (("teacher", 2410), ("baseline", 610), ("student", 610)):
        entry = summary[role]
        assert entry["name"] == "mlp"
        assert entry["parameters"] == parameters
        assert entry["seconds"] > 0
        assert 0.0 <= entry["metrics"]["top1"] <= 1.0
    assert set(summary["teacher"]["metrics"]) == {"top1"}
    assert set(summary["student"]["metrics"]) == set(summary["baseline"]["metrics"]) == {"top1", "agreement"}
    assert summary["teacher"]["cached"] is False
    assert summary["steps"] == 2 * STEPS_PER_EPOCH
    assert (summary["seed"], summary["epochs"], summary["status"]) == (0, 2, "finished")
    assert (summary["name"], summary["monitor"], summary["device"]) == ("small", "top1", str(summary["device"]))
    assert summary["kdengine"] == kdengine.__version__
    assert summary["torch"] == str(torch.__version__)
    assert summary["backend"]
    assert summary["plugins"] == {}
    assert summary["data"]["labelled_items"] == 250
    assert load(out / "recipe.toml").student.arguments == {"hidden": [8]}


def test_the_headline_is_the_last_epoch_and_the_exported_student_has_it(carry_out, tmp_path, plan_of):
    from kdengine.recipe.data import make_data
    from kdengine.recipe.run import measure, trained_student

    summary = carry_out()
    plan = plan_of()
    data = make_data(plan)
    student = trained_student(plan, data, tmp_path / "run", 0)
    assert measure(plan, data, student)["top1"] == summary["student"]["metrics"]["top1"]
    last = records(tmp_path / "run", "evaluate")[-1]
    assert last["top1"] == summary["student"]["metrics"]["top1"]


def test_the_baseline_takes_as_many_steps_and_sees_the_same_labels(carry_out, tmp_path):
    carry_out()
    out = tmp_path / "run"
    alone = summary_of(out / "baseline")
    assert alone["steps"] == summary_of(out)["steps"]
    assert alone["student"]["parameters"] == summary_of(out)["student"]["parameters"]
    assert not torch.equal(weights(out)["fc.weight"], weights(out / "baseline")["fc.weight"])


class Recorder:
    """Keeps what each fit begins with and is fed."""

    kdengine_hook_version = 1

    def __init__(self) -> None:
        self.first: dict[str, dict[str, torch.Tensor]] = {}
        self.labels: dict[str, dict[int, int]] = {}
        self.order: dict[str, list[int]] = {}
        self.name = ""

    @kdengine.hookimpl
    def kdengine_on_fit_start(self, context):
        self.name = context.name
        self.first[self.name] = {k: v.clone() for k, v in context.student.state_dict().items()}

    @kdengine.hookimpl
    def kdengine_on_batch(self, context):
        index = context.batch.index.tolist()
        self.labels.setdefault(self.name, {}).update(zip(index, context.batch.labels.tolist(), strict=True))
        self.order.setdefault(self.name, []).extend(index)


def test_alone_and_distilled_begin_with_the_same_weights_labels_and_order(carry_out):
    recorder = Recorder()
    summary = carry_out(plugins=[recorder])
    alone, distilled = "student alone", "student"
    assert list(recorder.first) == [alone, distilled]
    for name, value in recorder.first[alone].items():
        assert torch.equal(value, recorder.first[distilled][name])
    assert recorder.labels[alone] == recorder.labels[distilled]
    assert sum(label >= 0 for label in recorder.labels[alone].values()) == 250
    assert recorder.order[alone] == recorder.order[distilled]
    assert list(summary["plugins"]) == ["recorder"]


def test_the_same_recipe_gives_the_same_bits(carry_out, tmp_path):
    for name in ("a", "b"):
        torch.rand(3)
        carry_out(out=tmp_path / name)
    ours, theirs = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_without_baseline_and_teacher_the_summary_says_null(carry_out):
    text = "\n".join(line for line in SMALL.splitlines() if not line.startswith(("teacher", "losses.kd", "evaluate")))
    summary = carry_out(text, "baseline=false")
    assert summary["teacher"] is None
    assert summary["baseline"] is None
    assert summary["student"]["metrics"].keys() == {"top1"}


def test_several_seeds_give_mean_sd_and_n(carry_out, tmp_path):
    summary = carry_out(SMALL, "train.seed=3", seeds=2)
    out = tmp_path / "run"
    assert summary == summary_of(out)
    assert summary["seeds"] == [3, 4]
    each = [summary_of(out / f"seed-{seed}") for seed in (3, 4)]
    assert [one["seed"] for one in each] == [3, 4]
    assert [load(out / f"seed-{seed}" / "recipe.toml").train.seed for seed in (3, 4)] == [3, 4]
    for role in ("student", "baseline"):
        values = [one[role]["metrics"]["top1"] for one in each]
        found = summary[role]["metrics"]["top1"]
        assert found == {"mean": statistics.fmean(values), "sd": statistics.stdev(values), "n": 2}
    sds = [summary[role]["metrics"]["top1"]["sd"] for role in ("student", "baseline")]
    assert summary["pooled_sd"]["top1"] == pytest.approx(math.sqrt(sum(sd**2 for sd in sds) / 2))
    assert summary["teacher"]["metrics"]["top1"] == each[0]["teacher"]["metrics"]["top1"]


def test_further_seeds_join_those_that_are_done(carry_out, tmp_path):
    carry_out(seeds=1)
    before = tree(tmp_path / "run" / "seed-0")
    assert carry_out(seeds=2, resume=True)["seeds"] == [0, 1]
    assert tree(tmp_path / "run" / "seed-0") == before


def test_a_used_directory_is_refused_without_resume(carry_out):
    carry_out()
    with pytest.raises(ConfigurationError, match="already holds a run"):
        carry_out()


def test_resuming_a_finished_run_says_so_and_changes_nothing(carry_out, tmp_path):
    first = carry_out()
    before = tree(tmp_path / "run")
    said: list[str] = []
    assert carry_out(resume=True, say=said.append) == first
    assert said == [f"{tmp_path / 'run'} is already finished: nothing to do"]
    assert tree(tmp_path / "run") == before


def test_resume_refuses_another_recipe_and_lists_every_difference(carry_out):
    carry_out()
    with pytest.raises(ConfigurationError) as caught:
        carry_out(SMALL, "losses.kd.temperature=3.0", "student.hidden=[9]", "train.epochs=1", resume=True)
    for said in (
        "losses.kd.temperature was 2.0, is 3.0",
        "student.hidden was [8], is [9]",
        "train.epochs was 2, is 1, and may only grow",
    ):
        assert said in str(caught.value)


@pytest.mark.parametrize("seeds", [None, 1])
@pytest.mark.parametrize("rate", ["constant", "cosine"])
def test_more_epochs_train_a_finished_run_on_and_rewrite_what_it_left(carry_out, tmp_path, seeds, rate):
    schedule = f"lr_schedule={{ use = '{rate}' }}"
    carry_out(SMALL, schedule, seeds=seeds)
    out = tmp_path / "run" if seeds is None else tmp_path / "run" / "seed-0"
    before, earlier = weights(out), records(out, "evaluate")
    free = ["train.epochs=4", "data.workers=0", "train.device=cpu", "train.keep=3", "train.log_every=7"]
    summary = carry_out(SMALL, schedule, *free, seeds=seeds, resume=True)
    assert (summary["epochs"], summary["steps"], summary["status"]) == (4, 4 * STEPS_PER_EPOCH, "finished")
    assert summary == summary_of(tmp_path / "run")
    assert summary_of(out / "baseline")["steps"] == 4 * STEPS_PER_EPOCH
    assert load(out / "recipe.toml").train.epochs == 4
    after = weights(out)
    assert all(float((after[name] - value).abs().max()) > 1e-4 for name, value in before.items())
    later = records(out, "evaluate")
    assert later[: len(earlier)] == earlier
    assert [record["epoch"] for record in later] == [1, 2, 3, 4]
    said: list[str] = []
    carry_out(SMALL, schedule, *free, seeds=seeds, resume=True, say=said.append)
    assert "already finished" in said[0]


def test_more_epochs_give_a_constant_rate_the_bits_of_a_run_that_never_stopped(carry_out, tmp_path):
    carry_out(out=tmp_path / "a")
    carry_out(SMALL, "train.epochs=4", out=tmp_path / "a", resume=True)
    carry_out(SMALL, "train.epochs=4", out=tmp_path / "b")
    ours, theirs = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize(
    ("overrides", "error", "told"),
    [
        (["student.checkpoint=absent.pth"], CheckpointError, "no checkpoint file"),
        (["optimizer.groups=[{ match = 'bakcbone.*' }]"], ConfigurationError, "no parameter's name matches"),
        (["optimizer.lr=-1.0"], ConfigurationError, r"\[optimizer\] adam cannot be made"),
        (
            ["losses.hint={ student = 'layer9', teacher = 'hidden.0' }"],
            RecipeError,
            r"test.toml: 1 problem\n  losses\.hint\.student = 'layer9': there is no module 'layer9'; .*'hidden'",
        ),
        (
            ["losses.map={ use = 'hint', student = 'hidden.0', teacher = 'hidden.?', projector = 'conv1x1' }"],
            RecipeError,
            r"losses\.map: student 'hidden.0' and teacher 'hidden.0': projector 'conv1x1' is for feature maps",
        ),
        (
            ["losses.uneven={ use = 'hint', student = ['fc', 'hidden.0'], teacher = 'fc' }"],
            RecipeError,
            r"losses\.uneven: Hint compares features in pairs, but student=.* names 2 \(fc, hidden.0\)",
        ),
        (
            [
                "losses.hint={ student = 'fc', teacher = 'fc' }",
                "teacher.source={ use = 'cached', folder = 'unused' }",
            ],
            RecipeError,
            r"losses\.hint\.teacher = 'fc': .* CachedTeacher, a teacher without live modules",
        ),
        (["student.classes=12"], ConfigurationError, "the student has 12 classes and the teacher 10"),
        (["lr_schedule={ use = 'restarts', T_0 = 0 }"], ConfigurationError, r"\[lr_schedule\]"),
    ],
)
def test_what_cannot_work_is_said_before_a_teacher_is_trained_or_a_directory_taken(
    carry_out, tmp_path, cache, overrides, error, told
):
    with pytest.raises(error, match=told):
        carry_out(SMALL, *overrides)
    assert not cache.exists()
    assert not (tmp_path / "run" / "recipe.toml").exists()
    carry_out()


RAISES = """
import kdengine

kdengine_hook_version = 1


class Boom(kdengine.Loss):
    calls = 0

    def __init__(self, after: int = 0):
        super().__init__()
        self.after = after

    def per_item(self, batch):
        type(self).calls += 1
        if type(self).calls > self.after:
            raise RuntimeError("size mismatch")
        return batch.student.logits.sum(-1)


@kdengine.hookimpl
def kdengine_losses():
    return {"boom": Boom}
"""


@pytest.mark.parametrize(("after", "step"), [(0, ""), (5, r" \(at step 5\)")])
def test_a_loss_that_raises_is_told_with_its_line_file_and_step(carry_out, tmp_path, after, step):
    (tmp_path / "boom.py").write_text(RAISES)
    told = rf"line \d+.*losses\.boom.*: Boom \(.*boom\.py\) raised RuntimeError at boom\.py:17: size mismatch{step}"
    text = SMALL.replace("losses.ce", f"losses.boom = {{ after = {after} }}\nlosses.ce")
    with pytest.raises(RecipeError, match=rf"(?s){told}"):
        carry_out(text, "baseline=false", plugins=[str(tmp_path / "boom.py")])


def test_classes_that_differ_train_once_the_recipe_says_how_they_correspond(carry_out):
    shared = carry_out(SMALL, "teacher.classes=12", "train.classes=shared")
    assert shared["student"]["metrics"]["agreement"] is not None


def test_classes_may_be_mapped(carry_out):
    order = list(reversed(range(10)))
    summary = carry_out(SMALL, f"train.classes={order}")
    assert summary["student"]["metrics"]["agreement"] < 0.5


def test_mixup_trains_with_few_labels(carry_out):
    summary = carry_out(SMALL, "batch_transforms.mixup.alpha=0.2", "data.labelled=0.1", "train.epochs=8")
    assert summary["student"]["metrics"]["top1"] > 0.25


def test_a_rate_that_waits_for_a_metric_trains_and_goes_on(carry_out):
    rate = "lr_schedule={ use = 'plateau', patience = 0 }"
    carry_out(SMALL, rate)
    assert carry_out(SMALL, rate, "train.epochs=3", resume=True)["steps"] == 3 * STEPS_PER_EPOCH


@pytest.mark.parametrize(
    "rate", ["use = 'cosine'", "use = 'cosine', warmup = 1.0", "use = 'onecycle'", "use = 'linear'"]
)
def test_more_epochs_put_the_rate_where_the_longer_schedule_has_it(carry_out, tmp_path, rate):
    options = [f"lr_schedule={{ {rate} }}", "train.log_every=1", "baseline=false"]
    carry_out(SMALL, *options, out=tmp_path / "a")
    carry_out(SMALL, *options, "train.epochs=4", out=tmp_path / "a", resume=True)
    carry_out(SMALL, *options, "train.epochs=4", out=tmp_path / "b")
    ours, theirs = ([record["lr"] for record in records(tmp_path / name, "train")] for name in ("a", "b"))
    assert ours[2 * STEPS_PER_EPOCH :] == pytest.approx(theirs[2 * STEPS_PER_EPOCH :])


def test_scheduled_scalars_are_logged_as_they_change(carry_out, tmp_path):
    carry_out(
        SMALL,
        "losses.kd.temperature={ schedule = 'linear', start = 4.0, end = 1.0 }",
        "losses.kd.weight={ schedule = 'cosine', start = 0.9, end = 0.1 }",
        "train.log_every=1",
    )
    logged = records(tmp_path / "run", "train")
    scalars = [key for key in logged[0] if logged[0][key] == pytest.approx(4.0) or logged[0][key] == pytest.approx(0.9)]
    assert len(scalars) == 2
    assert sorted(logged[-1][key] for key in scalars) == pytest.approx([0.1, 1.0])


def test_a_student_may_start_from_a_checkpoint(carry_out, tmp_path):
    carry_out(out=tmp_path / "a")
    start = tmp_path / "a" / "student.safetensors"
    recorder = Recorder()
    carry_out(SMALL, f"student.checkpoint={str(start)!r}", out=tmp_path / "b", plugins=[recorder])
    for name, value in weights(tmp_path / "a").items():
        assert torch.equal(value, recorder.first["student"][name])


def make_images(root: Path, classes: int = 10, train: int = 4, test: int = 2) -> None:
    image = pytest.importorskip("PIL.Image")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", train), ("test", test)):
        for label in range(classes):
            folder = root / split / f"class-{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=generator)
                image.fromarray(pixels.numpy()).save(folder / f"{number}.png")


@pytest.mark.parametrize("classes", [10, 3])
def test_the_whole_cifar10_recipe_runs_on_an_image_folder(carry_out, tmp_path, classes):
    pytest.importorskip("torchvision")
    from kdengine.recipe.load import shipped

    make_images(tmp_path / "images", classes=classes)
    overrides = [
        "data.use=image_folder",
        f"data.root={tmp_path / 'images'}",
        "train.epochs=1",
        "teacher.train.epochs=1",
        "loggers=[]",
    ]
    summary = carry_out(shipped()["cifar10"], *overrides)
    assert summary["data"]["train_items"] == 4 * classes
    assert summary["steps"] == classes
    assert summary["student"]["parameters"] == 37406 - (10 - classes) * 85
    assert set(summary["student"]["metrics"]) == {"top1", "top5", "agreement", "calibration_error"}
    changed = [*overrides, "data.batch_size=5"]
    with pytest.raises(ConfigurationError, match=r"data\.batch_size was 4, is 5"):
        carry_out(shipped()["cifar10"], *changed, resume=True)


@pytest.mark.slow
def test_distillation_beats_the_student_alone_on_the_shipped_recipe(carry_out):
    from kdengine.recipe.load import shipped

    summary = carry_out(shipped()["digits"], "train.epochs=20", "teacher.train.epochs=8", "loggers=[]")
    assert summary["student"]["metrics"]["top1"] > summary["baseline"]["metrics"]["top1"] + 0.01


class Undefined(kdengine.Metric):
    """Is NaN, as a correlation with a constant."""

    def reset(self):
        pass

    def update(self, batch):
        pass

    def compute(self):
        return math.nan


class OneForEachClass(Undefined):
    def compute(self):
        return torch.zeros(10)


class OffersUndefined:
    kdengine_hook_version = 1

    @kdengine.hookimpl
    def kdengine_metrics(self):
        return {"undefined": Undefined, "per_class": OneForEachClass}


def test_a_metric_that_is_no_number_is_told_before_the_teacher_trains(carry_out, cache):
    with pytest.raises(kdengine.ConfigurationError, match=r"'per_class' gives a tensor of shape \(10,\)"):
        carry_out(SMALL, "evaluate.metrics=['top1', 'per_class']", plugins=[OffersUndefined()])
    assert not cache.exists()


def test_a_metric_that_is_nan_throughout_ends_a_run_of_several_seeds_like_any_other(carry_out, tmp_path):
    overrides = ["evaluate.metrics=['undefined', 'top1']", "train.epochs=1", "teacher.train.epochs=1"]
    summary = carry_out(SMALL, *overrides, plugins=[OffersUndefined()], seeds=2)
    stored = json.loads((tmp_path / "run" / "summary.json").read_text(), parse_constant=pytest.fail)
    assert stored == json.loads(json.dumps(summary, allow_nan=False))
    for model in ("teacher", "baseline", "student"):
        assert stored[model]["metrics"]["undefined"] is None
    assert stored["student"]["metrics"]["top1"]["n"] == 2


def test_a_plateau_that_waits_for_the_worst_is_told_before_the_teacher_trains(carry_out, cache):
    with pytest.raises(kdengine.ConfigurationError, match=r"mode='min'.*'top1'"):
        carry_out(SMALL, "lr_schedule={ use = 'plateau', mode = 'min' }")
    assert not cache.exists()


@pytest.mark.filterwarnings("error")
def test_a_rehearsal_knows_how_long_the_fit_will_be(plan_of):
    long = ["train.epochs=30", "train.ema=0.99", "lr_schedule={ use = 'cosine', warmup = 5.0 }"]
    plan = plan_of(SMALL, *long, "teacher.train.epochs=6")
    rehearse(plan, make_data(plan))


def test_a_warm_up_that_is_longer_than_the_fit_is_warned_of(plan_of):
    plan = plan_of(SMALL, "lr_schedule={ use = 'cosine', warmup = 5.0 }", "baseline=false", "train.epochs=1")
    with pytest.warns(UserWarning, match="warmup of 5 epochs takes all of the fit's 1"):
        rehearse(plan, make_data(plan))
