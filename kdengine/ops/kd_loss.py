"""The public function."""

from typing import Literal, overload

from torch import Tensor

from kdengine.ops import compiled, reference
from kdengine.ops.terms import Terms


@overload
def kd_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float | Tensor = 1.0,
    soft_weight: float | Tensor = 1.0,
    hard_weight: float | Tensor | None = None,
    mask: Tensor | None = None,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    dim: int = -1,
    teacher_indices: Tensor | None = None,
    tail: str = "bin",
    return_terms: Literal[False] = False,
) -> Tensor: ...


@overload
def kd_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float | Tensor = 1.0,
    soft_weight: float | Tensor = 1.0,
    hard_weight: float | Tensor | None = None,
    mask: Tensor | None = None,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    dim: int = -1,
    teacher_indices: Tensor | None = None,
    tail: str = "bin",
    return_terms: Literal[True],
) -> Terms: ...


@overload
def kd_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float | Tensor = 1.0,
    soft_weight: float | Tensor = 1.0,
    hard_weight: float | Tensor | None = None,
    mask: Tensor | None = None,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    dim: int = -1,
    teacher_indices: Tensor | None = None,
    tail: str = "bin",
    return_terms: bool,
) -> Tensor | Terms: ...


def kd_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float | Tensor = 1.0,
    soft_weight: float | Tensor = 1.0,
    hard_weight: float | Tensor | None = None,
    mask: Tensor | None = None,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    dim: int = -1,
    teacher_indices: Tensor | None = None,
    tail: str = "bin",
    return_terms: bool = False,
) -> Tensor | Terms:
    r"""Distillation loss of every row: T^2 times a divergence of softened outputs, plus hard-label cross-entropy.

    With p_t = softmax(teacher / T) and p_s = softmax(student / T), a row's loss is::

        soft_weight * T^2 * D(p_t, p_s) + hard_weight * CE(softmax(student), labels)

    This is the objective of Hinton, Vinyals and Dean (2015), "Distilling the Knowledge in a Neural Network",
    arXiv:1503.02531: eq. 1 is the softened softmax, and by eq. 2 to 4 gradients of the soft term shrink as
    1 / T^2, so section 2 multiplies it by T^2 to keep both terms' proportions while T changes. The paper's soft
    term is a cross-entropy; the divergences here differ from it by the teacher's entropy, a constant, and are
    zero at student == teacher. `divergence` is one of:

    * `"forward_kl"`: KL(p_t || p_s) = sum p_t (log p_t - log p_s);
    * `"reverse_kl"`: KL(p_s || p_t);
    * `"jsd"`: beta KL(p_t || m) + (1 - beta) KL(p_s || m) with m = beta p_t + (1 - beta) p_s, the generalised
      Jensen-Shannon divergence of Agarwal et al. (2024), "On-Policy Distillation of Language Models" (GKD),
      arXiv:2306.13649.

    **Shapes.** `student` is (..., V) and `teacher` (..., V) with the classes in dimension `dim`; a *row* is
    one index of all other dimensions. With unequal class counts the soft term sees the leading classes that
    both have (the others are removed from their softmax); the hard term sees all of the student's classes.

    **Masks.** A logit of -inf is a class that does not exist: probability 0, contribution 0, gradient 0, also
    where both sides are -inf. A class that the teacher gives mass and the student masks costs +inf under
    forward KL, with a finite gradient; the mirror case costs +inf under reverse KL, with a gradient that is
    huge or infinite but not NaN. A row whose classes are all -inf has no distribution and gives NaN. Rows
    without part in a term (`mask` False, weight exactly 0, or no label) are not read by it and cannot spread NaN.

    **Teacher as top-k.** With `teacher_indices`, `teacher` holds k values per row and `teacher_indices` the
    student's class of each, without repetition. A value of -inf marks an entry as absent (padding for rows
    with fewer than k), and its index is not read. Classes that are not listed are handled by `tail`:

    * `"bin"`: all of them are one more outcome, whose teacher mass is 1 - sum exp(values). The values must
      therefore be **log-probabilities over all classes at temperature 1** (`log_softmax(...).topk(k)`, or the
      log-probabilities an inference server returns), not raw logits. Both sides' k + 1 outcomes at T = 1 are
      what T then softens. At T = 1 this is exactly the divergence of the binned distributions, a lower bound
      of the full one; at k = V it is the full one at every T. At other T it is no bound of the full
      divergence, which top-k values cannot give. A student with no unlisted class has no bin.
    * `"renormalize"`: both softmaxes run over the listed classes only, so the values may be logits or
      log-probabilities alike, at every T. Unlisted classes get no gradient.

    **Precision.** Everything is computed in float32 (float64 if an input is float64), under autocast too; the
    gradient has its input's dtype. p_s - p_t is computed without cancellation, so high temperatures and nearly
    equal inputs keep their digits, and bitwise equal inputs give exactly zero loss and gradient.

    **Gradient.** It is computed in the forward pass; backward only scales it. It flows to the student, and to
    the teacher if that requires grad. There is no second derivative: backward with `create_graph=True` raises.

    **Cost.** The compiled operator reads each logit once and writes the gradient of each input that needs one once:
    with float32, 12 bytes per element for a student's gradient. The gradient is kept for backward, logits are not,
    and nothing else of their size exists, but for copies of inputs whose dimensions beside `dim` have no common
    stride. Pure PyTorch, which runs where there is no compiled library (`backend_info` tells), holds about eight
    temporaries of the logits' size and makes about 35 small operations. Neither synchronizes with an accelerator.

    Args:
        student: logits, (..., V), float16, bfloat16, float32 or float64.
        teacher: logits, (..., V), of any of these dtypes on the same device; or top-k values, (..., k).
        labels: integer class ids of the student's shape without `dim`, or probabilities (floating point) of the
            student's shape. A row of all-zero probabilities is unlabelled and ignored in the hard term.
        temperature: T > 0, softens both outputs: a number, a 0-dim tensor, or one value per row.
        soft_weight: factor of the soft term; number, 0-dim tensor, or one value per row.
        hard_weight: factor of the hard term, likewise; required with labels, and only with labels.
        mask: bool, one per row; False takes the row out of both terms.
        divergence: `"forward_kl"`, `"reverse_kl"` or `"jsd"`.
        beta: the teacher's part in the mixture of `"jsd"`, strictly between 0 and 1.
        label_smoothing: the share of the label spread evenly over all classes, as in
            `torch.nn.functional.cross_entropy`; masked classes (-inf) then cost +inf.
        ignore_index: the class id that takes a row out of the hard term (not out of the soft term).
        reduction: `"mean"` divides each term by its own number of rows (masked, and for the hard term
            unlabelled rows do not count; rows of zero weight do; no rows give 0), `"sum"`, or `"none"`.
        dim: the class dimension.
        teacher_indices: integer class ids of the teacher's shape, for a teacher given as top-k.
        tail: `"bin"` or `"renormalize"`: what happens to the classes that a top-k teacher does not list.
        return_terms: also return the weighted, reduced soft and hard terms, which are detached.

    Returns:
        The loss in nats (times the weights), float32 or float64: 0-dim, or for `reduction="none"` one value per
        row in the student's shape without `dim`. With `return_terms`, the triple (loss, soft, hard) with
        loss == soft + hard; a term that was not asked for is zero.

    Raises:
        ValueError: shapes or devices disagree, a word is unknown, a number is out of range, labels and
            `hard_weight` do not come together, or temperature or a weight requires grad. On the CPU, outside
            `torch.compile`, also labels, indices and temperatures out of range and top-k values that
            are no log-probabilities; elsewhere these give NaN in their rows, as the check would have to wait.
        TypeError: an argument has the wrong type or dtype.
        RuntimeError: a second derivative is asked for, or a gradient inside a `torch.func` transform.

    Example:
        >>> import torch
        >>> student = torch.tensor([[2.0, 0.0, -2.0], [0.5, 0.5, 0.5]], requires_grad=True)
        >>> teacher = torch.tensor([[1.0, 1.0, -4.0], [0.5, 0.5, 0.5]])
        >>> loss = kd_loss(student, teacher, temperature=2.0)
        >>> loss.backward()
        >>> round(loss.item(), 4), student.grad[1].tolist()
        (0.2696, [0.0, 0.0, 0.0])
        >>> labels = torch.tensor([0, -100])  # the second row has no label
        >>> loss, soft, hard = kd_loss(
        ...     student, teacher, labels, temperature=2.0, hard_weight=0.1, return_terms=True
        ... )
        >>> round(hard.item(), 4)
        0.0143
    """
    options = (
        temperature,
        soft_weight,
        hard_weight,
        mask,
        divergence,
        beta,
        label_smoothing,
        ignore_index,
        reduction,
        dim,
        teacher_indices,
        tail,
    )
    run = compiled.kd_loss if compiled.takes(student) else reference.kd_loss
    return run(student, teacher, labels, options, return_terms)
