"""Numbers and names that no run writes: the report shows what can be shown and names the rest; it never ends badly."""

import html
import json
import random
import re

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from kdengine.api import KDEngineError
from kdengine.cli.report import charts, write_report
from kdengine.cli.report.damage import Damage, cleaned, counted

MUTATIONS = 60
NASTY = [
    "1e308", "-1e308", "1e101", "NaN", "Infinity", "-Infinity", "1e999", "-1", "-5e-324", "5e-324", "0", "-0.0",
    "9" * 400, "1" + "0" * 120, "0.5", "true", "null", '"NaN"', '"\\ud800"', '"\\udfff\\ud800"', '"\\u0000\\u001b[31m"',
    '"<script>"', '"$\\\\frac{"', '"' + "w" * 3000 + '"', "[]", "{}", "[1e308]", '{"mean": 1e308, "sd": -1, "n": 2}',
    '{"mean": 1, "sd": 1e308, "n": 1e300}', "[[[[[[[[[[[[1]]]]]]]]]]]]",
]  # fmt: skip
KEYS = ['"\\ud800"', '"top1\\u0000"', '"' + "k" * 400 + '"', '"$x$"', '"_"', '""', '"loss"', '"step"', '"]]>"']


@pytest.fixture
def run(tmp_path):
    """A small whole run with two seeds' worth of everything, written by hand."""
    metrics = {"top1": 0.9, "agreement": 0.8, "perplexity": 12.5}
    model = {"name": "mlp", "metrics": metrics, "parameters": 2410, "seconds": 6.0}
    summary = {
        "name": "digits", "description": "d", "status": "finished", "teacher": {**model, "cached": False},
        "baseline": model, "student": model, "best": {"metric": "top1", "value": 0.91, "step": 20, "epoch": 2},
        "data": {"name": "digits", "train_items": 1257, "labelled_items": 126, "labelled": 0.1, "test_items": 540},
        "monitor": "top1", "steps": 40, "epochs": 4, "seed": 0, "seeds": [0, 1], "pooled_sd": {"top1": 0.01},
        "device": "cpu", "backend": "python", "kdengine": "1", "torch": "2", "plugins": {"mine": "1"},
    }  # fmt: skip
    lines = []
    for step in range(10, 50, 10):
        train = {"loss": 2.0 / step, "kd": 1.5 / step, "kd.temperature": 4.0 - step / 20, "lr": 0.1 / step}
        lines.append({"kind": "train", "step": step, "epoch": step // 10, **train, "items_per_second": 100.0})
        shares = {"gradient_share.kd": 0.6, "gradient_share.ce": 0.4}
        lines.append({"kind": "evaluate", "step": step, "epoch": step // 10, "top1": step / 50, **metrics, **shares})
    path = tmp_path / "run"
    for folder in (path, path / "baseline"):
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "recipe.toml").write_text("version = 1\nlosses.kd = { temperature = 4.0 }\n")
    return path


VALUE = re.compile(r'(?<=: )(?:-?[\d.]+(?:e-?\d+)?|"[^"]*"|\[[^\]]*\]|true|false|null)(?=[,}\]])')
NAME = re.compile(r'"[^"]*"(?=: )')


def mutated(text, chance):
    """One to three of a text's values or keys, exchanged for nasty ones."""
    for _ in range(chance.randint(1, 3)):
        pattern, others = (NAME, KEYS) if chance.random() < 0.15 else (VALUE, NASTY)
        places = list(pattern.finditer(text))
        if places:
            at = chance.choice(places)
            text = text[: at.start()] + chance.choice(others) + text[at.end() :]
    return text


def report_of_mutations(run, target, seed):
    """Write a report of a damaged run; what it said, or None where it was refused in kdengine's words."""
    chance = random.Random(seed)
    files = [run / "summary.json", run / "metrics.jsonl", run / "baseline" / "metrics.jsonl"]
    whole = {file: file.read_bytes() for file in files}
    said = []
    try:
        for file in chance.sample(files, chance.randint(1, 2)):
            file.write_text(mutated(file.read_text(), chance))
        write_report([run], target, said.append)
        page = target.read_text(encoding="utf-8")
    except KDEngineError as error:
        return None if str(run) in str(error) else pytest.fail(f"names no file: {error}")
    finally:
        for file, content in whole.items():
            file.write_bytes(content)
    words = html.unescape(page)
    assert all(line.removeprefix("left out of the report, because it is damaged: ") in words for line in said)
    assert "<script>" not in page
    return said


@pytest.fixture
def no_drawing(monkeypatch):
    """Charts are chosen and described, but not drawn, which takes most of the time."""
    monkeypatch.setattr(charts, "draw", lambda plot, shape, name, description: f"<svg aria-label='{len(description)}'>")


def test_reports_over_mutated_records_show_what_can_be_shown(run, tmp_path, no_drawing):
    told = [report_of_mutations(run, tmp_path / "r.html", seed) for seed in range(MUTATIONS)]
    assert sum(said is None for said in told) < MUTATIONS // 20
    assert sum(bool(said) for said in told) > MUTATIONS // 4


@pytest.mark.slow
def test_reports_over_very_many_mutated_records(run, tmp_path, no_drawing):
    for seed in range(1000, 1800):
        report_of_mutations(run, tmp_path / "r.html", seed)


@pytest.mark.slow
def test_reports_over_mutated_records_are_drawn(run, tmp_path):
    for seed in range(2000, 2240):
        report_of_mutations(run, tmp_path / "r.html", seed)


@pytest.mark.parametrize(
    ("file", "before", "after", "said"),
    [
        ("metrics.jsonl", '"top1": 0.9', '"top1": 1e308', "metrics.jsonl: line 2: top1 = 1e+308"),
        ("metrics.jsonl", '"lr": 0.01', '"lr": 1e308', "metrics.jsonl: line 1: lr = 1e+308"),
        ("metrics.jsonl", '"loss": 0.2', '"loss": Infinity', "metrics.jsonl: line 1: loss = inf"),
        ("metrics.jsonl", '"step": 10', '"step": -10', "metrics.jsonl: line 1: step = -10"),
        ("metrics.jsonl", '"kind": "train"', "kind", "metrics.jsonl: line 1 is no record"),
        ("summary.json", '"parameters": 2410', '"parameters": -2410', "summary.json: teacher: parameters = -2410"),
        ("summary.json", '"train_items": 1257', '"train_items": -1', "summary.json: data: train_items = -1"),
        ("summary.json", '"labelled": 0.1', '"labelled": 17', "summary.json: data: labelled = 17"),
        ("summary.json", '"steps": 40', '"steps": 1e300', "summary.json: steps = 1e+300"),
        ("summary.json", '"seconds": 6.0', '"seconds": -6.0', "summary.json: teacher: seconds = -6"),
    ],
)
def test_a_damaged_value_is_left_out_and_named_on_the_page(run, tmp_path, no_drawing, file, before, after, said):
    text = (run / file).read_text()
    assert before in text
    (run / file).write_text(text.replace(before, after, 1))
    told = []
    page = write_report([run], tmp_path / "r.html", told.append).read_text(encoding="utf-8")
    assert any(said in line for line in told), told
    assert "What is not shown" in page
    assert said in page


def test_half_a_surrogate_pair_is_written_as_a_replacement(run, tmp_path, no_drawing):
    (run / "summary.json").write_text((run / "summary.json").read_text().replace('"digits"', '"\\ud800 digits"'))
    page = write_report([run], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "\N{REPLACEMENT CHARACTER} digits" in page


def test_a_whole_run_has_no_damage(run, tmp_path):
    told = []
    page = write_report([run], tmp_path / "r.html", told.append).read_text(encoding="utf-8")
    assert told == []
    assert "What is not shown" not in page


def test_what_a_writer_says_on_purpose_is_no_damage():
    found = Damage()
    kept = {"a": None, "b": "NaN", "c": "Infinity", "d": -3.5, "e": [1, {"f": True}], "g": 1e99}
    assert cleaned(kept, found, "x") == kept
    assert counted({"n": None}, "n", found, "x") is None
    assert found.count == 0


def test_only_the_first_of_many_are_told(run, tmp_path, no_drawing):
    (run / "metrics.jsonl").write_text("?\n" * 500)
    told = []
    write_report([run], tmp_path / "r.html", told.append)
    assert len(told) == 21
    assert told[-1].endswith("and 480 more")


def test_the_command_warns_and_writes(kd, run):
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().replace('"top1": 0.9', '"top1": 1e308', 1))
    code, out, err = kd("report", run)
    assert code == 0
    assert out.strip() == str(run / "report.html")
    assert "warning: left out of the report" in err
    assert "line 2: top1 = 1e+308" in err
