"""Teachers of a recipe: one model, several, or what changes with the student."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

import kdengine
from kdengine.cli.report.page import write_report
from kdengine.engine import rundir
from kdengine.recipe.build import make_source
from kdengine.recipe.data import make_data
from kdengine.recipe.estimate import estimate
from kdengine.recipe.load import dump, load
from kdengine.recipe.problems import RecipeError
from kdengine.recipe.run import measure, teacher_source
from kdengine.recipe.teacher import get_teacher, untrained_teacher

from .conftest import SMALL

ONE = 'teacher = { use = "mlp", hidden = [32], train = { epochs = 2, lr = 0.01 } }'
FIRST = '{ use = "mlp", hidden = [32], train = { epochs = 2, lr = 0.01 } }'
SECOND = '{ use = "mlp", hidden = [16], train = { epochs = 1, lr = 0.01, seed = 1 } }'


def several(*members: str, more: str = "") -> str:
    assert ONE in SMALL
    return SMALL.replace(ONE, f"teacher = {{ members = [{', '.join(members or (FIRST, SECOND))}]{more} }}")


EVOLVING = {
    "ema": SMALL.replace(ONE, 'teacher = { source = { use = "ema", decay = 0.9 } }'),
    "peer": SMALL.replace(ONE, 'teacher = { use = "mlp", hidden = [16], source = "peer" }'),
}
SIZES = {"ema": 610, "peer": 1210}


def told(plan_of, text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        plan_of(text, *overrides)
    return [line.strip() for line in str(caught.value).splitlines()[1:] if not line.startswith("    ")]


def accuracy(summary):
    return {role: summary[role]["metrics"]["top1"] for role in ("teacher", "baseline", "student")}


def test_several_teachers_are_trained_each_into_the_cache_and_teach_as_one(carry_out, plan_of, tmp_path, cache):
    summary = carry_out(several())
    assert sorted(path.name.split("-")[0] for path in cache.iterdir() if path.is_dir()) == ["mlp", "mlp"]
    teacher = summary["teacher"]
    assert teacher["name"] == "ensemble of mlp, mlp"
    assert teacher["parameters"] == 2410 + 1210
    assert teacher["seconds"] > 0
    assert not teacher["cached"]
    assert set(summary["student"]["metrics"]) == set(summary["baseline"]["metrics"]) == {"top1", "agreement"}

    plan = plan_of(several())
    data = make_data(plan)
    found = get_teacher(plan, data, [])
    assert found.cached
    inputs, labels = (torch.stack([torch.as_tensor(item[k]) for item in data.test]) for k in (0, 1))
    with torch.no_grad():
        mean = sum(module.eval()(inputs).softmax(-1) for module in found.modules) / 2
    assert teacher["metrics"]["top1"] == pytest.approx(float((mean.argmax(-1) == labels).float().mean()))
    again = carry_out(several(), out=tmp_path / "again")
    assert again["teacher"]["cached"]
    assert accuracy(again) == accuracy(summary)


def test_a_member_is_the_teacher_that_it_would_be_alone(plan_of):
    alone, together = plan_of(), plan_of(several())
    data = make_data(alone)
    first = get_teacher(alone, data, [])
    found = get_teacher(together, data, [])
    assert first.cached is found.cached is False
    assert get_teacher(alone, data, []).seconds == first.seconds
    for mine, theirs in zip(first.modules[0].parameters(), found.modules[0].parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_what_unites_the_teachers_has_its_own_arguments(plan_of):
    plan = plan_of(
        several(more=', source = { use = "ensemble", weights = [3, 1], temperature = 2.0, confidence = "labels" }')
    )
    data = make_data(plan)
    source = make_source(plan.teacher, data, untrained_teacher(plan, data).modules)
    assert (source.weights, source.temperature, source.confidence) == ([0.75, 0.25], 2.0, "labels")


def test_buffers_that_may_change_are_named_in_the_table_of_their_model(plan_of):
    counting = f'{FIRST[:-1]}, ignore_buffers = ["*.tokens_per_expert"] }}'
    for text, patterns in (
        (SMALL.replace(ONE, f"teacher = {counting}"), ["*.tokens_per_expert"]),
        (several(SECOND, counting), ["1.*.tokens_per_expert"]),
    ):
        plan = plan_of(text)
        data = make_data(plan)
        source = make_source(plan.teacher, data, untrained_teacher(plan, data).modules)
        assert list(source.ignore_buffers) == patterns


def test_each_has_its_own_checkpoint_inputs_dtype_and_cache(plan_of, carry_out, tmp_path):
    trained = get_teacher(plan_of(several()), make_data(plan_of()), [])
    path = tmp_path / "first.safetensors"
    safetensors.torch.save_file(trained.modules[0].state_dict(), path)
    seen = '{ use = "normalize", mean = [0.5], std = [0.5] }'
    text = several(
        f'{{ use = "mlp", hidden = [32], checkpoint = "{path}", transforms = [{seen}], dtype = "bf16" }}',
        f'{SECOND[:-1]}, source = {{ use = "cached", folder = "{tmp_path}/logits", per_epoch = false }} }}',
    )
    plan = plan_of(text)
    data = make_data(plan)
    teacher = get_teacher(plan, data, [])
    inputs = torch.stack([data.test[k][0] for k in range(4)])
    with torch.no_grad():
        assert torch.equal(teacher.modules[0](inputs), trained.modules[0]((inputs - 0.5) / 0.5))
    summary = carry_out(text)
    assert summary["teacher"]["parameters"] == 2410 + 1210
    assert sorted(path.name for path in (tmp_path / "logits").iterdir()) == [
        "cache.json",
        "inputs.10.f32",
        "inputs.rows",
    ]


def test_a_trained_teacher_learns_on_the_inputs_that_it_will_see(plan_of):
    normalized = 'teacher.transforms=[{ use = "normalize", mean = [0.5], std = [0.1] }]'
    plain, own = (get_teacher(plan_of(SMALL, *more), make_data(plan_of()), []) for more in ((), (normalized,)))
    assert not own.cached
    differences = zip(plain.modules[0].parameters(), own.modules[0].parameters(), strict=True)
    assert not any(torch.equal(mine, theirs) for mine, theirs in differences)


def test_the_report_and_the_estimate_know_all_of_them(plan_of, carry_out, tmp_path):
    found = estimate(plan_of(several()))
    assert [fit.name for fit in found.fits] == [
        "teacher.members.0",
        "teacher.members.1",
        "student alone",
        "student distilled",
    ]
    assert found.teacher_note.count("would be trained first") == 2
    assert found.fits[-1].weights == 4 * (610 + 2410 + 1210)
    assert len(found.fits) == 4
    carry_out(several())
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text()
    assert "ensemble of mlp, mlp" in page


def test_features_of_members_are_named_with_their_number(carry_out):
    text = several() + '[losses.hint]\nstudent = "hidden.0"\nteacher = "1.hidden.0"\n'
    summary = carry_out(text, "baseline=false")
    assert summary["student"]["metrics"]["top1"] > 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (several(more=', use = "mlp"'), "line 5: teacher.use = 'mlp': belongs to each of teacher.members"),
        (several(more=", train = { epochs = 1 }"), "belongs to each of teacher.members"),
        (several(more=", hidden = [3]"), "line 5: teacher.hidden = [3]: unknown key beside members"),
        (several(FIRST, FIRST), "teacher.members.1: the same teacher as member 0: give it a train.seed of its own"),
        (several(FIRST, '{ use = "mlp", hidden = [3] }'), "teacher.members.1: a teacher needs checkpoint"),
        (several(FIRST, '{ hidden = [3], checkpoint = "x" }'), "teacher.members.1.use: this key is required"),
        (several(FIRST, '{ use = "mpl", checkpoint = "x" }'), "teacher.members.1.use = 'mpl': no plugin offers 'mpl'"),
        (several(FIRST, f'{SECOND[:-1]}, hiden = [3] }}'), "teacher.members.1.hiden: unknown argument"),
        (several(FIRST, f'{SECOND[:-3]}, epoch = 1 }} }}'), "did you mean 'epochs'?"),
        (several(FIRST, f'{SECOND[:-1]}, source = "ema" }}'), "ema needs a teacher of its own"),
        (several(FIRST, f'{SECOND[:-1]}, source = "ensemble" }}'), "ensemble needs teacher.members"),
        (several(more=', source = { use = "cached", folder = "x" }'), "cached needs a teacher of one model"),
        (several(more=', source = { use = "ensemble", weights = [1.0] }'), "teacher.source: ensemble: expected 2"),
        (several(more=', source = { use = "ensemble", mean = "median" }'), "teacher.source.mean = 'median'"),
        (SMALL.replace(ONE, 'teacher = { source = "ensemble" }'), "ensemble needs teacher.members"),
        (SMALL.replace(ONE, "teacher = {}"), "line 5: teacher: a teacher needs use = 'model', or members"),
        (SMALL.replace(ONE, 'teacher = { use = "mlp", source = "ema" }'), "ema is made of the student: leave this out"),
        (SMALL.replace(ONE, 'teacher = { hidden = [3], source = "ema" }'), "arguments of ema stand in teacher.source"),
        (SMALL.replace(ONE, 'teacher = { source = { use = "ema", decay = 2.0 } }'), "between 0 and 1, got 2.0"),
        (SMALL.replace(ONE, f'{ONE[:-1]}, source = "peer" }}'), "teacher.train: this teacher learns with the student"),
        (several(FIRST, '{ use = "mlp", hidden = [3], source = "peer" }'), "members.1.source = 'peer': peer evolves"),
        (SMALL.replace(ONE, f'{ONE[:-1]}, transforms = ["random_crop"] }}'), "transforms.0.size: this argument"),
        (
            SMALL.replace(ONE, f'{ONE[:-1]}, transforms = ["random_horizontal_flip"] }}'),
            "teacher.transforms.0 = 'random_horizontal_flip': random_horizontal_flip draws",
        ),
        (
            SMALL.replace(ONE, f'{ONE[:-1]}, dtype = "bf16", source = {{ use = "cached", folder = "x" }} }}'),
            "teacher.dtype = 'bf16': the source cached does not heed this",
        ),
    ],
)  # fmt: skip
def test_what_makes_no_teacher_is_told_with_its_place(plan_of, text, said):
    found = told(plan_of, text)
    assert len(found) == 1, found
    assert said in found[0]


def test_members_that_share_the_folder_of_a_cache_are_told(plan_of):
    source = 'source = { use = "cached", folder = "logits" }'
    found = told(plan_of, several(f"{FIRST[:-1]}, {source} }}", f"{SECOND[:-1]}, {source} }}"))
    assert found == [
        "line 5: teacher.members.1.source.folder = 'logits': the folder of another member's cache; give each its own, "
        "such as 'logits-1'"
    ]


def test_teachers_as_an_array_of_tables_are_told_with_the_line_of_their_own(plan_of):
    text = SMALL.replace(ONE, "") + '[[teacher.members]]\nuse = "mlp"\ncheckpoint = "x"\n[[teacher.members]]\nuse = 3\n'
    assert told(plan_of, text) == ["line 18: teacher.members.1.use = 3: expected a string"]


def test_the_resolved_recipe_reads_back(plan_of, tmp_path):
    for text in (several(), *EVOLVING.values()):
        plan = plan_of(text)
        path = tmp_path / "recipe.toml"
        path.write_text(dump(plan.recipe))
        assert load(path) == plan.recipe


def test_teachers_whose_classes_differ_are_refused_before_anything_is_trained(carry_out, cache):
    class Wider:
        kdengine_hook_version = 1

        @kdengine.hookimpl
        def kdengine_models(self):
            return {"wider": lambda input_shape: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 12))}

    text = several(FIRST, '{ use = "wider", train = { epochs = 1 } }')
    with pytest.raises(kdengine.ConfigurationError, match=r"teacher 0 \(\d+, 10\), teacher 1 \(\d+, 12\)"):
        carry_out(text, plugins=[Wider()])
    assert not cache.exists()


@pytest.mark.parametrize("name", EVOLVING)
def test_a_teacher_that_changes_with_the_student_is_new_for_each_seed_and_measured_at_the_end(
    carry_out, name, tmp_path, cache
):
    summary = carry_out(EVOLVING[name], "train.epochs=3", seeds=2)
    assert not cache.exists()
    folders = [tmp_path / "run" / f"seed-{seed}" for seed in (0, 1)]
    own = [json.loads((folder / "summary.json").read_text())["teacher"] for folder in folders]
    assert own[0]["metrics"] != own[1]["metrics"]
    assert own[0]["name"] == {"ema": "ema", "peer": "mlp"}[name]
    assert own[0]["parameters"] == SIZES[name]
    assert (own[0]["seconds"], own[0]["cached"]) == (None, False)
    mean = sum(entry["metrics"]["top1"] for entry in own) / 2
    assert summary["teacher"]["metrics"]["top1"]["mean"] == pytest.approx(mean)
    assert set(summary["baseline"]["metrics"]) == {"top1"}
    assert set(summary["student"]["metrics"]) == {"top1", "agreement"}
    records = rundir.read_records(folders[0] / "metrics.jsonl")
    assert sum("agreement" in record for record in records if record["kind"] == "evaluate") == 3
    assert "Student distilled" in write_report([tmp_path / "run"], tmp_path / "report.html").read_text()


@pytest.mark.parametrize("name", EVOLVING)
def test_a_run_with_a_teacher_that_changes_goes_on_and_ends_the_same(carry_out, name, tmp_path):
    class Stop:
        kdengine_hook_version = 1

        @kdengine.hookimpl
        def kdengine_on_step_end(self, context):
            if context.step == 7 and context.fit.name == "student":
                raise KeyboardInterrupt

    whole = carry_out(EVOLVING[name], "train.checkpoint_every=1")
    with pytest.raises(KeyboardInterrupt):
        carry_out(EVOLVING[name], "train.checkpoint_every=1", plugins=[Stop()], out=tmp_path / "cut")
    resumed = carry_out(EVOLVING[name], "train.checkpoint_every=1", out=tmp_path / "cut", resume=True)
    assert accuracy(resumed) == accuracy(whole)
    assert resumed["student"]["metrics"] == whole["student"]["metrics"]
    assert carry_out(EVOLVING[name], "train.checkpoint_every=1", out=tmp_path / "cut", resume=True) == resumed


@pytest.mark.parametrize("name", EVOLVING)
def test_agreement_with_a_teacher_that_changes_may_be_what_decides(carry_out, name):
    summary = carry_out(EVOLVING[name], "evaluate.monitor=agreement", "train.epochs=1")
    assert summary["best"]["metric"] == "agreement"


@pytest.mark.parametrize("name", EVOLVING)
def test_an_estimate_counts_a_teacher_that_changes(plan_of, name):
    found = estimate(plan_of(EVOLVING[name]))
    assert [fit.name for fit in found.fits] == ["student alone", "student distilled"]
    assert [fit.weights for fit in found.fits] == [4 * 610, 4 * (610 + SIZES[name])]
    assert found.fits[1].gradients == 4 * (610 + (1210 if name == "peer" else 0))
    assert found.teacher_note.endswith(", would change with the student")


def test_a_peer_has_its_own_weights_for_each_seed_and_may_begin_with_a_checkpoint(plan_of, tmp_path):
    plan = plan_of(EVOLVING["peer"])
    data = make_data(plan)
    first, again, second = (
        torch.cat([p.flatten() for p in teacher_source(plan, data, None, seed, alone=False).module.parameters()])
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    source = teacher_source(plan, data, None, 1, alone=False)
    safetensors.torch.save_file(source.module.state_dict(), tmp_path / "peer.safetensors")
    loaded = plan_of(EVOLVING["peer"], f"teacher.checkpoint={tmp_path}/peer.safetensors")
    module = teacher_source(loaded, data, None, 0, alone=False).module
    assert torch.equal(torch.cat([p.flatten() for p in module.parameters()]), second)


def test_a_group_of_the_optimizer_may_be_the_peers(plan_of, carry_out):
    summary = carry_out(EVOLVING["peer"], "optimizer.groups=[{ match = 'teacher.*', lr = 0.0 }]", "train.epochs=1")
    plan = plan_of(EVOLVING["peer"])
    data = make_data(plan)
    untrained = measure(plan, data, teacher_source(plan, data, None, 0, alone=False).module)
    assert summary["teacher"]["metrics"] == untrained


def test_a_student_alone_has_no_teacher_that_changes(plan_of):
    plan = plan_of(EVOLVING["ema"])
    data = make_data(plan)
    assert teacher_source(plan, data, None, 0, alone=True) is None
    first, second = (teacher_source(plan, data, None, 0, alone=False) for _ in range(2))
    assert first is not second


CROPS = "data.transforms=[{ use = 'random_crop', size = 8, padding = 1 }]"


def test_seeds_with_random_crops_learn_from_their_own_logits_in_one_cache(carry_out, tmp_path):
    """A cache between teacher and students changes no bit of any of them, on the first run and on the next."""
    cached = f"teacher.source={{ use = 'cached', folder = '{tmp_path}/logits' }}"
    for name, source in (("live", ()), ("first", (cached,)), ("second", (cached,))):
        carry_out(SMALL, CROPS, "baseline=false", *source, out=tmp_path / name, seeds=2)
    for seed in (0, 1):
        live, *others = (
            (tmp_path / name / f"seed-{seed}" / "student.safetensors").read_bytes()
            for name in ("live", "first", "second")
        )
        assert others == [live, live], seed
    assert {path.name.split(".")[0] for path in (tmp_path / "logits").glob("*.rows")} == {
        f"seed-{seed}-epoch-0000{epoch}" for seed in (0, 1) for epoch in (0, 1)
    }
