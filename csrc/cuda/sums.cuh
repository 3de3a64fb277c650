// The sums of a part of a row, how parts are merged, and what the row's sums give (docs/kernels.md).
#pragma once

#include <cmath>

#include "device.cuh"

namespace kdengine::cuda {

constexpr double kLn2 = 0.693147180559945309417232121458;
constexpr float kLog2E = 1.44269504f;

// (2^x - 1) / x - ln 2 for |x| < 0.73, that is |u| < 1/2 for u = x ln 2: a minimax polynomial, error 4e-9 of 2^x - 1.
KD_DEVICE float exp2_rest(float x) {
  float h = 1.5274700664e-05f;
  h = fmaf(h, x, 1.5528423577e-04f);
  h = fmaf(h, x, 1.3333861408e-03f);
  h = fmaf(h, x, 9.6177939006e-03f);
  h = fmaf(h, x, 5.5504100909e-02f);
  h = fmaf(h, x, 2.4022652925e-01f);
  return h * x;
}

// The logits that exponents are counted from. They are logits of the row, so that the largest element's exponent is
// exactly 0. -inf: nothing finite was seen; then 0 stands in, and every exponential is 0 as well.
struct Reference {
  float s = -INFINITY, t = -INFINITY;
};

KD_DEVICE float usable(float reference) { return reference == -INFINITY ? 0.0f : reference; }

KD_DEVICE Reference larger(const Reference& one, const Reference& other) {
  return {larger(one.s, other.s), larger(one.t, other.t)};
}

// A, B, D and Q of the elements, and R: the sum of e_i over all classes but the label's.
template <class Real>
struct Sums {
  Real A = 0, B = 0, D = 0, Q = 0, R = 0;
};

template <class Real>
KD_DEVICE Sums<Real> operator+(const Sums<Real>& x, const Sums<Real>& y) {
  return {x.A + y.A, x.B + y.B, x.D + y.D, x.Q + y.Q, x.R + y.R};
}

// What carries terms counted from one reference over to another; `between` is alpha - beta.
struct Shift {
  float alpha, beta, between, e, w;
  float rest;  // beta (expm1(w) - w), where near
  bool near;   // |w| < 1/2: alpha - beta, and what Q gains, are taken from w
};

KD_DEVICE float exponential(float from, float to, float scale) {
  return from == -INFINITY ? 0.0f : exp2f((from - to) * scale);
}

// `scale` is log2(e) / T.
KD_DEVICE Shift shift(const Reference& from, const Reference& to, float scale) {
  Shift x;
  x.alpha = exponential(from.s, to.s, scale);
  x.beta = exponential(from.t, to.t, scale);
  x.e = exponential(from.s, to.s, kLog2E);
  const bool both = from.s != -INFINITY && from.t != -INFINITY;
  const double base2 = both ? ((double(from.s) - from.t) - (double(to.s) - to.t)) * scale : 0.0;
  x.w = static_cast<float>(base2 * kLn2);
  x.near = both && fabsf(x.w) < 0.5f;
  x.rest = x.near ? x.beta * static_cast<float>(base2) * exp2_rest(static_cast<float>(base2)) : 0.0f;
  x.between = x.near ? x.beta * x.w + x.rest : x.alpha - x.beta;
  return x;
}

// Carries the sums of a part over. Where beta is 0 the part has no teacher mass: it adds alpha A to A, D and Q.
template <class Real>
KD_DEVICE Sums<Real> carried(const Sums<Real>& part, const Shift& by) {
  const Real moment = part.D - part.Q;
  Sums<Real> sums;
  sums.A = by.alpha * part.A;
  sums.B = by.beta * part.B;
  sums.R = by.e * part.R;
  if (by.near) {
    sums.D = by.alpha * part.D + by.between * part.B;
    sums.Q = by.alpha * part.Q + by.between * moment + by.rest * part.B;
  } else {
    sums.D = sums.A - sums.B;
    sums.Q = by.beta == 0 ? sums.D : sums.D - by.beta * (moment + by.w * part.B);
  }
  if (by.beta > 0 && part.Q == INFINITY) sums.Q = part.Q;
  return sums;
}

// log(A / B), with all digits where A and B nearly agree.
KD_DEVICE double log_ratio(double A, double B, double D) {
  const double x = D / B;
  return fabs(x) < 0.5 ? log1p(x) : log(A / B);
}

KD_DEVICE double forward_kl(const Sums<double>& row) {
  const double kl = row.Q / row.B - (row.D / row.B - log_ratio(row.A, row.B, row.D));
  return kl < 0 ? 0.0 : kl;
}

// -log p of the label, from the others' sum R and its own exponent x (base 2) on the same reference.
KD_DEVICE double cross_entropy(double R, double x) {
  const double own = exp2(x);
  return R <= own ? log1p(R / own) : log(R + own) - x * kLn2;
}

}  // namespace kdengine::cuda
