"""`kd_loss` computed by the emulated kernels."""

import ctypes
import subprocess
from pathlib import Path

import torch

from . import contract

HERE = Path(__file__).parent
KERNELS = HERE.parents[2] / "csrc" / "cuda"
FLAGS = (
    *("-std=c++17", "-O2", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function"),
    *("-fno-strict-aliasing", "-fsanitize=alignment,bounds,shift", "-fno-sanitize-recover=all"),
    *("-DKDENGINE_CUDA_EMULATION", f"-I{HERE}"),
)
PATHS = ("few", "warp", "block", "kept", "cluster", "general")


class Device(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int)
        for name in (
            *("capability", "processors", "shared_per_block", "shared_per_processor", "largest_cluster"),
            *("seed", "launches", "blocks"),
        )
    )


H100 = {"capability": 90, "processors": 16, "shared_per_block": 227 << 10, "shared_per_processor": 228 << 10}


def build(folder, compiler="g++"):
    """Compile the kernels and the emulated device into a library in `folder`."""
    sources = [*KERNELS.glob("*.cu"), *KERNELS.glob("*.cpp"), *HERE.glob("*.cpp")]
    objects = [folder / f"{source.name}.o" for source in sources]
    running = []
    for source, to in zip(sources, objects, strict=True):
        running.append(subprocess.Popen([compiler, *FLAGS, "-x", "c++", "-c", source, "-o", to]))
        if len(running) >= 2 and running.pop(0).wait():
            raise RuntimeError("the kernels do not compile for the emulation")
    failed = [process.wait() for process in running]
    if any(failed):
        raise RuntimeError("the kernels do not compile for the emulation")
    library = folder / "emulated.so"
    subprocess.run([compiler, *FLAGS, "-shared", "-o", library, *objects], check=True)
    return library


class Emulation:
    """A device, and the operator on it."""

    def __init__(self, library):
        self.library = ctypes.CDLL(str(library))
        assert self.library.problem_size() == ctypes.sizeof(contract.Problem)
        self.library.emulated_device.restype = ctypes.POINTER(Device)
        self.device = self.library.emulated_device().contents
        self.become()

    def become(self, **properties):
        """Be an H100 with few processors, but for what is named."""
        for name, value in (H100 | {"largest_cluster": 16, "seed": 0, "launches": 0} | properties).items():
            setattr(self.device, name, value)

    def plan(self, *args, **kwargs):
        """How a call would be computed."""
        found = (ctypes.c_int * 9)()
        self.library.plan_of(ctypes.byref(self.problem(*args, **kwargs)[0]), found)
        names = ("path", "width", "team", "cluster", "tiles", "kept", "threads", "shared", "counted")
        plan = dict(zip(names, found, strict=True))
        return plan | {"path": PATHS[plan["path"]]}

    def kd_loss(self, student, teacher, labels=None, *, return_terms=False, **options):
        """What `kdengine.ops.kd_loss` returns, differentiable by both inputs."""
        terms = Function.apply(student, teacher, labels, options, self)
        return terms if return_terms else terms[0]

    def scale(self, gradient, factor, dim):
        """Multiply in place by a 0-dim factor, or one per row."""
        x, keep = contract.planes(gradient, dim), []
        problem = contract.Problem(x.shape[0], x.shape[2])
        found = self.library.emulated_scale(
            *map(ctypes.byref, (problem, contract.matrix(gradient, dim), contract.per_row(factor, keep)))
        )
        assert found == 0

    def problem(
        self,
        student,
        teacher,
        labels=None,
        needs=(True, False),
        *,
        temperature=1.0,
        soft_weight=1.0,
        hard_weight=None,
        mask=None,
        divergence="forward_kl",
        beta=0.5,
        label_smoothing=0.0,
        ignore_index=-100,
        reduction="mean",
        dim=-1,
        teacher_indices=None,
        tail="bin",
    ):
        dim %= student.ndim
        student, teacher = contract.viewable(student, dim), contract.viewable(teacher, dim)
        keep, wide = [], torch.float64 in (student.dtype, teacher.dtype)
        rows = contract.planes(student, dim)
        shape = student.select(dim, 0).shape if reduction == "none" else ()
        terms = [torch.full(shape, torch.nan, dtype=torch.float64 if wide else torch.float32) for _ in range(3)]
        gradients = [
            torch.full_like(x, torch.nan, requires_grad=False) if need else None
            for x, need in zip((student, teacher), needs, strict=True)
        ]
        if teacher_indices is not None:
            teacher, teacher_indices = teacher.contiguous(), teacher_indices.contiguous().long()
        probable = labels is not None and labels.is_floating_point()
        keep += [student, teacher, labels, terms, gradients]
        problem = contract.Problem(
            outer=rows.shape[0],
            inner=rows.shape[2],
            wide=wide,
            student=contract.matrix(student, dim),
            teacher=contract.matrix(teacher, dim),
            indices=contract.pointer(teacher_indices, keep),
            tail=contract.TAILS[tail],
            labels=None if probable else contract.pointer(labels, keep),
            probabilities=contract.matrix(labels if probable else None, dim),
            ignore_index=ignore_index,
            smoothing=label_smoothing,
            mask=contract.pointer(mask, keep),
            divergence=contract.DIVERGENCES[divergence],
            beta=beta,
            reduction=contract.REDUCTIONS[reduction],
            soft=isinstance(soft_weight, torch.Tensor) or soft_weight != 0,
            hard=labels is not None and (isinstance(hard_weight, torch.Tensor) or hard_weight != 0),
            temperature=contract.per_row(temperature, keep),
            soft_weight=contract.per_row(soft_weight, keep),
            hard_weight=contract.per_row(hard_weight, keep),
            loss=terms[0].data_ptr(),
            soft_term=terms[1].data_ptr(),
            hard_term=terms[2].data_ptr(),
            student_gradient=contract.matrix(gradients[0], dim),
            teacher_gradient=contract.matrix(gradients[1], dim),
        )
        return problem, terms, gradients, keep

    def run(self, *args, **kwargs):
        """Terms and gradients as the kernels leave them."""
        problem, terms, gradients, _keep = self.problem(*args, **kwargs)
        found = self.library.emulated_kd_loss(ctypes.byref(problem))
        assert found == 0, f"CUDA error {found}"
        return terms, gradients


class Function(torch.autograd.Function):
    """Computes the gradient ahead, and scales it by the emulated `scale`."""

    @staticmethod
    def forward(ctx, student, teacher, labels, options, emulation):
        terms, gradients = emulation.run(
            student.detach(), teacher.detach(), labels, needs=ctx.needs_input_grad[:2], **options
        )
        ctx.save_for_backward(*gradients)
        ctx.emulation, ctx.dim = emulation, options.get("dim", -1) % student.ndim
        ctx.mark_non_differentiable(*terms[1:])
        return tuple(terms)

    @staticmethod
    def backward(ctx, factor, *_):
        gradients = []
        for gradient in ctx.saved_tensors:
            if gradient is not None:
                gradient = gradient.clone()
                ctx.emulation.scale(gradient, factor, ctx.dim)
            gradients.append(gradient)
        return *gradients, None, None, None
