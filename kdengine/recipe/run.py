"""A whole run: the teacher, the student alone, the distilled student, their evaluation, the run directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdengine import _files as files
from kdengine import _interrupts as interrupts
from kdengine.api import Batch, CheckpointError, ConfigurationError, TeacherSource
from kdengine.api.processes import join
from kdengine.engine import checkpoint, layout, rundir
from kdengine.engine.assembly import Aligner, attached
from kdengine.engine.batching import place, to_batch
from kdengine.engine.engine import Engine
from kdengine.engine.expected import check_expected
from kdengine.engine.feed import Feed
from kdengine.engine.fit import Fit
from kdengine.engine.forward import run_pair
from kdengine.engine.loader import Loader
from kdengine.engine.loggers import LoggerLike
from kdengine.engine.metrics import as_numbers
from kdengine.engine.modes import evaluation_mode
from kdengine.engine.output_checks import check_outputs
from kdengine.engine.recall import check_need
from kdengine.engine.result import Result
from kdengine.engine.teacher import SourceModel
from kdengine.recipe.build import make_engine, make_source
from kdengine.recipe.data import Data, make_data, test_loader, training_loader
from kdengine.recipe.disagreements import Disagreements, find_disagreements, write_disagreements
from kdengine.recipe.load import differences, dump, load, source_at
from kdengine.recipe.models import load_weights, make_model, teaching_model
from kdengine.recipe.plan import Plan
from kdengine.recipe.rates import warn_of_warmup
from kdengine.recipe.schema import Recipe
from kdengine.recipe.summary import aggregate, entry, read_complete
from kdengine.recipe.teacher import Teacher, check_cache, get_teacher, teacher_fit, untrained_teacher


@dataclass(frozen=True)
class Options:
    """How a run is carried out, beside its recipe.

    Attributes:
        out: the run directory.
        seeds: how many seeds, counted from the recipe's.
        resume: whether to go on with the run that is there.
        loggers: makes the loggers of one fit.
        say: takes a line for a person.
        trace_hooks: whether to time the callbacks.
    """

    out: Path
    seeds: int | None = None
    resume: bool = False
    loggers: Callable[[], list[LoggerLike]] = list
    say: Callable[[str], None] = print
    trace_hooks: bool = False


def run(plan: Plan, options: Options) -> dict[str, Any]:
    """Carry out a recipe; return its summary, which the run directory holds too.

    Several processes carry it out together; the main one alone reads and writes the run directory.

    Raises:
        ConfigurationError: the directory holds another run or is in use, or something in the recipe cannot work.
    """
    with ExitStack() as held:
        join().on_main(lambda: held.enter_context(rundir.occupied(options.out, resume=options.resume)))
        return begin(plan, options)


def begin(plan: Plan, options: Options) -> dict[str, Any]:
    """Check and rehearse a run, and carry it out in a directory that nobody else works in."""
    on_main = join().on_main
    on_main(lambda: check_directory(plan, options))
    seeds = [plan.recipe.train.seed + k for k in range(options.seeds or 1)]
    if (done := on_main(lambda: finished(plan, options.out, seeds))) is not None:
        options.say(f"{options.out} is already finished: nothing to do")
        return done
    on_main(lambda: check_cache(plan))
    data = make_data(plan)
    rehearse(plan, data)
    on_main(lambda: write_plan(plan, options, seeds))
    with resumable(options):
        return carry_out(plan, data, options, seeds)


def carry_out(plan: Plan, data: Data, options: Options, seeds: Sequence[int]) -> dict[str, Any]:
    """Train the teacher and every seed's student; put their summaries together."""
    on_main = join().on_main
    teacher = get_teacher(plan, data, options.loggers(), options.say)
    if options.seeds is None:
        return run_seed(plan, data, teacher, options, seeds[0], options.out)
    summaries = []
    for seed in seeds:
        options.say(f"seed {seed}")
        folder = options.out / f"seed-{seed}"
        done = on_main(partial(finished_seed, plan, folder))
        summaries.append(done or run_seed(plan, data, teacher, options, seed, folder))
    try:
        summary = aggregate(summaries, seeds)
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"the seeds of {options.out} do not fit each other: {error!r}") from error
    on_main(lambda: rundir.write_summary(options.out, summary))
    return summary


@contextmanager
def resumable(options: Options) -> Iterator[None]:
    """Tell whatever ends a run that has begun how it goes on."""
    try:
        yield
    except BaseException as error:
        seeds = f" --seeds {options.seeds}" if options.seeds else ""
        mended = isinstance(error, KeyboardInterrupt | interrupts.Terminated | OSError)
        first = "To go on" if mended else "Once that is mended, to go on"
        error.add_note(f"{first} where it stopped: kdengine run --resume --out {options.out}{seeds}")
        raise


def check_directory(plan: Plan, options: Options) -> None:
    """Refuse a run directory that holds another run, or this one unless it is to be resumed."""
    stored = options.out / layout.RECIPE
    if not stored.exists():
        return
    if not options.resume:
        raise ConfigurationError(f"{options.out} already holds a run; add --resume to go on with it")
    before = load(source_at(stored))
    changed = differences(before, plan.recipe)
    if plan.recipe.train.epochs < before.train.epochs:
        changed.append(f"train.epochs was {before.train.epochs}, is {plan.recipe.train.epochs}, and may only grow")
    if changed:
        raise ConfigurationError(
            f"{options.out} was started with another recipe: {'; '.join(changed)}. On resume epochs, workers, "
            "device, loggers and checkpoint policy may change; for anything else choose another --out"
        )
    check_checkpoints(options.out, plan.recipe.train.epochs)


def check_checkpoints(out: Path, epochs: int) -> None:
    """Refuse to extend a run whose checkpoints were removed, before anything in it is changed.

    Raises:
        CheckpointError: a part of it has ended with fewer epochs and has none left.
    """
    for part in rundir.parts(out):
        summary = rundir.read_summary(part)
        if summary is not None and "seeds" not in summary and not checkpoint.steps(part / layout.CHECKPOINTS):
            check_need(part, summary, epochs)


def write_plan(plan: Plan, options: Options, seeds: Sequence[int]) -> None:
    """Write what the run is to be, before a teacher trains: the recipe comes last, and makes it a run."""
    if options.seeds is not None:
        files.write_json(options.out / layout.SEEDS, list(seeds))
    files.write_text(options.out / layout.RECIPE, dump(plan.recipe))


def rehearse(plan: Plan, data: Data) -> None:
    """Assemble every fit and train nothing, so that what cannot work is said before hours have gone into a teacher.

    Raises:
        ConfigurationError: parts of the recipe do not fit each other.
        CheckpointError: a checkpoint cannot be read, or is of another model.
    """
    warn_of_warmup(plan.recipe.lr_schedule, plan.recipe.train.epochs)
    teacher = untrained_teacher(plan, data)
    if plan.teacher is not None and teacher is not None:
        for model, module in zip(plan.teacher.models, teacher.modules, strict=True):
            if model.table.train is not None:
                engine, loader = teacher_fit(plan, data, model, module, out=None, loggers=[])
                engine.assemble(Feed(loader, 1, to_batch), epochs=model.table.train.epochs)
                warn_of_warmup(model.table.train.lr_schedule or plan.recipe.lr_schedule, model.table.train.epochs)
    for alone in (True, False) if plan.recipe.baseline else (False,):
        engine, loader = student_fit(
            plan, data, teacher, seed=plan.recipe.train.seed, out=None, loggers=[], alone=alone
        )
        with plan.telling_lines():
            feed = Feed(loader, plan.recipe.train.accumulate, to_batch)
            fit = engine.assemble(feed, epochs=plan.recipe.train.epochs)
            check_expected(fit, test_loader(plan, data))
            try_batch(fit)


@torch.no_grad()
def try_batch(fit: Fit) -> None:
    """Run a few items through models and losses, to see that what the losses compare fits together."""
    models, example = fit.models, fit.feed.example()
    masks = fit.objective.masks(example)
    counts = fit.objective.count(example, masks)
    batch = place(example, fit.runtime.device)
    with attached(models), evaluation_mode(*models.moving):
        run_pair(models, fit.precision, batch)
        check_outputs(fit.objective, models, batch, fit.notices)
    fit.precision.run_loss(fit.objective.evaluate, batch, masks, counts, counts)
    try_metrics(fit, batch)


def try_metrics(fit: Fit, batch: Batch) -> None:
    """Ask every metric of a rehearsal for its value; what it makes of so few items does not matter.

    Raises:
        ConfigurationError: the value is neither a number nor a mapping of numbers.
    """
    for name, metric in fit.metrics.items():
        try:
            metric.reset()
            metric.update(fit.models.heads.view(name, batch))
            value = metric.compute()
        except Exception:  # few items, perhaps without a label: the test set may well have what is missing
            continue
        as_numbers(name, value)


def finished(plan: Plan, out: Path, seeds: Sequence[int]) -> dict[str, Any] | None:
    """The summary of a run that has nothing left to do.

    Raises:
        CheckpointError: only its student is missing, and nothing is left to make it from.
    """
    summary = read_complete(out, plan.recipe.train.epochs)
    if summary is None or summary.get("seeds", [summary.get("seed")]) != list(seeds):
        return None
    folders = [out / f"seed-{seed}" for seed in seeds] if "seeds" in summary else [out]
    lost = [folder for folder in folders if not (folder / layout.STUDENT).is_file()]
    for folder in lost:
        if not any(folder.glob(f"{layout.CHECKPOINTS}/*")):
            raise CheckpointError(rundir.explain_no_student(folder))
    return None if lost else summary


def finished_seed(plan: Plan, folder: Path) -> dict[str, Any] | None:
    """The summary of one seed of a run, if that seed has nothing left to do."""
    for part in (folder, folder / layout.BASELINE):
        files.sweep(part)
        files.sweep(part / layout.CHECKPOINTS)
    whole = all((folder / name).is_file() for name in (layout.RECIPE, layout.STUDENT))
    return read_complete(folder, plan.recipe.train.epochs) if whole else None


def run_seed(plan: Plan, data: Data, teacher: Teacher | None, options: Options, seed: int, out: Path) -> dict[str, Any]:
    """One seed: the student alone if asked for, the distilled student, evaluation, summary."""
    recipe, on_main = plan.recipe, join().on_main
    own = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": seed})})
    on_main(lambda: write_recipe(out, own))
    baseline = None
    if recipe.baseline:
        _, baseline = train(plan, data, teacher, options, seed, out / layout.BASELINE, alone=True)
    engine, result = train(plan, data, teacher, options, seed, out, alone=False)
    student = trained_student(plan, data, out, seed)
    taught_by = None if engine.source is None else SourceModel(engine.source)
    if taught_by is not None:
        found = compare_outputs(plan, data, student, taught_by)
        on_main(lambda: write_disagreements(out, found, data.classes))
    stored = on_main(lambda: rundir.read_summary(out)) or {}
    summary = {
        **{key: value for key, value in stored.items() if key not in ("teacher", "baseline")},
        "name": recipe.name,
        "description": recipe.description,
        "teacher": None if taught_by is None else teacher_entry(plan, data, taught_by, teacher),
        "baseline": None if baseline is None else entry(recipe.student.use, student, baseline),
        "student": entry(recipe.student.use, student, result),
        "data": data.describe(recipe.data.use, recipe.data.labelled, seed),
        "monitor": recipe.evaluate.monitor or recipe.evaluate.metrics[0],
        "device": str(engine.runtime.device),
    }
    on_main(lambda: rundir.write_summary(out, summary))
    return summary


def write_recipe(out: Path, recipe: Recipe) -> None:
    """Make the directory of one seed, with its recipe."""
    out.mkdir(parents=True, exist_ok=True)
    files.write_text(out / layout.RECIPE, dump(recipe))


def compare_outputs(plan: Plan, data: Data, student: nn.Module, teacher: nn.Module) -> Disagreements:
    """Where student and teacher disagree on the test set."""
    classes = plan.recipe.train.classes
    align = None if classes is None else Aligner(classes)
    return find_disagreements(student, teacher, test_loader(plan, data), align=align)


def train(
    plan: Plan, data: Data, teacher: Teacher | None, options: Options, seed: int, out: Path, *, alone: bool
) -> tuple[Engine, Result]:
    """One fit of the student: alone on the labels, or distilled."""
    engine, loader = student_fit(
        plan,
        data,
        teacher,
        seed=seed,
        out=out,
        loggers=options.loggers(),
        alone=alone,
        trace_hooks=options.trace_hooks,
    )
    with plan.telling_lines():
        result = engine.fit(loader, test_loader(plan, data), epochs=plan.recipe.train.epochs, resume="auto")
    for row in engine.hook_times:
        options.say(f"{row.plugin}: {row.hook} {row.calls} calls, {row.seconds * 1e3:.1f} ms")
    return engine, result


def student_fit(
    plan: Plan,
    data: Data,
    teacher: Teacher | None,
    *,
    seed: int,
    out: Path | None,
    loggers: list[LoggerLike],
    alone: bool,
    trace_hooks: bool = False,
) -> tuple[Engine, Loader]:
    """A new student's engine and the loader of its training set."""
    recipe = plan.recipe
    source = teacher_source(plan, data, teacher, seed, alone=alone)
    student = make_model(plan.student, data.facts, seed=seed, role="student")
    if recipe.student.checkpoint is not None:
        load_weights(student, recipe.student.checkpoint, "student")
    dataset = data.training_set(recipe.data.labelled, seed)
    loader = training_loader(plan, dataset, batch_size=recipe.data.batch_size, seed=seed)
    engine = make_engine(
        plan,
        data,
        student,
        source,
        name="student alone" if alone else "student",
        seed=seed,
        out=out,
        steps_per_epoch=-(-len(loader) // recipe.train.accumulate),
        loggers=loggers,
        alone=alone,
        trace_hooks=trace_hooks,
    )
    return engine, loader


def teacher_source(plan: Plan, data: Data, teacher: Teacher | None, seed: int, *, alone: bool) -> TeacherSource | None:
    """What teaches a student; one that evolves is made anew for each, and does not exist for a student alone."""
    if plan.teacher is None or (alone and plan.teacher.evolving):
        return None
    if teacher is not None:
        return make_source(plan.teacher, data, teacher.modules)
    modules = [teaching_model(model, data.facts, seed=seed) for model in plan.teacher.models]
    return make_source(plan.teacher, data, modules)


def trained_student(plan: Plan, data: Data, out: Path, seed: int, *, best: bool = False) -> nn.Module:
    """The exported student of a run directory, or that of its best evaluation."""
    student = make_model(plan.student, data.facts, seed=seed, role="student")
    if best:
        student.load_state_dict(rundir.read_student(out, best=True))
        return student
    load_weights(student, out / layout.STUDENT, "student")
    return student


def teacher_entry(plan: Plan, data: Data, module: nn.Module, teacher: Teacher | None) -> dict[str, Any]:
    """The teacher's part of the summary, with its metrics on the same test set.

    Args:
        plan: of the run.
        data: of the run.
        module: the teacher as a model, as it was when the student's training ended.
        teacher: where it came from; None for one that evolved with the student.
    """
    assert plan.teacher is not None, "what has taught is in the plan"
    return {
        "name": plan.teacher.name,
        "metrics": measure(plan, data, module),
        "parameters": rundir.count_parameters(module),
        "seconds": None if teacher is None else teacher.seconds,
        "cached": teacher is not None and teacher.cached,
    }


def measure(plan: Plan, data: Data, module: nn.Module) -> dict[str, float | None]:
    """Every metric of a model that needs no teacher, on the test set; None where it is undefined or not finite."""
    metrics = {name: bound() for name, bound in plan.own_metrics.items()}
    engine = Engine(module, losses={}, metrics=metrics, plugins=plan.host, device=plan.recipe.train.device, loggers=[])
    measured: dict[str, float | None] = rundir.as_stored(engine.evaluate(test_loader(plan, data)))
    return measured
