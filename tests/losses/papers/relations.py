"""Losses on relations between items or channels, several teachers and self-distillation. See the package's text.

Features s and t are (B, ...) and are flattened to (B, D) unless said otherwise. Vectors of length 0 normalise to
themselves, as they do in the published code with its small constant.
"""

import math

import torch


def _unit(v):
    """v / ||v||_2 of a vector; a zero vector stays zero and gets no gradient."""
    norm = (v.detach() ** 2).sum().sqrt()
    return v / (v * v).sum().sqrt() if norm > 0 else v * 0


def _length(v):
    """||v||_2, with the gradient 0 at 0."""
    return (_unit(v) * v).sum()


def _rows(x):
    return [item.reshape(-1) for item in x]


def _huber(x, y):
    """1/2 (x - y)^2 where |x - y| <= 1, |x - y| - 1/2 elsewhere."""
    d = (x - y).abs()
    return 0.5 * d**2 if d <= 1 else d - 0.5


def _distances(x):
    """{(i, j): ||x_i - x_j|| / mu} for i != j, mu the mean over these pairs."""
    x = _rows(x)
    found = {(i, j): _length(x[i] - x[j]) for i in range(len(x)) for j in range(len(x)) if i != j}
    mean = sum(found.values()) / len(found)
    return {pair: value / mean for pair, value in found.items()}


def rkd_distance(s, t):
    """Scalar: the sum over ordered pairs i != j of huber(d_t(i, j), d_s(i, j)).

    Park, Kim, Lu & Cho 2019 (RKD), section 3.2.1: psi_D(i, j) = ||x_i - x_j|| / mu, mu the mean over all such pairs of
    the batch, its own for student and teacher and part of the gradient; Huber with threshold 1. At least two different
    items.
    """
    a, b = _distances(s), _distances(t)
    return sum(_huber(a[pair], b[pair]) for pair in a)


def rkd_distance_code(s, t):
    """Scalar: rkd_distance / B^2. The authors' code (lenscloth/RKD) averages over all B^2 entries, the B zeros of the
    diagonal too, but takes mu over the B (B - 1) others. It clamps squared distances to at least 1e-12.
    """
    return rkd_distance(s, t) / len(s) ** 2


def _cosines(x):
    """{(i, j, k): cosine of the angle at j} for i, j, k all different."""
    x, n = _rows(x), len(x)
    e = {(i, j): _unit(x[i] - x[j]) for i in range(n) for j in range(n) if i != j}
    return {
        (i, j, k): (e[i, j] * e[k, j]).sum()
        for i in range(n)
        for j in range(n)
        for k in range(n)
        if len({i, j, k}) == 3
    }


def rkd_angle(s, t):
    """Scalar: the sum over ordered triples of different items of huber(cos_t(i, j, k), cos_s(i, j, k)).

    Park et al. 2019 (RKD), section 3.2.2: psi_A = <e_ij, e_kj>, e_ij = (x_i - x_j) / ||x_i - x_j||. 0 for less than 3
    items.
    """
    a, b = _cosines(s), _cosines(t)
    return sum((_huber(a[triple], b[triple]) for triple in a), start=0 * s.sum())


def rkd_angle_code(s, t):
    """Scalar: rkd_angle / B^3. The authors' code averages over all B^3 entries; those with equal indices are 0 as they
    are the same for both (for two indices that are equal and not the vertex, both cosines are 1).
    """
    return rkd_angle(s, t) / len(s) ** 3


def _gram(x):
    x = torch.stack(_rows(x))
    return x @ x.T


def sp(s, t):
    """Scalar: 1 / B^2 || G_t - G_s ||_F^2, G = Q Q^T (B, B) with each row divided by its l2 norm.

    Tung & Mori 2019 (similarity-preserving), L_SP; one pair of layers. RepDistiller's code is the same.
    """
    a, b = (torch.stack([_unit(row) for row in _gram(x)]) for x in (s, t))
    return ((b - a) ** 2).sum() / len(s) ** 2


def cc(s, t, gamma, order):
    """Scalar: 1 / B^2 sum_ij (k(s_i, s_j) - k(t_i, t_j))^2, k = sum_{p=0}^{order} exp(-2 gamma) (2 gamma)^p / p! (x .
    y)^p.

    Peng et al. 2019 (CCKD): the Taylor series of exp(-gamma ||x - y||^2) for vectors of length 1; gamma 0.4 and order 2
    in its experiments. Features are normalised here, which the series needs. The class of this name in RepDistiller
    (mean over neighbouring items of sum |s - t|_i |s - t|_{i+1}) is another loss.
    """

    def kernel(x):
        x = torch.stack([_unit(row) for row in _rows(x)])
        terms = [math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * (x @ x.T) ** p for p in range(order + 1)]
        return sum(terms)

    return ((kernel(s) - kernel(t)) ** 2).sum() / len(s) ** 2


def _kernel(x, i, j, eps=0.0):
    """(cos(x_i, x_j) + 1) / 2; `eps` is added to each norm."""
    a, b = x[i], x[j]
    if eps:
        return ((a / (_length(a) + eps) * (b / (_length(b) + eps))).sum() + 1) / 2
    return ((_unit(a) * _unit(b)).sum() + 1) / 2


def pkt(s, t):
    """Scalar: sum over j and i != j of p(i|j) log(p(i|j) / q(i|j)), p of the teacher and q of the student.

    Passalis & Tefas 2018 (PKT): p(i|j) = K(x_i, x_j) / sum_{k != j} K(x_k, x_j), K the cosine kernel (cos + 1) / 2. An
    item is not its own neighbour; the sum is over all pairs, without a mean. 0 for up to two items.
    """
    a, b, n = _rows(s), _rows(t), len(s)
    value = 0 * s.sum()
    for j in range(n):
        others = [i for i in range(n) if i != j]
        p, q = ([_kernel(x, i, j) for i in others] for x in (b, a))
        for x, y in zip(p, q, strict=True):
            if x > 0:
                value = value + x / sum(p) * ((x / sum(p)).log() - (y / sum(q)).log())
    return value


def pkt_code(s, t, eps=1e-7):
    """Scalar: 1 / B^2 sum over all i, j of p log((p + eps) / (q + eps)), each item its own neighbour too.

    The authors' code (passalis/probabilistic_kt): rows over all B items, the diagonal included, the mean over B^2
    entries, eps added to the norms and inside the logarithm. Not a multiple of pkt.
    """
    a, b, n = _rows(s), _rows(t), len(s)
    value = 0.0
    for i in range(n):
        p, q = ([_kernel(x, i, j, eps) for j in range(n)] for x in (b, a))
        for x, y in zip(p, q, strict=True):
            x, y = x / sum(p), y / sum(q)
            value = value + x * ((x + eps) / (y + eps)).log()
    return value / n**2


def _channels(x):
    """F F^T of one item, F the (C, H W) matrix of its channels."""
    x = x.reshape(x.shape[0], -1)
    return x @ x.T


def icd(s, t):
    """(B,): 1 / C^2 || G_s - G_t ||_F^2, G = F F^T (C, C) of the item's channels over its positions, not divided by H
    W.

    Liu et al. 2021 (ICKD), eq. 3 and 4, for maps (B, C, H, W) with the same C: s is after the 1 x 1 convolution and
    batch norm. Heights and widths may differ.
    """
    return torch.stack([((_channels(a) - _channels(b)) ** 2).sum() / len(a) ** 2 for a, b in zip(s, t, strict=True)])


def icd_code(s, t):
    """(B,): 1 / C || N(G_s) - N(G_t) ||_F^2, N dividing each row by its l2 norm.

    The authors' code (ADLab-AutoDrive/ICKD, Cifar100): rows normalised and one factor C, neither of which is in the
    paper.
    """
    values = []
    for a, b in zip(s, t, strict=True):
        x, y = (torch.stack([_unit(row) for row in _channels(item)]) for item in (a, b))
        values.append(((x - y) ** 2).sum() / len(a))
    return torch.stack(values)


def crd_nce(anchor, positive, negatives, Z, N, T, eps=0.0):
    """(B,): -log h(anchor, positive) - sum_k log(1 - h(anchor, negative_k)), h = P / (P + K / N), P = exp(a . b / T) /
    Z.

    anchor and positive (B, D), negatives (B, K, D), all of length 1; N the number of items in the data set (M in the
    paper), K that of the negatives (N in the paper), Z a constant. Tian, Krishnan & Isola 2020 (CRD), the likelihood of
    the critic and its h, with Z = 1.

    The authors' code (RepDistiller, crd/) divides by Z, see crd_constant, has eps = 1e-7 in P + K / N + eps (so the two
    fractions no longer add up to 1), sums over K, averages over items, and adds the loss with the student as anchor
    against the bank of the teacher to that with the teacher as anchor against the bank of the student. The rows of the
    banks get no gradient.
    """
    noise = negatives.shape[1] / N
    values = []
    for i in range(len(anchor)):
        p = ((anchor[i] * positive[i]).sum() / T).exp() / Z
        value = -(p / (p + noise + eps)).log()
        for k in range(negatives.shape[1]):
            p = ((anchor[i] * negatives[i, k]).sum() / T).exp() / Z
            value = value - (noise / (p + noise + eps)).log()
        values.append(value)
    return torch.stack(values)


def crd_constant(anchor, positive, negatives, N, T):
    """Scalar: N times the mean over items and their 1 + K candidates of exp(a . b / T).

    RepDistiller, crd/memory.py: Z of each side, set once from the first batch. Not in the paper.
    """
    candidates = torch.cat([positive[:, None], negatives], 1)
    return N * torch.stack([(c @ a / T).exp() for a, c in zip(anchor, candidates, strict=True)]).mean()


def crd_update(row, feature, momentum):
    """(B, D): momentum row + (1 - momentum) feature, divided by its length. RepDistiller, crd, momentum 0.5."""
    return torch.stack([_unit(momentum * a + (1 - momentum) * b) for a, b in zip(row, feature, strict=True)])


def _log_probabilities(z, T):
    z = z / T
    z = z - z.max(dim=-1, keepdim=True).values.detach()
    return z - z.exp().sum(-1, keepdim=True).log()


def several_teachers(ts, weights, T):
    """(B, C): sum_k w_k softmax(t_k / T) / sum_k w_k, the target; weights (K,) or per item (B, K).

    Hinton et al. 2015, section 2 (the arithmetic mean of an ensemble's soft targets), and You et al. 2017 (several
    teachers), the mean of the softened outputs: equal weights. The division by the sum of the weights is not in the
    papers; their weights add up to 1.
    """
    weights = torch.as_tensor(weights, dtype=ts[0].dtype)
    weights = weights.expand(len(ts[0]), len(ts))
    mixed = sum(weights[:, k, None] * _log_probabilities(t, T).exp() for k, t in enumerate(ts))
    return mixed / weights.sum(-1, keepdim=True)


def several_teachers_kd(s, ts, weights, T):
    """(B,): T^2 KL(several_teachers || softmax(s / T)), sum over classes; 0 log 0 = 0."""
    p = several_teachers(ts, weights, T)
    log_p = torch.where(p > 0, p, torch.ones_like(p)).log()
    return T**2 * (p * (log_p - _log_probabilities(s, T))).sum(-1)


def confidence_weights(ts, y):
    """(B, K): 1 / (K - 1) (1 - exp(L_k) / sum_j exp(L_j)), L_k the cross entropy of teacher k with the label.

    Zhang, Chen & Wang 2022 (CA-MKD), the weights of predictions. They add up to 1.
    """
    losses = [torch.stack([-_log_probabilities(t, 1)[i, int(y[i])] for i in range(len(y))]).exp() for t in ts]
    return torch.stack([(1 - loss / sum(losses)) / (len(ts) - 1) for loss in losses], -1)


def confidence_kd(s, ts, y, T):
    """(B,): T^2 sum_k w_k KL(softmax(t_k / T) || softmax(s / T)) with the weights above.

    Zhang et al. 2022, the loss of predictions, which is the cross entropy: another value, the same gradient.
    """
    weights = confidence_weights(ts, y)
    value = 0.0
    for k, t in enumerate(ts):
        log_p, log_q = _log_probabilities(t, T), _log_probabilities(s, T)
        value = value + weights[:, k] * T**2 * (log_p.exp() * (log_p - log_q)).sum(-1)
    return value


def confidence_kd_code(s, ts, y, T):
    """(B,): confidence_kd / K. The authors' code (Rorozhl/CA-MKD) divides the sum of the weighted divergences by the
    number of items and by that of the teachers; its weights add up to 1 without that."""
    return confidence_kd(s, ts, y, T) / len(ts)


def dml(s1, s2, T):
    """(first, second), each (B,): T^2 KL(p_2 || p_1) for the first network and T^2 KL(p_1 || p_2) for the second.

    Zhang, Xiang, Hospedales & Lu 2018 (deep mutual learning), D_KL(p_2 || p_1) in the loss of network 1, T = 1, sums
    over items. Each loss trains its own network alone, so the other's distribution is a constant. The authors' code
    averages over items and has 1e-8 inside the logarithm.
    """
    one, two = _log_probabilities(s1, T), _log_probabilities(s2, T)
    first = (two.detach().exp() * (two.detach() - one)).sum(-1)
    second = (one.detach().exp() * (one.detach() - two)).sum(-1)
    return T**2 * first, T**2 * second


def mean_teacher(average, parameter, decay):
    """decay * average + (1 - decay) * parameter, after the student's step.

    Tarvainen & Valpola 2017 (mean teacher), theta'_t = alpha theta'_{t-1} + (1 - alpha) theta_t. The authors' code uses
    min(alpha, 1 - 1 / (step + 1)) for alpha, the true mean over the first steps, and leaves buffers alone.
    """
    return decay * average + (1 - decay) * parameter
