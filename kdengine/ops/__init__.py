"""The distillation loss as an operator: it needs torch and nothing else of kdengine."""

from kdengine.ops.backend import BackendInfo, backend_info
from kdengine.ops.kd_loss import kd_loss

__all__ = ["BackendInfo", "backend_info", "kd_loss"]
