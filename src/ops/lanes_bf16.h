// bf16 for ops/lanes.h: rounding, and the dot of pairs. Included only by files compiled for one instruction set.
//
// AccumulatePair is vdpbf16ps: acc = fma(a[2i+1], b[2i+1], acc), then acc = fma(a[2i], b[2i], acc). The 256-bit form
// does the same in f32; it keeps denormals, which the instruction flushes.
#pragma once
#include <cstdint>
#include <cstring>

#include "ops/lanes.h"

namespace ekiben {
namespace {

#if defined(__AVX512BF16__)

struct Pairs {
  __m512bh v;
};

[[gnu::always_inline]] static inline void StoreBF16(uint16_t* p, Lanes a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(a.v));
}
[[gnu::always_inline]] static inline Pairs LoadPairs(const uint16_t* p) {
  return {(__m512bh)_mm512_loadu_si512(p)};
}
[[gnu::always_inline]] static inline Pairs BroadcastPair(const uint16_t* p) {
  int32_t pair;
  std::memcpy(&pair, p, 4);
  return {(__m512bh)_mm512_set1_epi32(pair)};
}
[[gnu::always_inline]] static inline Lanes AccumulatePair(Lanes acc, Pairs a, Pairs b) {
  return {_mm512_dpbf16_ps(acc.v, a.v, b.v)};
}

#else

struct Pairs {
  __m256i lo, hi;
};

[[gnu::always_inline]] static inline __m256i RoundEight(__m256 x) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i bits = _mm256_castps_si256(x), size = _mm256_and_si256(bits, magnitude);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  __m256i nan = _mm256_cmpgt_epi32(size, _mm256_set1_epi32(0x7f800000));
  rounded = _mm256_blendv_epi8(rounded, _mm256_or_si256(bits, _mm256_set1_epi32(0x400000)), nan);
  __m256i denormal = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x00800000), size);
  rounded = _mm256_blendv_epi8(rounded, _mm256_andnot_si256(magnitude, bits), denormal);
  return _mm256_srli_epi32(rounded, 16);
}
[[gnu::always_inline]] static inline void StoreBF16(uint16_t* p, Lanes a) {
  __m256i packed = _mm256_packus_epi32(RoundEight(a.lo), RoundEight(a.hi));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xD8));
}
[[gnu::always_inline]] static inline Pairs LoadPairs(const uint16_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16))};
}
[[gnu::always_inline]] static inline Pairs BroadcastPair(const uint16_t* p) {
  int32_t pair;
  std::memcpy(&pair, p, 4);
  return {_mm256_set1_epi32(pair), _mm256_set1_epi32(pair)};
}
[[gnu::always_inline]] static inline __m256 AccumulateEight(__m256 acc, __m256i a, __m256i b) {
  const __m256i odd = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  acc = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(a, odd)), _mm256_castsi256_ps(_mm256_and_si256(b, odd)),
                        acc);
  return _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16)),
                         acc);
}
[[gnu::always_inline]] static inline Lanes AccumulatePair(Lanes acc, Pairs a, Pairs b) {
  return {AccumulateEight(acc.lo, a.lo, b.lo), AccumulateEight(acc.hi, a.hi, b.hi)};
}

#endif

}  // namespace
}  // namespace ekiben
