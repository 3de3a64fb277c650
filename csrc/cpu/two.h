// Two vectors that go through every operation side by side: independent neighbours keep the pipes filled where one
// vector's chain of dependent operations would not. Operations accept a single vector for both.
#pragma once

namespace kdengine::cpu {
namespace {

struct Two {
  using Scalar = float;
  static constexpr int width = 2 * Vec::width;
  Vec low, high;

  Two() = default;
  Two(Vec both) : low(both), high(both) {}
  Two(Vec first, Vec second) : low(first), high(second) {}
  static Two all(float value) { return Vec::all(value); }
  static Two load(const float* p) { return {Vec::load(p), Vec::load(p + Vec::width)}; }
};

struct TwoMasks {
  Mask low, high;
};

KDENGINE_INLINE Two operator+(Two a, Two b) { return {a.low + b.low, a.high + b.high}; }
KDENGINE_INLINE Two operator-(Two a, Two b) { return {a.low - b.low, a.high - b.high}; }
KDENGINE_INLINE Two operator*(Two a, Two b) { return {a.low * b.low, a.high * b.high}; }
KDENGINE_INLINE Two operator/(Two a, Two b) { return {a.low / b.low, a.high / b.high}; }
KDENGINE_INLINE Two fma(Two a, Two b, Two c) { return {fma(a.low, b.low, c.low), fma(a.high, b.high, c.high)}; }
KDENGINE_INLINE Two fma_exact(Two a, Two b, Two c) {
  return {fma_exact(a.low, b.low, c.low), fma_exact(a.high, b.high, c.high)};
}
KDENGINE_INLINE Two max(Two a, Two b) { return {max(a.low, b.low), max(a.high, b.high)}; }
KDENGINE_INLINE Two abs(Two a) { return {abs(a.low), abs(a.high)}; }
KDENGINE_INLINE Two minus_abs(Two a) { return {minus_abs(a.low), minus_abs(a.high)}; }
KDENGINE_INLINE Two select_negative(Two v, Two a, Two b) {
  return {select_negative(v.low, a.low, b.low), select_negative(v.high, a.high, b.high)};
}
KDENGINE_INLINE Two against_sign(Two v, Two x) { return {against_sign(v.low, x.low), against_sign(v.high, x.high)}; }
KDENGINE_INLINE TwoMasks less(Two a, Two b) { return {less(a.low, b.low), less(a.high, b.high)}; }
KDENGINE_INLINE TwoMasks not_less(Two a, Two b) { return {not_less(a.low, b.low), not_less(a.high, b.high)}; }
KDENGINE_INLINE TwoMasks equal(Two a, Two b) { return {equal(a.low, b.low), equal(a.high, b.high)}; }
KDENGINE_INLINE Two select(TwoMasks m, Two a, Two b) { return {select(m.low, a.low, b.low), select(m.high, a.high, b.high)}; }
KDENGINE_INLINE Two drop(TwoMasks m, Two a) { return {drop(m.low, a.low), drop(m.high, a.high)}; }
KDENGINE_INLINE Two keep(TwoMasks m, Two a) { return {keep(m.low, a.low), keep(m.high, a.high)}; }
KDENGINE_INLINE bool any(TwoMasks m) { return any(m.low) || any(m.high); }
KDENGINE_INLINE Two split(Two x, Two& n) { return {split(x.low, n.low), split(x.high, n.high)}; }
KDENGINE_INLINE Two shifted_to_exponent(Two n) { return {shifted_to_exponent(n.low), shifted_to_exponent(n.high)}; }
KDENGINE_INLINE void store(float* p, Two a) {
  store(p, a.low);
  store(p + Vec::width, a.high);
}

// sum + a b, over both.
KDENGINE_INLINE Vec add_product(Vec a, Vec b, Vec sum) { return fma(a, b, sum); }
KDENGINE_INLINE Vec add_product(Two a, Two b, Vec sum) { return fma(a.low, b.low, fma(a.high, b.high, sum)); }
KDENGINE_INLINE Vec folded(Vec a) { return a; }
KDENGINE_INLINE Vec folded(Two a) { return a.low + a.high; }

}  // namespace
}  // namespace kdengine::cpu
