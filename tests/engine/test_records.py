"""Reading records back: a line that is none takes no other with it, and is told."""

import warnings

import pytest

from kdengine.engine.rundir import RECORD_LIMIT, read_lines, read_records


@pytest.fixture
def file(tmp_path):
    def write(content):
        (tmp_path / "metrics.jsonl").write_bytes(content)
        return tmp_path / "metrics.jsonl"

    return write


@pytest.mark.parametrize(
    "content", [b'{"a": 1}\n{"b": 2}\n', b'{"a": 1}\n{"b": 2}', b'{"a": 1}\n{"b": 2}\n{"c": ', b""]
)
def test_what_a_run_or_a_kill_leaves_is_read_without_a_word(file, content):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_records(file(content)) == [{"a": 1}, {"b": 2}][: content.count(b'": ') and 2]


@pytest.mark.parametrize(
    "damage", [b"?", b"[1]", b"", b"null", b'{"x": "' + b"y" * (3 * RECORD_LIMIT) + b'"}', b"\xff\xfe", b"[" * 5000]
)
def test_the_records_behind_a_damaged_line_are_kept(file, damage):
    path = file(b'{"a": 1}\n' + damage + b'\n{"b": 2}\n')
    with pytest.warns(UserWarning, match=r"metrics\.jsonl is damaged: 1 of its lines are no records \(line 2\)"):
        assert read_records(path) == [{"a": 1}, {"b": 2}]
    assert read_lines(path) == [(1, {"a": 1}), (2, None), (3, {"b": 2})]


def test_a_file_that_is_not_there_holds_no_records(tmp_path):
    assert read_records(tmp_path / "absent.jsonl") == []
