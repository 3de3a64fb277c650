"""kdengine: knowledge distillation in PyTorch with one loop, any loss and exact resume.

Names load on first use, so that ``import kdengine`` stays light and imports neither torchvision nor a CLI.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kdengine._version import __version__

if TYPE_CHECKING:
    from kdengine.api import *  # noqa: F403
    from kdengine.engine.engine import Engine as Engine
    from kdengine.engine.loader import loader as loader
    from kdengine.engine.result import Result as Result
    from kdengine.engine.rundir import load_run as load_run
    from kdengine.schedules import Constant as Constant
    from kdengine.schedules import Cosine as Cosine
    from kdengine.schedules import Linear as Linear
    from kdengine.schedules import OnMetric as OnMetric
    from kdengine.schedules import Piecewise as Piecewise
    from kdengine.schedules import Step as Step
    from kdengine.schedules import WarmUp as WarmUp

_API = (
    "HOOK_VERSION", "Batch", "BatchTransform", "CheckpointContext", "CheckpointError", "ConfigurationError",
    "Decision", "EvaluateContext", "ExceptionContext", "FitContext", "KDEngineError", "KDEngineWarning", "Logger",
    "Loss", "LossError",
    "Metric", "Needs", "NonFiniteError", "Output", "PluginError", "ProcessError", "Progress", "RunInfo", "Scalar",
    "Schedule", "StepContext", "TeacherSource", "Weight", "classes_last", "from_callable", "gather", "hookimpl",
    "next_token",
)  # fmt: skip

_HOMES = {
    **dict.fromkeys(_API, "kdengine.api"),
    "Engine": "kdengine.engine.engine",
    "Result": "kdengine.engine.result",
    "loader": "kdengine.engine.loader",
    "load_run": "kdengine.engine.rundir",
    **dict.fromkeys(("Constant", "Cosine", "Linear", "OnMetric", "Piecewise", "Step", "WarmUp"), "kdengine.schedules"),
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kdengine' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
