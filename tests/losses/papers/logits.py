"""Losses on logits: s and t are (B, C) logits of student and teacher, y are (B,) labels. See the package's text."""

import torch


def _log_probabilities(z, T=1.0):
    """log softmax(z / T) over the last dimension."""
    z = z / T
    z = z - z.max(dim=-1, keepdim=True).values.detach()
    return z - z.exp().sum(-1, keepdim=True).log()


def _kl(log_p, log_q):
    """Sum over the last dimension of p (log p - log q)."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _label_loss(z, y):
    """-log softmax(z)_y, one value per item."""
    log_p = _log_probabilities(z)
    return torch.stack([-log_p[i, int(y[i])] for i in range(len(y))])


def _without(z, y):
    """The logits of the classes that are not the label, (B, C - 1)."""
    return torch.stack([torch.cat([z[i, : int(y[i])], z[i, int(y[i]) + 1 :]]) for i in range(len(y))])


def kd(s, t, T):
    """(B,): T^2 KL(softmax(t/T) || softmax(s/T)), sum over classes.

    Hinton, Vinyals & Dean 2015, eq. 1 (softmax with temperature) and section 2 (cross entropy with the soft targets,
    its gradient scaled by T^2). The paper writes the cross entropy, see soft_ce; the KL differs by a constant in s.
    """
    return T**2 * _kl(_log_probabilities(t, T), _log_probabilities(s, T))


def soft_ce(s, t, T):
    """(B,): T^2 * -sum_c softmax(t/T)_c log softmax(s/T)_c. Hinton et al. 2015, section 2."""
    return T**2 * -(_log_probabilities(t, T).exp() * _log_probabilities(s, T)).sum(-1)


def reverse_kl(s, t, T):
    """(B,): T^2 KL(softmax(s/T) || softmax(t/T)), sum over classes.

    Gu, Dong, Wei & Huang 2024 (MiniLLM), section 2: the divergence KL(q_theta || p), there between sequences and
    without a temperature (T = 1); here for the distribution of one token or item.
    """
    return T**2 * _kl(_log_probabilities(s, T), _log_probabilities(t, T))


def jsd(s, t, T, beta):
    """(B,): T^2 (beta KL(p || m) + (1 - beta) KL(q || m)), m = beta p + (1 - beta) q, p teacher, q student.

    Agarwal et al. 2024 (GKD), eq. 1, with P the teacher; no T^2 in the paper. The equation gives 0 for beta 0 and 1;
    the code of TRL gives KL(p || q) at beta 0 and KL(q || p) at beta 1 instead, the limits of jsd / beta and jsd / (1 -
    beta).
    """
    log_p, log_q = _log_probabilities(t, T), _log_probabilities(s, T)
    if beta in (0, 1):
        return 0 * log_q.sum(-1)
    left = log_p + torch.tensor(float(beta), dtype=s.dtype).log()
    right = log_q + torch.tensor(1 - float(beta), dtype=s.dtype).log()
    log_m = torch.logaddexp(left, right)
    return T**2 * (beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m))


def tvd(s, t, T):
    """(B,): T^2 / 2 sum_c |softmax(s/T)_c - softmax(t/T)_c|.

    Wen, Li, Du & Mou 2023 (f-DISTILL), the total variation distance of one step; no temperature in the
    paper. The published code is the same at T = 1, with the mean over tokens.
    """
    return T**2 * 0.5 * (_log_probabilities(s, T).exp() - _log_probabilities(t, T).exp()).abs().sum(-1)


def logit_mse(s, t, center):
    """(B,): sum_c (s_c - t_c)^2; with `center` both have their mean over classes taken off first.

    Kim et al. 2021 ("Comparing KL divergence and MSE loss in KD"), L_MSE = ||z_s - z_t||_2^2, a sum over classes. The
    centring is Hinton et al. 2015, section 2.1: 2 C kd(s, t, T) tends to the centred sum as T grows.
    """
    if center:
        s, t = s - s.mean(-1, keepdim=True), t - t.mean(-1, keepdim=True)
    return ((s - t) ** 2).sum(-1)


def logit_mse_code(s, t, center):
    """(B,): logit_mse / C. The code of Kim et al. 2021 uses the mean over classes (and items)."""
    return logit_mse(s, t, center) / s.shape[-1]


def dkd(s, t, y, T, alpha, beta):
    """(target, non_target), each (B,): alpha T^2 TCKD and beta T^2 NCKD.

    Zhao, Cui, Song, Qiu & Liang 2022 (DKD), eq. 7: alpha TCKD + beta NCKD. TCKD = KL(b_t || b_s) of the two
    probabilities (p_y, 1 - p_y); NCKD = KL of the distributions over the classes other than y, renormalised. T^2 is the
    code's. The code takes the label out by -1000 added to its logit divided by T, the same unless the logits are that
    large.
    """
    log_s, log_t = _log_probabilities(s, T), _log_probabilities(t, T)
    target = []
    for i in range(len(y)):
        both = []
        for log_p in (log_t[i], log_s[i]):
            label = log_p[int(y[i])]
            others = torch.cat([log_p[: int(y[i])], log_p[int(y[i]) + 1 :]]).logsumexp(0)
            both.append(torch.stack([label, others]))
        target.append(_kl(both[0], both[1]))
    non_target = _kl(_log_probabilities(_without(t, y), T), _log_probabilities(_without(s, y), T))
    return alpha * T**2 * torch.stack(target), beta * T**2 * non_target


def nkd(s, t, y, T, gamma):
    """(target, non_target), each (B,): -t_y log s_y at temperature 1, and -gamma T^2 sum_{i != y} N(t_i) log N(s_i).

    Yang et al. 2023 (ICCV, NKD): L = -T_t log S_t - gamma lambda^2 sum_{i != t} N(T_i^lambda) log N(S_i^lambda), lambda
    the temperature, N the division by the sum over the classes other than the label. The published code is the same,
    t_y detached.
    """
    log_s, log_t = _log_probabilities(s), _log_probabilities(t)
    target = torch.stack([-log_t[i, int(y[i])].exp() * log_s[i, int(y[i])] for i in range(len(y))])
    n_t, n_s = _log_probabilities(_without(t, y), T).exp(), _log_probabilities(_without(s, y), T)
    return target, -gamma * T**2 * (n_t * n_s).sum(-1)


def _pearson(u, v, eps):
    """Pearson's correlation of two vectors; `eps` is added to the product of the norms."""
    u, v = u - u.mean(), v - v.mean()
    return (u * v).sum() / ((u * u).sum().sqrt() * (v * v).sum().sqrt() + eps)


def dist(s, t, T, beta, gamma, eps=0.0):
    """(inter, intra), scalars: beta T^2 (mean over items) and gamma T^2 (mean over classes) of 1 - Pearson's
    correlation.

    Huang et al. 2022 (DIST): L_inter = 1/B sum_i d(Y_s[i, :], Y_t[i, :]), L_intra = 1/C sum_j d(Y_s[:, j], Y_t[:, j]),
    d = 1 - rho, Y = softmax(z / T). The total has beta and gamma. T^2 is not in the paper; later copies of the code
    have it. The code adds eps = 1e-8 to the product of the norms: a column (class) whose probabilities vary by less
    than about 1e-4 in norm then counts as uncorrelated. The correlation of one item's column is 0/0: an error here.
    """
    if len(s) < 2:
        raise ValueError("the correlation over a batch of one item is not defined")
    p, q = _log_probabilities(t, T).exp(), _log_probabilities(s, T).exp()
    inter = torch.stack([1 - _pearson(q[i], p[i], eps) for i in range(p.shape[0])]).mean()
    intra = torch.stack([1 - _pearson(q[:, j], p[:, j], eps) for j in range(p.shape[1])]).mean()
    return beta * T**2 * inter, gamma * T**2 * intra


def wsld(s, t, y, T, eps=0.0):
    """(B,): (1 - exp(-L_s / L_t)) T^2 * -sum_c softmax(t/T)_c log softmax(s/T)_c, the weight a constant.

    Zhou et al. 2021 (ICLR, weighted soft labels), L_s and L_t the cross entropies with the label at temperature 1. The
    code detaches the weight and has eps = 1e-7 added to L_t. The factor before the mean of the items is alpha (2.5 on
    ImageNet).
    """
    ratio = _label_loss(s, y).detach() / (_label_loss(t, y).detach() + eps)
    return (1 - (-ratio).exp()) * soft_ce(s, t, T)


def multi_level(s, t, temperatures):
    """(instance, batch, class), scalars, each a sum over the temperatures T of

    * instance: T^2 * mean over items of KL(p || q),
    * batch: 1/B ||P P^T - Q Q^T||_F^2, matrices (B, B),
    * class: 1/C ||P^T P - Q^T Q||_F^2, matrices (C, C),

    with p, P of the teacher and q, Q of the student at T.

    Jin, Wang & Lin 2023 (Multi-level logit distillation). Paper: the instance level is a sum over
    items and has no T^2. Code (used here): mean over items, and T^2 for the instance level only. The released trainer
    also multiplies by a mask of the less confident half: of the items for the instance and batch levels, of the classes
    for the class level. As it masks values that are already scalars it only halves them. It adds the strong view at the
    instance level alone.
    """
    instance = batch = by_class = 0.0
    for T in temperatures:
        p, q = _log_probabilities(t, T).exp(), _log_probabilities(s, T).exp()
        instance = instance + kd(s, t, T).mean()
        batch = batch + ((p @ p.T - q @ q.T) ** 2).sum() / p.shape[0]
        by_class = by_class + ((p.T @ p - q.T @ q) ** 2).sum() / p.shape[1]
    return instance, batch, by_class


def hard(s, t):
    """(B,): -log softmax(s) at argmax t. Touvron et al. 2021 (DeiT), eq. 3, the second term without its factor 1/2."""
    return _label_loss(s, t.argmax(-1))


def mse(s, t):
    """(B,): the mean of (s - t)^2 over all dimensions but the first. No paper."""
    return ((s - t) ** 2).reshape(len(s), -1).mean(-1)


def _log_sigmoid(z):
    """log sigmoid(z) = -log(exp(0) + exp(-z))."""
    return -torch.logaddexp(torch.zeros_like(z), -z)


def bce(s, t, T):
    """(B,): T^2 * mean over labels of the cross entropy of sigmoid(t/T) and sigmoid(s/T) as Bernoulli. No paper."""
    p = torch.sigmoid(t / T)
    return T**2 * -(p * _log_sigmoid(s / T) + (1 - p) * _log_sigmoid(-s / T)).mean(-1)


def binary_kl(s, t, T):
    """(B,): T^2 * sum over labels of KL(Bernoulli(sigmoid(t/T)) || Bernoulli(sigmoid(s/T))).

    Yang et al. 2023 (Multi-label knowledge distillation, L2D), L_MLD: sum over labels, mean over items, no temperature.
    The code clamps the probabilities to [1e-8, 1 - 1e-8].
    """
    on, off = _log_sigmoid(t / T), _log_sigmoid(-t / T)
    terms = on.exp() * (on - _log_sigmoid(s / T)) + off.exp() * (off - _log_sigmoid(-s / T))
    return T**2 * terms.sum(-1)


def standardize(v, eps, unbiased):
    """(v - mean) / (std + eps) over the last dimension.

    Sun et al. 2024 (Logit standardization in KD), algorithm 1, before its division by the temperature: the deviation
    of the population, 1/K (unbiased False), and eps 0. Published code: torch's std, 1/(K - 1) (unbiased True), and
    eps 1e-7.
    """
    centred = v - v.mean(-1, keepdim=True)
    n = v.shape[-1] - 1 if unbiased else v.shape[-1]
    return centred / (((centred**2).sum(-1, keepdim=True) / n).sqrt() + eps)
