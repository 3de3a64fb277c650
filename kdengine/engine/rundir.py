"""The run directory: what a finished fit leaves behind, and reading it back."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from kdengine import _files as files
from kdengine._foreign import recognise
from kdengine._locks import Busy, locked
from kdengine._paths import expanded
from kdengine._untrusted import MIB, check_own, opened, read_json
from kdengine._version import __version__
from kdengine.api import CheckpointError, ConfigurationError
from kdengine.api.errors import warn
from kdengine.engine import wrappers
from kdengine.engine.best import read_best
from kdengine.engine.layout import BASELINE, CHECKPOINTS, LOCK, RECIPE, RECORDS, STUDENT, SUMMARY
from kdengine.engine.student_file import read_weights
from kdengine.ops import backend_info

SUMMARY_LIMIT = 16 * MIB
RECORDS_LIMIT = 1024 * MIB
RECORD_LIMIT = MIB
_SHOWN = 5


@dataclass(frozen=True)
class Run:
    """A run directory, read back.

    Attributes:
        path: the directory.
        summary: ``summary.json``.
        records: the lines of ``metrics.jsonl``, oldest first.
    """

    path: Path
    summary: dict[str, Any]
    records: list[dict[str, Any]]

    def student(self, model: nn.Module | None = None, *, best: bool = False) -> dict[str, Tensor]:
        """The student's state dict, from ``student.safetensors``.

        Args:
            model: one that is to load it, whose names it then has; None for those of the student as it was before
                ``torch.compile``, DistributedDataParallel or the like were put around it.
            best: the student of the best evaluation instead, from the checkpoint that is kept of it.

        Raises:
            CheckpointError: the file is missing or damaged, or the checkpoint of the best is gone.
        """
        state = read_student(self.path, best=best)
        return state if model is None else wrappers.fitted(state, model)


def load_run(path: str | Path) -> Run:
    """Read a run directory.

    Args:
        path: a directory that a fit or ``kdengine run`` wrote.

    Raises:
        CheckpointError: it is no run directory, or the run is not finished.
    """
    path = expanded(path)
    return Run(path, finished_summary(path), read_records(path / RECORDS))


def finished_summary(path: Path) -> dict[str, Any]:
    """A finished run's summary.

    Raises:
        CheckpointError: it is no run directory, or the run is not finished.
    """
    summary = read_summary(path)
    if summary is None:
        raise CheckpointError(f"{path} holds no {SUMMARY}: not a run directory, or its run is not finished")
    return summary


def parts(run: Path) -> list[Path]:
    """The directories that a run may have trained in: its own or one per seed, each with a student alone below it."""
    students = [run, *sorted(run.glob("seed-*"))]
    return [*students, *(path / BASELINE for path in students)]


def read_summary(path: Path) -> dict[str, Any] | None:
    """A run's summary, or None when there is none yet."""
    file = path / SUMMARY
    try:
        summary = read_json(file, SUMMARY_LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    if not isinstance(summary, dict):
        raise CheckpointError(f"{file} is damaged: expected an object, got {type(summary).__name__}")
    return summary


def read_student(path: Path, *, best: bool = False) -> dict[str, Tensor]:
    """The state dict of a run's student, the last or that of the best evaluation.

    Raises:
        CheckpointError: the file is damaged, or there is no best.
    """
    summary = finished_summary(path) if best else {}
    if best and not is_last(summary.get("best"), summary.get("steps")):
        return wrappers.without_marks(read_best(path, summary.get("best")))
    file = path / STUDENT
    try:
        return wrappers.without_marks(read_weights(file))
    except ValueError as error:
        other = recognise(file) if file.is_file() else None
        raise CheckpointError(f"{file} is {f'no student but {other}' if other else f'damaged: {error}'}") from error


def is_last(best: Mapping[str, Any] | None, steps: Any) -> bool:
    """Whether the best evaluation was that of the last step, whose student is exported."""
    return best is not None and best.get("step") == steps


def explain_no_student(path: Path) -> str:
    """Say why a directory holds no trained student, and what brings it there."""
    if not any((path / name).exists() for name in (RECIPE, SUMMARY, RECORDS)):
        found = "it does not exist" if not path.exists() else f"it holds neither {RECIPE} nor {SUMMARY}"
        return f"{path} is no run directory: {found}"
    finished = (path / SUMMARY).is_file()
    if finished and not any(path.glob(f"{CHECKPOINTS}/*")) and not any(path.glob(f"seed-*/{CHECKPOINTS}/*")):
        return (
            f"{path} is finished, but its {STUDENT} and its checkpoints are gone, so nothing is left to make the "
            "student from; train it again, into another directory"
        )
    command = (
        f"kdengine run --resume --out {path}"
        if (path / RECIPE).is_file()
        else f"Engine(..., out={str(path)!r}).fit(..., resume='auto')"
    )
    reason, what = ("its file is missing", "writes it again") if finished else ("its run is not finished", "goes on")
    return f"{path} holds no {STUDENT}: {reason}; {command} {what}"


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON lines file, oldest first; lines that are none are left out with a warning.

    Raises:
        CheckpointError: it is no regular file, or larger than `RECORDS_LIMIT`.
    """
    lines = read_lines(path)
    if lost := [str(number) for number, record in lines if record is None]:
        more = ", ..." if len(lost) > _SHOWN else ""
        warn(f"{path} is damaged: {len(lost)} of its lines are no records (line {', '.join(lost[:_SHOWN])}{more})")
    return [record for _, record in lines if record is not None]


def read_lines(path: Path) -> list[tuple[int, dict[str, Any] | None]]:
    """Every line of a JSON lines file with its number; None for one that is no record.

    Only the end of a last line that a kill has torn is left out, as nothing was lost there that had been written.

    Raises:
        CheckpointError: it is no regular file, or larger than `RECORDS_LIMIT`.
    """
    try:
        with opened(path, RECORDS_LIMIT) as file:
            return [(number, record if _is_object(record) else None) for number, record in _numbered(file)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _numbered(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(iter(lambda: _next_line(file), b""), start=1):
        record = _record(line)
        if record is None and not line.endswith(b"\n"):  # torn
            return
        yield number, record


def _next_line(file: BinaryIO) -> bytes:
    """The next line; of one that is longer than any record its end alone, which is no record."""
    line = file.readline(RECORD_LIMIT)
    while len(line) == RECORD_LIMIT and not line.endswith(b"\n"):
        line = file.readline(RECORD_LIMIT)
    return line


def _record(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return None


def _is_object(record: Any) -> bool:
    return isinstance(record, dict)


@contextmanager
def occupied(out: Path, *, resume: bool) -> Iterator[None]:
    """Have a run directory to oneself while the context lasts: made, swept, and refused where others have used it.

    Raises:
        ConfigurationError: another process works in it, or it holds a run and ``resume`` is not asked for.
        CheckpointError: something in it is no file of its own.
    """
    if out.exists() and not out.is_dir():
        raise ConfigurationError(f"the run directory {out} is a file")
    out.mkdir(parents=True, exist_ok=True)
    with in_use(out):
        claim(out, resume=resume)
        yield


@contextmanager
def in_use(out: Path) -> Iterator[None]:
    """Hold the lock of a run directory that exists.

    Raises:
        ConfigurationError: another process holds it.
        CheckpointError: something that is no lock has its name.
    """
    with ExitStack() as held:
        try:
            held.enter_context(locked(out / LOCK))
        except Busy as owner:
            raise ConfigurationError(
                f"the run directory {out} is in use by {owner}; wait until that has ended, or choose another directory"
            ) from None
        except ValueError as error:
            raise CheckpointError(f"{out / LOCK}: {error}") from error
        yield


def claim(out: Path, *, resume: bool) -> None:
    """Refuse a run directory that another fit has used; sweep it.

    Raises:
        ConfigurationError: the directory holds a run and ``resume`` is not asked for.
        CheckpointError: its records are no file of its own.
    """
    taken = [name for name in (SUMMARY, CHECKPOINTS, RECORDS) if _holds_something(out / name)]
    if taken and not resume:
        raise ConfigurationError(
            f"the run directory {out} already holds a run ({', '.join(taken)}); choose another, "
            "or go on with it by resume='auto' (--resume on the command line)"
        )
    try:
        check_own(out / RECORDS)
    except ValueError as error:
        raise CheckpointError(f"{out / RECORDS}: {error}") from error
    for folder in (out, out / CHECKPOINTS):
        files.sweep(folder)


def _holds_something(path: Path) -> bool:
    """Whether a file or folder is there, other than the empty file of a fit that was refused in its first step."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(found.st_mode) or found.st_size > 0


def provenance(plugins: Mapping[str, str]) -> dict[str, Any]:
    """What a summary says about where its numbers come from."""
    return {
        "kdengine": __version__,
        "torch": str(torch.__version__),
        "backend": backend_info().name,
        "plugins": dict(plugins),
    }


def as_stored(value: Any) -> Any:
    """A tree of a summary with null where it has a number that JSON has not: undefined, NaN, infinite.

    >>> as_stored({"metrics": {"top1": 0.5, "perplexity": float("inf")}})
    {'metrics': {'top1': 0.5, 'perplexity': None}}
    """
    if isinstance(value, Mapping):
        return {key: as_stored(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_stored(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_summary(out: Path, summary: Mapping[str, Any]) -> None:
    """Write ``summary.json``, whole or not at all."""
    files.write_json(out / SUMMARY, as_stored(summary))


def count_parameters(module: nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
