from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from kdengine.api import Scalar
from kdengine.recipe.signature import Argument, arguments, check_arguments, check_value


class Colour(enum.StrEnum):
    RED = "red"


class Component:
    def __init__(self, width: int, temperature: Scalar = 4.0, mode: Literal["a", "b"] = "a", **_: Any) -> None:
        pass


def test_arguments_are_those_of_the_constructor_with_types_and_defaults():
    known = arguments(Component)
    assert list(known) == ["width", "temperature", "mode"]
    assert known["width"].required
    assert not known["mode"].required
    assert known["temperature"].is_scalar
    assert known["temperature"].type_name == "number or schedule"


def test_what_is_given_by_position_is_no_argument():
    assert "params" not in arguments(torch.optim.SGD, skip=1)
    assert "lr" in arguments(torch.optim.SGD, skip=1)


def test_unknown_missing_and_mistyped_arguments_are_all_reported():
    _, problems = check_arguments(arguments(Component), {"widht": 3, "mode": "c"}, ("student",))
    told = {problem.path[-1]: problem.message for problem in problems}
    assert "did you mean 'width'" in told["widht"]
    assert "required (int)" in told["width"]
    assert "'a' or 'b'" in told["mode"]


def test_a_suggestion_knows_the_keys_of_the_table_too():
    _, problems = check_arguments({}, {"wieght": 3}, (), beside=["weight"])
    assert "did you mean 'weight'" in problems[0].message


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, "3"),
        (int, True),
        (int, 3.0),
        (float, "0.5"),
        (float, False),
        (float | torch.Tensor, "0.5"),
        (bool, 1),
        (bool, "true"),
        (str, 3),
        (Sequence[int], ["3"]),
        (Sequence[int], [True]),
        (Sequence[int], "33"),
        (tuple[float, float], ["0.9", 0.99]),
        (dict[str, int], {"a": "1"}),
        (Iterable[int], ["x"]),
        (list[tuple[float, float]], [[0.0, "1"]]),
        (Scalar, "hot"),
        (Scalar, True),
        (Scalar, float("nan")),
        (Scalar | None, [1.0]),
        (Literal["a", "b"], "c"),
    ],
    ids=str,
)
def test_no_value_is_taken_for_one_of_another_type(annotation, value):
    with pytest.raises(ValueError, match=r".+"):
        check_value(annotation, value)


@pytest.mark.parametrize(
    ("annotation", "value", "made"),
    [
        (float, 3, 3.0),
        (Path, "data", Path("data")),
        (str | Path, "data", "data"),
        (tuple[float, float], [0, 1.5], (0.0, 1.5)),
        (Sequence[int], [1, 2], [1, 2]),
        (Iterable[int], [1, 2], [1, 2]),
        (Colour, "red", Colour.RED),
        (bool | None, True, True),
        (Scalar | None, 2, 2),
        (Any, {"a": 1}, {"a": 1}),
    ],
    ids=str,
)
def test_a_value_of_the_type_is_accepted(annotation, value, made):
    assert check_value(annotation, value) == made


@pytest.mark.parametrize(
    ("annotation", "words"),
    [(str | Sequence[str], "str | Sequence[str]"), (Path, "Path"), (Colour | None, "Colour | None"), (int, "int")],
)
def test_a_type_is_told_without_the_modules_it_comes_from(annotation, words):
    assert Argument("name", annotation, None).type_name == words


def test_annotations_that_nobody_can_resolve_are_not_checked():
    def factory(width: Unknown):  # noqa: F821
        return width

    assert check_arguments(arguments(factory), {"width": "anything"}, ()) == ({"width": "anything"}, [])
