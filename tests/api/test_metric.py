"""What a metric's name says of which way it is better."""

import pytest

from kdengine.api.metric import mode_in_name


@pytest.mark.parametrize("name", ["val_loss", "top1_error", "wer", "calibration_error", "accuracy_loss", "rmse"])
def test_less_of_it_is_better(name):
    assert mode_in_name(name) == "min"


@pytest.mark.parametrize("name", ["top1", "val_f1", "neg_mean_squared_error", "neg_log_loss", "-loss", "negative_mse"])
def test_more_of_it_is_better(name):
    assert mode_in_name(name) == "max"


@pytest.mark.parametrize("name", ["answer", "loss_at_top1", "score"])
def test_a_name_may_leave_it_open(name):
    assert mode_in_name(name) is None
