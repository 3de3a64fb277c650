// Sixteen floats in an AVX-512 register (F, BW, VL and DQ).
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
  __mmask16 bits;
};

struct Vec {
  using Scalar = float;
  static constexpr int width = 16;
  __m512 x;

  static Vec all(float value) { return {_mm512_set1_ps(value)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const Bf16* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
  }
  static Vec load(const Half* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
};

KDENGINE_INLINE Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.x, b.x)}; }
KDENGINE_INLINE Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.x, b.x)}; }
KDENGINE_INLINE Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.x, b.x)}; }
KDENGINE_INLINE Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.x, b.x)}; }
KDENGINE_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.x, b.x, c.x)}; }
KDENGINE_INLINE Vec fma_exact(Vec a, Vec b, Vec c) { return fma(a, b, c); }
// Constants come broadcast from memory inside the instruction that uses them.
KDENGINE_INLINE Vec opaque(Vec a) { return a; }
// The larger, the smaller; the second where one is NaN.
KDENGINE_INLINE Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.x, b.x)}; }
KDENGINE_INLINE Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.x, b.x)}; }
KDENGINE_INLINE Vec abs(Vec a) { return {_mm512_andnot_ps(_mm512_set1_ps(-0.0f), a.x)}; }
KDENGINE_INLINE Mask less(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.x, b.x, _CMP_LT_OQ)}; }
KDENGINE_INLINE Mask not_less(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.x, b.x, _CMP_NLT_UQ)}; }
KDENGINE_INLINE Mask equal(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.x, b.x, _CMP_EQ_OQ)}; }
KDENGINE_INLINE Vec select(Mask m, Vec a, Vec b) { return {_mm512_mask_blend_ps(m.bits, b.x, a.x)}; }
KDENGINE_INLINE Vec keep(Mask m, Vec a) { return {_mm512_maskz_mov_ps(m.bits, a.x)}; }
KDENGINE_INLINE Vec drop(Mask m, Vec a) { return {_mm512_maskz_mov_ps((__mmask16)~m.bits, a.x)}; }
KDENGINE_INLINE Vec minus_abs(Vec a) { return {_mm512_or_ps(_mm512_set1_ps(-0.0f), a.x)}; }
// By the sign bit of v: a where it is set, else b; x where it is set, else -x.
KDENGINE_INLINE Vec select_negative(Vec v, Vec a, Vec b) {
  return {_mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(v.x)), b.x, a.x)};
}
KDENGINE_INLINE Vec against_sign(Vec v, Vec x) {
  return {_mm512_xor_ps(x.x, _mm512_andnot_ps(v.x, _mm512_set1_ps(-0.0f)))};
}
// 2^n for n in the low bits of the mantissa, biased by the exponent's offset.
KDENGINE_INLINE Vec shifted_to_exponent(Vec n) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(n.x), 23))};
}

// x = m 2^n with m from sqrt(1/2) to sqrt(2).
KDENGINE_INLINE Vec split(Vec x, Vec& n) {
  const __m512i bits = _mm512_castps_si512(x.x);
  const __m512i exponent = _mm512_srai_epi32(_mm512_sub_epi32(bits, _mm512_set1_epi32(0x3f3504f3)), 23);
  n = {_mm512_cvtepi32_ps(exponent)};
  return {_mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(exponent, 23)))};
}

// To bfloat16 in the low halves, to the nearest, ties to even; NaN stays NaN.
KDENGINE_INLINE __m256i rounded_to_bf16(Vec a) {
  const __m512i bits = _mm512_castps_si512(a.x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i top = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.x, a.x, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_blend_epi32(nan, top, _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
}
KDENGINE_INLINE __m256i rounded_to_half(Vec a) { return _mm512_maskz_cvtps_ph(0xffff, a.x, _MM_FROUND_TO_NEAREST_INT); }

KDENGINE_INLINE void store(float* p, Vec a) { _mm512_storeu_ps(p, a.x); }
KDENGINE_INLINE void store(Bf16* p, Vec a) { _mm256_storeu_si256((__m256i*)p, rounded_to_bf16(a)); }
KDENGINE_INLINE void store(Half* p, Vec a) { _mm256_storeu_si256((__m256i*)p, rounded_to_half(a)); }
// Around the caches; p is aligned to the bytes of a vector of its type.
KDENGINE_INLINE void stream(float* p, Vec a) { _mm512_stream_ps(p, a.x); }
KDENGINE_INLINE void stream(Bf16* p, Vec a) { _mm256_stream_si256((__m256i*)p, rounded_to_bf16(a)); }
KDENGINE_INLINE void stream(Half* p, Vec a) { _mm256_stream_si256((__m256i*)p, rounded_to_half(a)); }
KDENGINE_INLINE void finish_streams() { _mm_sfence(); }
KDENGINE_INLINE void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T0); }

KDENGINE_INLINE bool any(Mask m) { return m.bits != 0; }

// Row i, lane k to row k, lane i: within quarters of four lanes, then the quarters by two rounds of pairs.
KDENGINE_INLINE void transpose(Vec (&r)[16]) {
  __m512 pairs[16], fours[16];
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(r[i].x, r[i + 1].x);
    pairs[i + 1] = _mm512_unpackhi_ps(r[i].x, r[i + 1].x);
  }
  for (int i = 0; i < 16; i += 4) {
    fours[i] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    fours[i + 1] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    fours[i + 2] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    fours[i + 3] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
  // fours[4 g + k] holds, in quarter q, lane 4 q + k of the rows 4 g .. 4 g + 3.
  for (int k = 0; k < 4; ++k) {
    const __m512 low_even = _mm512_shuffle_f32x4(fours[k], fours[4 + k], 0x88);
    const __m512 low_odd = _mm512_shuffle_f32x4(fours[k], fours[4 + k], 0xdd);
    const __m512 high_even = _mm512_shuffle_f32x4(fours[8 + k], fours[12 + k], 0x88);
    const __m512 high_odd = _mm512_shuffle_f32x4(fours[8 + k], fours[12 + k], 0xdd);
    r[k] = {_mm512_shuffle_f32x4(low_even, high_even, 0x88)};
    r[4 + k] = {_mm512_shuffle_f32x4(low_odd, high_odd, 0x88)};
    r[8 + k] = {_mm512_shuffle_f32x4(low_even, high_even, 0xdd)};
    r[12 + k] = {_mm512_shuffle_f32x4(low_odd, high_odd, 0xdd)};
  }
}

}  // namespace
}  // namespace kdengine::cpu
