"""The student's file: read by anything, and refused by kdengine where a bit of it has changed."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from kdengine.engine.student_file import SEAL, check_seal, read_weights, write_weights

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([True, False]), "c": torch.zeros(0)}


@pytest.fixture
def path(tmp_path):
    write_weights(tmp_path / "w.safetensors", WEIGHTS, {"kdengine.student": "net"})
    return tmp_path / "w.safetensors"


def test_any_tool_reads_it(path):
    found = safetensors.torch.load_file(path)
    assert all(torch.equal(found[name], value) for name, value in WEIGHTS.items())
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert file.metadata()["kdengine.student"] == "net"


def test_every_byte_of_it_counts(path):
    whole = path.read_bytes()
    name = range(whole.index(SEAL.encode()) - 1, whole.index(SEAL.encode()) + len(SEAL) + 1)
    for at in set(range(len(whole))) - set(name):  # without its name there is no checksum to look at
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=r"\w"):
            read_weights(path)
    path.write_bytes(whole)
    assert read_weights(path).keys() == WEIGHTS.keys()


def test_a_file_of_somebody_else_has_no_checksum_and_is_read(tmp_path):
    safetensors.torch.save_file(WEIGHTS, tmp_path / "theirs.safetensors")
    check_seal(tmp_path / "theirs.safetensors")
    assert read_weights(tmp_path / "theirs.safetensors").keys() == WEIGHTS.keys()


def test_the_same_weights_give_the_same_bytes(path, tmp_path):
    write_weights(tmp_path / "again", WEIGHTS, {"kdengine.student": "net"})
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
