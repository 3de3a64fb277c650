"""Files in the place of a checkpoint: told as what they are, and never with advice to run what they hold."""

import gzip
import json
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from kdengine import _foreign
from kdengine.api import CheckpointError
from kdengine.recipe.models import load_weights
from kdengine.recipe.weights import read_state


def net():
    return nn.Linear(2, 3)


@pytest.mark.parametrize("name", ["t.pth", "t.pt", "t.safetensors", "t.bin"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*git lfs pull"),
        (b"\n <!DOCTYPE HTML><title>Sign in</title>", "a web page"),
        (b"\xef\xbb\xbf<html>", "a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "XML"),
        (b'{"error": "Repository not found"}', "JSON"),
        (gzip.compress(b"weights"), "gzip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"", "cut off"),
    ],
    ids=["lfs", "html", "html with a mark", "xml", "json", "gzip", "hdf5", "empty"],
)
def test_what_is_no_checkpoint_is_told_as_what_it_is(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"\[teacher\] .*{name} is no checkpoint but .*{said}"):
        read_state(tmp_path / name, "teacher")


def test_archives_that_torch_has_not_written_are_told(tmp_path):
    np.savez(tmp_path / "weights.npz", w=np.ones(3))
    (tmp_path / "weights.npz").rename(tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="an archive of NumPy arrays"):
        read_state(tmp_path / "w.pth", "teacher")
    with zipfile.ZipFile(tmp_path / "z.pth", "w") as archive:
        archive.writestr("readme.txt", "weights")
    with pytest.raises(CheckpointError, match=r"not written; it holds readme\.txt"):
        read_state(tmp_path / "z.pth", "teacher")


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: torch.save(net(), path), r"holds more than tensors \(torch\.nn\.modules\.linear\.Linear\)"),
        (lambda path: torch.save({"a": {1}, "b": slice(0)}, path), "holds more than tensors"),
        (lambda path: path.write_bytes(b"not weights at all"), "no file of torch.save"),
        (lambda path: torch.jit.save(torch.jit.trace(net(), torch.ones(1, 2)), path), "TorchScript"),
        (lambda path: path.write_bytes(torch.zeros(3).numpy().tobytes()), "t.pth"),
    ],
    ids=["module", "objects", "text", "script", "bytes"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch.jit
def test_no_message_advises_to_run_the_code_of_a_file(tmp_path, write, said):
    write(tmp_path / "t.pth")
    with pytest.raises(CheckpointError, match=said) as caught:
        read_state(tmp_path / "t.pth", "teacher")
    for advice in ("weights_only", "file an issue", "\n", "\x1b"):
        assert advice not in str(caught.value)


@pytest.mark.parametrize("name", ["t.pth", "t.safetensors", "t.ckpt"])
@pytest.mark.parametrize("save", [safetensors.torch.save_file, torch.save])
def test_what_a_file_holds_decides_and_not_its_name(tmp_path, name, save):
    state = net().state_dict()
    save(dict(state), tmp_path / name)
    found = read_state(tmp_path / name, "teacher")
    assert all(torch.equal(found[key], value) for key, value in state.items())


def test_safetensors_may_begin_with_any_byte(tmp_path):
    """The length of the header comes first: it may look like white space and a brace."""
    for length in (0x7B20, 0x7B):
        header = {"__metadata__": {"pad": ""}, "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
        header["__metadata__"]["pad"] = "x" * (length - len(json.dumps(header)))
        text = json.dumps(header).encode()
        (tmp_path / "w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
        assert len(text) == max(length, len(text))
        assert _foreign.recognise(tmp_path / "w.safetensors") is None
        assert list(read_state(tmp_path / "w.safetensors", "teacher")) == ["w"]


def test_a_home_is_found_in_the_path_of_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(net().state_dict(), tmp_path / "t.pth")
    load_weights(net(), "~/t.pth", "teacher")


def test_a_folder_is_told_with_the_weights_in_it(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("")
    with pytest.raises(CheckpointError, match=r"is a folder; name the file in it: model\.safetensors$"):
        read_state(tmp_path, "teacher")


def test_a_state_dict_inside_of_something_else_is_pointed_at(tmp_path):
    torch.save({"epoch": 3, "weights": net().state_dict()}, tmp_path / "t.pth")
    with pytest.raises(CheckpointError, match=r"found the keys 'epoch', 'weights'; save tree\['weights'\] alone"):
        read_state(tmp_path / "t.pth", "teacher")
    torch.save([torch.ones(1)], tmp_path / "t.pth")
    with pytest.raises(CheckpointError, match="found a list"):
        read_state(tmp_path / "t.pth", "teacher")
