"""The console logger: plain lines in a pipe, a bar on a terminal, no crash on a closed output."""

import contextlib
import os
import re
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from kdengine.api import ConfigurationError, RunInfo
from kdengine.loggers.console import Console

RUN = RunInfo("student", None, steps=100, epochs=4)
RECORD = {"epoch": 1, "loss": 0.51239, "kd.soft": 0.4, "lr": 0.001, "items_per_second": 1234.4}


def test_a_plain_line_has_everything(capsys):
    logger = Console()
    logger.start(RUN)
    logger.log(RECORD, step=10, kind="train")
    line = capsys.readouterr().out
    for part in ("student", "step 10/100", "epoch 1/4", "loss 0.5124", "kd.soft 0.4", "lr 0.001", "1,234 items/s"):
        assert part in line
    assert re.search(r"\d+:\d\d left$", line.strip())


def test_time_left_is_measured_since_the_start(capsys):
    logger = Console()
    logger.start(RunInfo("student", None, steps=100, epochs=4, step=90))
    logger._began = time.monotonic() - 60  # five steps took a minute
    logger.log(RECORD, step=95, kind="train")
    assert "1:00 left" in capsys.readouterr().out


def test_lines_come_every_few_seconds_and_the_last_one_always(capsys):
    logger = Console(every=60)
    logger.start(RUN)
    for step in range(1, 51):
        logger.log(RECORD, step=step, kind="train")
    logger.finish("finished")
    lines = capsys.readouterr().out.splitlines()
    assert [re.search(r"step (\d+)/", line)[1] for line in lines[:-1]] == ["1", "50"]
    assert re.fullmatch(r"student  finished after 0:0\d", lines[-1])


def test_every_zero_prints_every_record(capsys):
    logger = Console(every=0)
    logger.start(RUN)
    for step in range(3):
        logger.log(RECORD, step=step, kind="train")
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_evaluations_and_notes_get_a_line(capsys):
    logger = Console()
    logger.start(RUN)
    logger.log({"epoch": 1, "top1": 0.9512, "agreement": None}, step=25, kind="evaluate")
    logger.message("the student [bold]has[/bold] no BatchNorm")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "student  evaluation at step 25  top1 0.9512  agreement undefined"
    assert lines[1] == "the student [bold]has[/bold] no BatchNorm"


def test_evaluations_count_as_progress_and_the_last_one_always_shows(capsys):
    logger = Console(every=60)
    logger.start(RUN)
    for step in range(10, 101, 10):
        logger.log(RECORD, step=step, kind="train")
        logger.log({"top1": step / 100, "gradient_share.kd": 0.9}, step=step, kind="evaluate")
    logger.finish("finished")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("student  step 10/100")
    assert lines[1] == "student  evaluation at step 100  top1 1"


def test_quiet_leaves_out_the_progress_only(capsys):
    logger = Console(quiet=True)
    logger.start(RUN)
    logger.log(RECORD, step=10, kind="train")
    logger.log({"top1": 0.5}, step=10, kind="evaluate")
    logger.message("a note")
    logger.finish("finished")
    assert capsys.readouterr().out.splitlines() == ["student  evaluation at step 10  top1 0.5", "a note"]


def test_values_that_are_no_numbers_are_shown_as_they_are(capsys):
    logger = Console()
    logger.start(RUN)
    logger.log({"loss": float("nan"), "phase": "warm-up", "epoch": None}, step=1, kind="train")
    assert "loss nan  phase warm-up" in capsys.readouterr().out


def test_a_negative_interval_is_refused():
    with pytest.raises(ConfigurationError, match="every"):
        Console(every=-1.0)


def whole_fit(logger, hang_up=lambda: None):
    logger.start(RUN)
    for step in range(1, 101):
        logger.log({"epoch": 1, "loss": 0.5, "items_per_second": 10.0}, step=step, kind="train")
        if step == 50:
            hang_up()
            time.sleep(0.15)  # a redraw is due
            logger.message("a [note]")
    logger.log({"top1": 0.5}, step=100, kind="evaluate")
    logger.finish("finished")


@pytest.fixture(params=["none", "closed", "reader left"])
def lost_output(request):
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    if request.param == "closed":
        stream.close()
    yield None if request.param == "none" else stream
    with contextlib.suppress(OSError):
        stream.close()


def test_a_lost_output_does_not_stop_the_fit(lost_output, monkeypatch):
    monkeypatch.setattr(sys, "stdout", lost_output)
    whole_fit(Console(every=0))


@pytest.fixture
def terminal(monkeypatch):
    """A pseudo-terminal: ``plug()`` makes it standard output, ``screen()`` ends it and gives what was written."""
    pty = pytest.importorskip("pty", reason="needs a pseudo-terminal")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    outer, inner = pty.openpty()
    stream, seen = os.fdopen(inner, "w"), []

    def read():
        with contextlib.suppress(OSError):
            while part := os.read(outer, 4096):
                seen.append(part)

    reader = threading.Thread(target=read)
    reader.start()

    def plug():  # in the test itself: pytest's capture puts its own output in place between setup and call
        monkeypatch.setattr(sys, "stdout", stream)

    def screen():
        stream.close()
        reader.join()
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(seen).decode())

    yield SimpleNamespace(plug=plug, screen=screen)
    with contextlib.suppress(OSError):
        stream.close()
    reader.join()
    os.close(outer)


def test_a_terminal_gets_one_bar(terminal):
    terminal.plug()
    whole_fit(Console(every=0))
    assert sys.stdout.isatty(), "standard output was not given back"
    text = terminal.screen()
    for part in ("100/100", "loss 0.5", "10 items/s", "a [note]", "evaluation at step 100  top1 0.5", "finished"):
        assert part in text, text
    assert "step 50/100" not in text, "progress was printed line by line as well"


def test_a_terminal_keeps_the_last_evaluation_only(terminal):
    terminal.plug()
    logger = Console()
    logger.start(RUN)
    for step in (50, 100):
        logger.log({"top1": step / 100}, step=step, kind="evaluate")
    logger.finish("finished")
    text = terminal.screen()
    assert "top1 0.5" in text, "the bar does not show an evaluation"
    assert "evaluation at step 50" not in text
    assert text.count("evaluation at step 100  top1 1") == 1


def test_a_terminal_that_cannot_redraw_gets_lines(terminal, monkeypatch):
    terminal.plug()
    monkeypatch.setenv("TERM", "dumb")
    whole_fit(Console(every=0))
    assert "step 50/100" in terminal.screen()


def test_a_terminal_that_goes_away_does_not_stop_the_fit(terminal):
    terminal.plug()
    whole_fit(Console(every=0), hang_up=sys.stdout.close)


def test_a_second_fit_on_the_same_logger_begins_a_new_bar(terminal):
    terminal.plug()
    logger = Console()
    logger.start(RUN)
    logger.start(RunInfo("baseline", None, steps=7, epochs=1))  # the first was never finished
    logger.log(RECORD, step=7, kind="train")
    logger.finish("finished")
    assert "7/7" in terminal.screen()
