"""Summaries over seeds."""

from kdengine.recipe.summary import spread


def test_an_undefined_metric_is_null_in_every_summary():
    assert spread([1.0, None]) is None
    assert spread([2.0]) == {"mean": 2.0, "sd": 0.0, "n": 1}
