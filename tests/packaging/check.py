"""Run in a fresh environment: the compiled library loads, computes, and agrees with pure PyTorch."""

import os
import platform

import torch

from kdengine.ops import backend_info, kd_loss

SHAPES = ((128, 10), (37, 1000), (3, 50257))
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def values(backend, student, teacher, labels):
    """The loss and its gradient, by one implementation."""
    os.environ["KDENGINE_BACKEND"] = backend
    student = student.clone().requires_grad_()
    loss = kd_loss(student, teacher, labels, temperature=2.0, hard_weight=0.5)
    loss.backward()
    return loss.detach(), student.grad


def main():
    """Compare, and print what was compared."""
    torch.manual_seed(0)
    for shape in SHAPES:
        for dtype in DTYPES:
            student, teacher = torch.randn(2, *shape).to(dtype)
            labels = torch.randint(shape[1], shape[:1])
            (loss, gradient), (expected, reference) = (
                values(backend, student, teacher, labels) for backend in ("compiled", "python")
            )
            assert gradient.dtype == dtype
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
            within = 4e-6 if dtype in (torch.float32, torch.float64) else 2 * torch.finfo(dtype).eps
            error = (gradient.double() - reference.double()).abs().max() / reference.double().abs().max()
            assert error < within, (shape, dtype, error)
    compiled_graph()
    os.environ["KDENGINE_BACKEND"] = "auto"
    info = backend_info()
    assert info.name == "compiled"
    print(f"python {platform.python_version()}, torch {torch.__version__}, cuda {torch.version.cuda}", end=": ")
    print(f"{info.name}, {info.isa}; {info.reason}; {info.cuda_reason} {' '.join(info.cuda_archs)}")


def compiled_graph():
    """The operator in a graph without breaks."""
    os.environ["KDENGINE_BACKEND"] = "compiled"
    function = torch.compile(lambda s, t: kd_loss(s, t, temperature=3.0), fullgraph=True, backend="aot_eager")
    student, teacher = torch.randn(2, 8, 33)
    student.requires_grad_()
    loss = function(student, teacher)
    loss.backward()
    torch.testing.assert_close(loss, kd_loss(student, teacher, temperature=3.0))


main()
