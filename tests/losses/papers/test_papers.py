import math
import pathlib

import pytest
import torch

from tests.losses.papers import hints, logits, relations

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


def maps(*channels):
    """One item of maps 2 x 2, each channel four numbers."""
    return f64([channels]).reshape(1, len(channels), 2, 2)


class TestHints:
    def test_the_hint_is_half_the_sum_of_squares_in_the_paper_and_their_mean_in_the_code(self):
        s, t = maps([1, 2, 3, 4], [0, 0, 0, 0]), maps([1, 2, 3, 2], [0, 0, 0, 2])
        near(hints.hint(s, t), [4.0])
        near(hints.hint_code(s, t), [1.0])

    def test_attention_maps_that_do_not_overlap_are_at_the_distance_of_orthogonal_unit_vectors(self):
        s, t = maps([2, 0, 0, 0], [1, 0, 0, 0]), maps([0, -3, 0, 0])
        near(hints.attention(s, t, 2), [math.sqrt(2)])
        near(hints.attention_code(s, t, 2), [2 / 4])

    def test_attention_takes_the_power_before_the_sum_over_channels(self):
        s, t = maps([1, 0, 0, 0], [1, 2, 0, 0]), maps([1, 0, 0, 0])
        length = math.sqrt(2**2 + 4**2)
        near(hints.attention(s, t, 2), [math.hypot(2 / length - 1, 4 / length)])
        near(hints.attention(s, t, 1), [math.hypot(2 / math.sqrt(8) - 1, 2 / math.sqrt(8))])

    def test_nst_by_hand(self):
        s, t = maps([3, 0, 0, 0], [0, 2, 0, 0]), maps([5, 0, 0, 0])
        near(hints.nst_linear(s, t), [0.5 + 1 - 2 * 0.5])
        near(hints.nst_polynomial(s, t), [0.5 + 1 - 2 * 0.5])
        near(hints.nst_polynomial(s, t, d=2, c=1.0), [(4 + 4 + 1 + 1) / 4 + 4 - 2 * (4 + 1) / 2])
        e = math.exp(-1)
        near(hints.nst_gaussian(s, t, variance=1.0), [(2 + 2 * e) / 4 + 1 - 2 * (1 + e) / 2])
        near(hints.nst_gaussian(s, t), hints.nst_gaussian(s, t, variance=1.0))

    def test_nst_matches_means_with_the_linear_kernel_and_gram_matrices_with_the_polynomial_one(self):
        s, t = normal(1, 3, 2, 2), normal(1, 4, 2, 2, seed=1)
        a, b = (torch.nn.functional.normalize(x[0].flatten(1), dim=1) for x in (s, t))
        near(hints.nst_linear(s, t)[0], ((a.mean(0) - b.mean(0)) ** 2).sum())
        near(hints.nst_polynomial(s, t)[0], ((a.T @ a / 3 - b.T @ b / 4) ** 2).sum())

    def test_a_dead_channel_does_not_make_nst_undefined(self):
        s = maps([0, 0, 0, 0], [0, 2, 0, 0]).requires_grad_()
        value = hints.nst_polynomial(s, maps([5, 0, 0, 0]))
        (gradient,) = torch.autograd.grad(value.sum(), s)
        near(value.detach(), [0.25 + 1])
        assert torch.isfinite(gradient).all()

    def test_fsp_by_hand(self):
        s1, s2 = maps([1, 2, 0, 1]), maps([4, 0, 0, 4], [0, 4, 4, 0])
        t1, t2 = maps([1, 1, 1, 1]), maps([1, 1, 1, 1], [0, 0, 0, 0])
        near(hints.fsp(s1, s2, t1, t2), [(2 - 1) ** 2 + (2 - 0) ** 2])
        near(hints.fsp_code(s1, s2, t1, t2), [5 / 2])

    def test_the_margin_of_a_centred_normal_is_the_mean_of_the_half_normal(self):
        near(hints.ofd_margin(f64([0.0]), f64([3.0])), [-3 * math.sqrt(2 / math.pi)])
        near(hints.ofd_margin_code(f64([0.0]), f64([-3.0])), [-3 * math.sqrt(2 / math.pi)])

    def test_the_margin_is_the_mean_of_the_negative_values(self):
        mean, std = 0.7, 1.3
        x = torch.linspace(-12, 0, 2_000_001, dtype=torch.float64)
        density = (-0.5 * ((x - mean) / std) ** 2).exp()
        expected = torch.trapezoid(x * density, x) / torch.trapezoid(density, x)
        torch.testing.assert_close(hints.ofd_margin(f64([mean]), f64([std]))[0], expected, rtol=1e-9, atol=0)

    def test_the_margin_where_hardly_a_value_is_negative_is_small_in_the_paper_and_three_deviations_in_the_code(
        self,
    ):
        margin = hints.ofd_margin(f64([10.0]), f64([1.0]))
        assert -0.11 < margin.item() < -0.09
        near(hints.ofd_margin_code(f64([10.0]), f64([1.0])), [-3.0])

    def test_partial_l2_leaves_out_a_student_below_a_teacher_that_is_not_positive(self):
        s, t = maps([-3, 0, 1, -1]), maps([-1, -1, 2, 2])
        near(hints.partial_l2(s, t), [0 + 1 + 1 + 9])
        near(
            hints.margin_relu(maps([-3, -0.5, 1, 2], [-3, 0, 1, 2]), f64([-1.0, -2.0])),
            maps([-1, -0.5, 1, 2], [-2, 0, 1, 2]),
        )

    def test_vid_is_the_likelihood_of_a_normal_but_for_its_constant(self):
        mu, t, alpha = normal(2, 3, 2, 2), normal(2, 3, 2, 2, seed=1), normal(3, seed=2)
        std = (torch.nn.functional.softplus(alpha) + 0.1).sqrt().reshape(1, 3, 1, 1)
        nll = -torch.distributions.Normal(mu, std).log_prob(t).flatten(1).sum(1)
        near(hints.vid(mu, t, alpha, 0.1), nll - 12 / 2 * LOG(2 * math.pi))
        near(hints.vid_code(mu, t, alpha, 0.1), hints.vid(mu, t, alpha, 0.1) / 12)

    def test_hcl_by_hand_on_a_two_by_two_map(self):
        s, t = maps([1, 2, 3, 4]), maps([1, 0, 3, 0])
        near(hints.hcl(s, t), [((4 + 16) / 4 + 0.5 * 1.5**2) / 1.5])

    def test_hcl_of_maps_that_differ_by_a_constant_is_its_square_at_any_size(self):
        for size in (1, 2, 3, 4, 5, 8):
            t = normal(2, 3, size, size)
            near(hints.hcl(t + 0.5, t), [0.25, 0.25])

    def test_hcl_has_the_weights_of_all_levels_where_pooling_removes_the_difference(self):
        checker = f64([[1, -1] * 4, [-1, 1] * 4] * 4).reshape(1, 1, 8, 8)
        near(hints.hcl(checker, torch.zeros_like(checker)), [1 / 1.875])

    def test_our_pooling_is_that_of_torch(self):
        x = normal(2, 7, 5)
        for size in (1, 2, 4):
            near(hints._pooled(x, size), torch.nn.functional.adaptive_avg_pool2d(x, (size, size)))

    def test_the_cosine_is_of_the_channels_at_each_position(self):
        s, t = maps([1, 1, 1, 0], [0, 0, 0, 0]), maps([2, 0, -1, 1], [0, 3, 0, 1])
        near(hints.cosine(s, t), [(0 + 1 + 2 + 1) / 4])

    def test_activation_boundaries_by_hand(self):
        s, t = maps([2, 0.5, -2, -0.5]), maps([1, 1, 0, -1])
        near(hints.ab(s, t, 1.0), [0 + 0.25 + 0 + 0.25])
        near(hints.ab(s, t, 2.0), [0 + 1.5**2 + 0 + 1.5**2])

    def test_factors_that_do_not_overlap(self):
        s, t = maps([2, 0, 0, 0]), maps([0, 0, 0, -7])
        near(hints.factor(s, t, 1), [2.0])
        near(hints.factor(s, t, 2), [math.sqrt(2)])
        near(hints.factor_code(s, t, 1), [0.5])


class TestRelations:
    def test_rkd_distance_by_hand(self):
        s, t = f64([[0.0], [1], [3]]), f64([[0.0], [2], [4]])
        mu_s, mu_t = (1 + 3 + 2) / 3, (2 + 4 + 2) / 3
        pairs = 0.5 * ((1 / mu_s - 2 / mu_t) ** 2 + (3 / mu_s - 4 / mu_t) ** 2 + (2 / mu_s - 2 / mu_t) ** 2)
        near(relations.rkd_distance(s, t), 2 * pairs)
        near(relations.rkd_distance_code(s, t), 2 * pairs / 9)

    def test_rkd_distance_is_linear_in_large_differences(self):
        s, t = f64([[0.0], [1], [100]]), f64([[0.0], [99], [100]])
        near(relations.rkd_distance(s, t), 2 * 2 * (98 / (200 / 3) - 0.5))

    def test_rkd_does_not_see_scale_and_shift_and_its_angles_no_rotation_either(self):
        t = normal(5, 4)
        rotation = torch.linalg.qr(normal(4, 4, seed=2)).Q
        near(relations.rkd_distance(3 * t @ rotation + 1, t), 0.0)
        near(relations.rkd_angle(3 * t @ rotation + 1, t), 0.0)

    def test_rkd_angle_by_hand(self):
        s, t = f64([[0.0, 0], [1, 0], [0, 1]]), f64([[0.0, 0], [1, 0], [2, 0]])
        root = math.sqrt(0.5)
        vertices = (0 - 1, root - -1, root - 1)
        huber = [0.5 * d**2 if abs(d) <= 1 else abs(d) - 0.5 for d in vertices]
        near(relations.rkd_angle(s, t), 2 * sum(huber))
        near(relations.rkd_angle_code(s, t), 2 * sum(huber) / 27)

    def test_rkd_code_is_the_mean_over_all_entries_with_equal_indices_too(self):
        s, t = normal(4, 3), normal(4, 3, seed=1)

        def table(x):
            d = torch.cdist(x, x)
            e = torch.nn.functional.normalize(x[None] - x[:, None], dim=2)
            return d / d[d > 0].mean(), e @ e.transpose(1, 2)

        (d_s, a_s), (d_t, a_t) = table(s), table(t)
        near(relations.rkd_distance_code(s, t), torch.nn.functional.smooth_l1_loss(d_s, d_t))
        near(relations.rkd_angle_code(s, t), torch.nn.functional.smooth_l1_loss(a_s, a_t))

    def test_coinciding_items_have_finite_gradients(self):
        s = f64([[1.0, 2], [1, 2], [0, 1]]).requires_grad_()
        value = relations.rkd_distance(s, normal(3, 2)) + relations.rkd_angle(s, normal(3, 2))
        (gradient,) = torch.autograd.grad(value, s)
        assert torch.isfinite(gradient).all()

    def test_similarity_by_hand(self):
        s, t = f64([[1.0, 0], [0, 2]]), f64([[1.0, 0], [1, 0]])
        near(relations.sp(s, t), 2 * ((1 - math.sqrt(0.5)) ** 2 + 0.5) / 4)

    def test_correlation_congruence_by_hand(self):
        s, t = f64([[2.0, 0], [0, 3]]), f64([[1.0, 0], [5, 0]])
        near(relations.cc(s, t, 0.4, 2), 2 * (math.exp(-0.8) * (0.8 + 0.32)) ** 2 / 4)

    def test_correlation_congruence_tends_to_the_gaussian_kernel(self):
        s, t = normal(4, 3), normal(4, 3, seed=1)
        a, b = (torch.cdist(u, u) for u in (torch.nn.functional.normalize(x) for x in (s, t)))
        exact = (((-0.4 * a**2).exp() - (-0.4 * b**2).exp()) ** 2).mean()
        torch.testing.assert_close(relations.cc(s, t, 0.4, 20), exact, rtol=1e-9, atol=1e-12)

    def test_probabilistic_transfer_by_hand(self):
        s, t = f64([[1.0, 0], [1, 0], [0, 1]]), f64([[1.0, 0], [0, 1], [0, 2]])
        one = 2 / 3 * LOG(2 / 3 / (1 / 3)) + 1 / 3 * LOG(1 / 3 / (2 / 3))
        near(relations.pkt(s, t), (0.5 * LOG(0.75) + 0.5 * LOG(1.5)) + one + (1 / 3 * LOG(2 / 3) + 2 / 3 * LOG(4 / 3)))
        near(relations.pkt(s[:2], t[:2]), 0.0)
        near(relations.pkt(t, t), 0.0)

    def test_the_code_of_probabilistic_transfer_has_the_item_itself_among_its_neighbours_and_the_mean(self):
        s, t = normal(4, 3), normal(4, 3, seed=1)

        def rows(x):
            x = torch.nn.functional.normalize(x)
            k = (x @ x.T + 1) / 2
            return k / k.sum(1, keepdim=True)

        expected = (rows(t) * (rows(t) / rows(s)).log()).mean()
        torch.testing.assert_close(relations.pkt_code(s, t), expected, rtol=1e-4, atol=1e-7)
        near(relations.pkt_code(s, t, eps=0.0), expected)

    def test_channel_correlation_by_hand(self):
        s, t = maps([1, 1, 0, 0], [0, 1, 1, 1]), maps([1, 0, 0, 0], [0, 0, 0, 1])
        near(relations.icd(s, t), [((2 - 1) ** 2 + 2 * 1 + (3 - 1) ** 2) / 4])
        first, second = math.sqrt(2**2 + 1), math.sqrt(1 + 3**2)
        rows = (2 / first - 1) ** 2 + 1 / first**2 + 1 / second**2 + (3 / second - 1) ** 2
        near(relations.icd_code(s, t), [rows / 2])

    def test_contrast_by_hand(self):
        anchor, positive = f64([[1.0, 0]]), f64([[1.0, 0]])
        negatives = f64([[[0.0, 1], [-1, 0]]])
        noise = 2 / 10
        h = [p / (p + noise) for p in (math.e / 2, 1 / 2, math.exp(-1) / 2)]
        near(relations.crd_nce(anchor, positive, negatives, 2.0, 10, 1.0), [-LOG(h[0]) - LOG(1 - h[1]) - LOG(1 - h[2])])
        near(relations.crd_constant(anchor, positive, negatives, 10, 1.0), 10 * (math.e + 1 + math.exp(-1)) / 3)
        near(relations.crd_update(f64([[1.0, 0]]), f64([[0.0, 1]]), 0.25), f64([[0.25, 0.75]]) / math.hypot(0.25, 0.75))

    def test_several_teachers_are_the_weighted_mean_of_their_distributions(self):
        other = f64([[LOG(0.2), LOG(0.2), LOG(0.6)]])
        near(relations.several_teachers([T, other], [3.0, 1.0], 1), [[0.5, 0.275, 0.225]])
        near(relations.several_teachers([T, other], f64([[1.0, 1.0]]), 1), [[0.4, 0.25, 0.35]])
        near(relations.several_teachers_kd(S, [T], [2.0], 2.0), logits.kd(S, T, 2.0))

    def test_the_weights_of_confidence_are_of_how_improbable_the_label_is(self):
        other, third = (f64([[LOG(p), LOG(0.5), LOG(0.5 - p)]]) for p in (0.2, 0.3))
        weights = relations.confidence_weights([T, other, third], Y)
        inverse = [1 / 0.6, 1 / 0.2, 1 / 0.3]
        near(weights, [[(1 - value / sum(inverse)) / 2 for value in inverse]])
        near(weights.sum(), 1.0)
        expected = sum(w * logits.kd(S, t, 1) for w, t in zip(weights[0], (T, other, third), strict=True))
        near(relations.confidence_kd(S, [T, other, third], Y, 1), expected)

    def test_mutual_learning_trains_each_network_by_its_own_divergence_alone(self):
        a, b = S.clone().requires_grad_(), T.clone().requires_grad_()
        first, second = relations.dml(a, b, 1)
        near(first, logits.kd(S, T, 1))
        near(second, logits.kd(T, S, 1))
        for loss, parameter in zip(torch.autograd.grad((first + second).sum(), (a, b)), (a, b), strict=True):
            other = T if parameter is a else S
            near(loss, torch.softmax(parameter, -1) - torch.softmax(other, -1))

    def test_the_mean_teacher_moves_by_one_minus_the_decay(self):
        near(relations.mean_teacher(f64([1.0]), f64([3.0]), 0.9), [1.2])


X, Z = normal(3, 4), normal(3, 4, seed=1)
LABELS = torch.tensor([0, 3, 1])
F, G = normal(2, 3, 2, 2, seed=2), normal(2, 3, 2, 2, seed=3)
UNIT = torch.nn.functional.normalize(normal(2, 5, 4, seed=4), dim=-1)
CASES = {
    "kd": (lambda x: logits.kd(x, Z, 2.0), X),
    "reverse_kl": (lambda x: logits.reverse_kl(x, Z, 2.0), X),
    "jsd": (lambda x: logits.jsd(x, Z, 2.0, 0.3), X),
    "tvd": (lambda x: logits.tvd(x, Z, 2.0), X),
    "logit_mse": (lambda x: logits.logit_mse(x, Z, True), X),
    "dkd": (lambda x: logits.dkd(x, Z, LABELS, 2.0, 1.0, 8.0), X),
    "nkd": (lambda x: logits.nkd(x, Z, LABELS, 2.0, 1.5), X),
    "dist": (lambda x: logits.dist(x, Z, 2.0, 1.0, 2.0), X),
    "multi_level": (lambda x: logits.multi_level(x, Z, (2, 3)), X),
    "soft_ce": (lambda x: logits.soft_ce(x, Z, 2.0), X),
    "hard": (lambda x: logits.hard(x, Z), X),
    "bce": (lambda x: logits.bce(x, Z, 2.0), X),
    "binary_kl": (lambda x: logits.binary_kl(x, Z, 2.0), X),
    "standardize": (lambda x: logits.standardize(x, 1e-7, True), X),
    "hint": (lambda x: hints.hint(x, G), F),
    "attention": (lambda x: hints.attention(x, G, 2), F),
    "attention_code": (lambda x: hints.attention_code(x, G, 2), F),
    "nst_polynomial": (lambda x: hints.nst_polynomial(x, G), F),
    "nst_gaussian": (lambda x: hints.nst_gaussian(x, G, variance=0.7), F),
    "fsp": (lambda x: hints.fsp(x, x.flip(1), G, G), F),
    "partial_l2": (lambda x: hints.partial_l2(x, hints.margin_relu(G, f64([-0.5, -0.1, -1.0]))), F),
    "vid": (lambda x: hints.vid(x, G, f64([0.1, 1.0, -1.0]), 1e-5), F),
    "vid_alpha": (lambda alpha: hints.vid(F, G, alpha, 1e-5), f64([0.1, 1.0, -1.0])),
    "hcl": (lambda x: hints.hcl(x, G), F),
    "cosine": (lambda x: hints.cosine(x, G), F),
    "ab": (lambda x: hints.ab(x, G, 1.0), F),
    "factor": (lambda x: hints.factor(x, G, 1), F),
    "rkd_distance": (lambda x: relations.rkd_distance(x, Z), X),
    "rkd_angle": (lambda x: relations.rkd_angle(x, Z), X),
    "sp": (lambda x: relations.sp(x, Z), X),
    "cc": (lambda x: relations.cc(x, Z, 0.4, 2), X),
    "pkt": (lambda x: relations.pkt(x, Z), X),
    "pkt_code": (lambda x: relations.pkt_code(x, Z), X),
    "icd": (lambda x: relations.icd(x, G), F),
    "icd_code": (lambda x: relations.icd_code(x, G), F),
    "crd_nce": (lambda x: relations.crd_nce(x, UNIT[:, 0], UNIT[:, 1:], 3.0, 50, 0.5), UNIT[:, 0].roll(1, 0)),
    "confidence_kd": (lambda x: relations.confidence_kd(x, [Z, Z.flip(0)], LABELS, 2.0), X),
    "several_teachers": (lambda x: relations.several_teachers([x, Z], [1.0, 2.0], 2.0), X),
}


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_finite_differences(name):
    function, x = CASES[name]
    assert torch.autograd.gradcheck(function, (x.clone().requires_grad_(),), fast_mode=True)


def test_no_transcription_imports_the_package():
    for module in (logits, hints, relations):
        lines = pathlib.Path(module.__file__).read_text().splitlines()
        imports = [line for line in lines if line.lstrip().startswith(("import ", "from "))]
        assert imports
        assert not [line for line in imports if "kdengine" in line or "losses" in line]
