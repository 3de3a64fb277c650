"""What a checkpoint of a fit holds, and how a fit goes back to one."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from kdengine._untrusted import shown
from kdengine._version import __version__
from kdengine.api import CheckpointContext, CheckpointError, ConfigurationError
from kdengine.api.copies import refuse_lazy
from kdengine.api.errors import KDEngineError
from kdengine.engine import checkpoint, codec, random, sample, wrappers
from kdengine.engine.fit import Fit, Position
from kdengine.engine.layout import CHECKPOINTS
from kdengine.engine.likeness import check_optimizer, check_options, check_scheduler, kind_of
from kdengine.engine.monitor import finite_best
from kdengine.engine.signature import changes, differences
from kdengine.ops import backend_info


def collect(fit: Fit) -> dict[str, Any]:
    """Everything that the next step depends on, as a tree for the codec."""
    return {
        **_trained(fit),
        "lr_scheduler": None if fit.lr_scheduler is None else fit.lr_scheduler.state_dict(),
        "schedules": {name: schedule.state_dict() for name, schedule in fit.objective.scheduled.items()},
        "scalars": fit.objective.scalars(),
        "plugins": {name: plugin.state_dict() for name, plugin in fit.stateful.items()},
        "loggers": fit.loggers.state_dict(),
        "position": {"epoch": fit.position.epoch, "batch": fit.position.batch, "step": fit.position.step},
        "steps": fit.steps,
        "epochs": fit.epochs,
        "random": fit.runtime.processes.share(random.capture()),
        "epoch_random": fit.runtime.processes.share(fit.feed.epoch_state),
        "sample": fit.runtime.processes.share(sample.collect(fit)),
        "interval": fit.interval.state_dict(),
        "epoch_means": fit.epoch_means.state_dict(),
        "latest": fit.latest,
        "best": fit.best,
        "history": fit.history,
        "skipped": fit.skipped,
        "seconds": fit.seconds,
        "stopped": fit.stopping,
    }


def _trained(fit: Fit) -> dict[str, Any]:
    """What an update changes."""
    models, average = fit.models, fit.models.average
    fit.runtime.replicate_buffers(*models.moving, fit.objective.modules, *([] if average is None else [average]))
    return {
        "student": wrappers.plain_state(models.student.state_dict(), models.student),
        "optimizer": fit.optimizer.state_dict(),
        "losses": dict(fit.objective.modules.state_dict()),
        "buffers": fit.hidden.state_dict(),
        "precision": fit.precision.state_dict(),
        "average": None if average is None else wrappers.plain_state(average.state_dict(), average.module, "module"),
        "teacher": None if models.evolving_source is None else models.evolving_source.state_dict(),
    }


def check_storable(fit: Fit) -> None:
    """Refuse, before training, state that no checkpoint could hold; the message names its owner and key."""
    refuse_lazy(fit.models.student)
    try:
        codec.encode({"state": collect(fit), "meta": describe(fit)})
    except codec.UnsupportedState as error:
        raise ConfigurationError(f"the state of this fit cannot be checkpointed: {error}") from error


def save(fit: Fit) -> Path | None:
    """Write a checkpoint into the run directory; nothing without one."""
    fit.saving = False
    if (out := fit.out) is None:
        return None
    step, processes = fit.position.step, fit.runtime.processes
    path = checkpoint.save(directory(out), step, collect(fit), meta=describe(fit), replace=True, processes=processes)
    processes.on_main(lambda: _prune(fit, out))
    if fit.calls.checkpoint_saved is not None:
        fit.calls.checkpoint_saved(CheckpointContext(fit.context, path, step))
    return path


def directory(out: Path) -> Path:
    """Where a run directory keeps its checkpoints."""
    return out / CHECKPOINTS


def describe(fit: Fit) -> dict[str, Any]:
    """The manifest's meta: who wrote the checkpoint, for which fit, on what."""
    return {"kdengine": __version__, "fingerprint": fingerprint(fit), "fit": fit.signature}


def fingerprint(fit: Fit) -> dict[str, Any]:
    """What bit equality depends on beside the checkpoint itself."""
    backend, device = backend_info(), fit.runtime.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "torch": str(torch.__version__),
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "processes": fit.runtime.processes.world,
        "strategy": fit.strategy.name,
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "float32 products": torch.get_float32_matmul_precision(),
        "kd_loss": backend.isa or backend.name,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def resume(fit: Fit) -> bool:
    """Go back to the newest undamaged checkpoint; False when there is none.

    Raises:
        CheckpointError: the checkpoint is of another fit; every difference is listed.
    """
    assert fit.out is not None
    path = _newest(fit, "damaged checkpoint, using the one before: ")
    if path is None:
        return False
    tree, meta = checkpoint.load(path, empty=fit.strategy.empty)
    with _fitting(path):
        _compare(meta["fit"], tree["steps"], fit, path)
        changed = _what_moves_bits(fit, meta["fingerprint"])
    if changed:
        fit.loggers.message(f"resuming without the promise of equal bits: {'; '.join(changed)}")
    if not fit.feed.exact:
        fit.loggers.message("resuming a loader of your own: its consumed batches are read again and dropped")
    with _fitting(path):
        restore(fit, tree, path)
    fit.runtime.processes.on_main(partial(_tidy, fit, fit.out))
    return True


def _tidy(fit: Fit, out: Path) -> None:
    """Keep the checkpoints that a training which was never cut off would have here."""
    checkpoint.drop_after(directory(out), fit.position.step)
    _prune(fit, out)


def _prune(fit: Fit, out: Path) -> None:
    """Keep the newest checkpoints and the best."""
    checkpoint.prune(directory(out), fit.settings.keep, keep=() if fit.best is None else {fit.best["step"]})


def _what_moves_bits(fit: Fit, stored: dict[str, Any]) -> list[str]:
    """Why a resumed fit may part from the undisturbed one by rounding: facts of a checkpoint that have changed."""
    known = {key: value for key, value in fingerprint(fit).items() if key in stored}  # an earlier version noted fewer
    timed = fit.runtime.device.type == "cuda" and torch.backends.cudnn.benchmark
    return differences(stored, known) + ["torch.backends.cudnn.benchmark chooses kernels by their time"] * timed


def _newest(fit: Fit, warning: str = "") -> Path | None:
    """The newest usable checkpoint, as the main process sees it."""
    assert fit.out is not None
    found = directory(fit.out)
    return fit.runtime.processes.on_main(
        lambda: checkpoint.find_latest(found, on_damaged=lambda _, error: fit.loggers.message(f"{warning}{error}"))
    )


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """Tell the checkpoint whose content cannot be used: whole as it is, it may have been written by anyone."""
    try:
        yield
    except KDEngineError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path} cannot be gone back to: {type(error).__name__}: {error}") from error


def _compare(stored: dict[str, Any], steps: int, fit: Fit, path: Path) -> None:
    changed = changes(stored, fit.signature, longer=steps != fit.steps)
    if changed:
        raise CheckpointError(
            f"{path} belongs to another fit: {'; '.join(changed)}. On resume epochs, workers, device, loggers and "
            "checkpoint policy may change; for anything else start a new run directory (out=), with the weights that "
            "kdengine.load_run(...).student() gives where it should begin with those of a finished run"
        )


def restore(fit: Fit, tree: dict[str, Any], path: Path) -> None:
    """Set a fit to what :func:`collect` gave, as read from ``path``; the random state comes last."""
    _check_kinds(tree)
    position = _position(fit, tree)
    fresh = [{**group, "params": None} for group in fit.optimizer.param_groups]
    _restore_trained(fit, tree, path)
    if fit.lr_scheduler is not None and tree["lr_scheduler"] is not None:
        if tree["steps"] == fit.steps or fit.lr_waits:
            check_scheduler(fit.lr_scheduler, tree["lr_scheduler"])
            fit.lr_scheduler.load_state_dict(tree["lr_scheduler"])
        else:
            _replay_rate(fit, fresh, min(position.step, fit.steps))
    for name, schedule in fit.objective.scheduled.items():
        schedule.load_state_dict(tree["schedules"].get(name, {}))
    fit.objective.set_scalars(tree.get("scalars", {}))  # an evaluation may come before the next step sets them
    for name, plugin in fit.stateful.items():
        if name in tree["plugins"]:
            plugin.load_state_dict(tree["plugins"][name])
    fit.loggers.load_state_dict(tree["loggers"])
    fit.position = position
    fit.feed.epoch_state = _of_this_process(fit, tree["epoch_random"])
    fit.sample = sample.restore(_of_this_process(fit, tree.get("sample", [None])))
    if fit.feed.epoch_state is not None:  # which is gone back to much later: try it now
        with random.preserved():
            random.restore(fit.feed.epoch_state)
    fit.interval.load_state_dict(tree["interval"])
    fit.epoch_means.load_state_dict(tree["epoch_means"])
    fit.latest, fit.best, fit.history = tree["latest"], finite_best(tree["best"]), tree["history"]
    fit.skipped, fit.seconds = tree["skipped"], tree["seconds"]
    fit.stopping = tree["stopped"] and fit.epochs <= tree["epochs"]
    fit.context.step, fit.context.epoch = fit.position.step, fit.position.epoch
    _restore_random(fit, tree["random"])


def _of_this_process(fit: Fit, states: list[Any]) -> Any:
    """What a checkpoint holds for each process; a process that it did not have goes on from the main one's."""
    rank = fit.runtime.processes.rank
    return states[rank if rank < len(states) else 0]


def _restore_random(fit: Fit, states: list[Any]) -> None:
    rank = fit.runtime.processes.rank
    if rank < len(states):
        random.restore(states[rank])
    else:  # a process that the checkpoint does not know: a course of its own, as at the start of a fit
        random.seed_all(fit.settings.seed, fit.settings.name, rank, fit.position.step)


_KINDS: Final[dict[str, Any]] = {
    "steps": int,
    "epochs": int,
    "latest": dict,
    "best": dict | None,
    "history": list,
    "skipped": int,
    "seconds": int | float,
    "stopped": bool,
    "plugins": dict,
    "schedules": dict,
    "loggers": dict,
}


def _check_kinds(tree: dict[str, Any]) -> None:
    for key, kind in _KINDS.items():
        if not isinstance(tree[key], kind):
            raise TypeError(f"expected {key} to be {kind}, got {shown(tree[key])}")
    best = tree["best"]
    if best is not None and not (kind_of(best["value"]) == "a number" and type(best["step"]) is int):
        raise TypeError(f"expected the value and the step of the best evaluation, got {shown(best)}")


def _position(fit: Fit, tree: dict[str, Any]) -> Position:
    """The stored position, if training can have come there: batches are read up to it."""
    epoch, batch, step = (tree["position"][key] for key in ("epoch", "batch", "step"))
    per_epoch = fit.feed.steps_per_epoch
    if not all(type(number) is int and number >= 0 for number in (epoch, batch, step)):
        raise TypeError(f"expected the numbers of epoch, batch and step, got {shown(tree['position'])}")
    if batch > per_epoch * fit.feed.accumulate:
        raise ValueError(f"expected at most {per_epoch * fit.feed.accumulate} batches of an epoch, got {shown(batch)}")
    return Position(epoch, batch, step)


def _restore_trained(fit: Fit, tree: dict[str, Any], path: Path) -> None:
    student, average = fit.models.student, fit.models.average
    tree["student"] = wrappers.fitted(tree["student"], student)
    if average is not None and tree["average"] is not None:
        tree["average"] = wrappers.fitted(tree["average"], average.module, "module")
    if fit.strategy.shards:
        _spread(fit, tree)
    fresh = [{**group, "params": None} for group in fit.optimizer.param_groups]
    try:
        fit.hidden.load_state_dict(tree.get("buffers", {}))  # first: what it makes is in the state dicts
        student.load_state_dict(tree["student"])
        fit.optimizer.load_state_dict(tree["optimizer"])
        for group, before in zip(fit.optimizer.param_groups, fresh, strict=True):
            check_options(group, before)
        check_optimizer(fit.optimizer)
        fit.objective.modules.load_state_dict(tree["losses"])
        fit.precision.load_state_dict(tree["precision"])
        if average is not None and tree["average"] is not None:
            average.load_state_dict(tree["average"])
        if fit.models.evolving_source is not None:
            fit.models.evolving_source.load_state_dict(tree["teacher"])
    except (RuntimeError, ValueError, KeyError) as error:  # torch lists every tensor that differs
        raise CheckpointError(
            f"{path} is of another student, optimizer, loss or evolving teacher than those given: {error}"
        ) from error


def _spread(fit: Fit, tree: dict[str, Any]) -> None:
    """Shard what a checkpoint holds whole, as one process or DDP wrote it, like the parameters it belongs to."""
    models = fit.models
    present = {
        "student": models.student.state_dict(),
        "average": None if models.average is None else models.average.state_dict(),
        "teacher": None if models.evolving_source is None else models.evolving_source.state_dict(),
    }
    for part, values in present.items():
        tree[part] = _spread_like(fit, values, tree[part])
    for parameter, state in zip(fit.parameters, tree["optimizer"]["state"].values(), strict=False):
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[key] = fit.strategy.like(parameter, value)


def _spread_like(fit: Fit, present: Any, stored: Any) -> Any:
    """Each stored tensor of a tree, sharded where the present one in its place is."""
    if isinstance(stored, torch.Tensor) and isinstance(present, torch.Tensor):
        return fit.strategy.like(present, stored)
    if isinstance(stored, dict) and isinstance(present, dict):
        return {key: _spread_like(fit, present.get(key), value) for key, value in stored.items()}
    return stored


def _replay_rate(fit: Fit, fresh: list[dict[str, Any]], steps: int) -> None:
    """Step a new LR scheduler to where training stands, when the fit has become longer or shorter.

    Its stored state, that of schedulers inside it and the rates themselves belong to the old horizon: torch's cosine
    multiplies the rate that it finds, and a rate that has reached 0 would stay there.
    """
    for group, options in zip(fit.optimizer.param_groups, fresh, strict=True):
        group.update({key: value for key, value in options.items() if key != "params"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: the scheduler steps before the optimizer
        for _ in range(steps):
            fit.lr_scheduler.step()


def rollback(fit: Fit) -> None:
    """Take weights, optimizer and averages from the newest checkpoint; position and learning rate go on."""
    assert fit.out is not None
    path = _newest(fit)
    if path is None:
        raise CheckpointError(f"nonfinite='rollback' found no usable checkpoint under {directory(fit.out)}")
    rates = [group["lr"] for group in fit.optimizer.param_groups]
    with _fitting(path):
        _restore_trained(fit, checkpoint.load(path, empty=fit.strategy.empty)[0], path)
    for group, rate in zip(fit.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    fit.loggers.message(f"rolled back to {path.name}")
