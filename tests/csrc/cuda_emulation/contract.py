"""csrc/problem.h in ctypes, and a `Problem` from the arguments of `kd_loss`."""

import ctypes as c

import torch

DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
DIVERGENCES = {"forward_kl": 0, "reverse_kl": 1, "jsd": 2}
TAILS = {"bin": 0, "renormalize": 1}
REDUCTIONS = {"none": 0, "sum": 1, "mean": 2}


class Matrix(c.Structure):
    _fields_ = (
        ("data", c.c_void_p),
        ("dtype", c.c_int32),
        ("classes", c.c_int64),
        ("outer", c.c_int64),
        ("step", c.c_int64),
        ("inner", c.c_int64),
    )


class PerRow(c.Structure):
    _fields_ = (("number", c.c_double), ("values", c.c_void_p), ("dtype", c.c_int32), ("stride", c.c_int64))


class Problem(c.Structure):
    _fields_ = (
        ("outer", c.c_int64),
        ("inner", c.c_int64),
        ("wide", c.c_bool),
        ("student", Matrix),
        ("teacher", Matrix),
        ("indices", c.c_void_p),
        ("tail", c.c_int32),
        ("labels", c.c_void_p),
        ("probabilities", Matrix),
        ("ignore_index", c.c_int64),
        ("smoothing", c.c_double),
        ("mask", c.c_void_p),
        ("divergence", c.c_int32),
        ("beta", c.c_double),
        ("reduction", c.c_int32),
        ("soft", c.c_bool),
        ("hard", c.c_bool),
        ("temperature", PerRow),
        ("soft_weight", PerRow),
        ("hard_weight", PerRow),
        ("loss", c.c_void_p),
        ("soft_term", c.c_void_p),
        ("hard_term", c.c_void_p),
        ("student_gradient", Matrix),
        ("teacher_gradient", Matrix),
    )


def planes(tensor, dim):
    """The tensor as (outer, classes, inner), without a copy."""
    shape = tensor.shape
    outer, inner = shape[:dim].numel(), shape[dim + 1 :].numel()
    return tensor.view(outer, shape[dim], inner)


def viewable(tensor, dim):
    """The tensor, copied only where its rows cannot be numbered by two strides."""
    try:
        planes(tensor, dim)
    except RuntimeError:
        return tensor.contiguous()
    return tensor


def matrix(tensor, dim):
    if tensor is None:
        return Matrix()
    x = planes(tensor, dim)
    return Matrix(x.data_ptr(), DTYPES[x.dtype], x.shape[1], x.stride(0), x.stride(1), x.stride(2))


def per_row(value, keep):
    if value is None:
        return PerRow()
    if not isinstance(value, torch.Tensor):
        return PerRow(value, None, 2, 0)
    value = value.detach()
    if value.dtype not in (torch.float32, torch.float64):
        value = value.float()
    value = value.reshape(-1)
    keep.append(value)
    return PerRow(0, value.data_ptr(), DTYPES[value.dtype], value.stride(0) if value.numel() > 1 else 0)


def pointer(tensor, keep):
    if tensor is None:
        return None
    tensor = tensor.contiguous()
    keep.append(tensor)
    return tensor.data_ptr()
