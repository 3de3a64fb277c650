import errno
import json
import os
import random
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest
import torch

import kdengine
from kdengine import _files as files
from kdengine.api.errors import CheckpointError
from kdengine.engine import checkpoint
from kdengine.engine.codec import UnsupportedState

resource = pytest.importorskip("resource")
ROOT = Path(kdengine.__file__).parent.parent
FILES = ["manifest.json", "state.json", "tensors.safetensors"]


def never(path, error):
    pytest.fail(f"{path} is not damaged: {error}")


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def training_state():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4))
    model[2].weight = model[0].weight
    optimizer = torch.optim.Adam(model.parameters(), amsgrad=True)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 3, 7])
    for _ in range(4):
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
        scheduler.step()
    return {
        "student": dict(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "random": {"torch": torch.get_rng_state(), "python": random.getstate()},
        "best": float("-inf"),
    }


def flip(path, position, bit):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def rewrite_manifest(path, change):
    """Change a manifest and put its hash right again, as a hostile hand would."""
    body = json.loads((path / "manifest.json").read_text())
    body.pop("sha256")
    change(body)
    (path / "manifest.json").write_text(json.dumps(body | {"sha256": checkpoint._digest(body)}))


@pytest.fixture
def saved(tmp_path):
    return checkpoint.save(tmp_path, 100, {"w": torch.arange(5.0), "n": (1, 2)}, meta={"torch": "2.10", "ids": (1,)})


def test_a_training_state_comes_back(tmp_path):
    state = training_state()
    path = checkpoint.save(tmp_path, 100, state, meta={"torch": torch.__version__ + ""})
    loaded, meta = checkpoint.load(path)
    assert path == tmp_path / "step-00000100"
    assert names(path) == FILES
    assert meta == {"torch": str(torch.__version__)}
    torch.testing.assert_close(loaded["student"], state["student"], rtol=0, atol=0)
    torch.testing.assert_close(loaded["optimizer"], state["optimizer"], rtol=0, atol=0)
    assert loaded["scheduler"] == state["scheduler"]
    assert type(loaded["scheduler"]["milestones"]) is Counter
    assert loaded["random"]["python"] == state["random"]["python"]
    assert torch.equal(loaded["random"]["torch"], state["random"]["torch"])
    student = loaded["student"]
    assert student["0.weight"].data_ptr() == student["2.weight"].data_ptr()


def test_the_manifest_says_what_is_there(saved):
    body = json.loads((saved / "manifest.json").read_text())
    assert (body["format"], body["step"], body["meta"]["torch"]) == (2, 100, "2.10")
    for name in ("state.json", "tensors.safetensors"):
        assert body["files"][name] == {"sha256": files.sha256(saved / name), "bytes": (saved / name).stat().st_size}
    assert checkpoint.verify(saved).meta == {"torch": "2.10", "ids": (1,)}


def test_nothing_is_written_when_a_value_cannot_be(tmp_path):
    with pytest.raises(UnsupportedState, match=r"plugin\.rule: a lambda"):
        checkpoint.save(tmp_path / "c", 1, {"plugin": {"rule": lambda: 0}}, meta={})
    with pytest.raises(UnsupportedState, match=r"meta\.w: a tensor"):
        checkpoint.save(tmp_path / "c", 1, {}, meta={"w": torch.ones(1)})
    with pytest.raises(ValueError, match="0 or more, got -1"):
        checkpoint.save(tmp_path / "c", -1, {}, meta={})
    assert not (tmp_path / "c").exists()


def test_a_whole_checkpoint_is_replaced_only_on_demand_and_a_damaged_one_always(saved):
    with pytest.raises(FileExistsError, match="replace=True"):
        checkpoint.save(saved.parent, 100, {"n": 2}, meta={})
    checkpoint.save(saved.parent, 100, {"n": 3}, meta={}, replace=True)
    assert checkpoint.load(saved)[0] == {"n": 3}
    flip(saved / "state.json", 0, 0)
    checkpoint.save(saved.parent, 100, {"n": 4}, meta={})
    assert checkpoint.load(saved)[0] == {"n": 4}
    assert names(saved.parent) == [saved.name]


def cut_off_at_rename(monkeypatch, number):
    """Let a process end at one of its renames of directories, counted from 1: nothing after it happens."""
    renames = []
    rename = Path.rename

    def counted(self, target):
        renames.append(target)
        if len(renames) >= number:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", counted)
    monkeypatch.setattr(files.shutil, "rmtree", lambda *args, **kwargs: None)


@pytest.mark.parametrize(("number", "found"), [(1, "old"), (2, "old"), (3, "new"), (4, "new")])
def test_while_the_only_checkpoint_is_replaced_the_old_one_or_the_new_one_is_found(
    tmp_path, monkeypatch, number, found
):
    checkpoint.save(tmp_path, 6, {"which": "old"}, meta={})
    with monkeypatch.context() as patched:
        cut_off_at_rename(patched, number)
        if number < 4:
            with pytest.raises(KeyboardInterrupt):
                checkpoint.save(tmp_path, 6, {"which": "new"}, meta={}, replace=True)
        else:
            checkpoint.save(tmp_path, 6, {"which": "new"}, meta={}, replace=True)
    assert checkpoint.steps(tmp_path) == [6]
    assert checkpoint.load(checkpoint.find_latest(tmp_path, on_damaged=never))[0] == {"which": found}
    with pytest.raises(FileExistsError, match="replace=True"):
        checkpoint.save(tmp_path, 6, {}, meta={})
    files.sweep(tmp_path)
    assert checkpoint.load(checkpoint.find_latest(tmp_path, on_damaged=never))[0] == {"which": found}
    checkpoint.save(tmp_path, 6, {"which": "newer"}, meta={}, replace=True)
    assert checkpoint.load(tmp_path / "step-00000006")[0] == {"which": "newer"}
    assert names(tmp_path) == ["step-00000006"]


@pytest.mark.parametrize("number", [2, 3])
def test_a_checkpoint_whose_replacement_was_cut_off_is_removed_in_both_its_forms(tmp_path, monkeypatch, number):
    checkpoint.save(tmp_path, 6, {}, meta={})
    with monkeypatch.context() as patched:
        cut_off_at_rename(patched, number)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, 6, {}, meta={}, replace=True)
    checkpoint.save(tmp_path, 8, {}, meta={})
    assert checkpoint.prune(tmp_path, 1) == [6]
    files.sweep(tmp_path)
    assert names(tmp_path) == ["step-00000008"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: expected a file.*found none"):
        checkpoint.load(saved)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named(saved, name):
    whole = (saved / name).read_bytes()
    size = len(whole)
    for kept in (0, 1, size // 2, size - 2):
        (saved / name).write_bytes(whole[:kept])
        said = "cannot be read|sha256" if name == "manifest.json" else f"expected {size} bytes, got {kept}"
        with pytest.raises(CheckpointError, match=f"{name}: ({said})"):
            checkpoint.load(saved)


@pytest.mark.parametrize("name", FILES[1:])
def test_every_flipped_bit_of_the_state_is_found(saved, name):
    for position in range((saved / name).stat().st_size):
        flip(saved / name, position, position % 8)
        with pytest.raises(CheckpointError, match=rf"{name}: expected sha256 \w+, got \w+"):
            checkpoint.load(saved)
        flip(saved / name, position, position % 8)
    checkpoint.load(saved)


def test_every_flipped_bit_of_the_manifest_is_found_or_changes_nothing(saved):
    whole = checkpoint.verify(saved)
    found = 0
    size = (saved / "manifest.json").stat().st_size
    for position in range(size):
        flip(saved / "manifest.json", position, position % 8)
        try:
            assert checkpoint.verify(saved) == whole
        except CheckpointError as error:
            found += "manifest.json" in str(error)
        flip(saved / "manifest.json", position, position % 8)
    assert found > size / 2  # the rest is white space


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        checkpoint.load(tmp_path / "nowhere")


def test_another_format_is_refused_by_its_number(saved):
    rewrite_manifest(saved, lambda body: body.update(format=3))
    with pytest.raises(CheckpointError, match=r"manifest.json: expected checkpoint format 2, got 3"):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.update(step="100"),
        lambda body: body.update(files=[]),
        lambda body: body["files"].update({"../../other": {}}),
        lambda body: body["files"].update({"state.json": None}),
        lambda body: body.update(meta={"$call": 1}),
        lambda body: body.update(meta=[]),
        lambda body: body.pop("meta"),
    ],
)
def test_a_hostile_manifest_is_a_checkpoint_error(saved, change):
    rewrite_manifest(saved, change)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        checkpoint.load(saved)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"$reduce": 1}', "{", '{"$tensor": "absent"}', "NaN", "\ufeff{}"])
def test_a_hostile_state_is_a_checkpoint_error(saved, text):
    (saved / "state.json").write_text(text)
    facts = checkpoint._describe_file(saved / "state.json")
    rewrite_manifest(saved, lambda body: body["files"].update({"state.json": facts}))
    with pytest.raises(CheckpointError, match="the state cannot be read"):
        checkpoint.load(saved)


PICKLE_EVENTS = []
PICKLE_WATCHED = []


def watch_pickle(event, args):
    if PICKLE_WATCHED and event == "pickle.find_class":
        PICKLE_EVENTS.append(args)


def test_neither_saving_nor_loading_touches_pickle(tmp_path, monkeypatch):
    import pickle

    def forbidden(*args, **kwargs):
        raise AssertionError("pickle was called")

    state = training_state()
    for owner, name in [
        (pickle, "load"), (pickle, "loads"), (pickle, "dump"), (pickle, "dumps"), (pickle, "Unpickler"),
        (pickle, "Pickler"), (torch, "load"), (torch, "save"),
    ]:  # fmt: skip
        monkeypatch.setattr(owner, name, forbidden)
    sys.addaudithook(watch_pickle)  # also sees an unpickler in C
    PICKLE_WATCHED.append(True)
    try:
        loaded, _ = checkpoint.load(checkpoint.save(tmp_path, 1, state, meta={}))
    finally:
        PICKLE_WATCHED.clear()
    assert loaded.keys() == state.keys()
    assert PICKLE_EVENTS == []


def test_the_newest_whole_checkpoint_is_found_and_damaged_ones_are_told(tmp_path):
    for step in (5, 100_000_000, 30, 200):
        checkpoint.save(tmp_path, step, {"step": step}, meta={})
    (tmp_path / "step-000000005").mkdir()
    (tmp_path / "step-1").mkdir()
    (tmp_path / "notes").touch()
    (tmp_path / ".tmp-half").mkdir()
    assert checkpoint.steps(tmp_path) == [5, 30, 200, 100_000_000]
    assert checkpoint.find_latest(tmp_path, on_damaged=never) == tmp_path / "step-100000000"
    (tmp_path / "step-100000000" / "manifest.json").unlink()
    flip(tmp_path / "step-00000200" / "tensors.safetensors", 3, 3)
    told = []
    latest = checkpoint.find_latest(tmp_path, on_damaged=lambda path, error: told.append((path.name, str(error))))
    assert latest == tmp_path / "step-00000030"
    assert [name for name, _ in told] == ["step-100000000", "step-00000200"]
    assert "manifest.json" in told[0][1]
    assert "tensors.safetensors" in told[1][1]


def test_nothing_is_found_where_nothing_is(tmp_path):
    assert checkpoint.find_latest(tmp_path / "absent", on_damaged=never) is None
    assert checkpoint.find_latest(tmp_path, on_damaged=never) is None
    assert checkpoint.steps(tmp_path / "absent") == []
    assert checkpoint.prune(tmp_path / "absent", 1) == []


@pytest.mark.parametrize(
    ("keep_last", "keep", "left"),
    [(2, set(), [40, 50]), (1, {10, 30}, [10, 30, 50]), (0, {20}, [20]), (9, set(), [10, 20, 30, 40, 50]), (0, (), [])],
)
def test_prune_leaves_the_newest_and_the_named(tmp_path, keep_last, keep, left):
    for step in (10, 20, 30, 40, 50):
        checkpoint.save(tmp_path, step, {}, meta={})
    removed = checkpoint.prune(tmp_path, keep_last, keep)
    assert checkpoint.steps(tmp_path) == left
    assert sorted(removed + left) == [10, 20, 30, 40, 50]
    assert len(names(tmp_path)) == len(left)


def test_prune_refuses_a_negative_number(tmp_path):
    with pytest.raises(ValueError, match="got -1"):
        checkpoint.prune(tmp_path, -1, set())


def test_a_removal_that_is_cut_short_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {}, meta={})

    def killed(path, **kwargs):
        (path / "manifest.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.prune(tmp_path, 1)
    assert checkpoint.steps(tmp_path) == [2]
    assert len(files.sweep(tmp_path)) == 1
    assert names(tmp_path) == ["step-00000002"]


def test_going_on_from_an_older_one_drops_the_abandoned_course(tmp_path):
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, step, {}, meta={})
    assert checkpoint.drop_after(tmp_path, 15) == [20, 30]
    assert checkpoint.steps(tmp_path) == [10]


@pytest.mark.parametrize("big", ["tensor", "text"])
def test_a_full_disk_is_an_os_error_with_the_path_and_leaves_nothing(tmp_path, big):
    checkpoint.save(tmp_path, 1, {}, meta={})
    state = {"tensor": torch.ones(100_000), "text": "x" * 100_000}[big]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="step-00000002") as caught:
            checkpoint.save(tmp_path, 2, {"state": state}, meta={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert names(tmp_path) == ["step-00000001"]


def test_a_really_full_file_system(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if not sys.platform.startswith("linux") or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        checkpoint.save(tmp_path, 1, {"w": torch.ones(1000)}, meta={})
        with pytest.raises(OSError, match="step-00000002") as caught:
            checkpoint.save(tmp_path, 2, {"w": torch.ones(1_000_000)}, meta={})
        assert caught.value.errno == errno.ENOSPC
        assert names(tmp_path) == ["step-00000001"]
        checkpoint.load(tmp_path / "step-00000001")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


KILLER = """
    import os, random, signal, sys, time
    from pathlib import Path
    import torch
    from kdengine import _files as files
    from kdengine.engine import checkpoint

    torch.set_num_threads(1)
    directory, rounds = Path(sys.argv[1]), int(sys.argv[2])
    tree = {"w": torch.arange(50_000.0), "state": {i: {"step": torch.tensor(1.0)} for i in range(20)}}

    def save_for_ever():
        step = max(checkpoint.steps(directory), default=0)
        while True:
            step += 1
            checkpoint.save(directory, step, tree | {"step": step}, meta={"step": step})
            checkpoint.prune(directory, 2, {1})

    def damaged(path, error):
        sys.exit(f"damaged after a kill: {error}")

    cut_short = 0
    for seed in range(rounds):
        child = os.fork()
        if child == 0:
            save_for_ever()
        time.sleep(random.Random(seed).uniform(0.05, 0.25))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the saving process ended by itself"
        for step in checkpoint.steps(directory):
            state, meta = checkpoint.load(directory / f"step-{step:08d}")
            assert state["step"] == meta["step"] == step
            assert torch.equal(state["w"], tree["w"])
        checkpoint.find_latest(directory, on_damaged=damaged)
        cut_short += len(files.sweep(directory))
        assert not [path for path in directory.iterdir() if path.name.startswith(".")]
    print(cut_short, max(checkpoint.steps(directory)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_killed_while_saving_never_leaves_a_checkpoint_that_does_not_load(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLER), str(tmp_path), "8"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    cut_short, newest = map(int, done.stdout.split())
    assert cut_short >= 2  # most kills fell into a save or a removal
    assert newest >= 3
