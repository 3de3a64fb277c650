// Stands in for the compiler's header where a processor has no AVX-512: SIMDe's intrinsics, and those that it lacks.
#pragma once

#include_next <immintrin.h>

#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

inline simde__m512i join(simde__m256i low, simde__m256i high) {
  return simde_mm512_inserti64x4(simde_mm512_castsi256_si512(low), high, 1);
}
inline simde__m256i low_half(simde__m512i x) { return simde_mm512_castsi512_si256(x); }
inline simde__m256i high_half(simde__m512i x) { return simde_mm512_extracti64x4_epi64(x, 1); }

inline simde__m512i emulated_mm512_cvtepu16_epi32(simde__m256i x) {
  return join(simde_mm256_cvtepu16_epi32(simde_mm256_extracti128_si256(x, 0)),
              simde_mm256_cvtepu16_epi32(simde_mm256_extracti128_si256(x, 1)));
}
inline simde__m512 emulated_mm512_cvtph_ps(simde__m256i x) {
  const simde__m256 low = simde_mm256_cvtph_ps(simde_mm256_extracti128_si256(x, 0));
  const simde__m256 high = simde_mm256_cvtph_ps(simde_mm256_extracti128_si256(x, 1));
  return simde_mm512_castsi512_ps(join(simde_mm256_castps_si256(low), simde_mm256_castps_si256(high)));
}
template <class Mask>
simde__m256i emulated_mm512_maskz_cvtps_ph(Mask mask, simde__m512 x, int) {
  if (mask != 0xffff) __builtin_trap();
  const simde__m512i bits = simde_mm512_castps_si512(x);
  const simde__m128i low = simde_mm256_cvtps_ph(simde_mm256_castsi256_ps(low_half(bits)), 0);
  const simde__m128i high = simde_mm256_cvtps_ph(simde_mm256_castsi256_ps(high_half(bits)), 0);
  return simde_mm256_set_m128i(high, low);
}
inline simde__m512i emulated_mm512_srai_epi32(simde__m512i x, int n) {
  return join(simde_mm256_srai_epi32(low_half(x), n), simde_mm256_srai_epi32(high_half(x), n));
}
inline simde__m512 emulated_mm512_cvtepi32_ps(simde__m512i x) {
  const simde__m256 low = simde_mm256_cvtepi32_ps(low_half(x)), high = simde_mm256_cvtepi32_ps(high_half(x));
  return simde_mm512_castsi512_ps(join(simde_mm256_castps_si256(low), simde_mm256_castps_si256(high)));
}
inline simde__m256i emulated_mm512_cvtepi32_epi16(simde__m512i x) {
  int32_t wide[16];
  int16_t narrow[16];
  simde_mm512_storeu_si512(wide, x);
  for (int i = 0; i < 16; ++i) narrow[i] = (int16_t)wide[i];
  return simde_mm256_loadu_si256((const simde__m256i*)narrow);
}
inline void emulated_mm512_stream_ps(float* p, simde__m512 x) {
  if ((uintptr_t)p % 64 != 0) __builtin_trap();
  simde_mm512_storeu_ps(p, x);
}

#define __m512 simde__m512
#define __m512i simde__m512i
#define __mmask16 simde__mmask16
#define _mm512_add_epi32 simde_mm512_add_epi32
#define _mm512_add_ps simde_mm512_add_ps
#define _mm512_and_si512 simde_mm512_and_si512
#define _mm512_andnot_ps simde_mm512_andnot_ps
#define _mm512_castps_si512 simde_mm512_castps_si512
#define _mm512_castsi512_ps simde_mm512_castsi512_ps
#define _mm512_cmp_ps_mask simde_mm512_cmp_ps_mask
#define _mm512_cvtepi32_epi16 emulated_mm512_cvtepi32_epi16
#define _mm512_cvtepi32_ps emulated_mm512_cvtepi32_ps
#define _mm512_cvtepu16_epi32 emulated_mm512_cvtepu16_epi32
#define _mm512_cvtph_ps emulated_mm512_cvtph_ps
#define _mm512_div_ps simde_mm512_div_ps
#define _mm512_fmadd_ps simde_mm512_fmadd_ps
#define _mm512_loadu_ps simde_mm512_loadu_ps
#define _mm512_mask_blend_epi32 simde_mm512_mask_blend_epi32
#define _mm512_mask_blend_ps simde_mm512_mask_blend_ps
#define _mm512_maskz_cvtps_ph emulated_mm512_maskz_cvtps_ph
#define _mm512_maskz_mov_ps simde_mm512_maskz_mov_ps
#define _mm512_max_ps simde_mm512_max_ps
#define _mm512_min_ps simde_mm512_min_ps
#define _mm512_movepi32_mask simde_mm512_movepi32_mask
#define _mm512_mul_ps simde_mm512_mul_ps
#define _mm512_or_ps simde_mm512_or_ps
#define _mm512_set1_epi32 simde_mm512_set1_epi32
#define _mm512_set1_ps simde_mm512_set1_ps
#define _mm512_shuffle_f32x4 simde_mm512_shuffle_f32x4
#define _mm512_shuffle_ps simde_mm512_shuffle_ps
#define _mm512_slli_epi32 simde_mm512_slli_epi32
#define _mm512_srai_epi32 emulated_mm512_srai_epi32
#define _mm512_srli_epi32 simde_mm512_srli_epi32
#define _mm512_storeu_ps simde_mm512_storeu_ps
#define _mm512_stream_ps emulated_mm512_stream_ps
#define _mm512_sub_epi32 simde_mm512_sub_epi32
#define _mm512_sub_ps simde_mm512_sub_ps
#define _mm512_unpackhi_ps simde_mm512_unpackhi_ps
#define _mm512_unpacklo_ps simde_mm512_unpacklo_ps
#define _mm512_xor_ps simde_mm512_xor_ps
