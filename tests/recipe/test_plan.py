from __future__ import annotations

from pathlib import Path

import pytest

from kdengine.api import Progress
from kdengine.api.errors import LossError
from kdengine.host import Host
from kdengine.recipe.load import Source, read
from kdengine.recipe.plan import MakeSchedule, make_plan
from kdengine.recipe.problems import RecipeError

from .conftest import SMALL

FULL = SMALL + "\n[lr_schedule]\nuse = 'cosine'\n"


def complaints(plan_of, text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        plan_of(text, *overrides)
    return [line.strip() for line in str(caught.value).splitlines()[1:] if not line.startswith("    ")]


def test_every_problem_of_every_component_is_told_at_once(plan_of):
    text = """version = 1
data = { use = "digits", test_shar = 0.2, transforms = ["to_tenser", { use = "normalize", mean = [0.5] }] }
teacher = { use = "resnet8", chanels = 1, train = { epochs = 1, optimizer = { use = "sdg" } } }
train = { epochs = 1 }
loggers = [{ path = "x" }]
[student]
use = "mlp"
hidden = ["8"]
[losses]
ce = { label_smoothing = true, wieght = 1 }
kd.temperature = { shedule = "cosine" }
soft = {}
[losses.hint]
use = "hintt"
[losses.kd2]
use = "kd"
temperature = { schedule = "linear", start = "4", end = 1 }
weight = { schedule = "cosin", start = 1, end = 0 }
[batch_transforms.mixup]
alpah = 0.2
[optimizer]
use = "adam"
momentum = 0.9
[[optimizer.groups]]
match = 3
[[optimizer.groups]]
match = "bias"
lr = "high"
[lr_schedule]
use = "cosin"
[evaluate]
metrics = ["top1", "topp5"]
"""
    said = complaints(plan_of, text)
    expected = [
        ("line 2: data.test_shar", "did you mean 'test_share'"),
        ("line 2: data.transforms.0 = 'to_tenser'", "did you mean 'to_tensor'"),
        ("line 2: data.transforms.1.std", "required"),
        ("line 3: teacher.chanels", "did you mean 'channels'"),
        ("line 3: teacher.train.optimizer.use = 'sdg'", "did you mean 'sgd'"),
        ("line 5: loggers.0", "expected a name"),
        ("line 8: student.hidden = ['8']", "'8' is a str"),
        ("line 10: losses.ce.label_smoothing = True", "expected float"),
        ("line 10: losses.ce.wieght", "did you mean 'weight'"),
        ("line 11: losses.kd.temperature", "a table such as { schedule"),
        ("line 12: losses.soft = 'soft'", "no plugin offers 'soft' among losses"),
        ("line 14: losses.hint.use = 'hintt'", "did you mean 'hint'"),
        ("line 17: losses.kd2.temperature.start = '4'", "expected float"),
        ("line 18: losses.kd2.weight.schedule = 'cosin'", "did you mean 'cosine'"),
        ("line 20: batch_transforms.mixup.alpah", "did you mean 'alpha'"),
        ("line 23: optimizer.momentum", "unknown argument"),
        ("line 24: optimizer.groups.0", "expected match"),
        ("line 28: optimizer.groups.1.lr = 'high'", "expected"),
        ("line 30: lr_schedule.use = 'cosin'", "did you mean 'cosine'"),
        ("line 32: evaluate.metrics.1 = 'topp5'", "did you mean 'top5'"),
    ]
    told = {where: [line for line in said if line.startswith(where) and what in line] for where, what in expected}
    assert [where for where, lines in told.items() if len(lines) != 1] == []
    assert len(said) == len(expected), said


def test_what_cannot_work_with_a_loss_is_told_with_its_line(plan_of):
    plan = plan_of(SMALL + "[losses.far]\nuse = 'hint'\nstudent = ['fc',\n  'layer9']\nteacher = 'fc'\n")
    for error, said in (
        (LossError("there is no module", "far", "student"), "line 16: losses.far.student = ['fc', 'layer9']: there is"),
        (LossError("there is no module", "far", "other"), "line 14: losses.far.other: there is no module"),
        (LossError("they differ", "kd"), "line 7: losses.kd: they differ"),
    ):
        with pytest.raises(RecipeError) as caught, plan.telling_lines():
            raise error
        assert str(caught.value).startswith(f"test.toml: 1 problem\n  {said}")
        assert caught.value.__cause__ is error


def test_keys_of_the_recipe_and_arguments_of_components_are_told_together():
    source = Source("mine.toml", SMALL, Path("recipes"))
    recipe, problems = read(source, ["train.epochs=many", "losses.kd.temperature=hot", "student.hiden=[3]"])
    with pytest.raises(RecipeError, match="3 problems") as caught:
        make_plan(recipe, Host(autoload=False), source, problems)
    assert [problem.path for problem in caught.value.problems] == [
        ("student", "hiden"),
        ("losses", "kd", "temperature"),
        ("train", "epochs"),
    ]


def test_a_number_may_be_a_schedule_where_the_loss_says_so_and_as_a_weight(plan_of):
    plan = plan_of(
        SMALL,
        "losses.kd.temperature={ schedule = 'linear', start = 4.0, end = 1.0 }",
        "losses.kd.weight={ schedule = 'cosine', start = 1.0, end = 0.0 }",
    )
    weight = plan.weights["kd"]
    assert isinstance(weight, MakeSchedule)
    assert weight().value(Progress(step=9, steps=10)) == pytest.approx(0.0)
    first, second = plan.losses["kd"](), plan.losses["kd"]()
    assert first is not second


def test_two_fits_share_no_schedule(plan_of):
    plan = plan_of(SMALL, "losses.kd.weight={ schedule = 'linear', start = 1, end = 0 }")
    weight = plan.weights["kd"]
    assert isinstance(weight, MakeSchedule)
    assert weight() is not weight()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("losses.kd.temperature=hot", "expected number or schedule"),
        ("losses.kd.temperature=true", "expected number or schedule"),
        ("losses.kd.temperature={ schedule = 'linear', start = 1 }", "required"),
        ("losses.kd.weight={ schedule = 'linear', start = 1, end = 0, until = 2.0 }", "begin < until"),
        ("losses.kd.divergence=sideways", "forward_kl"),
        ("evaluate.monitor=top2", "not among evaluate.metrics"),
        ("teacher.checkpoint=a.pth", "not both"),
        ("teacher.source={ folder = 'x' }", "expected a name, or a table with use"),
        ("teacher.source=dsik", "no plugin offers 'dsik' among teachers"),
        ("student.use=nobody:mlp", "nobody"),
        ("lr_schedule={ use = 'multistep' }", "milestones: this argument is required"),
        ("lr_schedule={ use = 'cosine', warmpu = 1 }", "did you mean 'warmup'"),
        ("lr_schedule={ use = 'plateau', warmup = 1.0 }", "warm-up before plateau"),
        ("lr_schedule={ use = 'LRScheduler' }", "unknown learning-rate schedule"),
        ("teacher.train.lr_schedule={ use = 'cosin' }", "teacher.train.lr_schedule.use = 'cosin'"),
    ],
)
def test_what_a_component_would_refuse_is_a_problem_of_the_recipe(plan_of, override, told):
    said = complaints(plan_of, SMALL, override)
    assert len(said) == 1
    assert told in said[0]


def test_a_teacher_needs_weights_and_losses_and_metrics_need_a_teacher(plan_of):
    untrained = SMALL.replace(", train = { epochs = 2, lr = 0.01 }", "")
    assert ["a teacher needs checkpoint" in line for line in complaints(plan_of, untrained)] == [True]
    alone = "\n".join(line for line in SMALL.splitlines() if not line.startswith("teacher"))
    said = complaints(plan_of, alone)
    assert any(line.startswith("line 6: losses.kd: this loss needs a teacher") for line in said)
    assert any("evaluate.metrics = 'agreement'" in line for line in said)


def test_a_baseline_needs_a_loss_of_its_own(plan_of):
    text = "\n".join(line for line in SMALL.splitlines() if not line.startswith("losses.ce"))
    assert "the student alone needs a loss" in complaints(plan_of, text)[0]
    plan_of(text, "baseline=false")


def test_an_unknown_key_below_losses_is_told_with_the_arguments_of_that_loss(plan_of):
    assert complaints(plan_of, SMALL, "losses.kd.temprature=2") == [
        "line 7: losses.kd.temprature: unknown argument; did you mean 'temperature'?"
    ]


def test_the_label_of_a_loss_is_its_component_unless_use_says_otherwise(plan_of):
    plan = plan_of(SMALL, "losses.soft={ use = 'kd', temperature = 3.0 }", "losses.ce={ use = 'builtin:ce' }")
    assert plan.losses["soft"].component.qualified == "builtin:kd"
    assert plan.losses["ce"].component.qualified == "builtin:ce"


def test_test_inputs_go_through_what_draws_nothing_unless_the_recipe_says_otherwise(plan_of):
    def names(*overrides: str) -> list[str]:
        return [bound.component.name for bound in plan_of(SMALL, *overrides).eval_transforms]

    crop, normalize = "{ use = 'random_crop', size = 8 }", "{ use = 'normalize', mean = [0.5], std = [0.5] }"
    given = f"data.transforms=[{crop}, {normalize}]"
    assert names(given) == ["normalize"]
    assert names(given, "data.eval_transforms=[]") == []
    assert names(given, "data.eval_transforms=[{ use = 'center_crop', size = 6 }]") == ["center_crop"]


def test_the_teacher_may_have_an_optimizer_of_its_own_with_checked_arguments(plan_of):
    plan = plan_of(SMALL, "teacher.train.optimizer={ use = 'adam', betas = [0.5, 0.9] }")
    assert plan.teacher.models[0].optimizer.values == {"betas": (0.5, 0.9)}
    assert plan_of(SMALL).teacher.models[0].optimizer.component.name == "adam"
    assert complaints(plan_of, SMALL, "teacher.train.optimizer={ use = 'adam', betas = ['a', 0.9] }")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("losses.kd =", "losses.loss = { use = 'kd' }\nlosses.kd =", ["line 7: losses.loss", "reserved"]),
        ("losses.ce = {", "losses.top1 = { use = 'ce', ", ["line 8: losses.top1", "a metric's name"]),
        ("losses.ce =", 'losses."dkd.target" = { use = "ce" }\nlosses.dkd =', ["line 9: losses.dkd", "dkd.target"]),
    ],
    ids=["reserved", "metric", "term"],
)
def test_a_label_whose_values_would_overwrite_others_is_a_problem_with_its_line(plan_of, before, after, said):
    with pytest.raises(RecipeError) as caught:
        plan_of(SMALL.replace(before, after))
    assert all(part in str(caught.value) for part in said), str(caught.value)


def test_a_label_with_dots_or_the_name_of_an_attribute_works_in_a_recipe(plan_of):
    text = SMALL.replace("losses.kd =", 'losses.type = { use = "kd" }\nlosses."kd.t4" = { use = "kd" }\nlosses.kd =')
    plan = plan_of(text, 'losses."kd.t4".temperature=4.0', "losses.type.temperature=3.0")
    assert {"type", "kd.t4", "kd", "ce"} == set(plan.losses)
    assert plan.losses["kd.t4"]().temperature == 4.0
    assert plan.losses["type"]().temperature == 3.0


def test_two_loggers_of_one_name_are_two(plan_of):
    plan = plan_of(SMALL.replace("loggers = []", 'loggers = ["console", { use = "console", every = 3.0 }]'))
    assert len(plan.loggers) == 2
