"""Which implementation of the operator runs, and why."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kdengine.ops import build, library
from kdengine.ops.arguments import check_choice
from kdengine.ops.build import BuildError
from kdengine.ops.library import EnvironmentSettingError, UnavailableError
from kdengine.ops.sources import CPU, CUDA, Library

VARIABLE = "KDENGINE_BACKEND"
ACCEPTED = ("auto", "compiled", "python")
ISA_VARIABLE = "KDENGINE_CPU_ISA"
INSTRUCTION_SETS = ("avx512", "avx2", "portable")
CUDA_VARIABLE = "KDENGINE_CUDA"

# os.environ encodes its keys and raises for those that are not there: a microsecond in a call of twenty. Below it
# lies a dict, in every Python so far.
_environment: Mapping[Any, Any] = getattr(os.environ, "_data", os.environ)
_variable: Any = os.environ.encodekey(VARIABLE) if hasattr(os.environ, "_data") else VARIABLE

# What was decided for each value of the variable.
_compiled: dict[Any, bool] = {}
_compiled_cuda: dict[Any, bool] = {}


@dataclass(frozen=True)
class BackendInfo:
    """The implementation behind `kdengine.ops.kd_loss`.

    Attributes:
        name: `"compiled"` (C++, and CUDA where `cuda_library` is set) or `"python"` (pure PyTorch).
        reason: one sentence that says why this one was taken.
        library: the file of the compiled library, None without one.
        isa: the instruction set in use, `"avx512"`, `"avx2"` or `"portable"`; None without a library.
        cuda_reason: one sentence that says what computes on CUDA tensors, and why.
        cuda_library: the file of the compiled CUDA library, None without one.
        cuda_archs: the compute capabilities that it has machine code for, such as `("80", "90")`.
    """

    name: str
    reason: str
    library: Path | None = None
    isa: str | None = None
    cuda_reason: str = "CUDA tensors use pure PyTorch as well"
    cuda_library: Path | None = None
    cuda_archs: tuple[str, ...] = ()


def compiled() -> bool:
    """Tell whether `kd_loss` uses the compiled library, which is then loaded.

    The first call loads the library and compiles it before, if need be; later ones look at `KDENGINE_BACKEND` only.

    Raises:
        UnavailableError: `KDENGINE_BACKEND=compiled`, and the library cannot be had.
        EnvironmentSettingError: `KDENGINE_BACKEND`, `KDENGINE_CPU_ISA` or `KDENGINE_CUDA` has an unknown value.
    """
    wanted = _environment.get(_variable)
    decided = _compiled.get(wanted)
    if decided is None:
        decided = _compiled[wanted] = _obtain(CPU)
    return decided


def compiled_cuda() -> bool:
    """Tell whether `kd_loss` uses the compiled library for CUDA tensors; as `compiled`, which must hold as well.

    Raises:
        UnavailableError: `KDENGINE_BACKEND=compiled`, and the library cannot be had.
        EnvironmentSettingError: `KDENGINE_BACKEND`, `KDENGINE_CPU_ISA` or `KDENGINE_CUDA` has an unknown value.
    """
    wanted = _environment.get(_variable)
    decided = _compiled_cuda.get(wanted)
    if decided is None:
        decided = _compiled_cuda[wanted] = compiled() and _obtain(CUDA)
    return decided


# While a graph is traced, the answer is a constant of it: what `torch.compiler.assume_constant_result` does, without
# importing the compiler for it.
for _function in (compiled, compiled_cuda):
    _function._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _obtain(which: Library) -> bool:
    """Load a library if the environment allows it; warn, or raise where pure PyTorch is no alternative."""
    wanted = _wanted()
    if wanted == "python" or (which is CUDA and cuda_is_off()):
        return False
    try:
        library.obtain(which)
    except UnavailableError as error:
        if wanted == "compiled":
            raise UnavailableError(f"{VARIABLE}=compiled, but {error}") from error
        tensors = "" if which is CPU else " for CUDA tensors"
        warnings.warn(f"kd_loss uses pure PyTorch{tensors}, which is slower: {error}", stacklevel=4)
        return False
    library.instruction_set()  # raises if KDENGINE_CPU_ISA names one that is not there
    return True


def _wanted() -> str:
    """The value of `KDENGINE_BACKEND`, checked; those of `KDENGINE_CPU_ISA` and `KDENGINE_CUDA` are checked as well."""
    wanted = os.environ.get(VARIABLE) or "auto"
    try:
        check_choice(VARIABLE, wanted, ACCEPTED)
        check_choice(ISA_VARIABLE, os.environ.get(ISA_VARIABLE) or "portable", INSTRUCTION_SETS)
        check_choice(CUDA_VARIABLE, os.environ.get(CUDA_VARIABLE) or "1", ("0", "1"))
    except ValueError as error:
        raise EnvironmentSettingError(str(error)) from None
    return wanted


def cuda_is_off() -> bool:
    """Whether `KDENGINE_CUDA=0` asks to do without the CUDA library."""
    return os.environ.get(CUDA_VARIABLE) == "0"


def backend_info() -> BackendInfo:
    """Tell which implementation `kd_loss` uses in this process, as far as that is decided; nothing is compiled for it.

    The environment decides: `KDENGINE_BACKEND` is `auto` (the default: compiled if possible), `compiled` or `python`;
    `KDENGINE_CPU_ISA` names an instruction set; `KDENGINE_CUDA=0` leaves the CUDA library out.

    Returns:
        The name of the implementation, the reason for it, and its libraries.

    Raises:
        EnvironmentSettingError: `KDENGINE_BACKEND` or `KDENGINE_CPU_ISA` is unknown or impossible here.

    Example:
        >>> backend_info().name in ("compiled", "python")
        True
    """
    if _wanted() == "python":
        return BackendInfo("python", f"{VARIABLE}=python asks for pure PyTorch")
    found = library.loaded(CPU)
    if found is None:
        return BackendInfo("python", _why_not(CPU))
    info = BackendInfo("compiled", f"the library {found.origin}", found.path, library.instruction_set())
    on_cuda = None if torch.version.cuda is None or cuda_is_off() else library.loaded(CUDA)
    if on_cuda is None:
        return replace(info, cuda_reason=f"CUDA tensors use pure PyTorch: {_why_not(CUDA)}")
    return replace(
        info,
        cuda_reason=f"the CUDA library {on_cuda.origin}",
        cuda_library=on_cuda.path,
        cuda_archs=library.architectures(),
    )


def _why_not(which: Library) -> str:
    if which is CUDA and cuda_is_off():
        return f"{CUDA_VARIABLE}=0 leaves the library out"
    failed = library.failure(which)
    if failed is not None:
        return failed
    try:
        if (reason := build.refused(which)) is not None:
            return reason
        tools = build.find_tools(which)
    except BuildError as error:
        return str(error)
    return f"not compiled yet: the first use does it ({tools.describe()}), or kdengine build ahead"
