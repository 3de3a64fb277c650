"""What a component was made with, as plain values."""

import torch
from torch import nn

from kdengine.api.given import UNKNOWN, plain


class Holds(nn.Module):
    def __init__(self):
        super().__init__()
        self.width = 3
        self.own = {"module": self, "functions": [print]}
        self.__dict__["again"] = self
        self.__dict__["call"] = self.__dict__["same_call"] = print


def test_an_object_that_holds_itself_is_described_once():
    assert plain(Holds()) == {"use": "Holds", "width": 3, "again": {"use": "Holds"}}


def test_the_graph_of_an_exported_model_is_described():
    exported = torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)).module()
    assert plain(exported)["use"] == type(exported).__name__


def test_what_is_no_plain_value_is_unknown_however_often_it_comes():
    assert plain([print, print]) is UNKNOWN
    assert plain({"a": torch.ones(1)}) is UNKNOWN
