"""A run directory that somebody else wrote, or a disk has damaged: a message and exit code 2, or the right answer."""

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdengine.cli.report import damage

FILES = ("summary.json", "metrics.jsonl", "student.safetensors", "recipe.toml", "items.json")

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def damages(draw):
    """A file and what happens to its bytes."""
    kind = draw(st.sampled_from(["flip", "cut", "insert", "replace"]))
    return draw(st.sampled_from(FILES)), kind, draw(st.floats(0, 1)), draw(st.binary(min_size=1, max_size=8))


def damaged(content, kind, place, noise):
    at = min(int(place * len(content)), max(len(content) - 1, 0))
    if kind == "cut":
        return content[:at]
    if kind == "insert":
        return content[:at] + noise + content[at:]
    if kind == "replace":
        return noise * 3
    return (
        content[:at]
        + bytes(byte ^ flip for byte, flip in zip(content[at:], noise, strict=False))
        + content[at + len(noise) :]
    )


@pytest.fixture
def copy(finished, place):
    """The run as it was, in the same place every time."""

    def again():
        shutil.rmtree(place / "run", ignore_errors=True)
        return shutil.copytree(finished, place / "run")

    return again


def assert_told(kd, run):
    for command in (["report", run], ["export", run, "out.safetensors"], ["export", run, "out.pth"], ["evaluate", run]):
        code, _, err = kd(*command)
        assert code in (0, 2), f"{command[0]}: {err}"


common = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@common
@given(damages())
def test_damaged_bytes(copy, kd, damage):
    run = copy()
    name, kind, place, noise = damage
    if (run / name).is_file():
        (run / name).write_bytes(damaged((run / name).read_bytes(), kind, place, noise))
    assert_told(kd, run)


@common
@given(st.data())
def test_other_values_in_the_summary(copy, kd, data):
    run = copy()
    table = json.loads((run / "summary.json").read_text())
    at = table
    while True:
        key = data.draw(st.sampled_from(sorted(at)))
        if not isinstance(at[key], dict) or not at[key] or data.draw(st.booleans()):
            break
        at = at[key]
    at[key] = data.draw(values)
    (run / "summary.json").write_text(json.dumps(table))
    assert_told(kd, run)


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl"])
def test_json_nested_without_end(copy, kd, name):
    run = copy()
    (run / name).write_text("[" * 100_000)
    assert_told(kd, run)


def test_text_of_every_language_stays_as_it_is():
    assert damage.text("蒸留　テスト a\u00a0b \u200d") == "蒸留　テスト a\u00a0b \u200d"
    assert damage.text("\ud800\x07") == "\N{REPLACEMENT CHARACTER}" * 2
