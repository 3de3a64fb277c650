"""The recipe's own keys, typed. Components' arguments are checked against their signatures, in ``signature``."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from kdengine.engine.settings import LIMITS, MonitorMode, NonFinitePolicy, PrecisionName, StrategyName

VERSION = 1


def limited(name: str, default: Any = ..., *, description: str) -> Any:
    """A field whose limits are those of the engine's setting."""
    limit = LIMITS[name]
    return Field(default, ge=limit.ge, gt=limit.gt, lt=limit.lt, description=description)


class Table(BaseModel):
    """A table whose keys are all known. No value is converted: a string or a boolean is never a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ComponentTable(BaseModel):
    """A table that names a component with ``use``; every key that is not declared here is the component's own."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    use: str | None = Field(None, description="component: name, or plugin:name")

    @property
    def arguments(self) -> dict[str, Any]:
        """The component's own arguments."""
        return dict(self.model_extra or {})


class DataTable(ComponentTable):
    """Where the images come from, and how they are served."""

    use: str = Field(description="data set: name, or plugin:name")
    batch_size: int = Field(64, ge=1, description="items per batch")
    labelled: float = Field(1.0, gt=0.0, le=1.0, description="share of training labels that the student sees")
    workers: int = Field(0, ge=0, description="loader processes; changes nothing but speed")
    transforms: list[str | dict[str, Any]] = Field([], description="transforms of a training input, in order")
    eval_transforms: list[str | dict[str, Any]] | None = Field(
        None, description="transforms of a test input; the training ones that draw nothing when absent"
    )


class ModelTable(ComponentTable):
    """A model."""

    use: str = Field(description="model: name, or plugin:name")
    checkpoint: str | None = Field(None, description="weights to start from: .safetensors, or .pth (a state dict)")


class OptimizerTable(ComponentTable):
    """An optimizer of torch."""

    use: str = Field("adamw", description="optimizer: name, or plugin:name")
    groups: list[dict[str, Any]] = Field(
        [], description="parameter groups: { match = 'pattern of names', ... options of the group }; first match wins"
    )


class LRScheduleTable(ComponentTable):
    """A learning-rate schedule of torch, stepped at every optimizer step; its durations are given in epochs."""

    use: str = Field("constant", description="cosine, linear, ... or the name of a torch.optim.lr_scheduler class")
    warmup: float = Field(0.0, ge=0.0, description="epochs of linear warm-up before it")


class TeacherTrainTable(Table):
    """How to train the teacher when there is no checkpoint: once, kept in a cache."""

    epochs: int = limited("epochs", description="passes over the training set")
    lr: float | None = Field(None, gt=0.0, description="learning rate; the optimizer's when absent")
    labelled: float = Field(1.0, gt=0.0, le=1.0, description="share of training labels that the teacher sees")
    batch_size: int | None = Field(None, ge=1, description="items per batch; the data's when absent")
    label_smoothing: float = Field(0.0, ge=0.0, le=1.0, description="of its cross-entropy")
    seed: int = limited("seed", 0, description="its own seed: one teacher serves every seed of the student")
    optimizer: OptimizerTable | None = Field(None, description="the recipe's when absent")
    lr_schedule: LRScheduleTable | None = Field(None, description="the recipe's when absent")


class TeacherModelTable(ComponentTable):
    """A model that teaches: with a checkpoint, or with a way to train it."""

    checkpoint: str | None = Field(None, description="weights to start from: .safetensors, or .pth (a state dict)")
    train: TeacherTrainTable | None = Field(None, description="how to train it; kept in a cache")
    transforms: list[str | dict[str, Any]] = Field(
        [],
        description="what the student's inputs go through before this model sees them: another normalisation or size",
    )
    source: str | dict[str, Any] | None = Field(None, description="teacher source; the live module when absent")
    shard: bool | Literal["layers"] = Field(
        False, description="several processes keep shards of it, by block or by layer, instead of copies"
    )
    device: str | None = Field(None, description="where it runs: cpu, cuda:1; the student's device when absent")
    dtype: Literal["fp32", "bf16", "fp16"] | None = Field(
        None, description="type of its parameters and inputs while it teaches"
    )
    ignore_buffers: list[str] = Field(
        [], description="names or shell patterns of its buffers that may change while it teaches, such as counters"
    )


class MemberTable(TeacherModelTable):
    """One of several teachers."""

    use: str = Field(description="model: name, or plugin:name")


class TeacherTable(TeacherModelTable):
    """The teacher: a model with a checkpoint or with a way to train it, several of these, or what evolves by itself."""

    use: str | None = Field(None, description="model: name, or plugin:name; required unless the source needs none")
    members: list[MemberTable] = Field([], description="several teachers, as tables of this kind; 'source' unites them")


class LossTable(ComponentTable):
    """A loss; its label is its component unless ``use`` says otherwise."""

    weight: float | dict[str, Any] = Field(1.0, description="factor: a number, or { schedule = ..., ... }")


class TrainTable(Table):
    """The student's training."""

    epochs: int = limited("epochs", description="passes over the training set")
    seed: int = limited("seed", 0, description="seeds weights, order, labels and transforms")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    strategy: StrategyName = Field("ddp", description="of several processes: copies or shards")
    precision: PrecisionName = Field("fp32", description="autocast type")
    accumulate: int = limited("accumulate", 1, description="micro-batches per optimizer step")
    clip: float | None = limited("clip", None, description="largest gradient norm")
    ema: float | None = limited("ema", None, description="decay of a moving average of the student")
    compile: bool = Field(False, description="torch.compile the student")
    classes: Literal["shared"] | list[int] | None = Field(None, description="when class counts differ")
    nonfinite: NonFinitePolicy = Field("raise", description="when a loss is not finite")
    log_every: int = limited("log_every", 50, description="optimizer steps between training records")
    checkpoint_every: int | None = limited("checkpoint_every", None, description="optimizer steps between checkpoints")
    keep: int = limited("keep", 2, description="checkpoints to keep, beside the best")


class EvaluateTable(Table):
    """What evaluations measure."""

    metrics: list[str] = Field(["top1"], min_length=1, description="metrics: name, or plugin:name")
    monitor: str | None = Field(None, description="decides the best evaluation; the first metric when absent")
    monitor_mode: MonitorMode | None = Field(
        None, description="which way that metric is better, where it does not know it itself"
    )
    every: int = limited("evaluate_every", 1, description="epochs between evaluations")
    batch_size: int = Field(256, ge=1, description="items per batch")


class Recipe(Table):
    """A whole recipe."""

    FLEXIBLE: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("train", "epochs"), ("train", "device"), ("train", "strategy"), ("train", "log_every"),
        ("train", "checkpoint_every"), ("train", "keep"), ("teacher", "shard"), ("data", "workers"), ("loggers",),
        ("description",), ("name",),
    )  # fmt: skip
    """Keys that may change when a run is resumed; epochs may only grow."""

    version: Literal[1] = Field(description="version of the recipe format")
    name: str = Field("run", description="name of the run directory")
    description: str | None = Field(None, description="one sentence for the report")
    plugins: list[str] = Field([], description="plugins whose callbacks run: 'name', 'name>=1.2' or a path")
    data: DataTable
    teacher: TeacherTable | None = None
    student: ModelTable
    losses: dict[str, LossTable] = Field(min_length=1)
    batch_transforms: dict[str, ComponentTable] = Field({}, description="mixup, cutmix")
    optimizer: OptimizerTable = OptimizerTable(use="adamw")
    lr_schedule: LRScheduleTable = LRScheduleTable(use="constant")
    train: TrainTable
    evaluate: EvaluateTable = EvaluateTable()
    baseline: bool = Field(False, description="also train the student alone, for as many steps")
    loggers: list[str | dict[str, Any]] = Field(["console"], description="beside metrics.jsonl")

    @field_validator("name")
    @classmethod
    def _is_file_name(cls, name: str) -> str:
        if not name or any(character in name for character in "/\\\0") or name.startswith("."):
            raise ValueError("expected a name that can be a directory's: no slash, no leading dot")
        return name
