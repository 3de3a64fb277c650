import math

import pytest
import torch

from tests.losses.papers import logits

LOG = math.log


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


S = f64([[LOG(0.2), LOG(0.3), LOG(0.5)]])
T = f64([[LOG(0.6), LOG(0.3), LOG(0.1)]])
Y = torch.tensor([0])
KL = 0.6 * LOG(3) + 0.1 * LOG(0.2)


def near(value, expected):
    torch.testing.assert_close(value, torch.as_tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class TestLogits:
    def test_the_divergences_of_two_known_distributions(self):
        near(logits.kd(S, T, 1), [KL])
        near(logits.reverse_kl(S, T, 1), [0.2 * LOG(1 / 3) + 0.5 * LOG(5)])
        near(logits.tvd(S, T, 1), [0.4])
        near(logits.soft_ce(S, T, 1), [-(0.6 * LOG(0.2) + 0.3 * LOG(0.3) + 0.1 * LOG(0.5))])
        near(logits.hard(S, T), [-LOG(0.2)])

    def test_the_temperature_divides_the_logits_and_its_square_multiplies_the_value(self):
        near(logits.kd(2 * S, 2 * T, 2), [4 * KL])
        near(logits.tvd(3 * S, 3 * T, 3), [9 * 0.4])

    def test_jsd_of_two_known_distributions(self):
        mixture = [0.25 * p + 0.75 * q for p, q in ((0.6, 0.2), (0.3, 0.3), (0.1, 0.5))]
        left = 0.6 * LOG(0.6 / mixture[0]) + 0.3 * LOG(0.3 / mixture[1]) + 0.1 * LOG(0.1 / mixture[2])
        right = 0.2 * LOG(0.2 / mixture[0]) + 0.3 * LOG(0.3 / mixture[1]) + 0.5 * LOG(0.5 / mixture[2])
        near(logits.jsd(S, T, 1, 0.25), [0.25 * left + 0.75 * right])

    def test_jsd_over_beta_tends_to_kl_and_over_its_complement_to_the_reverse(self):
        s, t = normal(4, 5), normal(4, 5, seed=1)
        torch.testing.assert_close(logits.jsd(s, t, 1, 1e-7) / 1e-7, logits.kd(s, t, 1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            logits.jsd(s, t, 1, 1 - 1e-7) / 1e-7, logits.reverse_kl(s, t, 1), rtol=1e-5, atol=1e-5
        )
        near(logits.jsd(s, t, 1, 0.5), logits.jsd(t, s, 1, 0.5))

    def test_kd_at_a_high_temperature_is_half_the_mean_of_the_centred_squares(self):
        s, t = normal(4, 6), normal(4, 6, seed=1)
        expected = logits.logit_mse(s, t, True) / 12
        torch.testing.assert_close(logits.kd(s, t, 1e4), expected, rtol=1e-3, atol=1e-6)

    def test_the_square_of_logits_is_summed_over_classes_in_the_paper_and_averaged_in_the_code(self):
        s, t = f64([[1.0, 2, 6]]), f64([[1.0, 1, 1]])
        near(logits.logit_mse(s, t, False), [26.0])
        near(logits.logit_mse_code(s, t, False), [26 / 3])
        near(logits.logit_mse(s, t, True), [14.0])

    def test_dkd_of_two_known_distributions(self):
        target, other = logits.dkd(S, T, Y, 1, 1, 8)
        near(target, [0.6 * LOG(3) + 0.4 * LOG(0.5)])
        near(other, [8 * (0.75 * LOG(0.75 / 0.375) + 0.25 * LOG(0.25 / 0.625))])

    def test_dkd_recovers_kd_with_the_weight_of_the_other_classes(self):
        s, t, y = normal(4, 5), normal(4, 5, seed=1), torch.tensor([0, 4, 2, 2])
        target, other = logits.dkd(s, t, y, 3.0, 1.0, 1.0)
        weight = 1 - torch.softmax(t / 3, -1)[torch.arange(4), y]
        near(target + weight * other, logits.kd(s, t, 3.0))

    def test_nkd_of_two_known_distributions(self):
        target, other = logits.nkd(S, T, Y, 1, 1.5)
        near(target, [-0.6 * LOG(0.2)])
        near(other, [-1.5 * (0.75 * LOG(0.375) + 0.25 * LOG(0.625))])

    def test_the_other_term_of_nkd_is_that_of_dkd_but_for_a_constant(self):
        s, t, y = normal(4, 5).requires_grad_(), normal(4, 5, seed=1), torch.tensor([0, 4, 2, 2])
        (ours,) = torch.autograd.grad(logits.nkd(s, t, y, 2.0, 1.0)[1].sum(), s)
        (theirs,) = torch.autograd.grad(logits.dkd(s, t, y, 2.0, 1.0, 1.0)[1].sum(), s)
        near(ours, theirs)

    def test_dist_is_zero_for_equal_predictions_and_two_for_opposite_ones(self):
        s, t = S.repeat(2, 1), T.repeat(2, 1)
        s[1], t[1] = T[0], S[0]
        inter, intra = logits.dist(s, s, 1, 1, 1)
        near(inter, 0.0)
        opposite = f64([[LOG(0.8), LOG(0.2)], [LOG(0.2), LOG(0.8)]])
        inter, intra = logits.dist(opposite, opposite.flip(0), 1, 3, 5)
        near(inter, 6.0)
        near(intra, 10.0)

    def test_dist_of_known_correlations(self):
        q, p = [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]
        third = 1 / 3
        cov = sum((a - third) * (b - third) for a, b in zip(q, p, strict=True))
        rho = cov / math.sqrt(sum((a - third) ** 2 for a in q) * sum((b - third) ** 2 for b in p))
        near(logits.dist(S.repeat(2, 1), T.repeat(2, 1), 1, 1, 1, eps=1e-300)[0], 1 - rho)
        with pytest.raises(ValueError, match="one item"):
            logits.dist(S, T, 1, 1, 1)

    def test_wsld_weighs_by_the_ratio_of_the_losses_and_passes_no_gradient_through_it(self):
        s = S.clone().requires_grad_()
        weight = 1 - math.exp(-LOG(0.2) / LOG(0.6))
        value = logits.wsld(s, T, Y, 1)
        near(value, logits.soft_ce(S, T, 1) * weight)
        (gradient,) = torch.autograd.grad(value.sum(), s)
        near(gradient, weight * (torch.softmax(S, -1) - torch.softmax(T, -1)))

    def test_multi_level_of_two_items_by_hand(self):
        s, t = torch.zeros(2, 2, dtype=torch.float64), f64([[LOG(3.0), 0], [0, LOG(3.0)]])
        instance, batch, by_class = logits.multi_level(s, t, (1,))
        near(instance, 0.75 * LOG(1.5) + 0.25 * LOG(0.5))
        near(batch, (2 * (0.625 - 0.5) ** 2 + 2 * (0.375 - 0.5) ** 2) / 2)
        near(by_class, (2 * (0.625 - 0.5) ** 2 + 2 * (0.375 - 0.5) ** 2) / 2)

    def test_multi_level_adds_the_temperatures_and_has_their_square_at_the_instance_level_alone(self):
        s, t = normal(3, 4), normal(3, 4, seed=1)
        once = logits.multi_level(s, t, (1,))
        both = logits.multi_level(2 * s, 2 * t, (2, 2))
        for value, expected, factor in zip(both, once, (8, 2, 2), strict=True):
            near(value, factor * expected)

    def test_the_losses_of_other_outputs_by_hand(self):
        s, t = f64([[0.0, LOG(3.0)]]), f64([[LOG(3.0), 0.0]])
        near(logits.mse(s, t), [LOG(3) ** 2])
        on = -(0.75 * LOG(0.5) + 0.25 * LOG(0.5))
        off = -(0.5 * LOG(0.75) + 0.5 * LOG(0.25))
        near(logits.bce(s, t, 1), [(on + off) / 2])
        entropy = -(0.75 * LOG(0.75) + 0.25 * LOG(0.25)) + LOG(2)
        near(logits.binary_kl(s, t, 1), [on + off - entropy])

    def test_a_binary_problem_has_the_same_divergence_with_one_logit_and_with_two(self):
        s, t = normal(5, 1), normal(5, 1, seed=1)
        zero = torch.zeros(5, 1, dtype=torch.float64)
        near(logits.binary_kl(s, t, 2.0), logits.kd(torch.cat([s, zero], 1), torch.cat([t, zero], 1), 2.0))

    def test_standardised_logits_have_mean_zero_and_deviation_one(self):
        v = f64([[1.0, 2, 6]])
        near(logits.standardize(v, 0.0, False), (v - 3) / math.sqrt(14 / 3))
        near(logits.standardize(v, 1e-7, True), (v - 3) / (math.sqrt(7) + 1e-7))

    def test_logits_of_ten_thousand_have_finite_values(self):
        s, t, y = 1e4 * normal(3, 4), 1e4 * normal(3, 4, seed=1), torch.tensor([0, 1, 2])
        values = [
            logits.kd(s, t, 1),
            logits.reverse_kl(s, t, 1),
            logits.jsd(s, t, 1, 0.5),
            *logits.dkd(s, t, y, 1, 1, 8),
            *logits.nkd(s, t, y, 1, 1.5),
            logits.binary_kl(s, t, 1),
            logits.bce(s, t, 1),
        ]
        assert all(torch.isfinite(value).all() for value in values)
