// Sixteen bytes of floats or doubles in the compiler's own vector type, for any processor.
#pragma once

#include <stdint.h>
#include <string.h>

namespace kdengine::cpu {
namespace {

struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

KDENGINE_INLINE float as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
KDENGINE_INLINE uint32_t as_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

KDENGINE_INLINE float widen(Bf16 x) { return as_float((uint32_t)x.bits << 16); }

KDENGINE_INLINE float widen(Half x) {
  const uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  if (rest >= 0x7c00) return as_float(sign | 0x7f800000 | rest << 13);
  // The exponent's offset differs by 112: shift the bits into place and scale, which normalises denormals.
  return as_float(sign | as_bits(as_float(rest << 13) * as_float((127 + 112) << 23)));
}

KDENGINE_INLINE Bf16 to_bf16(float x) {
  const uint32_t bits = as_bits(x);
  if (x != x) return {0x7fc0};
  return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

KDENGINE_INLINE Half to_half(float x) {
  const uint32_t bits = as_bits(x), magnitude = bits & 0x7fffffff;
  const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
  if (x != x) return {(uint16_t)(sign | 0x7e00)};
  if (magnitude >= 0x477ff000) return {(uint16_t)(sign | 0x7c00)};
  if (magnitude < 0x38800000) {  // below the smallest normal: let the addition round to its grid
    const float sum = as_float(magnitude) + 0.5f;
    return {(uint16_t)(sign | (as_bits(sum) - 0x3f000000))};
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return {(uint16_t)(sign | (rounded - 0x38000000) >> 13)};
}

template <class T>
struct Register;
template <>
struct Register<float> {
  typedef float type __attribute__((vector_size(16)));
  typedef int32_t bits __attribute__((vector_size(16)));
};
template <>
struct Register<double> {
  typedef double type __attribute__((vector_size(16)));
  typedef int64_t bits __attribute__((vector_size(16)));
};

template <class T>
struct MaskOf {
  typename Register<T>::bits bits;
};

template <class T>
struct VecOf {
  using Scalar = T;
  using Bits = typename Register<T>::bits;
  static constexpr int width = 16 / sizeof(T);
  typename Register<T>::type x;

  static VecOf all(T value) {
    VecOf r;
    for (int i = 0; i < width; ++i) r.x[i] = value;
    return r;
  }
  static VecOf load(const T* p) {
    VecOf r;
    memcpy(&r.x, p, 16);
    return r;
  }
  template <class U>
  static VecOf load(const U* p) {
    VecOf r;
    for (int i = 0; i < width; ++i) r.x[i] = widen(p[i]);
    return r;
  }
};

using Vec = VecOf<float>;
using Mask = MaskOf<float>;

template <class T>
KDENGINE_INLINE VecOf<T> operator+(VecOf<T> a, VecOf<T> b) {
  return {a.x + b.x};
}
template <class T>
KDENGINE_INLINE VecOf<T> operator-(VecOf<T> a, VecOf<T> b) {
  return {a.x - b.x};
}
template <class T>
KDENGINE_INLINE VecOf<T> operator*(VecOf<T> a, VecOf<T> b) {
  return {a.x * b.x};
}
template <class T>
KDENGINE_INLINE VecOf<T> operator/(VecOf<T> a, VecOf<T> b) {
  return {a.x / b.x};
}
template <class T>
KDENGINE_INLINE VecOf<T> fma(VecOf<T> a, VecOf<T> b, VecOf<T> c) {
  return {a.x * b.x + c.x};
}
// a b + c, where the sum is small beside c: the product of the upper halves is exact.
KDENGINE_INLINE Vec fma_exact(Vec a, Vec b, Vec c) {
  const Vec::Bits upper = ~(Vec::Bits){0xfff, 0xfff, 0xfff, 0xfff};
  const Register<float>::type a_high = (Register<float>::type)((Vec::Bits)a.x & upper), a_low = a.x - a_high;
  const Register<float>::type b_high = (Register<float>::type)((Vec::Bits)b.x & upper), b_low = b.x - b_high;
  return {(a_high * b_high + c.x) + (a_high * b_low + a_low * b.x)};
}

template <class T>
KDENGINE_INLINE VecOf<T> opaque(VecOf<T> a) {
  return a;
}

template <class T>
KDENGINE_INLINE VecOf<T> choose(typename VecOf<T>::Bits m, VecOf<T> a, VecOf<T> b) {
  using Bits = typename VecOf<T>::Bits;
  return {(typename Register<T>::type)(((Bits)a.x & m) | ((Bits)b.x & ~m))};
}
// The larger, the smaller; the second where one is NaN.
template <class T>
KDENGINE_INLINE VecOf<T> max(VecOf<T> a, VecOf<T> b) {
  return choose<T>((typename VecOf<T>::Bits)(a.x > b.x), a, b);
}
template <class T>
KDENGINE_INLINE VecOf<T> min(VecOf<T> a, VecOf<T> b) {
  return choose<T>((typename VecOf<T>::Bits)(a.x < b.x), a, b);
}
template <class T>
KDENGINE_INLINE VecOf<T> abs(VecOf<T> a) {
  using Bits = typename VecOf<T>::Bits;
  return {(typename Register<T>::type)((Bits)a.x & ~(Bits)VecOf<T>::all((T)-0.0).x)};
}
template <class T>
KDENGINE_INLINE MaskOf<T> less(VecOf<T> a, VecOf<T> b) {
  return {(typename VecOf<T>::Bits)(a.x < b.x)};
}
template <class T>
KDENGINE_INLINE MaskOf<T> not_less(VecOf<T> a, VecOf<T> b) {
  return {~(typename VecOf<T>::Bits)(a.x < b.x)};
}
template <class T>
KDENGINE_INLINE MaskOf<T> equal(VecOf<T> a, VecOf<T> b) {
  return {(typename VecOf<T>::Bits)(a.x == b.x)};
}
template <class T>
KDENGINE_INLINE VecOf<T> select(MaskOf<T> m, VecOf<T> a, VecOf<T> b) {
  return choose<T>(m.bits, a, b);
}
template <class T>
KDENGINE_INLINE VecOf<T> keep(MaskOf<T> m, VecOf<T> a) {
  return {(typename Register<T>::type)((typename VecOf<T>::Bits)a.x & m.bits)};
}
template <class T>
KDENGINE_INLINE VecOf<T> drop(MaskOf<T> m, VecOf<T> a) {
  return {(typename Register<T>::type)((typename VecOf<T>::Bits)a.x & ~m.bits)};
}
KDENGINE_INLINE Vec minus_abs(Vec a) {
  return {(Register<float>::type)((Vec::Bits)a.x | (Vec::Bits)Vec::all(-0.0f).x)};
}
// By the sign bit of v: a where it is set, else b; x where it is set, else -x.
KDENGINE_INLINE Vec select_negative(Vec v, Vec a, Vec b) { return choose<float>((Vec::Bits)v.x >> 31, a, b); }
KDENGINE_INLINE Vec against_sign(Vec v, Vec x) {
  return {(Register<float>::type)((Vec::Bits)x.x ^ (~(Vec::Bits)v.x & (Vec::Bits)Vec::all(-0.0f).x))};
}
// 2^n for n in the low bits of the mantissa, biased by the exponent's offset.
KDENGINE_INLINE Vec shifted_to_exponent(Vec n) { return {(Register<float>::type)((Vec::Bits)n.x << 23)}; }

// x = m 2^n with m from sqrt(1/2) to sqrt(2).
KDENGINE_INLINE Vec split(Vec x, Vec& n) {
  const Vec::Bits bits = (Vec::Bits)x.x, exponent = (bits - 0x3f3504f3) >> 23;
  n = {__builtin_convertvector(exponent, Register<float>::type)};
  return {(Register<float>::type)(bits - (exponent << 23))};
}

template <class T>
KDENGINE_INLINE void store(T* p, VecOf<T> a) {
  memcpy(p, &a.x, 16);
}
KDENGINE_INLINE void store(Bf16* p, Vec a) {
  for (int i = 0; i < Vec::width; ++i) p[i] = to_bf16(a.x[i]);
}
KDENGINE_INLINE void store(Half* p, Vec a) {
  for (int i = 0; i < Vec::width; ++i) p[i] = to_half(a.x[i]);
}
template <class T>
KDENGINE_INLINE void stream(T* p, Vec a) {
  store(p, a);
}
KDENGINE_INLINE void finish_streams() {}
KDENGINE_INLINE void prefetch(const char* p) { __builtin_prefetch(p); }

KDENGINE_INLINE bool any(Mask m) { return (m.bits[0] | m.bits[1] | m.bits[2] | m.bits[3]) != 0; }

// Row i, lane k to row k, lane i.
KDENGINE_INLINE void transpose(Vec (&r)[4]) {
  const Vec a = r[0], b = r[1], c = r[2], d = r[3];
  for (int k = 0; k < 4; ++k) r[k].x = Register<float>::type{a.x[k], b.x[k], c.x[k], d.x[k]};
}

}  // namespace
}  // namespace kdengine::cpu
