"""A stream whose encoding lacks a character gets the nearest plain one; nothing is lost after a training."""

import io
import sys

import pytest

from kdengine.cli import tables
from kdengine.cli.main import invoke
from kdengine.cli.report import formats

TEXT = f"37{formats.THIN}% ± 0.5 {formats.MINUS}1 {formats.TIMES}2 \N{EN DASH} … 中 \ud800"


@pytest.fixture
def stream(place, monkeypatch):
    def use(encoding, errors="strict"):
        made = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)
        monkeypatch.setattr(sys, "stdout", made)
        return made

    return use


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "cp437", "utf-8", "shift-jis"])
def test_every_command_prints_on_every_encoding(stream, encoding):
    made = stream(encoding)
    assert invoke(["recipes"]) == 0
    tables.show(["", "top-1"], [["mean ± sd", TEXT]])
    made.flush()
    shown = made.buffer.getvalue().decode(encoding, errors="replace")  # click writes UTF-8 where it finds ASCII
    assert "mean" in shown
    assert "37" in shown
    assert "digits" in shown


def test_what_ascii_lacks_has_a_likeness_or_its_escape(stream):
    made = stream("ascii")
    invoke(["--version"])
    print(TEXT)
    made.flush()
    assert made.buffer.getvalue().decode().splitlines()[-1] == r"37 % +/- 0.5 -1 x2 - ... \u4e2d \ud800"


def test_a_whole_run_ends_well_on_a_terminal_of_another_code_page(stream, place):
    made = stream("cp1252")
    assert invoke(["run", "small.toml", "--set", "train.epochs=1", "--set", "name=größe-中", "--seeds", "2"]) == 0
    made.flush()
    shown = made.buffer.getvalue().decode("cp1252")
    assert "student distilled" in shown
    assert "±" in shown
    assert "größe-" in shown
