"""A whole command, `kdengine run`, whose every part writes files: what the matrix of commands kills."""

from __future__ import annotations

import os
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from kdengine.cli.main import invoke
from kdengine.engine import loop
from tests.faults.training import StoppedClock

RECIPE = """\
version = 1
name = "whole"
data = {{ use = "digits", batch_size = 512, labelled = 0.3, transforms = [{crop}] }}
teacher = {{ use = "mlp", hidden = [12], train = {{ epochs = 1 }}, source = {{ use = "cached", folder = "{logits}" }} }}
student = {{ use = "mlp", hidden = [8], dropout = 0.2 }}
losses.kd = {{ weight = 0.9, temperature = 2.0 }}
losses.ce = {{ weight = 0.1 }}
optimizer = {{ use = "adam", lr = 3e-3 }}
train = {{ epochs = 2, checkpoint_every = 2, keep = 1, log_every = 2, seed = 0 }}
evaluate = {{ metrics = ["top1", "agreement"] }}
baseline = true
loggers = []
"""
"""A teacher that is trained in the run, its logits in a cache, a student alone; the crops of each seed are its own."""
CROP = '{ use = "random_crop", size = 8, padding = 1 }'


class CommandFailedError(RuntimeError):
    """The command ended with an exit code other than 0."""


def run(out: Path, recipe: Path) -> None:
    """Begin or go on with two seeds and their report; caches lie beside the run directory."""
    loop.Clock = StoppedClock
    read_digits_once()
    os.environ.update(KDENGINE_CACHE=str(out.parent / "cache"), KDENGINE_BACKEND="python")
    recipe.write_text(RECIPE.format(crop=CROP, logits=out.parent / "logits"))
    with redirect_stdout(StringIO()):
        code = invoke(["run", str(recipe), "--seeds", "2", "--out", str(out), "--resume", "-q"])
    if code:
        raise CommandFailedError(f"exit code {code}")


def read_digits_once() -> None:
    """Scikit-learn parses its digits at every call."""
    from sklearn import datasets

    if not hasattr(datasets.load_digits, "cache_info"):
        datasets.load_digits = cache(datasets.load_digits)


@cache
def import_everything() -> None:
    """Carry the command out once, so that whoever is forked from here has what it imports."""
    with TemporaryDirectory() as folder:
        run(Path(folder).resolve() / "run", Path(folder) / "whole.toml")
