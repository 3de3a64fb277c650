"""The operator's tests on a GPU, and that both devices agree on what a processor's kernels are tested for."""

import pytest
import torch

from kdengine.ops import backend_info, kd_loss

from . import test_compiled, test_kd_loss
from .on_a_device import *  # noqa: F403
from .test_compiled import (  # noqa: F401
    test_class_counts_and_temperatures,
    test_hard_labels_ride_along,
)

DEVICE = "cuda"

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)


def there(value):
    return value.to(DEVICE) if isinstance(value, torch.Tensor) else value


def on_the_device(*arguments, **options):
    """`kd_loss` on the device, with arguments and results on the processor."""
    found = kd_loss(*map(there, arguments), **{name: there(value) for name, value in options.items()})
    return tuple(term.cpu() for term in found) if isinstance(found, tuple) else found.cpu()


@pytest.fixture(autouse=True)
def _device(monkeypatch):
    for module in (test_kd_loss, test_compiled):
        monkeypatch.setattr(module, "kd_loss", on_the_device)


def test_the_compiled_kernels_are_what_runs():
    kd_loss(torch.zeros(2, 3, device=DEVICE), torch.zeros(2, 3, device=DEVICE))
    assert backend_info().cuda_library is not None, backend_info().cuda_reason


def test_a_fault_is_nan_in_its_row_and_waits_for_nothing():
    labels = torch.tensor([0, 7, 2], device=DEVICE)
    logits = torch.randn(3, 5, device=DEVICE)
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss = kd_loss(logits, logits.flip(-1), labels, hard_weight=1.0, reduction="none")
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert loss.isnan().tolist() == [False, True, False]


def test_a_captured_graph_computes_new_values():
    student, teacher = torch.randn(64, 1000, device=DEVICE), torch.randn(64, 1000, device=DEVICE)
    with torch.no_grad():
        kd_loss(student, teacher)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = kd_loss(student, teacher)
        student.copy_(torch.randn_like(student))
        graph.replay()
        torch.testing.assert_close(loss, kd_loss(student, teacher), rtol=0, atol=0)
