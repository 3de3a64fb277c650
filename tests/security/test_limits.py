"""What a file may ask for: memory in proportion to its size, and never to wait."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file

import kdengine
from kdengine import _untrusted
from kdengine.cli.report.images import read_samples
from kdengine.cli.report.reading import read_run
from kdengine.engine import checkpoint, codec, rundir
from kdengine.engine.tensors import load_tensors
from kdengine.recipe.load import load, source_at
from kdengine.recipe.models import load_weights
from kdengine.teachers.cached import CachedTeacher
from tests.engine.common import engine, items, mlp
from tests.security.hostile import safetensors, seal, within, write_manifest

LIMITED = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit of the address space")
GIB = 2**30


@pytest.fixture
def saved(tmp_path):
    return checkpoint.save(tmp_path, 1, {"w": torch.arange(5.0), "n": (1, 2)}, meta={})


@pytest.fixture
def written(tmp_path):
    """A small run directory, by hand."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "summary.json").write_text('{"student": {"metrics": {"top1": 0.5}}}')
    (run / "metrics.jsonl").write_text('{"kind": "evaluate", "step": 1, "top1": 0.5}\n')
    (run / "recipe.toml").write_text("version = 1\n")
    save_file({"weight": torch.ones(2)}, run / "student.safetensors")
    return run


def loaded_bytes(path):
    return sum(tensor.untyped_storage().nbytes() for tensor in load_tensors(path).values())


@LIMITED
def test_the_limit_of_a_child_is_felt(tmp_path):
    assert within(256, lambda: bytearray(GIB)).startswith("raised MemoryError")
    assert "allocate memory" in within(256, lambda: torch.empty(GIB))
    assert within(256, lambda: len(bytearray(2**20))) == "returned 1048576"


@LIMITED
def test_strides_with_gaps_take_no_memory(tmp_path):
    path = tmp_path / "t"
    layout = {"version": 1, "strides": {"t": [2**34, 1]}, "views": {}}
    save_file({"t": torch.ones(2, 3)}, path, metadata={"kdengine.layout": json.dumps(layout)})
    assert within(64, lambda: loaded_bytes(path)) == "returned 24"


@LIMITED
def test_views_cannot_be_spelled_out_to_more_than_their_share(tmp_path):
    path = tmp_path / "t"
    view = {"of": "t", "offset": 0, "dtype": "float32", "shape": [2**32], "strides": [0]}
    for views in ({"v": view}, {f"v{n}": view | {"shape": [2**20]} for n in range(100)}):
        layout = {"version": 1, "strides": {}, "views": views}
        save_file({"t": torch.ones(6)}, path, metadata={"kdengine.layout": json.dumps(layout)})
        assert "out of all proportion" in within(64, lambda: loaded_bytes(path))


@LIMITED
@pytest.mark.parametrize(
    ("reference", "said"),
    [({"$array": "w"}, "stands in two places"), ({"$tensor": "w"}, "out of all proportion")],
    ids=["array", "tensor"],
)
def test_one_tensor_is_not_copied_for_every_reference(tmp_path, reference, said):
    folder = checkpoint.save(tmp_path, 1, {"w": torch.ones(2**20)}, meta={})
    (folder / "state.json").write_text(json.dumps([reference] * 1000))
    seal(folder)
    answer = within(128, lambda: checkpoint.load(folder))
    assert answer.startswith("raised CheckpointError")
    assert said in answer


def test_what_a_state_refers_to_too_often_is_refused_when_it_is_saved():
    weight = torch.ones(2**20)
    with pytest.raises(codec.UnsupportedState, match="out of all proportion"):
        codec.encode([weight] * 300)
    assert len(codec.encode([weight] * 200)[1]) == 1


@LIMITED
def test_a_header_that_claims_more_than_there_is_takes_no_memory(tmp_path):
    path = tmp_path / "t"
    for content in (
        (2**40).to_bytes(8, "little") + b"{",
        safetensors({"t": {"dtype": "F32", "shape": [2**34], "data_offsets": [0, 2**36]}}),
        safetensors({"t": {"dtype": "F32", "shape": [2**34], "data_offsets": [0, 4]}}, bytes(4)),
        safetensors({"t": {"dtype": "F32", "shape": [2**63, 2], "data_offsets": [0, 0]}}),
    ):
        path.write_bytes(content)
        assert within(64, lambda: loaded_bytes(path)).startswith("raised ValueError")


@LIMITED
@pytest.mark.parametrize("what", ["manifest.json", "state.json"])
def test_a_huge_file_of_a_checkpoint_is_not_read_into_memory(saved, what):
    os.truncate(saved / what, checkpoint.STATE_LIMIT + 1)
    if what == "state.json":
        seal(saved)
    answer = within(64, lambda: checkpoint.load(saved))
    assert answer.startswith("raised CheckpointError"), answer
    assert f"{what}: " in answer
    assert "expected at most" in answer


def test_a_state_that_could_not_be_read_back_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "STATE_LIMIT", 1000)
    with pytest.raises(codec.UnsupportedState, match=r"takes 2,0\d\d bytes .* more than the 1,000"):
        checkpoint.save(tmp_path, 1, {"text": "x" * 2000}, meta={})
    assert list(tmp_path.iterdir()) == []


@LIMITED
def test_huge_files_of_a_run_are_not_read_into_memory(written):
    for name in ("summary.json", "metrics.jsonl", "recipe.toml"):
        whole = (written / name).read_bytes()
        os.truncate(written / name, 2 * GIB)
        answer = within(64, lambda: read_run(written))
        assert answer.startswith("raised CheckpointError"), answer
        assert name in answer
        (written / name).write_bytes(whole)


@LIMITED
def test_a_line_without_end_ends_the_records(written):
    with (written / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "')
        file.truncate(GIB)
    assert within(64, lambda: len(kdengine.load_run(written).records)) == "returned 1"


def test_a_separator_within_a_string_does_not_end_a_record(written):
    (written / "metrics.jsonl").write_text('{"kind": "note", "step": 1, "text": "a\u2028b"}\n{"step": 2}\n')
    assert len(kdengine.load_run(written).records) == 2


@LIMITED
def test_a_long_dotted_key_of_a_recipe_is_refused(written):
    (written / "recipe.toml").write_text(".".join("a" * 50_000) + " = 1\n")
    assert read_run(written).settings == {}
    for text in (".".join(["'a'"] * 100) + " = 1", "[" + " . ".join("a" * 100) + "]", "x = {" + "a." * 100 + "a = 1}"):
        with pytest.raises(ValueError, match="more than 64 parts"):
            _untrusted.parse_toml(text)
    assert _untrusted.parse_toml("a = 'one. two. three.' # " + "so. " * 20) == {"a": "one. two. three."}
    _untrusted.parse_toml('a = "' + "x" * 200_000 + '"')


@pytest.mark.parametrize("text", ["x = " + "9" * 5000, "x = " + "[" * 5000, "x = 1\nx = 2", "\x00"])
def test_no_recipe_is_a_configuration_error(tmp_path, text):
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(kdengine.ConfigurationError, match=r"recipe\.toml is (not valid TOML|no recipe)"):
        load(tmp_path / "recipe.toml")


def test_nesting_and_repeated_keys_of_a_manifest_are_told(saved):
    for text, said in (("[" * 100_000, "nested too deeply"), ('{"format": 1, "format": 2}', "stands twice")):
        (saved / "manifest.json").write_text(text)
        with pytest.raises(kdengine.CheckpointError, match=said):
            checkpoint.load(saved)


def test_a_message_does_not_repeat_what_a_file_says_at_length(saved):
    for body in ({"format": "x" * 10**6}, {"format": 1, "step": list(range(10**5)), "files": {}}):
        write_manifest(saved, body)
        with pytest.raises(kdengine.CheckpointError) as caught:
            checkpoint.load(saved)
        assert len(str(caught.value)) < 1000
    with pytest.raises(codec.MalformedState) as told:
        codec.decode({"k" * 10**6: {"$" * 10**6: 1}}, {})
    assert len(str(told.value)) < 1000


def test_an_integer_too_long_to_print_is_no_obstacle_to_a_message():
    huge = {"$int": "0x" + "f" * 10_000}
    for obj in (
        {"$dict": [[huge, {"$float": huge}]]},
        {"$set": [huge, []]},
        {"$dict": [[{"$tuple": [huge]}, {"$x": 1}]]},
    ):
        with pytest.raises(codec.MalformedState):
            codec.decode(obj, {})
    assert codec.decode(codec.encode({10**5000: 1})[0], {}) == {10**5000: 1}


def archive(path, compression):
    """A .pth file whose parts are packed: some zeros, and so small."""
    torch.save({"weight": torch.zeros(2**20)}, path)
    with zipfile.ZipFile(path) as source:
        parts = {part.filename: source.read(part) for part in source.infolist()}
    with zipfile.ZipFile(path, "w", compression) as target:
        for name, content in parts.items():
            target.writestr(name, content)


def test_weights_in_a_compressed_archive_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    archive(path, zipfile.ZIP_STORED)
    model = torch.nn.Linear(2**10, 2**10, bias=False)
    with pytest.raises(kdengine.CheckpointError, match="does not fit"):
        load_weights(model, path, "teacher")
    archive(path, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10_000
    with pytest.raises(kdengine.CheckpointError, match=r"would unpack to 4,\d\d\d,\d\d\d"):
        load_weights(model, path, "teacher")


FIFO_CALLS = {
    "tensors.safetensors": lambda folder: load_tensors(folder / "tensors.safetensors"),
    "student.safetensors": rundir.read_student,
    "summary.json": kdengine.load_run,
    "metrics.jsonl": kdengine.load_run,
    "recipe.toml": lambda folder: source_at(folder / "recipe.toml"),
    "disagreements.json": lambda folder: read_samples(folder) or pytest.fail("read", pytrace=False),
    "weights.pth": lambda folder: load_weights(mlp(), folder / "weights.pth", "teacher"),
    "weights.safetensors": lambda folder: load_weights(mlp(), folder / "weights.safetensors", "teacher"),
}


def fifo(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def directory(path):
    path.unlink(missing_ok=True)
    path.mkdir()


def device(path):
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def dangling(path):
    path.unlink(missing_ok=True)
    path.symlink_to(path.with_name("nowhere"))


@pytest.mark.parametrize("make", [fifo, directory, device, dangling])
@pytest.mark.parametrize("name", ["manifest.json", "state.json", "tensors.safetensors"])
def test_what_is_no_file_of_a_checkpoint_is_told_at_once(saved, make, name):
    make(saved / name)
    with pytest.raises(kdengine.CheckpointError, match=rf"{re.escape(name)}: .*(regular file, found|found none)"):
        checkpoint.load(saved)
    assert checkpoint.find_latest(saved.parent, on_damaged=lambda *_: None) is None


@pytest.mark.parametrize("make", [fifo, directory, device])
@pytest.mark.parametrize("name", [name for name in FIFO_CALLS if name != "disagreements.json"])
def test_what_is_no_file_of_a_run_is_told_at_once(written, make, name):
    make(written / name)
    with pytest.raises((kdengine.CheckpointError, kdengine.ConfigurationError, ValueError)) as caught:
        FIFO_CALLS[name](written)
    assert name in str(caught.value)


@pytest.mark.parametrize("make", [fifo, directory, device])
@pytest.mark.parametrize("name", ["disagreements.json", "disagreements.safetensors"])
def test_no_samples_are_read_from_what_is_no_file(written, make, name):
    (written / "disagreements.json").write_text('{"items": []}')
    make(written / name)
    assert read_samples(written) == []


def resumed(out, **options):
    return engine(mlp(), out=out, seed=1, **options).fit(
        kdengine.loader(items(), 8, seed=2), epochs=options.pop("epochs", 1), resume="auto"
    )


@pytest.mark.parametrize("make", [fifo, device])
def test_records_are_not_appended_to_what_is_no_file(tmp_path, make):
    resumed(tmp_path / "run")
    make(tmp_path / "run" / "metrics.jsonl")
    with pytest.raises(kdengine.CheckpointError, match=r"metrics\.jsonl: expected a regular file"):
        resumed(tmp_path / "run")


def test_records_are_not_written_through_a_link(tmp_path):
    resumed(tmp_path / "run")
    precious = tmp_path / "precious"
    precious.write_text("one\ntwo\nthree without an end")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "run" / "metrics.jsonl").symlink_to(precious)
    with pytest.raises(kdengine.CheckpointError, match="a link to another"):
        resumed(tmp_path / "run")
    assert precious.read_text() == "one\ntwo\nthree without an end"


def test_a_linked_checkpoint_is_read_as_any_other(saved, tmp_path):
    shutil.move(saved / "state.json", tmp_path / "elsewhere")
    (saved / "state.json").symlink_to(tmp_path / "elsewhere")
    assert checkpoint.load(saved)[0]["n"] == (1, 2)


def cached(folder):
    source = CachedTeacher(mlp(32), str(folder), items=32)
    engine(mlp(), source).fit(kdengine.loader(items(), 8, seed=1), epochs=1)


@pytest.mark.parametrize("make", [fifo, device, directory])
@pytest.mark.parametrize("name", ["cache.json", "inputs.rows", "inputs.5.f32"])
def test_what_is_no_file_of_a_cache_is_told_at_once(tmp_path, make, name):
    cached(tmp_path / "cache")
    make(tmp_path / "cache" / name)
    with pytest.raises(kdengine.CheckpointError, match=re.escape(name)):
        cached(tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("inputs.x.f32", "no table of logits"),
        ("inputs.0.f32", "no table of logits"),
        ("inputs.-1.f32", "no table of logits"),
        ("inputs.4.f32", "holds logits of 4 classes, the teacher gives 5"),
        ("inputs.4000000000.f32", "has 512 bytes, expected 512000000000"),
        ("inputs." + "9" * 200 + ".f32", "no table of logits"),
    ],
)
def test_a_table_whose_name_lies_is_told(tmp_path, name, said):
    cached(tmp_path / "cache")
    (tmp_path / "cache" / "inputs.5.f32").unlink()
    (tmp_path / "cache" / name).write_bytes(bytes(32 * 4 * 4))
    with pytest.raises(kdengine.CheckpointError, match=said):
        cached(tmp_path / "cache")


@pytest.mark.parametrize("text", ["[]", "[" * 10**5, "{", '{"items": 1, "items": 2}', "\ufeff{}", '"x"'])
def test_a_claim_that_is_none_is_told(tmp_path, text):
    cached(tmp_path / "cache")
    (tmp_path / "cache" / "cache.json").write_text(text)
    with pytest.raises(kdengine.CheckpointError, match=r"cache\.json is damaged"):
        cached(tmp_path / "cache")


def test_objects_in_the_place_of_rows_are_only_bytes(tmp_path):
    cached(tmp_path / "cache")
    table = tmp_path / "cache" / "inputs.5.f32"
    size = table.stat().st_size
    table.write_bytes(pickle.dumps([0.5] * 50).ljust(size, b"\0")[:size])
    cached(tmp_path / "cache")
