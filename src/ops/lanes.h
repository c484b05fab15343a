// Sixteen f32 lanes: one 512-bit register or two of 256 bits, so that a body written once gives the same bits on both.
// Included only by files compiled for one instruction set (x_avx2.cc, x_avx512.cc); everything here has internal
// linkage, so no function compiled for one set can be linked into another.
//
// Order of a sum over an array, everywhere in ops/: element i is added to lane i % 16 in ascending order, then lanes
// i and i+8, i and i+4, i and i+2, i and i+1 are added. ops/lane_sum.h is the plain form.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "ops/exp2.h"

namespace ekiben {
namespace {

#define LANES_INLINE [[gnu::always_inline]] static inline

constexpr int64_t kLanes = 16;

LANES_INLINE float SumEight(__m256 v) {
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
LANES_INLINE float MaxEight(__m256 v) {
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

#if defined(__AVX512F__)

struct Lanes {
  __m512 v;
};

LANES_INLINE __mmask16 FirstLanes(int64_t n) {
  return static_cast<__mmask16>((1u << n) - 1u);
}
LANES_INLINE Lanes Zero() {
  return {_mm512_setzero_ps()};
}
LANES_INLINE Lanes Broadcast(float x) {
  return {_mm512_set1_ps(x)};
}
LANES_INLINE Lanes Load(const float* p) {
  return {_mm512_loadu_ps(p)};
}
LANES_INLINE Lanes LoadFirst(const float* p, int64_t n) {
  return {_mm512_maskz_loadu_ps(FirstLanes(n), p)};
}
LANES_INLINE void Store(float* p, Lanes a) {
  _mm512_storeu_ps(p, a.v);
}
LANES_INLINE void StoreFirst(float* p, Lanes a, int64_t n) {
  _mm512_mask_storeu_ps(p, FirstLanes(n), a.v);
}
LANES_INLINE Lanes Add(Lanes a, Lanes b) {
  return {_mm512_add_ps(a.v, b.v)};
}
LANES_INLINE Lanes Subtract(Lanes a, Lanes b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
LANES_INLINE Lanes Multiply(Lanes a, Lanes b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
LANES_INLINE Lanes Divide(Lanes a, Lanes b) {
  return {_mm512_div_ps(a.v, b.v)};
}
LANES_INLINE Lanes Max(Lanes a, Lanes b) {
  return {_mm512_max_ps(a.v, b.v)};
}
LANES_INLINE Lanes Fma(Lanes a, Lanes b, Lanes c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
LANES_INLINE Lanes SwapPairs(Lanes a) {
  return {_mm512_permute_ps(a.v, 0xB1)};
}
LANES_INLINE float Sum(Lanes a) {
  return SumEight(_mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1)));
}
LANES_INLINE float MaxOf(Lanes a) {
  return MaxEight(_mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1)));
}
// 2^x where x <= 0 or NaN: what needs no upper bound.
LANES_INLINE Lanes Exp2OfNonPositive(Lanes x) {
  __mmask16 in_range = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(-126.0f), _CMP_GE_OQ);
  __m512 n = _mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 f = _mm512_sub_ps(x.v, n);
  __m512 p = _mm512_set1_ps(kExp2Coefficients[5]);
  for (int i = 4; i >= 0; --i) p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(kExp2Coefficients[i]));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return {_mm512_maskz_scalef_ps(in_range, p, n)};
}
LANES_INLINE Lanes Exp2(Lanes x) {
  // In this order a NaN stays one.
  return Exp2OfNonPositive({_mm512_min_ps(_mm512_set1_ps(127.0f), x.v)});
}
// Lanes whose index is outside [lo, hi) become -inf.
LANES_INLINE Lanes KeepRange(Lanes a, int64_t lo, int64_t hi) {
  const __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __mmask16 keep = _mm512_cmpge_epi32_mask(index, _mm512_set1_epi32(static_cast<int>(lo))) &
                   _mm512_cmplt_epi32_mask(index, _mm512_set1_epi32(static_cast<int>(hi)));
  return {_mm512_mask_mov_ps(_mm512_set1_ps(-__builtin_inff()), keep, a.v)};
}

#else  // AVX2 and FMA

struct Lanes {
  __m256 lo, hi;
};

LANES_INLINE __m256i FirstEight(int64_t n) {
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), index);
}
LANES_INLINE Lanes Zero() {
  return {_mm256_setzero_ps(), _mm256_setzero_ps()};
}
LANES_INLINE Lanes Broadcast(float x) {
  return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
LANES_INLINE Lanes Load(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
LANES_INLINE Lanes LoadFirst(const float* p, int64_t n) {
  return {_mm256_maskload_ps(p, FirstEight(n)), _mm256_maskload_ps(p + 8, FirstEight(n - 8))};
}
LANES_INLINE void Store(float* p, Lanes a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
LANES_INLINE void StoreFirst(float* p, Lanes a, int64_t n) {
  _mm256_maskstore_ps(p, FirstEight(n), a.lo);
  _mm256_maskstore_ps(p + 8, FirstEight(n - 8), a.hi);
}
LANES_INLINE Lanes Add(Lanes a, Lanes b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
LANES_INLINE Lanes Subtract(Lanes a, Lanes b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
LANES_INLINE Lanes Multiply(Lanes a, Lanes b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
LANES_INLINE Lanes Divide(Lanes a, Lanes b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
LANES_INLINE Lanes Max(Lanes a, Lanes b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
LANES_INLINE Lanes Fma(Lanes a, Lanes b, Lanes c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
LANES_INLINE Lanes SwapPairs(Lanes a) {
  return {_mm256_permute_ps(a.lo, 0xB1), _mm256_permute_ps(a.hi, 0xB1)};
}
LANES_INLINE float Sum(Lanes a) {
  return SumEight(_mm256_add_ps(a.lo, a.hi));
}
LANES_INLINE float MaxOf(Lanes a) {
  return MaxEight(_mm256_max_ps(a.lo, a.hi));
}
LANES_INLINE __m256 Exp2Eight(__m256 x) {
  __m256 in_range = _mm256_cmp_ps(x, _mm256_set1_ps(-126.0f), _CMP_GE_OQ);
  __m256 y = _mm256_min_ps(x, _mm256_set1_ps(127.0f));
  __m256 n = _mm256_round_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 f = _mm256_sub_ps(y, n);
  __m256 p = _mm256_set1_ps(kExp2Coefficients[5]);
  for (int i = 4; i >= 0; --i) p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(kExp2Coefficients[i]));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f));
  // n is in [-126, 127] where it counts, so 2^n is a normal number and the product is exact.
  __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_and_ps(in_range, _mm256_mul_ps(p, _mm256_castsi256_ps(exponent)));
}
LANES_INLINE Lanes Exp2OfNonPositive(Lanes x) {
  return {Exp2Eight(x.lo), Exp2Eight(x.hi)};
}
LANES_INLINE Lanes Exp2(Lanes x) {
  return {Exp2Eight(x.lo), Exp2Eight(x.hi)};
}
LANES_INLINE Lanes KeepRange(Lanes a, int64_t lo, int64_t hi) {
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256 minus_inf = _mm256_set1_ps(-__builtin_inff());
  __m256 halves[2] = {a.lo, a.hi};
  for (int half = 0; half < 2; ++half) {
    __m256i low = _mm256_set1_epi32(static_cast<int>(lo) - half * 8 - 1);
    __m256i high = _mm256_set1_epi32(static_cast<int>(hi) - half * 8);
    __m256i keep = _mm256_and_si256(_mm256_cmpgt_epi32(index, low), _mm256_cmpgt_epi32(high, index));
    halves[half] = _mm256_blendv_ps(minus_inf, halves[half], _mm256_castsi256_ps(keep));
  }
  return {halves[0], halves[1]};
}

#endif

#undef LANES_INLINE

}  // namespace
}  // namespace ekiben
