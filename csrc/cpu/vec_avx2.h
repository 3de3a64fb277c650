// Eight floats in an AVX2 register; fused multiply-add and half-precision conversion included.
#pragma once

#include <immintrin.h>
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

struct Mask {
  __m256 bits;
};

struct Vec {
  using Scalar = float;
  static constexpr int width = 8;
  __m256 x;

  static Vec all(float value) { return {_mm256_set1_ps(value)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const Bf16* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
  }
  static Vec load(const Half* p) { return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p))}; }
};

KDENGINE_INLINE Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.x, b.x)}; }
KDENGINE_INLINE Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.x, b.x)}; }
KDENGINE_INLINE Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.x, b.x)}; }
KDENGINE_INLINE Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.x, b.x)}; }
KDENGINE_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.x, b.x, c.x)}; }
KDENGINE_INLINE Vec fma_exact(Vec a, Vec b, Vec c) { return fma(a, b, c); }
// The same number, though the compiler does not know it any more.
KDENGINE_INLINE Vec opaque(Vec a) {
  asm("" : "+x"(a.x));
  return a;
}
// The larger, the smaller; the second where one is NaN.
KDENGINE_INLINE Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.x, b.x)}; }
KDENGINE_INLINE Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.x, b.x)}; }
KDENGINE_INLINE Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.x)}; }
KDENGINE_INLINE Mask less(Vec a, Vec b) { return {_mm256_cmp_ps(a.x, b.x, _CMP_LT_OQ)}; }
KDENGINE_INLINE Mask not_less(Vec a, Vec b) { return {_mm256_cmp_ps(a.x, b.x, _CMP_NLT_UQ)}; }
KDENGINE_INLINE Mask equal(Vec a, Vec b) { return {_mm256_cmp_ps(a.x, b.x, _CMP_EQ_OQ)}; }
KDENGINE_INLINE Vec select(Mask m, Vec a, Vec b) { return {_mm256_blendv_ps(b.x, a.x, m.bits)}; }
KDENGINE_INLINE Vec keep(Mask m, Vec a) { return {_mm256_and_ps(m.bits, a.x)}; }
KDENGINE_INLINE Vec drop(Mask m, Vec a) { return {_mm256_andnot_ps(m.bits, a.x)}; }
KDENGINE_INLINE Vec minus_abs(Vec a) { return {_mm256_or_ps(_mm256_set1_ps(-0.0f), a.x)}; }
// By the sign bit of v: a where it is set, else b; x where it is set, else -x.
KDENGINE_INLINE Vec select_negative(Vec v, Vec a, Vec b) { return {_mm256_blendv_ps(b.x, a.x, v.x)}; }
KDENGINE_INLINE Vec against_sign(Vec v, Vec x) {
  return {_mm256_xor_ps(x.x, _mm256_andnot_ps(v.x, _mm256_set1_ps(-0.0f)))};
}
// 2^n for n in the low bits of the mantissa, biased by the exponent's offset.
KDENGINE_INLINE Vec shifted_to_exponent(Vec n) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(n.x), 23))};
}

// x = m 2^n with m from sqrt(1/2) to sqrt(2).
KDENGINE_INLINE Vec split(Vec x, Vec& n) {
  const __m256i bits = _mm256_castps_si256(x.x);
  const __m256i exponent = _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(0x3f3504f3)), 23);
  n = {_mm256_cvtepi32_ps(exponent)};
  return {_mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(exponent, 23)))};
}

// To bfloat16 in the low halves, to the nearest, ties to even; NaN stays NaN.
KDENGINE_INLINE __m128i rounded_to_bf16(Vec a) {
  const __m256i bits = _mm256_castps_si256(a.x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i top = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256 nan = _mm256_cmp_ps(a.x, a.x, _CMP_UNORD_Q);
  top = _mm256_blendv_epi8(top, _mm256_set1_epi32(0x7fc00000), _mm256_castps_si256(nan));
  top = _mm256_srli_epi32(top, 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
}
KDENGINE_INLINE __m128i rounded_to_half(Vec a) { return _mm256_cvtps_ph(a.x, _MM_FROUND_TO_NEAREST_INT); }

KDENGINE_INLINE void store(float* p, Vec a) { _mm256_storeu_ps(p, a.x); }
KDENGINE_INLINE void store(Bf16* p, Vec a) { _mm_storeu_si128((__m128i*)p, rounded_to_bf16(a)); }
KDENGINE_INLINE void store(Half* p, Vec a) { _mm_storeu_si128((__m128i*)p, rounded_to_half(a)); }
// Around the caches; p is aligned to the bytes of a vector of its type.
KDENGINE_INLINE void stream(float* p, Vec a) { _mm256_stream_ps(p, a.x); }
KDENGINE_INLINE void stream(Bf16* p, Vec a) { _mm_stream_si128((__m128i*)p, rounded_to_bf16(a)); }
KDENGINE_INLINE void stream(Half* p, Vec a) { _mm_stream_si128((__m128i*)p, rounded_to_half(a)); }
KDENGINE_INLINE void finish_streams() { _mm_sfence(); }
KDENGINE_INLINE void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T0); }

KDENGINE_INLINE bool any(Mask m) { return _mm256_movemask_ps(m.bits) != 0; }

// Row i, lane k to row k, lane i.
KDENGINE_INLINE void transpose(Vec (&r)[8]) {
  __m256 pairs[8], fours[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(r[i].x, r[i + 1].x);
    pairs[i + 1] = _mm256_unpackhi_ps(r[i].x, r[i + 1].x);
  }
  for (int i = 0; i < 8; i += 4) {
    fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = {_mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20)};
    r[i + 4] = {_mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31)};
  }
}

}  // namespace
}  // namespace kdengine::cpu
