"""The answers to questions, executed."""

import pytest
import torch

from tests.docs.markdown import DOCS, blocks, run_python

FAQ = DOCS / "faq.md"
BLOCKS = blocks(FAQ)
QUESTIONS = [line.removeprefix("## ") for line in FAQ.read_text(encoding="utf-8").splitlines() if line[:3] == "## "]


def test_every_question_has_an_answer_in_code():
    assert len(QUESTIONS) >= 20
    assert QUESTIONS == list(dict.fromkeys(block.heading for block in BLOCKS))


@pytest.mark.parametrize("block", BLOCKS, ids=[block.heading for block in BLOCKS])
def test_an_answer_is_right(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    run_python(block, FAQ, {})
