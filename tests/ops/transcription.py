"""The formulas of kd_loss written out plainly, row by row, in float64 with autograd: what the operator must equal."""

import math

import torch


def divergence(p, q, kind, beta):
    """p is the teacher's distribution, q the student's; zero probability contributes zero."""
    if kind == "forward_kl":
        return kl(p, q)
    if kind == "reverse_kl":
        return kl(q, p)
    middle = beta * p + (1 - beta) * q
    return beta * kl(p, middle) + (1 - beta) * kl(q, middle)


def kl(p, q):
    live = p > 0
    return (p[live] * (p[live].log() - q[live].log())).sum()


def soft_row(s, t, temperature, kind, beta):
    live = ~(s.isneginf() & t.isneginf())
    p = torch.softmax(t[live] / temperature, 0)
    q = torch.softmax(s[live] / temperature, 0)
    return temperature**2 * divergence(p, q, kind, beta)


def accurate_forward_kl_row(s, t, temperature):
    """Forward KL through log_softmax: where probabilities underflow but their logarithms matter."""
    log_p, log_q = (t / temperature).log_softmax(0), (s / temperature).log_softmax(0)
    live = log_p.exp() > 0
    return temperature**2 * (log_p[live].exp() * (log_p[live] - log_q[live])).sum()


def accurate_reverse_kl_row(s, t, temperature):
    return accurate_forward_kl_row(t, s, temperature)


def hard_row(s, label, smoothing):
    log_q = s.log_softmax(0)
    if label.ndim == 0:
        label = torch.nn.functional.one_hot(label, len(s)).double()
    target = (1 - smoothing) * label + smoothing / len(s)
    live = target > 0
    return -(target[live] * log_q[live]).sum()


def bin_row(s, v, indices):
    """The student's logits and the teacher's log-probabilities over the listed classes and the rest."""
    listed = [int(i) for i, x in zip(indices, v, strict=True) if x != -math.inf]
    values = [x for x in v if x != -math.inf]
    others = [i for i in range(len(s)) if i not in listed]
    log_q = s.log_softmax(0)
    student = [log_q[i] for i in listed] + ([log_q[others].exp().sum().log()] if others else [])
    tail = [(1 - sum(x.exp() for x in values)).log()] if others else []
    return torch.stack(student), torch.stack(values + tail)


def rows_of(tensor, dim):
    """All rows of a tensor, as a (rows, classes) matrix."""
    return tensor.movedim(dim, -1).reshape(-1, tensor.shape[dim])


def per_row(value, rows):
    if isinstance(value, torch.Tensor):
        return value.double().reshape(-1).expand(rows).tolist()
    return [float(value)] * rows


def loss(
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
):
    s, t = rows_of(student.double(), dim), rows_of(teacher.double(), dim)
    shared = min(s.shape[1], t.shape[1])
    n = len(s)
    temperatures, soft_weights = per_row(temperature, n), per_row(soft_weight, n)
    hard_weights = per_row(0.0 if hard_weight is None else hard_weight, n)
    keep = [True] * n if mask is None else mask.reshape(-1).tolist()
    if labels is not None and labels.is_floating_point():
        labels = rows_of(labels.double(), dim)
        labelled = [bool((row != 0).any()) for row in labels]
    elif labels is not None:
        labels = labels.reshape(-1)
        labelled = (labels != ignore_index).tolist()
    else:
        labelled = [False] * n
    soft, hard = [], []
    for i in range(n):
        zero = torch.zeros((), dtype=torch.float64)
        live = keep[i] and soft_weights[i] != 0
        kind = {"forward_kl": accurate_forward_kl_row, "reverse_kl": accurate_reverse_kl_row}.get(divergence)
        if live and kind and not (s[i].isinf().any() or t[i].isinf().any()):
            soft.append(soft_weights[i] * kind(s[i, :shared], t[i, :shared], temperatures[i]))
        elif live:
            row = soft_row(s[i, :shared], t[i, :shared], temperatures[i], divergence, beta)
            soft.append(soft_weights[i] * row)
        else:
            soft.append(zero)
        live = keep[i] and labelled[i] and hard_weights[i] != 0
        hard.append(hard_weights[i] * hard_row(s[i], labels[i], label_smoothing) if live else zero)
    return combine(soft, hard, keep, labelled, reduction, student.select(dim, 0).shape)


def combine(soft, hard, keep, labelled, reduction, shape):
    if not soft:
        return torch.zeros(shape if reduction == "none" else (), dtype=torch.float64)
    soft, hard = torch.stack(soft), torch.stack(hard)
    if reduction == "none":
        return (soft + hard).reshape(shape)
    if reduction == "sum":
        return soft.sum() + hard.sum()
    count = max(1, sum(keep))
    hard_count = max(1, sum(k and y for k, y in zip(keep, labelled, strict=True)))
    return soft.sum() / count + hard.sum() / hard_count
