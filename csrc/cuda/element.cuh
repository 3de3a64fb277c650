// The dtypes of logits, their conversions, and vectors of 16 bytes.
#pragma once

#include <cmath>
#include <cstring>

#include "../problem.h"
#include "device.cuh"

namespace kdengine::cuda {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

KD_DEVICE float widen(float x) { return x; }
KD_DEVICE double widen(double x) { return x; }
KD_DEVICE float widen(Half x) { return half_to_float(x.bits); }
KD_DEVICE float widen(BFloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }

// To nearest, ties to even.
template <class Element, class Real>
KD_DEVICE Element narrow(Real x) {
  return static_cast<Element>(x);
}
template <>
KD_DEVICE Half narrow<Half, float>(float x) {
  return Half{static_cast<uint16_t>(round_pair_to_half(x, 0.0f))};
}
template <>
KD_DEVICE BFloat16 narrow<BFloat16, float>(float x) {
  return BFloat16{static_cast<uint16_t>(round_pair_to_bf16(x, 0.0f))};
}
// By way of float32 with the last bit sticky, so that the second rounding sees what the first one dropped.
KD_DEVICE float to_odd(double x) {
  float y = static_cast<float>(x);
  if (x != x || static_cast<double>(y) == x || isinf(y)) return y;
  uint32_t bits = __float_as_uint(y);
  if (fabs(static_cast<double>(y)) > fabs(x)) --bits;
  return __uint_as_float(bits | 1u);
}
template <>
KD_DEVICE Half narrow<Half, double>(double x) {
  return narrow<Half>(to_odd(x));
}
template <>
KD_DEVICE BFloat16 narrow<BFloat16, double>(double x) {
  return narrow<BFloat16>(to_odd(x));
}

template <class Element>
KD_DEVICE Element minus_infinity();
template <>
KD_DEVICE float minus_infinity<float>() {
  return -INFINITY;
}
template <>
KD_DEVICE double minus_infinity<double>() {
  return -INFINITY;
}
template <>
KD_DEVICE Half minus_infinity<Half>() {
  return Half{0xfc00u};
}
template <>
KD_DEVICE BFloat16 minus_infinity<BFloat16>() {
  return BFloat16{0xff80u};
}

template <class Element>
struct alignas(16) Vector {
  static constexpr int width = 16 / sizeof(Element);
  Element at[width];
};

template <class Element>
KD_DEVICE Vector<Element> load_vector(const Element* from) {
  const uint4 raw = *reinterpret_cast<const uint4*>(from);
  Vector<Element> vector;
  memcpy(&vector, &raw, sizeof raw);
  return vector;
}

// Written once and not read by this kernel again: it should not push anything out of the L2 cache.
template <class Element>
KD_DEVICE void store_vector(Element* to, const Vector<Element>& vector) {
  uint4 raw;
  memcpy(&raw, &vector, sizeof raw);
  __stcs(reinterpret_cast<uint4*>(to), raw);
}

template <class Element>
KD_DEVICE Vector<Element> narrow_vector(const float* x);
template <>
KD_DEVICE Vector<float> narrow_vector<float>(const float* x) {
  return Vector<float>{{x[0], x[1], x[2], x[3]}};
}
template <>
KD_DEVICE Vector<BFloat16> narrow_vector<BFloat16>(const float* x) {
  uint32_t pairs[4];
  for (int i = 0; i < 4; ++i) pairs[i] = round_pair_to_bf16(x[2 * i], x[2 * i + 1]);
  Vector<BFloat16> vector;
  memcpy(&vector, pairs, sizeof pairs);
  return vector;
}
template <>
KD_DEVICE Vector<Half> narrow_vector<Half>(const float* x) {
  uint32_t pairs[4];
  for (int i = 0; i < 4; ++i) pairs[i] = round_pair_to_half(x[2 * i], x[2 * i + 1]);
  Vector<Half> vector;
  memcpy(&vector, pairs, sizeof pairs);
  return vector;
}

template <class Element>
KD_BOTH int misalignment(const Element* address) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(address) % 16 / sizeof(Element));
}

// Element number `offset` of a tensor of any dtype.
template <class Real>
KD_DEVICE Real load(const void* data, Dtype dtype, int64_t offset) {
  switch (dtype) {
    case Dtype::f16: return static_cast<Real>(widen(static_cast<const Half*>(data)[offset]));
    case Dtype::bf16: return static_cast<Real>(widen(static_cast<const BFloat16*>(data)[offset]));
    case Dtype::f32: return static_cast<Real>(static_cast<const float*>(data)[offset]);
    default: return static_cast<Real>(static_cast<const double*>(data)[offset]);
  }
}

template <class Real>
KD_DEVICE void store(void* data, Dtype dtype, int64_t offset, Real value) {
  switch (dtype) {
    case Dtype::f16: static_cast<Half*>(data)[offset] = narrow<Half>(value); break;
    case Dtype::bf16: static_cast<BFloat16*>(data)[offset] = narrow<BFloat16>(value); break;
    case Dtype::f32: static_cast<float*>(data)[offset] = static_cast<float>(value); break;
    default: static_cast<double*>(data)[offset] = static_cast<double>(value);
  }
}

}  // namespace kdengine::cuda
