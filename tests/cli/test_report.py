"""The report: what stands on the page is what the run found, said honestly, in one self-contained file."""

import html
import importlib.util
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from kdengine.api import CheckpointError, ConfigurationError
from kdengine.cli.report import write_report
from kdengine.cli.report.images import read_samples
from kdengine.cli.report.records import classify, curve
from kdengine.cli.report.values import Value, pooled, value

RECIPE = """\
version = 1
name = "digits"
baseline = true

[data]
use = "digits"   # 8 x 8 pixels
batch_size = 64
labelled = 0.1

[losses.kd]
weight = 0.9
temperature = { schedule = "cosine", start = 4.0, end = 1.0 }

[losses.ce]
weight = 0.1

[train]
epochs = 60
seed = 0
"""
STEPS, EPOCHS = 1200, 60


def summary(alone=0.898, distilled=0.956, **changes):
    metrics = {"top1": distilled, "agreement": 0.961, "calibration_error": 0.021}
    table = {
        "name": "digits",
        "description": "A small network learns from a larger one, with few labels.",
        "status": "finished",
        "teacher": {
            "name": "resnet8",
            "metrics": {"top1": 0.991, "agreement": 1.0, "calibration_error": 0.012},
            "parameters": 77850,
            "seconds": 31.2,
            "cached": False,
        },
        "baseline": {
            "name": "mlp",
            "metrics": {"top1": alone, "agreement": 0.899, "calibration_error": 0.071},
            "parameters": 2410,
            "seconds": 4.1,
        },
        "student": {"name": "mlp", "metrics": metrics, "parameters": 2410, "seconds": 6.0},
        "best": {"metric": "top1", "value": distilled + 0.004, "step": 880, "epoch": 44},
        "data": {
            "name": "digits",
            "train_items": 1257,
            "labelled_items": 126,
            "labelled": 0.1,
            "test_items": 540,
            "classes": [str(digit) for digit in range(10)],
        },
        "monitor": "top1",
        "steps": STEPS,
        "epochs": EPOCHS,
        "seed": 0,
        "device": "cpu",
        "kdengine": "0.1.0",
        "torch": "2.15.0",
        "backend": "cpu-avx512",
        "plugins": {"kdengine-example": "1.2.0"},
    }
    return table | changes


def write_run(path, table=None, *, recipe=RECIPE, samples=True, evaluations=True, records=True, seed=0):
    """A run directory as `kdengine run` leaves it."""
    table = summary() if table is None else table
    path.mkdir(parents=True, exist_ok=True)
    (path / "summary.json").write_text(json.dumps(table))
    if recipe:
        (path / "recipe.toml").write_text(recipe)
    if records:
        end = (table["student"]["metrics"].get("top1") or 0.9) if table["student"] else 0.9
        write_records(path / "metrics.jsonl", training(end, seed, evaluations))
        if table.get("baseline"):
            end = table["baseline"]["metrics"].get("top1") or 0.8
            write_records(path / "baseline" / "metrics.jsonl", training(end, seed + 50, evaluations, alone=True))
    if samples:
        write_samples(path, table["data"]["classes"])
    return path


def training(end, seed, evaluations=True, alone=False):
    noise = np.random.default_rng(seed)
    lines = []
    for step in range(20, STEPS + 1, 20):
        at, epoch = step / STEPS, step // 20
        ce = (0.02 if alone else 0.35) + 2.0 * math.exp(-9 * at) + noise.uniform(0, 0.03)
        kd = 0.4 + 6.0 * math.exp(-7 * at) + noise.uniform(0, 0.1)
        temperature = 1.0 + 1.5 * (1 + math.cos(math.pi * at))
        terms = {"loss": ce, "ce": ce} if alone else {"loss": 0.9 * kd + 0.1 * ce, "kd": kd, "ce": ce}
        lines.append({"kind": "train", "step": step, "epoch": epoch, **terms})
        lines[-1] |= {"lr": 0.0015 * (1 + math.cos(math.pi * at)), "items_per_second": 40000.0}
        if not alone:
            lines[-1]["kd.temperature"] = temperature
        if evaluations:
            top1 = end if step == STEPS else end - 0.7 * math.exp(-11 * at) + noise.normal(0, 0.004)
            share = 0.9 - 0.2 * at + noise.normal(0, 0.01)
            shares = (
                {"gradient_share.ce": 1.0} if alone else {"gradient_share.kd": share, "gradient_share.ce": 1 - share}
            )
            lines.append({"kind": "evaluate", "step": step, "epoch": epoch, "top1": top1, "agreement": top1 + 0.003})
            lines[-1] |= {"calibration_error": 0.03 + 0.2 * math.exp(-8 * at)} | shares
    return lines


def write_records(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_samples(path, classes, count=9, shape=(1, 8, 8)):
    images = np.random.default_rng(0).integers(0, 255, (count, *shape), dtype=np.uint8)
    save_file({"images": images}, path / "disagreements.safetensors")
    items = [
        {
            "index": 17 + at,
            "label": (3, 8, -100)[at % 3],
            "student": 8,
            "teacher": 3,
            "student_confidence": 0.51,
            "teacher_confidence": 0.97,
        }
        for at in range(count)
    ]
    (path / "disagreements.json").write_text(json.dumps({"classes": classes, "items": items}))


def write_seeds(path, alone, distilled, *, sd=None, records=True):
    """A run directory with several seeds."""
    seeds = range(len(distilled))
    table = summary(seeds=list(seeds), best=None)
    for role, numbers in (("baseline", alone), ("student", distilled)):
        top1 = {"mean": float(np.mean(numbers)), "sd": float(np.std(numbers, ddof=1)), "n": len(numbers)}
        table[role] |= {"metrics": {"top1": top1, "agreement": {"mean": 0.95, "sd": 0.01, "n": len(numbers)}}}
        table[role]["seconds"] = {"mean": 5.0, "sd": 0.1, "n": len(numbers)}
    if sd is not None:
        table["pooled_sd"] = {"top1": sd}
    write_run(path, table, records=False, samples=False)
    for seed in seeds:
        one = summary(alone[seed], distilled[seed], seed=seed)
        write_run(path / f"seed-{seed}", one, samples=seed == 0, seed=seed, records=records)
    return path


def report(*runs: Path, target: Path | None = None) -> str:
    written = write_report(runs, target or runs[0] / "report.html")
    return written.read_text("utf-8")


class Words(HTMLParser):
    """What a reader sees."""

    def __init__(self):
        super().__init__()
        self.words, self.hidden = [], 0

    def handle_starttag(self, tag, attrs):
        self.hidden += tag == "style"

    def handle_endtag(self, tag):
        self.hidden -= tag == "style"

    def handle_data(self, data):
        if not self.hidden:
            self.words.append(data)


def text(page):
    reader = Words()
    reader.feed(page)
    words = " ".join(" ".join(reader.words).split())  # str.split knows the narrow space
    return words.replace("\N{MINUS SIGN}", "-").replace("\N{NARROW NO-BREAK SPACE}", " ")


def heading(page):
    return text(re.search(r"<h1>(.*?)</h1>", page, re.DOTALL)[1])


def assert_clean(page):
    words = text(page)
    assert re.search(r"\b(None|nan|NaN|inf|null|Undefined)\b", words) is None
    assert "None" not in re.sub(r"base64,[\w+/=]+", "", page)
    outside = re.findall(r"""(?:src|href|action|data|srcset)\s*=\s*["']([^"']*)""", page)
    assert all(target.startswith(("#", "data:image/")) for target in outside)
    assert (
        re.search(r"https?:|//\w|@import|url\((?!#)|<script|<link|<iframe", re.sub(r"base64,[\w+/=]+", "", page))
        is None
    )


# --- one run


def test_a_full_run_says_what_it_found(tmp_path):
    page = report(write_run(tmp_path / "run"))
    words = text(page)
    assert_clean(page)
    assert heading(page) == "Distillation took the student from 89.8 % to 95.6 % top-1"
    assert "+5.8 points with one seed" in words
    assert "recovers 62 % of the gap to the teacher (99.1 %)" in words
    assert (
        "The student sees labels for 10 % of the training images (126 of 1 257); "
        "its baseline sees the same labels and takes the same number of steps." in words
    )
    assert "77.8 k" in words
    assert "32\N{MULTIPLICATION SIGN} smaller" in words
    assert "31.2 s" in words
    assert "Best epoch: 96.0 % top-1 at epoch 44, chosen on the test set and therefore optimistic." in words
    assert "60 epochs, 1 200 steps" in words
    assert "kdengine 0.1.0, PyTorch 2.15.0" in words
    assert "kdengine-example 1.2.0" in words
    assert "kdengine run recipe.toml" in words
    for title in ("Training loss", "Share of the gradient", "Agreement with the teacher", "Schedule of kd.temperature"):
        assert title in words
    assert "Learning rate" in words


def test_it_is_light(tmp_path):
    assert len(report(write_run(tmp_path / "run"))) < 200_000
    long = write_run(tmp_path / "long")
    lines = [{"kind": "evaluate", "step": step, "top1": 0.5 + step / 1e5} for step in range(1, 20_000)]
    write_records(long / "metrics.jsonl", lines)
    assert len(report(long)) < 200_000


def test_drawings_follow_the_theme_and_share_no_names(tmp_path):
    page = report(write_run(tmp_path / "run"))
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 8  # the first in two shapes
    assert all('role="img"' in drawing and "aria-label=" in drawing for drawing in drawings)
    assert "var(--distilled)" in drawings[0]
    assert "var(--teacher)" in drawings[0]
    assert not re.search(r"#[0-9a-f]{6}\b", "".join(drawings))  # a fixed colour is wrong in one of the themes
    names = re.findall(r'\bid="([^"]+)"', page)
    assert len(names) == len(set(names))
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(names)


def test_the_same_run_gives_the_same_page(tmp_path):
    run = write_run(tmp_path / "run")
    assert report(run) == report(run)


def test_samples_show_who_is_right(tmp_path):
    page = report(write_run(tmp_path / "run"))
    items = re.findall(r'<li class="card">.*?</li>', page, re.DOTALL)
    assert len(items) == 9
    assert 'class="pixels"' in items[0]
    assert 'alt="Test image 17, labelled 3"' in items[0]
    first, second, third = (text(item) for item in items[:3])
    assert first == "Label: 3 Student 8 51 % ✗ wrong Teacher 3 97 % ✓ right"
    assert second == "Label: 8 Student 8 51 % ✓ right Teacher 3 97 % ✗ wrong"
    assert third == "Student 8 51 % Teacher 3 97 %"


def test_large_images_are_made_small(tmp_path):
    run = write_run(tmp_path / "run", samples=False)
    write_samples(run, ["a"] * 10, count=12, shape=(3, 224, 160))
    page = report(run)
    assert page.count("data:image/jpeg;base64,") == 12
    assert len(page) < 400_000


def test_everything_foreign_is_escaped(tmp_path):
    hostile = "<script>alert(1)</script>"
    table = summary(name=hostile, description=f'"><img src=x onerror=1> {hostile}', device=hostile)
    table["student"]["name"] = hostile
    table["plugins"] = {hostile: hostile}
    table["data"]["classes"] = [f"{hostile}{digit}" for digit in range(10)]
    table["data"]["name"] = hostile
    table["student"]["metrics"][hostile] = 0.5
    run = write_run(tmp_path / "run", table, recipe=f'name = "{hostile}" # {hostile}\n[{hostile}]\n')
    lines = [{"kind": "train", "step": step, "loss": 1.0, hostile: step} for step in (1, 2, 3)]
    lines += [{"kind": "evaluate", "step": step, "top1": 0.1 * step, f"$x^{hostile}": 1.0} for step in (1, 2, 3)]
    write_records(run / "metrics.jsonl", lines)
    page = report(run)
    assert "<script" not in page.lower()
    assert "<img src=x" not in page
    assert html.escape(hostile) in page
    assert f"{hostile}8" in text(page)
    both = report(run, write_run(tmp_path / "other"), target=tmp_path / "both.html")
    assert "<script" not in both.lower()


# --- the headline


@pytest.mark.parametrize(
    ("alone", "distilled", "says", "evidence"),
    [
        (
            0.898,
            0.956,
            "Distillation took the student from 89.8 % to 95.6 % top-1",
            "+5.8 points with one seed; more seeds",
        ),
        (
            0.950,
            0.956,
            "Distillation made no clear difference: 95.0 % alone, 95.6 % distilled",
            "540 test images cannot",
        ),
        (0.956, 0.956, "Distillation left the student where it was, at 95.6 % top-1", "±0.0 points with one seed"),
        (
            0.956,
            0.850,
            "Distillation made the student worse: from 95.6 % to 85.0 % top-1",
            "-10.6 points with one seed",
        ),
    ],
)
def test_one_seed(tmp_path, alone, distilled, says, evidence):
    page = report(write_run(tmp_path / "run", summary(alone, distilled), records=False))
    assert heading(page).startswith(says)
    assert evidence in text(page)
    assert ("of the gap" in text(page)) == ("took" in says)


@pytest.mark.parametrize(
    ("alone", "distilled", "says"),
    [
        ([0.90, 0.91, 0.89, 0.90], [0.95, 0.96, 0.95, 0.96], "Distillation took the student from 90.0 % to 95.5 %"),
        ([0.90, 0.94, 0.86, 0.90], [0.91, 0.93, 0.90, 0.92], "Distillation made no clear difference"),
        (
            [0.95, 0.96, 0.95, 0.96],
            [0.90, 0.91, 0.89, 0.90],
            "Distillation made the student worse: from 95.5 % to 90.0 %",
        ),
    ],
)
def test_several_seeds(tmp_path, alone, distilled, says):
    page = report(write_seeds(tmp_path / "run", alone, distilled, records=False))
    assert_clean(page)
    assert heading(page).startswith(says)
    assert "points over 4 seeds; pooled sd" in text(page)


def test_seeds_are_shown_with_their_spread(tmp_path):
    run = write_seeds(tmp_path / "run", [0.90, 0.91, 0.89], [0.95, 0.96, 0.94], sd=0.013)
    page = report(run)
    words = text(page)
    assert "+5.0 points over 3 seeds; pooled sd 1.3 points." in words
    assert "95.0 ± 1.0 %" in words
    assert "mean ± standard deviation over 3 seeds" in words
    assert "kdengine run recipe.toml --seeds 3" in words
    assert "bands one standard deviation" in words
    assert "2 89.0 % 94.0 % +5.0 points" in words
    assert page.count('class="pixels"') == 9  # from seed-0


def test_a_student_may_pass_its_teacher(tmp_path):
    table = summary(0.90, 0.97)
    table["teacher"]["metrics"]["top1"] = 0.95
    assert "It passes its teacher (95.0 %)." in text(report(write_run(tmp_path / "run", table, records=False)))


def test_lower_may_be_better(tmp_path):
    table = summary(monitor="perplexity", best=None)
    for role, reached in (("teacher", 10.0), ("baseline", 30.0), ("student", 15.0)):
        table[role]["metrics"] = {"perplexity": reached}
    run = write_run(tmp_path / "run", table, records=False)
    page = report(run)
    assert heading(page) == "Distillation took the student from 30 to 15 perplexity"
    assert "-15 with one seed" in text(page)
    assert "recovers 75 % of the gap" in text(page)


def test_the_run_tells_which_direction_is_better(tmp_path):
    table = summary(monitor="mine", best={"metric": "mine", "value": 1.0, "step": 2, "epoch": 2})
    table["baseline"]["metrics"], table["student"]["metrics"] = {"mine": 5.0}, {"mine": 2.0}
    table["teacher"] = None
    run = write_run(tmp_path / "run", table, records=False)
    write_records(
        run / "metrics.jsonl", [{"kind": "evaluate", "step": s, "mine": m} for s, m in ((1, 4), (2, 1), (3, 2))]
    )
    assert heading(report(run)) == "Distillation took the student from 5 to 2 mine"


# --- what is missing is left out


def test_without_a_baseline(tmp_path):
    page = report(write_run(tmp_path / "run", summary(baseline=None)))
    assert_clean(page)
    assert heading(page) == "The distilled student reaches 95.6 % top-1; its teacher, 99.1 %"
    assert "cannot say what distillation added" in text(page)
    assert "Student alone" not in text(page)
    assert "of the training images (126 of 1 257)." in text(page)


def test_without_anything(tmp_path):
    bare = {"student": {"metrics": {}}, "status": "stopped", "teacher": None, "baseline": None, "best": None}
    run = write_run(tmp_path / "bare", bare, recipe="", samples=False, records=False)
    page = report(run)
    assert_clean(page)
    assert heading(page) == "The student bare was distilled"
    assert "stopped before its last epoch" in text(page)
    assert "<svg" not in page
    assert "Run it again" not in page


@pytest.mark.parametrize("hole", [None, "NaN", float("nan")])
def test_undefined_numbers(tmp_path, hole):
    table = summary(best=None, monitor="top1", epochs=hole, description=None)
    table["student"] |= {"parameters": hole, "seconds": hole}
    table["teacher"] |= {"metrics": {"top1": hole, "agreement": 1.0}, "seconds": hole, "cached": True}
    table["student"]["metrics"]["calibration_error"] = hole
    table["data"] |= {"labelled": hole, "labelled_items": hole, "test_items": hole}
    run = write_run(tmp_path / "run", table)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "evaluate", "step": 1220, "top1": hole, "agreement": hole}) + "\n{torn")
    page = report(run)
    assert_clean(page)
    assert heading(page) == "Distillation took the student from 89.8 % to 95.6 % top-1"
    assert "found trained" in text(page)


def test_without_evaluations_or_records(tmp_path):
    page = report(write_run(tmp_path / "run", evaluations=False, samples=False))
    assert_clean(page)
    assert "Training loss" in page
    assert "Share of the gradient" not in page
    assert "training examples" in text(page)
    page = report(write_run(tmp_path / "none", records=False))
    assert_clean(page)
    assert "<svg" not in page


def test_damaged_samples_are_left_out(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "disagreements.safetensors").write_bytes(b"no")
    assert read_samples(run) == []
    assert "disagree" not in text(report(run))


# --- several runs


def test_two_runs_side_by_side(tmp_path):
    first = write_run(tmp_path / "kd")
    second = write_run(tmp_path / "hint", summary(0.898, 0.905), recipe=RECIPE.replace("0.9", "0.5"), seed=3)
    page = report(first, second, target=tmp_path / "new" / "both.html")
    words = text(page)
    assert_clean(page)
    assert heading(page) == "kd is the best of 2 runs, at 95.6 % top-1"
    assert "It is 5.1 points ahead of hint." in words
    assert "losses.kd.weight 0.9 0.5" in words
    assert "data.labelled" not in words
    assert "No difference" not in words
    assert words.count("Distillation took the student from 89.8 % to 95.6 % top-1") == 1
    assert words.count("Distillation made no clear difference") == 1
    assert len(page) < 200_000


def test_runs_that_do_not_compare(tmp_path):
    first = write_run(tmp_path / "a")
    other = summary()
    other["data"] |= {"name": "cifar10"}
    page = report(first, write_run(tmp_path / "b", other), target=tmp_path / "r.html")
    assert "different data, so there is no order" in text(page)
    close = report(first, write_run(tmp_path / "c", summary(0.898, 0.95)), target=tmp_path / "r.html")
    assert heading(close).startswith("No clear winner among 2 runs")
    bare = {"student": {"metrics": {}}}
    unlike = report(first, write_run(tmp_path / "d", bare, samples=False, records=False), target=tmp_path / "r.html")
    assert_clean(unlike)
    assert heading(unlike) == "2 runs compared"


# --- reading and errors


def test_terms_and_schedules_are_told_apart():
    train = {"kind": "train", "step": 1, "loss": 1.0, "kd.soft": 1.0, "kd.hard": 1.0, "kd.temperature": 2.0, "ce": 1.0}
    train |= {"ce.scale": 1.0, "weights.kd": 0.5, "lr": 0.1, "items_per_second": 9.0, "epoch": 1}
    terms, scalars = ["kd.soft", "kd.hard", "ce"], ["kd.temperature", "ce.scale", "weights.kd"]
    keys = classify([train], {"kd": ["weight", "temperature"]})
    assert (keys.terms, keys.scalars) == (terms, scalars)
    measured = {"kind": "evaluate", "step": 1, "top1": 0.5} | {f"gradient_share.{term}": 0.3 for term in terms}
    keys = classify([train, measured], {})
    assert (keys.terms, keys.scalars, keys.metrics) == (terms, scalars, ["top1"])


def test_a_curve_is_the_mean_over_seeds():
    seeds = [[{"kind": "evaluate", "step": step, "top1": seed + step} for step in (10, 20)] for seed in (0.0, 2.0)]
    seeds[0].append({"kind": "evaluate", "step": 30, "top1": 99.0})  # the other seed stopped before
    line = curve(seeds, "evaluate", "top1")
    assert (line.steps, line.means) == ([10.0, 20.0], [11.0, 21.0])
    assert line.low[0] == pytest.approx(11.0 - math.sqrt(2.0))


def test_values():
    assert value({"mean": 0.5, "sd": None, "n": 1}) == Value(0.5)
    assert value({"mean": None}) is None
    assert pooled(Value(1.0), Value(2.0)) is None


def test_a_directory_as_target(tmp_path):
    run = write_run(tmp_path / "run")
    assert write_report([run], tmp_path) == tmp_path / "report.html"


def test_no_run_directory(tmp_path):
    with pytest.raises(CheckpointError, match="not a run directory"):
        write_report([tmp_path], tmp_path / "r.html")
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(CheckpointError, match="damaged"):
        write_report([tmp_path], tmp_path / "r.html")
    with pytest.raises(ConfigurationError, match="at least one run"):
        write_report([], tmp_path / "r.html")


def test_the_optional_part_is_asked_for_by_name(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("kdengine.cli.report.page.find_spec", lambda name: None if name == "jinja2" else found(name))
    with pytest.raises(ConfigurationError, match=r"needs jinja2; .*pip install 'kdengine\[report\]'"):
        write_report([write_run(tmp_path / "run")], tmp_path / "r.html")
