"""Losses on feature maps (B, C, H, W) of student and teacher. See the package's text.

The modules that map one onto the other (regressors, translators) are not here: arguments named `projected`, `mu` or
`sf` are their outputs. A vector of length 0 normalises to itself, as it does in the published code with its small
constant.
"""

import math

import torch


def _unit(v):
    """v / ||v||_2 of a vector; a zero vector stays zero and gets no gradient."""
    norm = (v.detach() ** 2).sum().sqrt()
    return v / (v * v).sum().sqrt() if norm > 0 else v * 0


def _per_item(function, *batches):
    return torch.stack([function(*items) for items in zip(*batches, strict=True)])


def hint(projected, t):
    """(B,): 1/2 sum over all elements of (t - projected)^2.

    Romero et al. 2015 (FitNets), eq. 3, L_HT = 1/2 ||u_h(x) - r(v_g(x))||^2.
    """
    return _per_item(lambda a, b: 0.5 * ((b - a) ** 2).sum(), projected, t)


def hint_code(projected, t):
    """(B,): the mean over all elements of (t - projected)^2, without 1/2. RepDistiller (Tian et al. 2020), HintLoss."""
    return _per_item(lambda a, b: ((b - a) ** 2).mean(), projected, t)


def _attention_maps(S, Tt, p):
    for s, t in zip(S, Tt, strict=True):
        yield tuple(_unit((x.abs() ** p).sum(0).reshape(-1)) for x in (s, t))


def attention(S, Tt, p):
    """(B,): || Q_s / ||Q_s||_2 - Q_t / ||Q_t||_2 ||_2 with Q = vec(sum_c |A_c|^p), one pair of layers.

    Zagoruyko & Komodakis 2017 (AT), eq. 1 (F_sum^p) and eq. 2 without its beta / 2 and with the l2 norm of the paper's
    experiments. The norm, not its square: its gradient is not defined at equal maps.
    """
    return torch.stack([((s - t) ** 2).sum().sqrt() for s, t in _attention_maps(S, Tt, p)])


def attention_code(S, Tt, p):
    """(B,): the mean over the H W positions of the squared differences of the same normalised maps.

    The authors' code (szagoruyko/attention-transfer, at_loss): attention^2 / (H W). The code's mean over channels in
    place of the sum cancels in the normalisation.
    """
    return torch.stack([((s - t) ** 2).mean() for s, t in _attention_maps(S, Tt, p)])


def _mmd(s, t, kernel):
    """MMD^2 between the channels of one item, (C_s, N) and (C_t, N), each channel of length 1."""
    a = [_unit(channel.reshape(-1)) for channel in s]
    b = [_unit(channel.reshape(-1)) for channel in t]
    within_s = sum(kernel(x, y) for x in a for y in a) / len(a) ** 2
    within_t = sum(kernel(x, y) for x in b for y in b) / len(b) ** 2
    across = sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))
    return within_s + within_t - 2 * across


def nst_linear(S, Tt):
    """(B,): MMD^2 with k(x, y) = x . y, which is || mean of unit channels of s - mean of unit channels of t ||^2.

    Huang & Wang 2017 (NST): MMD^2 = 1/C_t^2 sum k(t, t') + 1/C_s^2 sum k(s, s') - 2/(C_s C_t) sum k(t, s), each channel
    flattened to H W values and divided by its l2 norm. The loss in the paper is lambda / 2 times this.
    """
    return _per_item(lambda s, t: _mmd(s, t, lambda x, y: (x * y).sum()), S, Tt)


def nst_polynomial(S, Tt, d=2, c=0.0):
    """(B,): MMD^2 with k(x, y) = (x . y + c)^d, in the paper d = 2 and c = 0: || A_t - A_s ||_F^2 with A = 1/C sum_c
    f_c f_c^T.

    Huang & Wang 2017 (NST), see nst_linear; for d = 2, c = 0 it is || A_t - A_s ||_F^2 with A = 1/C sum_c f_c f_c^T, as
    the paper says of the Gram matrices. The authors' code (TuSimple/neuron-selectivity-transfer, MXNet) leaves the
    teacher's own term out, a constant in s; RepDistiller keeps it detached. Both average over items.
    """
    return _per_item(lambda s, t: _mmd(s, t, lambda x, y: ((x * y).sum() + c) ** d), S, Tt)


def nst_gaussian(S, Tt, variance=None):
    """(B,): MMD^2 with k(x, y) = exp(-||x - y||^2 / (2 variance)).

    Huang & Wang 2017 (NST), see nst_linear; the paper sets the variance to the mean of the squared distances of the
    pairs and does not say which. Here, unless given: all C_s C_t pairs of a channel of the student and one of the
    teacher, item by item, as a constant (no gradient). No published code has this kernel.
    """

    def of_item(s, t):
        width = variance
        if width is None:
            a = [_unit(x.detach().reshape(-1)) for x in s]
            b = [_unit(x.detach().reshape(-1)) for x in t]
            width = sum(((x - y) ** 2).sum() for x in a for y in b) / (len(a) * len(b))
        return _mmd(s, t, lambda x, y: (-((x - y) ** 2).sum() / (2 * width)).exp())

    return _per_item(of_item, S, Tt)


def _flow(first, second):
    """G_ij = sum over positions of first_i second_j, divided by their number; (C_1, C_2)."""
    h, w = first.shape[1:]
    rows = []
    for i in range(first.shape[0]):
        rows.append(torch.stack([(first[i] * second[j]).sum() / (h * w) for j in range(second.shape[0])]))
    return torch.stack(rows)


def fsp(S1, S2, T1, T2):
    """(B,): || G(T1, T2) - G(S1, S2) ||_F^2, the sum over the entries, for one pair of layers of equal height and
    width.

    Yim et al. 2017 (FSP), eq. 1: G_ij = sum_{s,t} F1_{s,t,i} F2_{s,t,j} / (h w); eq. 2: mean over items of the sum over
    pairs of lambda_i ||G_T - G_S||_2^2 (all lambda equal in the paper). Layers of unequal size: max pooling in the
    paper.
    """
    return _per_item(lambda s1, s2, t1, t2: ((_flow(t1, t2) - _flow(s1, s2)) ** 2).sum(), S1, S2, T1, T2)


def fsp_code(S1, S2, T1, T2):
    """(B,): fsp / (C_1 C_2), the mean over the entries. RepDistiller, FSP; unequal sizes by average pooling there."""
    return _per_item(lambda s1, s2, t1, t2: ((_flow(t1, t2) - _flow(s1, s2)) ** 2).mean(), S1, S2, T1, T2)


def margin_relu(t, margin):
    """max(t, margin), margin < 0 a number per channel (C,). Heo et al. 2019 (overhaul, OFD), sigma_m."""
    return torch.maximum(t, margin.reshape(1, -1, 1, 1))


def ofd_margin(mean, std):
    """E[x | x < 0] for x normal with `mean` and `std` per channel: mean - std phi(z) / Phi(-z), z = mean / std.

    Heo et al. 2019 (OFD): m_C = E[F_t | F_t < 0], in the appendix from the bias (mean) and |weight| (std) of the batch
    norm before the layer. By phi(z) / Phi(-z) = sqrt(2 / pi) / erfcx(z / sqrt 2), finite for large z too.
    """
    z = mean / std
    return mean - std * math.sqrt(2 / math.pi) / torch.special.erfcx(z / math.sqrt(2))


def ofd_margin_code(mean, std):
    """ofd_margin, but -3 std where P(x < 0) is at most 0.001. The authors' code, clovaai/overhaul-distillation."""
    values = []
    for m, s in zip(mean.tolist(), std.abs().tolist(), strict=True):
        below = 0.5 * math.erfc(m / s / math.sqrt(2))
        density = math.exp(-0.5 * (m / s) ** 2) / math.sqrt(2 * math.pi)
        values.append(m - s * density / below if below > 0.001 else -3 * s)
    return torch.tensor(values, dtype=mean.dtype)


def partial_l2(s, t):
    """(B,): sum over all elements of 0 where s <= t <= 0 and of (t - s)^2 elsewhere; t after margin_relu.

    Heo et al. 2019 (OFD), d_p. The authors' code has the same sum over the whole batch, divided by the batch size and
    1000 (CIFAR), and by 2^k at the layer k places before the last.
    """
    return _per_item(lambda a, b: torch.where((a <= b) & (b <= 0), 0 * a, (b - a) ** 2).sum(), s, t)


def _vid_terms(mu, t, alpha, eps):
    variance = (1 + alpha.exp()).log() + eps
    variance = variance.reshape(-1, *[1] * (mu.dim() - 2))
    return _per_item(lambda m, x: 0.5 * variance.log() + (x - m) ** 2 / (2 * variance), mu, t)


def vid(mu, t, alpha, eps):
    """(B,): sum over c, h, w of log sigma_c + (t - mu)^2 / (2 sigma_c^2), sigma_c^2 = log(1 + exp(alpha_c)) + eps.

    Ahn et al. 2019 (VID), eq. 5 without its constant (C H W / 2 log 2 pi); eq. 6 for vectors (B, N) is the same.
    """
    return _vid_terms(mu, t, alpha, eps).reshape(len(mu), -1).sum(-1)


def vid_code(mu, t, alpha, eps):
    """(B,): vid / (C H W), the mean over c, h, w. RepDistiller, VIDLoss: eps 1e-5, sigma^2 starts at 5."""
    return _vid_terms(mu, t, alpha, eps).reshape(len(mu), -1).mean(-1)


def _pooled(x, size, reduce=lambda cell: cell.mean((1, 2))):
    """Average pooling of (C, H, W) to (C, size, size), or to a (height, width).

    Bin i of `size` holds floor(i H / size) up to ceil((i + 1) H / size).
    """
    _, h, w = x.shape
    height, width = (size, size) if isinstance(size, int) else size
    rows = []
    for i in range(height):
        top, bottom = i * h // height, -(-(i + 1) * h // height)
        cells = []
        for j in range(width):
            left, right = j * w // width, -(-(j + 1) * w // width)
            cells.append(reduce(x[:, top:bottom, left:right]))
        rows.append(torch.stack(cells, -1))
    return torch.stack(rows, -2)


def one_size(x, y, max_=False):
    """Both (B, C, H, W) in the smaller height and width of the two: by max pooling (Yim et al. 2017, section 3.2) or
    by average pooling (RepDistiller)."""
    size = tuple(min(sizes) for sizes in zip(x.shape[2:], y.shape[2:], strict=True))
    reduce = (lambda cell: cell.flatten(1).max(1).values) if max_ else (lambda cell: cell.mean((1, 2)))
    return tuple(torch.stack([_pooled(item, size, reduce) for item in maps]) for maps in (x, y))


def hcl(s, t):
    """(B,): (m_0 + 1/2 m_4 + 1/4 m_2 + 1/8 m_1) / (1 + 1/2 + 1/4 + 1/8).

    m_l is the mean of the squared differences after average pooling to l x l, m_0 that of the full maps. Chen et al.
    2021 (ReviewKD), the hierarchical context loss, described in the paper without an equation; this is the authors'
    code (function hcl), which sums over the pairs of layers. A level that is not below the height is left out and the
    weights begin at 1/2 with the first level that is not: at height 4, level 2 has 1/2 and level 1 has 1/4.
    """

    def of_item(a, b):
        value, total, weight = ((a - b) ** 2).mean(), 1.0, 1.0
        for level in (4, 2, 1):
            if level >= a.shape[1]:
                continue
            weight /= 2
            value = value + weight * ((_pooled(a, level) - _pooled(b, level)) ** 2).mean()
            total += weight
        return value / total

    return _per_item(of_item, s, t)


def cosine(s, t):
    """(B,): the mean over positions of 1 - cos(s, t), vectors along dimension 1 of maps (B, C, ...) or (B, C).

    No single paper. A position where either vector is zero counts 1.
    """

    def of_item(a, b):
        a, b = a.reshape(a.shape[0], -1).T, b.reshape(b.shape[0], -1).T
        return torch.stack([1 - (_unit(x) * _unit(y)).sum() for x, y in zip(a, b, strict=True)]).mean()

    return _per_item(of_item, s, t)


def ab(projected, t, margin):
    """(B,): sum over all elements of max(0, margin - s)^2 where t > 0 and of max(0, margin + s)^2 elsewhere.

    Heo et al. 2019 (AAAI, activation boundaries): || rho(T) o sigma(mu 1 - r(S)) + (1 - rho(T)) o sigma(mu 1 + r(S))
    ||_2^2, rho(x) = 1 for x > 0, sigma the ReLU, features before their ReLU. The authors' code (bhheo/AB_distillation)
    has margin 1, the sum divided by the batch size, by 2^k at the layer k places before the last, and times 3 / 1000.
    """

    def of_item(a, b):
        return torch.where(b > 0, (margin - a).clamp(min=0), (margin + a).clamp(min=0)).pow(2).sum()

    return _per_item(of_item, projected, t)


def factor(sf, tf, p):
    """(B,): || F_t / ||F_t||_2 - F_s / ||F_s||_2 ||_p, factors flattened per item.

    Kim, Park & Kwak 2018 (factor transfer), L_FT; p = 1 in its experiments.
    """
    return _per_item(lambda a, b: (_unit(b.reshape(-1)) - _unit(a.reshape(-1))).abs().pow(p).sum().pow(1 / p), sf, tf)


def factor_code(sf, tf, p):
    """(B,): the mean over elements of |difference|^p, without the root.

    The authors' code (Jangho-Kim/Factor-Transfer-pytorch) for p = 1: factor / number of elements, weighted by beta =
    500. RepDistiller first squares the factors and averages them over channels, which neither the paper nor that code
    does.
    """
    return _per_item(lambda a, b: (_unit(b.reshape(-1)) - _unit(a.reshape(-1))).abs().pow(p).mean(), sf, tf)
