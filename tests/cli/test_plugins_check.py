"""``kdengine plugins check``: certificates, one line for everything else, and exit codes."""

import json
import subprocess
import sys

import pytest

GOOD = '''
"""A loss and a schedule."""
import kdengine
kdengine_hook_version = 1

class Distance(kdengine.Loss):
    """Squared distance between probabilities.

    Args:
        temperature: T > 0.
    """
    at_equality = "zero"
    def __init__(self, temperature: kdengine.Scalar = 2.0) -> None:
        super().__init__()
        self.temperature = temperature
    def per_item(self, batch):
        student, teacher = (softened(one.logits, self.temperature) for one in (batch.student, batch.teacher))
        return self.temperature**2 * (student - teacher).square().sum(-1)

def softened(logits, temperature):
    return ((logits if logits.itemsize >= 4 else logits.float()) / temperature).softmax(-1)

@kdengine.hookimpl
def kdengine_losses():
    return {"distance": Distance, "hint": "kdengine.losses:Hint"}

@kdengine.hookimpl
def kdengine_schedules():
    return {"line": "kdengine.schedules:Linear"}
'''
WRONG = GOOD.replace("return self.temperature**2 *", "return")


@pytest.fixture
def plugin(place):
    def write(text):
        (place / "mine.py").write_text(text)

    return write


def test_a_good_plugin_shows_its_certificates_and_a_line_for_the_rest(kd, plugin):
    plugin(GOOD)
    code, out, err = kd("plugins", "check", "mine.py")
    assert (code, err) == (0, "")
    assert "Certificate of Distance()" in out
    assert "held    gradient: the gradient is that of finite differences in float64" in out
    assert "of 1e-05 allowed" in out
    assert "losses hint: signature only (student, teacher must be given)" in out
    assert "schedules line: signature only (start, end must be given)" in out
    last, advice = out.splitlines()[-2:]
    untried = "2 looked at by signature alone: losses hint, schedules line"
    assert last == f"mine.py: 3 components, of which 1 held; {untried}"
    assert advice.startswith("--set NAME.ARGUMENT=VALUE")


def test_arguments_and_shapes_of_features_can_be_given(kd, plugin):
    plugin(GOOD)
    settings = ["hint.student=a", "hint.teacher=b", "hint.projector=conv1x1", "line.start=2", "line.end=1"]
    given = [word for setting in settings for word in ("--set", setting)]
    code, out, _ = kd("plugins", "check", "mine.py", *given, "--features", "2,3,3")
    assert code == 0
    assert "Certificate of Hint(student='a', teacher='b', projector='conv1x1')" in out
    assert "schedules line: checked" in out
    assert out.splitlines()[-1] == "mine.py: 3 components, all hold"


def test_what_was_only_looked_at_is_not_counted_as_held(kd, plugin):
    models = "@kdengine.hookimpl\ndef kdengine_models():\n    return {'net': net}\n"
    head = "import kdengine\nkdengine_hook_version = 1\n"
    plugin(f"{head}def net(classes):\n    'A model of so many classes.'\n{models}")
    code, out, _ = kd("plugins", "check", "mine.py")
    assert code == 0
    assert out.splitlines()[-1] == "mine.py: 1 component, of which 1 looked at by signature alone: models net"
    facts = json.loads(kd("plugins", "check", "mine.py", "--json")[1])
    assert (facts["held"], facts["untried"]) == (True, ["mine:net"])


def test_a_wrong_plugin_is_reported_as_json_with_exit_code_1(kd, plugin):
    plugin(WRONG)
    code, out, _ = kd("plugins", "check", "mine.py", "--json")
    facts = json.loads(out)
    assert (code, facts["held"]) == (1, False)
    loss = facts["components"][0]
    assert (loss["name"], loss["outcome"]) == ("distance", "failed")
    (wrong,) = [row for row in loss["certificate"]["findings"] if row["outcome"] == "failed"]
    assert wrong["check"] == "temperature"
    assert wrong["deviation"] == pytest.approx(2.0)
    assert wrong["tolerance"] == 1e-6
    assert "temperature**2" in wrong["message"]
    assert [part["outcome"] for part in facts["components"][1:]] == ["signature only"] * 2


def test_the_last_line_names_what_failed(kd, plugin):
    plugin(WRONG.replace("        temperature: T > 0.", ""))
    code, out, _ = kd("plugins", "check", "mine.py")
    assert code == 1
    assert "losses distance: failed (mine:distance: its docstring does not say what temperature means)" in out
    told = "1 failed: losses distance; 2 looked at by signature alone: losses hint, schedules line"
    assert out.splitlines()[-2] == f"mine.py: 3 components, of which {told}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothere"], "plugin 'nothere' is not installed"),
        (["mine.py", "--set", "distance"], "--set expects NAME.ARGUMENT=VALUE"),
        (["mine.py", "--set", "distanse.temperature=2"], "'distanse', which is not offered; did you mean 'distance'?"),
        (["mine.py", "--set", "distance.temprature=2"], "did you mean 'temperature'?"),
        (["mine.py", "--set", "distance.temperature=hot"], "distance.temperature: expected number or schedule"),
        (["mine.py", "--features", "8x4"], "--features expects a shape without the batch, such as 8,4,4"),
        (["mine.py", "--nonsense"], "--nonsense"),
    ],
)
def test_a_command_that_cannot_be_followed_ends_with_2(kd, plugin, arguments, said):
    plugin(GOOD)
    code, _, err = kd("plugins", "check", *arguments)
    assert code == 2
    assert said in err


@pytest.mark.parametrize(
    "text", ["raise RuntimeError('broken')", GOOD.replace("def kdengine_losses", "def kdengine_loses")]
)
def test_a_broken_plugin_ends_with_1(kd, plugin, text):
    plugin(text)
    code, _, err = kd("plugins", "check", "mine.py")
    assert code == 1
    assert err.startswith("error: ")


def test_a_plugin_without_components_says_so(kd, plugin):
    plugin("kdengine_hook_version = 1\n")
    code, out, err = kd("plugins", "check", "mine.py")
    assert (code, out) == (0, "mine.py offers no component\n")
    assert err == "warning: plugin 'mine' (mine.py) has no hooks: nothing of it will ever be called\n"


def test_what_comes_with_kdengine_is_checked_by_its_dotted_name(kd):
    code, out, _ = kd("plugins", "check", "kdengine.projectors")
    assert code == 0
    assert "projectors linear: checked" in out


def test_the_package_loads_its_test_kit_only_when_asked(place):
    code = "import sys, kdengine.cli.main, kdengine.recipe.run; print('kdengine.testing' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
