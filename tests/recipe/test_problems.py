from kdengine.api import ConfigurationError
from kdengine.recipe.problems import Problem, RecipeError


def test_problems_come_in_the_order_of_the_file_and_those_without_a_line_last():
    problems = [Problem(("late",), "c"), Problem(("b",), "b", 2), Problem(("a",), "a", "x")]
    error = RecipeError("mine.toml", problems, "a = 'x'\nb = 2")
    assert str(error).splitlines() == [
        "mine.toml: 3 problems",
        "  line 1: a = 'x': a",
        "  line 2: b = 2: b",
        "  late: c",
    ]
    assert [problem.path for problem in error.problems] == [("a",), ("b",), ("late",)]


def test_one_problem_is_singular_and_a_configuration_error():
    error = RecipeError("mine.toml", [Problem(("a",), "wrong")])
    assert str(error).startswith("mine.toml: 1 problem\n")
    assert isinstance(error, ConfigurationError)


def test_a_long_value_is_cut_and_an_absent_one_left_out():
    assert len(Problem(("a",), "", "x" * 200).describe(None)) < 80
    assert Problem(("a",), "required").describe(3) == "line 3: a: required"


def test_a_value_of_none_is_shown():
    assert Problem(("a",), "m", None).describe(None) == "a = None: m"
