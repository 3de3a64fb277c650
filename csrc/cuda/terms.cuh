// One element of a row in float32, in as few instructions as its accuracy allows: the loss is bound by memory only as
// long as these keep up. In the time that an H100 moves an element's 12 bytes (float32) or 6 (half precision), each of
// its lanes issues 106 or 53 instructions; an H200's 74 or 37. First sweep: 2 widenings (of half precision), 4 for the
// two exponents, 2 exponentials, 3 for u (12 in float32), 6 for the polynomial, 11 for d and q, 4 sums, 2 maxima: about
// 34, in float32 41, and 3 with cross-entropy. Second sweep: 2 products per stored pair, nothing is computed again.
// These are operations written here; loads, stores, guards and loop control come on top.
#pragma once

#include "sums.cuh"

namespace kdengine::cuda {

// What an element leaves behind for the gradient.
struct Terms {
  float d, b, e;
};

// How exponents (base 2) of a part of a row are formed.
struct Exponents {
  float scale;  // log2(e) / T
  float s, t;
  float apart, apart_rest;  // s - t, and what its rounding dropped

  KD_DEVICE Exponents(float scale, const Reference& from) : scale(scale), s(usable(from.s)), t(usable(from.t)) {
    apart = s - t;
    apart_rest = dropped(s, t, apart);
  }

  // (x - y) - difference, exactly, for the rounded difference.
  KD_DEVICE static float dropped(float x, float y, float difference) {
    const float back = difference - x;
    return (x - (difference - back)) - (y + back);
  }

  // The student's exponent less the teacher's. Far from 0 the logits' difference is rounded, at the references and at
  // an element in different ways; float32 logits take what was dropped into account, shorter ones drop nothing.
  template <bool rounded>
  KD_DEVICE float ratio(float x, float y) const {
    const float difference = x - y;
    if (!rounded) return (difference - apart) * scale;
    const float rest = dropped(x, y, difference) - apart_rest;
    const float u = difference - apart;
    return (isfinite(difference) ? u + rest : u) * scale;
  }
};

// Adds an element to the sums. With u in base 2: d = b expm1(u), q = d - b u; the products with b are left out where b
// is 0, where u may be infinite or NaN.
template <bool hard, bool rounded>
KD_DEVICE Terms accumulate(float s, float t, const Exponents& x, Sums<float>& sums) {
  const float a = fast_exp2((s - x.s) * x.scale);
  const float b = fast_exp2((t - x.t) * x.scale);
  const float u = x.ratio<rounded>(s, t);
  const float bu = b > 0 ? b * u : 0.0f;
  const float small_q = bu * exp2_rest(u);
  const float small_d = fmaf(bu, float(kLn2), small_q);
  const float large_d = a - b;
  const float large_q = fmaf(bu, -float(kLn2), large_d);
  const bool small = fabsf(u) < 0.72f;
  const float d = small ? small_d : large_d;
  sums.A += a;
  sums.B += b;
  sums.D += d;
  sums.Q += small ? small_q : large_q;
  return {d, b, hard ? fast_exp2((s - x.s) * kLog2E) : 0.0f};
}

// What multiplies the terms of a part of a row in the gradient.
struct Factors {
  float d, b, e;
};

// A row's result, as all its threads need it.
struct Outcome {
  Reference reference;
  float scale = 1;     // log2(e) / T
  float over_A = 0;    // weight T / (divisor A)
  float D_over_B = 0;
  float over_E = 0;    // weight / (divisor E)
  float at_label = 0;  // cross-entropy's gradient at the label

  KD_DEVICE Factors factors(const Reference& from) const {
    const Shift by = shift(from, reference, scale);
    return {by.alpha * over_A, (by.between - by.beta * D_over_B) * over_A, by.e * over_E};
  }
};

template <bool hard>
KD_DEVICE float gradient(const Terms& x, const Factors& by) {
  const float soft = fmaf(x.b, by.b, x.d * by.d);
  return hard ? fmaf(x.e, by.e, soft) : soft;
}

// From a row's sums to its values, which enter `totals`, and to its outcome.
template <class Element>
KD_DEVICE Outcome conclude(const Problem& problem, int64_t row, const Reference& reference, float scale,
                           const Sums<double>& sums, const Divisors& divisor, Totals* totals) {
  const Task task = task_of(problem, row);
  Outcome outcome;
  outcome.reference = reference;
  outcome.scale = scale;
  double divergence = 0, entropy = 0;
  if (task.soft) {
    divergence = task.soft_fault ? NAN : forward_kl(sums);
    outcome.over_A = static_cast<float>(task.soft_weight * task.temperature / divisor.soft / sums.A);
    outcome.D_over_B = static_cast<float>(task.soft_fault ? NAN : sums.D / sums.B);
  }
  if (task.hard && task.hard_fault) {
    entropy = outcome.over_E = NAN;
  } else if (task.hard) {
    const int64_t at = row_offset(problem.student, row, problem.inner) + task.label * problem.student.step;
    const double own = widen(static_cast<const Element*>(problem.student.data)[at]);
    const double x = (own - usable(reference.s)) * kLog2E;
    const double E = sums.R + exp2(x), share = task.hard_weight / divisor.hard;
    entropy = cross_entropy(sums.R, x);
    outcome.over_E = static_cast<float>(share / E);
    outcome.at_label = static_cast<float>(-share * sums.R / E);
  }
  if (totals) totals->add(problem, task, row, divergence, entropy);
  return outcome;
}

}  // namespace kdengine::cuda
