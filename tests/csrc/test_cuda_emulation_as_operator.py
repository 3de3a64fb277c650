"""The operator's own tests, where they apply, on the emulated device; the short ones run with the other module."""

import pytest

from ..ops.test_kd_loss import (  # noqa: F401
    test_a_class_masked_by_the_student_only,
    test_a_class_masked_by_the_teacher_only,
    test_a_class_masked_on_both_sides_does_not_exist,
    test_a_confident_student_keeps_the_digits_of_its_cross_entropy,
    test_a_loss_scale_beyond_float16_is_not_rounded_to_infinity,
    test_a_masked_label_class_is_infinite,
    test_a_masked_row_of_a_top_k_teacher_is_not_read,
    test_a_nan_that_takes_part_is_seen_in_its_row_only,
    test_a_number_a_tensor_and_equal_values_per_row_agree,
    test_a_temperature_that_is_not_read_is_not_refused,
    test_a_weight_of_zero_does_not_read_its_term,
    test_all_classes_listed_is_the_full_divergence,
    test_any_pair_agrees_with_the_formula,
    test_any_pair_gives_a_finite_non_negative_loss_whose_gradient_sums_to_zero,
    test_binned_tail_equals_the_formula,
    test_equals_the_formula,
    test_equals_the_formula_at_logits_of_ten_thousand,
    test_equals_the_formula_in_other_dtypes,
    test_float64_is_computed_in_float64,
    test_gradcheck,
    test_gradcheck_of_a_top_k_teacher,
    test_hard_term_is_torch_cross_entropy,
    test_images_with_classes_in_dim_one_and_strided_rows,
    test_is_exactly_zero_where_student_is_teacher,
    test_mass_where_the_other_side_is_masked_is_infinite_and_not_nan,
    test_mixed_dtypes_return_each_gradient_in_its_own,
    test_near_the_teacher_stays_positive_and_accurate,
    test_no_participating_rows_give_zero,
    test_no_rows_give_zero,
    test_one_value_per_row,
    test_renormalized_tail_is_the_divergence_over_the_listed_classes,
    test_rows_can_be_weighted_behind_the_operator,
    test_rows_of_zero_probabilities_are_unlabelled,
    test_rows_of_zero_weight_cannot_poison_but_count,
    test_rows_without_part_cannot_poison,
    test_teacher_gradient,
    test_terms_add_up_and_are_detached,
    test_ties_and_constant_rows,
    test_top_k_of_the_student_itself_is_zero,
    test_unequal_class_counts_share_the_leading_classes,
)
from .cuda_emulation.fixtures import emulated_device, emulated_library, emulated_operator  # noqa: F401

pytestmark = pytest.mark.slow
