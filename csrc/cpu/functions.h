// Elementary functions on vectors, and the comparison of two logits that every divergence is made of.
// Included by each instruction set after its vectors; see docs/kernels.md.
#pragma once

#include <math.h>

namespace kdengine::cpu {
namespace {

template <class V, int n>
KDENGINE_INLINE V polynomial(V x, const typename V::Scalar (&coefficients)[n]) {
  V sum = V::all(coefficients[n - 1]);
  for (int i = n - 2; i >= 0; --i) sum = fma(sum, x, V::all(coefficients[i]));
  return sum;
}

template <class V, class C, int n, class = typename C::Scalar>
KDENGINE_INLINE V polynomial(V x, const C (&coefficients)[n]) {
  V sum = coefficients[n - 1];
  for (int i = n - 2; i >= 0; --i) sum = fma(sum, x, V(coefficients[i]));
  return sum;
}

// Function by function on the lanes: float64 is correct, not tuned.
template <class V, class F>
KDENGINE_INLINE V each_lane(V x, F function) {
  typename V::Scalar lanes[V::width];
  store(lanes, x);
  for (int i = 0; i < V::width; ++i) lanes[i] = function(lanes[i]);
  return V::load(lanes);
}

// What exponentials exp(z / T) need of T; the scale log2(e) / T in two parts, so that no digit of z / T is lost.
template <class V>
struct Softening {
  V scale;
  V scale_low;
  V lowest;  // z / T = -127 log(2): from here down exp is 0
  V inverse;
};

struct SofteningNumbers {
  float scale, scale_low, lowest, inverse;
};

constexpr double kLargest = 1e37, kSmallest = 1e-36;  // of 1 / T: nothing below overflows

inline SofteningNumbers softening_numbers(double temperature) {
  double inverse = 1 / temperature;
  if (inverse > kLargest) inverse = kLargest;
  if (inverse < kSmallest) inverse = kSmallest;
  const double scale = 1.4426950408889634074 * inverse;
  const float high = (float)scale;
  return {high, (float)(scale - high), (float)(-127 / scale), (float)inverse};
}

template <class V>
inline Softening<V> softening(double temperature) {
  if constexpr (sizeof(typename V::Scalar) == 8) {
    return {V::all(0), V::all(0), V::all(0), V::all(1 / temperature)};
  } else {
    const SofteningNumbers x = softening_numbers(temperature);
    return {V::all(x.scale), V::all(x.scale_low), V::all(x.lowest), V::all(x.inverse)};
  }
}

// (2^x - 1) / x on -1/2 .. 1/2, relative error of 2^x 2e-9.
constexpr float kExp2[] = {0.6931471824645996f,   0.24022647738456726f,   0.055503323674201965f,
                           0.009618437848985195f, 0.0013398900628089905f, 0.00015353340131696314f};

// (exp(u) - 1 - u) / u^2 on -kSmall .. kSmall, relative error 2e-07.
constexpr double kSmall = 0.375;
constexpr float kCurvature[] = {0.5f, 0.1666654348373413f, 0.041666921228170395f, 0.008368234150111675f, 0.0013903393410146236f};
constexpr double kCurvatureSeries[] = {1. / 2,         1. / 6,          1. / 24,          1. / 120,      1. / 720,
                                       1. / 5040,      1. / 40320,      1. / 362880,      1. / 3628800,  1. / 39916800,
                                       1. / 479001600, 1. / 6227020800, 1. / 87178291200, 1. / 1307674368000};

// Constants of the sweeps, held where the compiler does not know them: it would load each anew at every use.
template <class V>
struct Constants {
  V magic;
  V one;
  V small;
  V lowest;
  V exp2[6];
  V curvature[5];
};

template <class V>
inline Constants<V> constants() {
  Constants<V> c;
  if constexpr (sizeof(typename V::Scalar) == 4) {
    c.magic = opaque(V::all(12582912.0f + 127.0f));  // 1.5 * 2^23: rounds to a whole number; the exponent's offset
    c.one = opaque(V::all(1));
    c.lowest = opaque(V::all(-127));
    for (int i = 0; i < 6; ++i) c.exp2[i] = opaque(V::all(kExp2[i]));
    for (int i = 0; i < 5; ++i) c.curvature[i] = opaque(V::all(kCurvature[i]));
  }
  c.small = opaque(V::all((typename V::Scalar)kSmall));
  return c;
}

// exp((z + low) / T) for z <= 0, to the last digit of z / T and of what rounding left out of z: 0 below the normal
// numbers, NaN for NaN.
template <class V, class F, class C>
KDENGINE_INLINE V exponential(V z, const Softening<F>& t, const Constants<C>& c, V low = V::all(0)) {
  if constexpr (sizeof(typename V::Scalar) == 8) {
    return each_lane(z * t.inverse, [](double x) { return ::exp(x); });
  } else {
    const V bounded = max(V(t.lowest), z);
    const V shifted = fma(bounded, V(t.scale), V(c.magic));
    const V rest = fma_exact(bounded, V(t.scale), V(c.magic) - shifted);
    const V fraction = fma(bounded, V(t.scale_low), fma(low, V(t.scale), rest));
    const V power = fma(polynomial(fraction, c.exp2), fraction, V(c.one));
    return power * shifted_to_exponent(shifted);  // by 0 at -127
  }
}

template <class V, class C>
KDENGINE_INLINE V curvature(V u, const Constants<C>& c) {
  if constexpr (sizeof(typename V::Scalar) == 8) {
    return polynomial<V>(u, kCurvatureSeries);
  } else {
    return polynomial(u, c.curvature);
  }
}

// (f - log(1 + f)) / f^2 on sqrt(1/2) - 1 .. sqrt(2) - 1, relative error 7e-9.
constexpr float kLog[] = {0.5f,         -0.33333322f, 0.25f,        -0.20001456f, 0.16668126f,
                          -0.14232548f, 0.12410476f,  -0.11800225f, 0.11614948f,  -0.06865887f};

// 1 + x = (1 + f) 2^n; f keeps the digits of a small x.
template <class V>
KDENGINE_INLINE V fraction_of(V x, V& n) {
  const V m = split(x + V::all(1.0f), n);
  return select(equal(n, V::all(0.0f)), x, m - V::all(1.0f));
}

constexpr float kLog2 = 0.69314718056f;

template <class V>
KDENGINE_INLINE V log_one_plus(V x) {
  if constexpr (sizeof(typename V::Scalar) == 8) {
    return each_lane(x, [](double y) { return ::log1p(y); });
  } else {
    V n;
    const V f = fraction_of(x, n);
    const V result = fma(n, V::all(kLog2), f - f * f * polynomial(f, kLog));
    return select(equal(x, x), result, x);  // the exponent's bits would make a number of NaN
  }
}

// x - log(1 + x), which keeps its digits where x is small.
template <class V>
KDENGINE_INLINE V above_log(V x) {
  V n;
  const V f = fraction_of(x, n);
  return fma(f * f, polynomial(f, kLog), (x - f) - n * V::all(kLog2));
}

// The references that one block's logits are counted from.
template <class V>
struct Frame {
  V student_max;
  V teacher_max;
  V shift;  // student_max - teacher_max, in two parts
  V shift_low;
  V shift_in_twos;  // -shift / (T log 2)
};

template <class V>
KDENGINE_INLINE V rounding_of_difference(V a, V b, V difference) {
  const V back = difference - a;
  const V rounding = (a - (difference - back)) - (b + back);
  return max(rounding, V::all((typename V::Scalar)-1e30));  // NaN where a or b is infinite: any finite number will do
}

template <class V>
inline Frame<V> frame(V student_max, V teacher_max, const Softening<V>& softening) {
  const V shift = student_max - teacher_max;
  const V low = rounding_of_difference(student_max, teacher_max, shift);
  return {student_max, teacher_max, shift, low, V::all(0) - shift * softening.scale};
}

// Of one class: a = exp(s), b = exp(t) (softened, from the references), u = log(a / b), d = a - b, and
// q = d - b u >= 0, the summand of the forward KL.
template <class V>
struct Pair {
  V a, b, u, d, q;
};

// exp((x - reference) / T), also by what the difference rounds off.
template <class V, class F, class C>
KDENGINE_INLINE V softened(V x, V reference, const Softening<F>& softening, const Constants<C>& c) {
  const V z = x - reference;
  if constexpr (sizeof(typename V::Scalar) == 8) {
    return exponential(z, softening, c);
  } else {
    const V low = drop(less(z, V(softening.lowest)), rounding_of_difference(x, reference, z));
    return exponential(z, softening, c, low);
  }
}

template <class V, class F, class C>
KDENGINE_INLINE Pair<V> compare(V s, V t, const Frame<F>& f, const Softening<F>& softening, const Constants<C>& c) {
  const V a = softened(s, V(f.student_max), softening, c);
  const V b = softened(t, V(f.teacher_max), softening, c);
  const V difference = s - t;
  const V rounding = rounding_of_difference(s, t, difference) - V(f.shift_low);
  const V u = ((difference - V(f.shift)) + rounding) * V(softening.inverse);
  const V slope = drop(equal(b, V::all(0)), b * u);
  const V bend = u * curvature(u, c);
  const V apart = a - b;
  const auto small = less(abs(u), V(c.small));
  const V d = select(small, fma(slope, bend, slope), apart);
  const V q = select(small, slope * bend, apart - slope);
  return {a, b, u, d, q};
}

// The same from two exponentials that nothing has to be chosen between: the larger of a and b, and their ratio less one.
// The logits have to be finite. v keeps what s - t and the references' difference round off only if `rounded` asks for
// it; without, see `is_good`.
template <class V>
struct QuickPair {
  V a, b, d, v;  // v = log2(a / b)
};

template <bool rounded, class V, class F>
KDENGINE_INLINE V log_ratio_in_twos(V s, V t, const Frame<F>& f, const Softening<F>& softening) {
  const V difference = s - t;
  if constexpr (!rounded) return fma(difference, V(softening.scale), V(f.shift_in_twos));
  const V rounding = rounding_of_difference(s, t, difference) - V(f.shift_low);
  return ((difference - V(f.shift)) + rounding) * V(softening.scale);
}

template <bool rounded, class V, class F, class C>
KDENGINE_INLINE QuickPair<V> compare_quickly(V s, V t, const Frame<F>& f, const Softening<F>& softening,
                                             const Constants<C>& c) {
  const V v = log_ratio_in_twos<rounded>(s, t, f, softening);
  const V z = max(V(softening.lowest), max(s - V(f.student_max), t - V(f.teacher_max)));
  const V bounded = max(V(c.lowest), minus_abs(v));
  const V shifted = bounded + V(c.magic), shifted_z = fma(z, V(softening.scale), V(c.magic));
  const V x = bounded - (shifted - V(c.magic)), y = fma_exact(z, V(softening.scale), V(c.magic) - shifted_z);
  // Side by side, so that neither waits for its own last result.
  V p = fma(V(c.exp2[5]), x, V(c.exp2[4])), q = fma(V(c.exp2[5]), y, V(c.exp2[4]));
  p = fma(p, x, V(c.exp2[3])), q = fma(q, y, V(c.exp2[3]));
  p = fma(p, x, V(c.exp2[2])), q = fma(q, y, V(c.exp2[2]));
  p = fma(p, x, V(c.exp2[1])), q = fma(q, y, V(c.exp2[1]));
  p = fma(p, x, V(c.exp2[0])), q = fma(q, y, V(c.exp2[0]));
  q = fma(q, y, V(c.one));
  const V part = p * x, larger = q * shifted_to_exponent(shifted_z);
  const V whole = shifted_to_exponent(shifted);
  const V ratio = fma(whole, part, whole), ratio_less_one = fma(whole, part, whole - V(c.one));
  return {larger * select_negative(v, ratio, V(c.one)), larger * select_negative(v, V(c.one), ratio),
          against_sign(v, larger * ratio_less_one), v};
}

// Q below this many B: the roundings of D and of the sum of b u, of which Q then is the difference, show.
constexpr float kAgreement = 1e-6f;
// B beyond this many A: the rounding of B + D, which the blocks' A then is, shows.
constexpr float kMostOverA = 4;

// Whether sums that were made quickly may stay: no -inf spoilt them, and the rounding of s - t and of the
// references' difference, a unit in the last place of the latter, is small beside the log ratios (and beside 1).
inline bool is_good(float shift, double temperature, double q, double a, double b) {
  const double limit = 4 * temperature * temperature, squared = (double)shift * shift;
  return q < INFINITY && q >= kAgreement * b && b <= kMostOverA * a && squared <= limit && squared * b <= 2 * limit * q;
}

template <class V>
inline double lane_sum(V x) {
  typename V::Scalar lanes[V::width];
  store(lanes, x);
  double sum = 0;
  for (int i = 0; i < V::width; ++i) sum += lanes[i];
  return sum;
}

template <class V>
inline typename V::Scalar lane_max(V x) {
  typename V::Scalar lanes[V::width];
  store(lanes, x);
  typename V::Scalar largest = lanes[0];
  for (int i = 1; i < V::width; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  return largest;
}

}  // namespace
}  // namespace kdengine::cpu
