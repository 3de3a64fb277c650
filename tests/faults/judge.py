"""What has to hold after a kill and after the training has been resumed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from kdengine import _files as files
from kdengine.api import CheckpointError
from kdengine.engine import checkpoint
from tests.faults.launcher import Ending
from tests.faults.reference import RUN, Reference, contents
from tests.faults.shim import Call, Fault, Mode

PUBLISHED = re.compile(rf"{RUN}/checkpoints/step-(\d+)")
ENDS_WITH = ("student.safetensors", "metrics.jsonl", "steps.jsonl", "summary.json")


class Lost(AssertionError):
    """A point was not survived."""


def check_killed(out: Path, reference: Reference, calls: Sequence[Call]) -> None:
    """Nothing partial stands under its name, and the newest checkpoint that was complete is found."""
    check_checkpoints(out, reference)
    check_newest(out, published(calls))
    final = contents(reference.out)
    for name in ("student.safetensors", "summary.json"):
        if (out / name).exists():
            require((out / name).read_bytes() == final[name], f"{name} is there and is not whole")
    for name in ("metrics.jsonl", "steps.jsonl"):
        if (out / name).exists():
            beginning = final[name].startswith((out / name).read_bytes())
            require(beginning, f"{name} is not a beginning of the undisturbed one")


def check_checkpoints(out: Path, reference: Reference) -> None:
    """Every checkpoint loads, and is one that the undisturbed training wrote at that step."""
    for path in standing(out / "checkpoints"):
        try:
            tree, _ = checkpoint.load(path)
        except CheckpointError as error:
            raise Lost(f"a kill left a damaged checkpoint: {error}") from error
        require(contents(path) in reference.states, f"{path.name} is no checkpoint of the undisturbed training")
        require(path.name.endswith(f"step-{tree['position']['step']:08d}"), f"{path.name} is of another step")


def standing(checkpoints: Path) -> list[Path]:
    """The checkpoints, and those that were to be replaced and have not been."""
    aside = checkpoints.glob(f"{files.REPLACED_PREFIX}*")
    unreplaced = [path for path in aside if not path.with_name(path.name.removeprefix(files.REPLACED_PREFIX)).exists()]
    return [*checkpoints.glob("step-*"), *unreplaced]


def check_newest(out: Path, steps: Sequence[int]) -> None:
    """The newest checkpoint is no older than the newest of those steps."""

    def damaged(path: Path, error: CheckpointError) -> None:
        raise Lost(f"the newest checkpoint is damaged: {error}")

    newest = checkpoint.find_latest(out / "checkpoints", on_damaged=damaged)
    found = -1 if newest is None else checkpoint.load(newest)[0]["position"]["step"]
    require(found >= max(steps, default=-1), f"step {max(steps, default=-1)} was complete, found is {newest}")


def check_resumed(endings: Sequence[Ending], out: Path, reference: Reference) -> None:
    """The training has ended with the undisturbed one's bytes, and nothing temporary is left."""
    for rank, ending in enumerate(endings):
        require(ending.finished, f"process {rank} of the resumed training ended with {ending.status}, {ending.error}")
    final, found = contents(reference.out), contents(out)
    for name in ENDS_WITH:
        require(found.get(name) == final[name], f"{name} is not the undisturbed one's")
    newest = max(Path(name).parts[1] for name in final if name.startswith("checkpoints/"))
    for name in (name for name in final if name.startswith(f"checkpoints/{newest}/")):
        require(found.get(name) == final[name], f"{name} is not the undisturbed one's")
    kept = [checkpoint.steps(each / "checkpoints") for each in (reference.out, out)]
    require(kept[0] == kept[1], f"the undisturbed training keeps the checkpoints {kept[0]}, the resumed one {kept[1]}")
    check_checkpoints(out, reference)
    check_newest(out, [max(checkpoint.steps(reference.out / "checkpoints"))])
    left = [str(path.relative_to(out)) for path in out.rglob(".*")]
    require(not left, f"temporaries are left: {left}")


def require(holds: bool, message: str) -> None:
    """Raise Lost where something does not hold."""
    if not holds:
        raise Lost(message)


def executed(ending: Ending, fault: Fault) -> list[Call]:
    """The calls that took place as a whole."""
    return ending.calls[:-1] if fault.mode in (Mode.BEFORE, Mode.TORN) else ending.calls


def published(calls: Iterable[Call]) -> list[int]:
    """The steps whose checkpoints were given their name."""
    return [int(match[1]) for call in calls if (match := PUBLISHED.fullmatch(call.second))]
