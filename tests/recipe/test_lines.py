import pytest

from kdengine.recipe.lines import find_line

TEXT = '''version = 1
description = """
lr = 3
[train]
"""

[data]  # a header
use = "digits"
transforms = [
  "to_tensor",
]

[losses.kd]
"odd key" = 1
temperature = 2

[student]
use = 'mlp'
nested.deep.key = 1

[[optimizer.groups]]
match = "a*"
[[optimizer.groups]]
match = "b*"
lr = 3

[train]
epochs = 1
inline = { lr = 1 }
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("version",), 1),
        (("data",), 7),
        (("data", "use"), 8),
        (("data", "transforms", "0"), 9),
        (("losses", "kd", "odd key"), 14),
        (("losses", "kd", "temperature"), 15),
        (("student", "nested", "deep", "key"), 19),
        (("optimizer", "groups", "0"), 21),
        (("optimizer", "groups", "1", "match"), 24),
        (("optimizer", "groups", "1", "lr"), 25),
        (("train", "epochs"), 28),
        (("train", "inline", "lr"), 29),
        (("train", "absent"), 27),
        (("nothing",), None),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else "",
)
def test_a_key_is_found_on_its_line_or_on_that_of_what_holds_it(path, line):
    assert find_line(TEXT, path) == line


def test_an_inline_table_of_tables_is_one_line():
    assert find_line("losses = { kd = { weight = 1 } }", ("losses", "kd", "weight")) == 1


def test_windows_line_ends_count_once():
    assert find_line("a = 1\r\nb = 2\r\n", ("b",)) == 2
