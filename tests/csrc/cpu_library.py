"""The CPU kernels without torch's operator around them: built by the C++ compiler, called through ctypes."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
SOURCES = sorted((ROOT / "csrc/cpu").glob("*.cpp"))
DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
TAILS = ("bin", "renormalize")
REDUCTIONS = ("none", "sum", "mean")


class Matrix(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("classes", ctypes.c_int64),
        ("outer", ctypes.c_int64),
        ("step", ctypes.c_int64),
        ("inner", ctypes.c_int64),
    ]


class PerRow(ctypes.Structure):
    _fields_ = [
        ("number", ctypes.c_double),
        ("values", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("stride", ctypes.c_int64),
    ]


class Problem(ctypes.Structure):
    _fields_ = [
        ("outer", ctypes.c_int64),
        ("inner", ctypes.c_int64),
        ("wide", ctypes.c_bool),
        ("student", Matrix),
        ("teacher", Matrix),
        ("indices", ctypes.c_void_p),
        ("tail", ctypes.c_int32),
        ("labels", ctypes.c_void_p),
        ("probabilities", Matrix),
        ("ignore_index", ctypes.c_int64),
        ("smoothing", ctypes.c_double),
        ("mask", ctypes.c_void_p),
        ("divergence", ctypes.c_int32),
        ("beta", ctypes.c_double),
        ("reduction", ctypes.c_int32),
        ("soft", ctypes.c_bool),
        ("hard", ctypes.c_bool),
        ("temperature", PerRow),
        ("soft_weight", PerRow),
        ("hard_weight", PerRow),
        ("loss", ctypes.c_void_p),
        ("soft_term", ctypes.c_void_p),
        ("hard_term", ctypes.c_void_p),
        ("student_gradient", Matrix),
        ("teacher_gradient", Matrix),
    ]


def compiler():
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def has_simde():
    return (
        subprocess.run(
            [compiler(), "-E", "-x", "c++", "-"], input="#include <simde/x86/avx512.h>", capture_output=True, text=True
        ).returncode
        == 0
    )


def build(folder, flags=(), *, emulate_avx512=False):
    """Compile and link all sources; with `emulate_avx512` the AVX-512 kernels run on any processor with AVX2."""
    common = [compiler(), "-std=c++17", "-O3", "-fPIC", f"-I{ROOT / 'csrc'}", *flags]
    objects, jobs = [], []
    for source in [*SOURCES, HERE / "harness.cpp"]:
        objects.append(folder / f"{source.stem}.o")
        options = []
        if emulate_avx512 and source.stem == "dispatch":
            options = ["-D__builtin_cpu_supports(x)=1"]
        if emulate_avx512 and source.stem == "avx512":
            options = ["-mavx2", "-mfma", "-mf16c", f"-I{HERE / 'avx512_emulation'}", f"-I{ROOT / 'csrc/cpu'}"]
            source = without_target(source, folder)
        jobs.append([*common, *options, "-c", str(source), "-o", str(objects[-1])])
    for started in [subprocess.Popen(job, stderr=subprocess.PIPE, text=True) for job in jobs]:
        _, errors = started.communicate()
        assert started.returncode == 0, errors
    library = folder / "kernels.so"
    subprocess.run([*common, "-shared", "-Wl,-Bsymbolic", "-o", library, *objects, "-lpthread"], check=True)
    return library


def without_target(source, folder):
    """A copy of a source that is compiled for the processor at hand."""
    lines = [line for line in source.read_text().splitlines() if not line.startswith("#pragma GCC target")]
    copy = folder / source.name
    copy.write_text("\n".join(lines) + "\n")
    return copy


class Library:
    """One instruction set: the choice is made once per loaded copy."""

    def __init__(self, path, isa):
        copy = path.with_name(f"{isa}-{os.getpid()}.so")
        shutil.copy(path, copy)
        self.isa = isa
        self.threads = 1
        before = os.environ.get("KDENGINE_CPU_ISA")
        os.environ["KDENGINE_CPU_ISA"] = isa
        try:
            self.functions = ctypes.CDLL(str(copy))
            self.functions.harness_instruction_set.restype = ctypes.c_char_p
            self.functions.harness_refusal.restype = ctypes.c_char_p
            self.name = self.functions.harness_instruction_set()
        finally:
            os.environ.pop("KDENGINE_CPU_ISA")
            if before is not None:
                os.environ["KDENGINE_CPU_ISA"] = before
        assert self.functions.harness_problem_size() == ctypes.sizeof(Problem)

    def kd_loss(  # noqa: C901  # it has every argument of the operator
        self,
        student,
        teacher,
        labels=None,
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
        gradients=(True, False),
        out=None,
    ):
        """Returns (loss, soft, hard, student's gradient, teacher's gradient, faults)."""
        dim %= student.ndim
        rows = student.shape[:dim] + student.shape[dim + 1 :]
        outer, inner = student.shape[:dim].numel(), student.shape[dim + 1 :].numel()
        wide = torch.float64 in (student.dtype, teacher.dtype)
        dtype = torch.float64 if wide else torch.float32
        kept = [student, teacher, labels, mask, teacher_indices]

        def matrix(tensor):
            view = tensor.reshape(outer, tensor.shape[dim], inner)
            kept.append(view)
            assert view.numel() == 0 or view.data_ptr() == tensor.data_ptr()
            o, c, i = view.stride()
            return Matrix(view.data_ptr(), DTYPES[view.dtype], view.shape[1], o, c, i)

        def flat(tensor):
            if tensor is None:
                return None
            kept.append(tensor.reshape(-1).contiguous())
            return kept[-1].data_ptr()

        def per_row(value):
            if not isinstance(value, torch.Tensor):
                return PerRow(float(value or 0), None, 2, 0)
            value = value.to(dtype)
            return PerRow(0, flat(value), DTYPES[dtype], 1 if value.ndim else 0)

        p = Problem(outer=outer, inner=inner, wide=wide, student=matrix(student), teacher=matrix(teacher))
        p.beta, p.smoothing, p.ignore_index = beta, label_smoothing, ignore_index
        p.divergence, p.tail = DIVERGENCES.index(divergence), TAILS.index(tail)
        p.reduction, p.soft = REDUCTIONS.index(reduction), isinstance(soft_weight, torch.Tensor) or soft_weight != 0
        p.mask = flat(mask)
        if teacher_indices is not None:
            assert teacher_indices.stride() == teacher.stride()
            p.indices = teacher_indices.data_ptr()
        if labels is not None and labels.is_floating_point():
            p.probabilities = matrix(labels.to(dtype))
        elif labels is not None:
            p.labels = flat(labels.long())
        p.hard = labels is not None and (isinstance(hard_weight, torch.Tensor) or hard_weight != 0)
        p.temperature, p.soft_weight, p.hard_weight = map(per_row, (temperature, soft_weight, hard_weight))
        terms = [torch.full(rows if reduction == "none" else (), 77.0, dtype=dtype) for _ in range(3)]
        p.loss, p.soft_term, p.hard_term = (x.data_ptr() for x in terms)
        found = [None, None]
        if gradients[0]:
            found[0] = torch.full_like(student, 77.0) if out is None else out
            p.student_gradient = matrix(found[0])
        if gradients[1]:
            found[1] = torch.full_like(teacher, 77.0)
            p.teacher_gradient = matrix(found[1])
        faults = self.functions.harness_kd_loss(ctypes.byref(p), self.threads)
        return (*terms, *found, faults)
