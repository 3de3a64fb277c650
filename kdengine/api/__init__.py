"""What plugin authors write against."""

from kdengine.api.batch import Batch, Output
from kdengine.api.contexts import (
    CheckpointContext,
    Decision,
    EvaluateContext,
    ExceptionContext,
    FitContext,
    StepContext,
)
from kdengine.api.errors import (
    CheckpointError,
    ConfigurationError,
    KDEngineError,
    KDEngineWarning,
    LossError,
    NonFiniteError,
    PluginError,
    ProcessError,
)
from kdengine.api.gather import gather
from kdengine.api.hooks import HOOK_VERSION, hookimpl
from kdengine.api.logger import Logger, RunInfo
from kdengine.api.loss import Loss, Needs, Weight, from_callable
from kdengine.api.metric import Metric
from kdengine.api.models import classes_last, next_token
from kdengine.api.schedule import Progress, Scalar, Schedule
from kdengine.api.teacher import TeacherSource
from kdengine.api.transform import BatchTransform

__all__ = [
    "HOOK_VERSION",
    "Batch",
    "BatchTransform",
    "CheckpointContext",
    "CheckpointError",
    "ConfigurationError",
    "Decision",
    "EvaluateContext",
    "ExceptionContext",
    "FitContext",
    "KDEngineError",
    "KDEngineWarning",
    "Logger",
    "Loss",
    "LossError",
    "Metric",
    "Needs",
    "NonFiniteError",
    "Output",
    "PluginError",
    "ProcessError",
    "Progress",
    "RunInfo",
    "Scalar",
    "Schedule",
    "StepContext",
    "TeacherSource",
    "Weight",
    "classes_last",
    "from_callable",
    "gather",
    "hookimpl",
    "next_token",
]
