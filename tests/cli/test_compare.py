"""``kdengine compare`` as it is typed."""

from __future__ import annotations

import json
import shutil


def test_equal_and_different_runs(kd, finished, place):
    shutil.copytree(finished, place / "other")
    code, out, _ = kd("compare", finished, "other")
    assert code == 0
    assert "the same bits over 20 steps" in out
    path = place / "other" / "steps.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[6]["kd"] += 1e-3
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = place / "other" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("temperature = 2.0", "temperature = 3.0"))
    code, out, _ = kd("compare", finished, "other")
    assert code == 1
    assert "step 7 is the first that differs: the items are the same" in out
    assert "losses.kd.temperature was 2.0, is 3.0" in out
    assert kd("compare", finished, "other", "--tolerance", "0.01")[0] == 0


def test_what_is_no_run_is_said(kd, finished, place):
    code, _, err = kd("compare", finished, place)
    assert (code, err.startswith("error: ")) == (2, True)
    assert "no steps.jsonl" in err
