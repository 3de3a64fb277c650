"""What is fuzzed: each target makes a file from random bytes, loads it, and says what may come out.

The bytes are read as choices: what to change in a well-formed file, and into what. So a fuzzer's bytes get past hashes
and parsers to the code that looks at values. Hypothesis and atheris share these targets.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import kdengine
from kdengine.api.errors import KDEngineError
from kdengine.cli.report.images import read_samples
from kdengine.cli.report.reading import read_run
from kdengine.engine import checkpoint, codec, tensors
from kdengine.recipe.load import Source, read
from tests.engine.common import engine, items, mlp
from tests.security.hostile import safetensors, seal, write_manifest

Target = Callable[[bytes], None]


class Choices:
    """Random bytes, read as choices; zeros when they have come to an end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, below: int) -> int:
        """A number from 0 to before ``below``."""
        size = max((below - 1).bit_length() + 7, 8) // 8
        taken = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(taken.ljust(size, b"\0"), "little") % below

    def pick(self, items: Any) -> Any:
        """One of a sequence."""
        return items[self.number(len(items))]

    def rest(self, most: int) -> bytes:
        """Some bytes as they are."""
        size = self.number(most)
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken


TAGS = sorted(codec._Decoder._DECODERS)
NUMBERS = (0, 1, -1, 2, 3, 4, 7, 8, 64, 255, 4096, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**100)
OTHERS = (
    None, True, False, 0.5, -0.0, 1e308, float("inf"), float("nan"), "", "x", "nan", "-inf", "float32", "qint8", "\0",
    "complex128", "uint8", "cuda:7", "meta", "0x", "0xff", "AAAA", "!", "\ud800", "$tensor", "w", "t", "../x",
)  # fmt: skip


def value(choices: Choices, depth: int = 3) -> Any:
    """Something that JSON can hold, of the kinds that readers compare with and count on."""
    kind = choices.number(8 if depth else 4)
    if kind == 0:
        return choices.pick(NUMBERS)
    if kind == 1:
        return choices.pick(OTHERS)
    if kind == 2:
        return choices.number(2**16) - 2**15
    if kind == 3:
        return choices.rest(16).decode("latin-1")
    if kind == 7:
        made = value(choices, 0)
        for _ in range(choices.pick((1, 10, 62, 63, 64, 65))):
            made = [made]
        return made
    inner = [value(choices, depth - 1) for _ in range(choices.number(4))]
    if kind == 4:
        return inner
    if kind == 5:
        return {choices.pick(TAGS): inner[0] if len(inner) == 1 else inner}
    return {str(key): item for key, item in enumerate(inner)}


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a tree."""
    if isinstance(tree, dict):
        here = [(tree, key) for key in tree]
    elif isinstance(tree, list):
        here = [(tree, at) for at in range(len(tree))]
    else:
        return []
    return here + [place for container, key in here for place in places(container[key])]


def changed(tree: Any, choices: Choices) -> Any:
    """A tree with up to four changes: values replaced, dropped, doubled, renamed or exchanged."""
    holder = {"": json.loads(json.dumps(tree))}
    for _ in range(1 + choices.number(4)):
        container, key = choices.pick(places(holder)[:5000])
        other, name = choices.pick(places(holder)[:5000])
        kind = choices.number(8)
        if kind >= 5 and type(container[key]) is int:
            container[key] = choices.pick(NUMBERS)
        elif kind <= 1:
            container[key] = value(choices)
        elif kind == 2 and container is not holder:
            container.pop(key)
        elif kind == 3:
            container[key] = json.loads(json.dumps(other[name]))
        elif kind == 4 and isinstance(container, dict) and container is not holder:
            container[choices.pick((*TAGS, "", "x", "w", "step", "__metadata__"))] = container.pop(key)
        else:
            container[key] = [container[key], value(choices)]
    return holder[""]


def text(tree: Any, choices: Choices) -> str:
    """JSON text of a tree; now and then torn, with a key given twice, or nested beyond all parsing."""
    written = json.dumps(tree)
    kind = choices.number(64)
    if kind == 0:
        return written[: choices.number(len(written) + 1)]
    if kind == 1:
        return written.replace("{", '{"step": 1, ', 1 + choices.number(3))
    if kind == 2:
        return written.replace("1", "9" * 5000, 1)
    if kind == 3:
        return written.replace("[", "[" * choices.pick((10, 900, 100_000)), 1)
    return written


@cache
def state_tree() -> tuple[Any, dict[str, torch.Tensor]]:
    """A state with every tag in it."""
    weight = torch.arange(12.0).reshape(3, 4)
    return codec.encode(
        {
            "w": weight, "tied": [weight, weight.t()], "n": (1, 2.5, None, True), "bytes": b"abc", "text": "\ud800",
            "big": 2**2000, "nan": float("nan"), "numbers": {0: {"step": torch.tensor(1.0)}}, "set": {1, 2},
            "frozen": frozenset("ab"), "size": torch.Size([2, 3]), "dtype": torch.bfloat16,
            "where": torch.device("cpu"), "array": np.arange(4), "scalar": np.float64(0.5),
            "counted": Counter("aab"),
            "ordered": OrderedDict(a=1), "default": defaultdict(list, {1: [2]}),
        }
    )  # fmt: skip


def state(data: bytes) -> None:
    """``state.json``, decoded."""
    choices = Choices(data)
    tree, held = state_tree()
    try:
        codec.decode(json.loads(json.dumps(changed(tree, choices))), held)
    except codec.MalformedState as error:
        _assert_short(error)


def tensor_file(choices: Choices) -> bytes:
    """A safetensors file: header and layout changed, or bytes of any kind in the header's place."""
    view = {"of": "w", "offset": 4, "dtype": "float32", "shape": [2, 2], "strides": [1, 2]}
    layout = {"version": 1, "strides": {"w": [1, 3]}, "views": {"v": view, "e": view | {"strides": [0, 0]}}}
    header: Any = {
        "w": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]},
        "b": {"dtype": "I64", "shape": [], "data_offsets": [48, 56]},
        "e8": {"dtype": "F8_E4M3", "shape": [0, 2], "data_offsets": [56, 56]},
    }
    kind = choices.number(8)
    if kind == 0:
        return safetensors(choices.rest(64), bytes(56))
    if kind <= 4:
        layout = changed(layout, choices)
    if kind >= 4:
        header = changed(header, choices)
    if isinstance(header, dict):
        header = {"__metadata__": {"kdengine.layout": text(layout, choices)}, **header}
    written = safetensors(
        text(header, choices).encode("utf-8", "surrogatepass"), bytes(56 + choices.pick((0, 0, 0, 1, 8)))
    )
    return written[: choices.number(len(written))] if choices.number(16) == 0 else written


def load_tensors(data: bytes) -> None:
    """``tensors.safetensors``, loaded; what comes out is no larger than what went in."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t"
        path.write_bytes(tensor_file(Choices(data)))
        try:
            found = tensors.load_tensors(path)
        except ValueError as error:
            _assert_told(error, path.name)
            return
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found.values()}
        assert sum(storages.values()) <= path.stat().st_size
        for tensor in found.values():
            tensor.sum() if tensor.dtype in (torch.float32, torch.int64) else tensor.clone()  # read all of it


@cache
def saved() -> dict[str, bytes]:
    """The files of a small checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        tree = {"w": torch.zeros(3), "n": (1, 2)}
        path = checkpoint.save(Path(folder), 1, tree, meta={"fit": {"seed": 0}, "ids": (1,)})
        return {file.name: file.read_bytes() for file in path.iterdir()}


def written(folder: str | Path, files: dict[str, bytes], step: int) -> Path:
    """A checkpoint's directory with these files."""
    path = Path(folder) / f"step-{step:08d}"
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def load_checkpoint(data: bytes) -> None:
    """A checkpoint whose hashes are right: any of its three files changed."""
    choices = Choices(data)
    with tempfile.TemporaryDirectory() as folder:
        path = written(folder, saved(), 1)
        which = choices.number(4)
        if which == 0:
            (path / "tensors.safetensors").write_bytes(tensor_file(choices))
            seal(path)
        elif which == 1:
            tree = json.loads((path / "state.json").read_text())
            (path / "state.json").write_text(text(changed(tree, choices), choices))
            seal(path)
        else:
            body = json.loads((path / "manifest.json").read_text())
            body.pop("sha256")
            body = changed(body, choices)
            if isinstance(body, dict):
                write_manifest(path, body)
            else:
                (path / "manifest.json").write_text(text(body, choices))
        try:
            checkpoint.load(path)
        except kdengine.CheckpointError as error:
            _assert_told(error, "step-00000001")
        checkpoint.find_latest(Path(folder), on_damaged=lambda _, error: _assert_told(error, "step-00000001"))


def fit(out: Path, *, resume: bool) -> None:
    """A small fit of one epoch, or of a second one."""

    def optimizer(named: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam([parameter for _, parameter in named], lr=1e-2)

    def rates(optimizer: torch.optim.Optimizer, steps: int) -> Any:
        return torch.optim.lr_scheduler.StepLR(optimizer, 3)

    engine(
        mlp(), out=out, seed=1, metrics={"top1": "top1"}, ema=0.9, optimizer=optimizer, lr_scheduler=rates
    ).fit(
        kdengine.loader(items(), 16, seed=2),
        kdengine.loader(items(16), 16, shuffle=False),
        epochs=2 if resume else 1,
        resume=resume,
    )  # fmt: skip


@cache
def trained() -> dict[str, bytes]:
    """The files of a fit's checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        fit(Path(folder) / "run", resume=False)
        (path,) = (Path(folder) / "run" / "checkpoints").iterdir()
        return {file.name: file.read_bytes() for file in path.iterdir()}


def resume(data: bytes) -> None:
    """A fit that goes on from a checkpoint whose state was changed."""
    choices = Choices(data)
    files = trained()
    tree = json.loads(files["state.json"])
    generators = tree.pop("random")  # thousands of numbers, which every change would otherwise go to
    tree = changed(tree, choices)
    if isinstance(tree, dict):
        states = [{**state, "python": 0} for state in generators]
        tree["random"] = changed(states, choices) if choices.number(8) == 0 else generators
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder) / "run" / "checkpoints", files | {"state.json": json.dumps(tree).encode()}, 2)
        seal(path)
        with contextlib.suppress(KDEngineError):
            fit(Path(folder) / "run", resume=True)


SUMMARY = {
    "status": "finished", "name": "digits", "description": "", "epochs": 2, "steps": 8, "seed": 0, "monitor": "top1",
    "teacher": {"name": "mlp", "metrics": {"top1": 0.9}, "parameters": 10, "seconds": 1.0, "cached": True},
    "baseline": {"name": "mlp", "metrics": {"top1": {"mean": 0.5, "sd": 0.1, "n": 2}}, "parameters": 5, "seconds": 1.0},
    "student": {"name": "mlp", "metrics": {"top1": {"mean": 0.6, "sd": 0.1, "n": 2}}, "parameters": 5, "seconds": 1.0},
    "best": {"metric": "top1", "value": 0.6, "step": 8, "epoch": 2}, "seeds": [0, 1], "pooled_sd": {"top1": 0.1},
    "data": {"name": "digits", "train_items": 100, "labelled_items": 10, "labelled": 0.1, "test_items": 50},
}  # fmt: skip
RECORDS = [
    {"kind": "train", "step": 4, "epoch": 1, "loss": 0.5, "lr": 0.1, "kd": 0.4, "weights.kd": 0.9},
    {"kind": "evaluate", "step": 4, "epoch": 1, "top1": 0.5, "gradient_share.kd": 0.7},
    {"kind": "evaluate", "step": 8, "epoch": 2, "top1": 0.6, "gradient_share.kd": 0.6},
]
SAMPLES = {
    "classes": ["a", "b"],
    "items": [{"index": 3, "label": 0, "student": 0, "teacher": 1, "student_confidence": 0.6}],
}
RECIPE = (
    'version = 1\nname = "x"\n[losses.kd]\nweight = 0.9\n[student]\nuse = "mlp"\nhidden = [8]\n[train]\nepochs = 1\n'
)


def read_directory(data: bytes) -> None:
    """A run directory, read as ``load_run`` and ``report`` do."""
    choices = Choices(data)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        which = choices.number(4)
        summary = changed(SUMMARY, choices) if which == 0 else SUMMARY
        (run / "summary.json").write_text(text(summary, choices) if which == 0 else json.dumps(summary))
        records = [text(changed(record, choices), choices) if which == 1 else json.dumps(record) for record in RECORDS]
        (run / "metrics.jsonl").write_text("\n".join(records))
        samples = changed(SAMPLES, choices) if which == 2 else SAMPLES
        (run / "disagreements.json").write_text(text(samples, choices) if which == 2 else json.dumps(samples))
        image = {"dtype": "U8", "shape": [1, 1, 2, 2], "data_offsets": [0, 4]}
        header = changed({"images": image}, choices) if which == 3 else {"images": image}
        (run / "disagreements.safetensors").write_bytes(safetensors(header, bytes(4)))
        try:
            kdengine.load_run(run)
            read_run(run)
        except kdengine.CheckpointError as error:
            _assert_told(error, run.name)
        read_samples(run)


def recipe(data: bytes) -> None:
    """A recipe's own keys."""
    choices = Choices(data)
    lines = RECIPE.splitlines()
    for _ in range(1 + choices.number(3)):
        at = choices.number(len(lines))
        key, _, _ = lines[at].partition("=")
        lines[at] = choices.pick(
            (
                f"{key}= {json.dumps(value(choices))}",
                f"{choices.rest(8).decode('latin-1')} = {json.dumps(value(choices))}",
                "a." * choices.number(200) + "a = 1",
                "[" * choices.number(3000),
                "x = " + "9" * choices.number(6000),
                f"x = {choices.rest(20).decode('latin-1')}",
            )
        )
    try:
        read(Source("recipe.toml", "\n".join(lines), Path()))
    except KDEngineError as error:
        _assert_short(error)


def _assert_told(error: Exception, name: str) -> None:
    """A refusal names the file, is short, and is not the failure of an allocation that was tried."""
    told = str(error)
    assert name in told, told
    assert "allocate" not in told, told
    _assert_short(error)


def _assert_short(error: Exception) -> None:
    assert len(str(error)) < 20_000, str(error)[:200]


TARGETS: dict[str, Target] = {
    "state": state,
    "tensors": load_tensors,
    "checkpoint": load_checkpoint,
    "run": read_directory,
    "recipe": recipe,
    "resume": resume,
}
