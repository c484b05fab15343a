#include <immintrin.h>

#include "ops/roofline_kernels.h"

namespace ekiben {
namespace {

// Ten chains hide the latency of four cycles at two instructions a cycle, should a CPU have them.
#define TEN(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9)

double Int8(int64_t rounds) {
  __m512i acc[10], weights = _mm512_set1_epi8(3), x = _mm512_set1_epi8(5);
  for (__m512i& a : acc) a = _mm512_setzero_si512();
  for (int64_t r = 0; r < rounds; ++r) {
#define STEP(i) __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(acc[i]) : "v"(weights), "v"(x));
    TEN(STEP)
#undef STEP
  }
  return static_cast<double>(rounds) * 10 * 128;
}

double BF16(int64_t rounds) {
  __m512 acc[10];
  __m512i weights = _mm512_set1_epi32(0x3f803f80), x = weights;
  for (__m512& a : acc) a = _mm512_setzero_ps();
  for (int64_t r = 0; r < rounds; ++r) {
#define STEP(i) __asm__ volatile("vdpbf16ps %2, %1, %0" : "+v"(acc[i]) : "v"(weights), "v"(x));
    TEN(STEP)
#undef STEP
  }
  return static_cast<double>(rounds) * 10 * 64;
}

double F32(int64_t rounds) {
  __m512 acc[10], weights = _mm512_set1_ps(1.0f), x = _mm512_set1_ps(0.5f);
  for (__m512& a : acc) a = _mm512_setzero_ps();
  for (int64_t r = 0; r < rounds; ++r) {
#define STEP(i) __asm__ volatile("vfmadd231ps %2, %1, %0" : "+v"(acc[i]) : "v"(weights), "v"(x));
    TEN(STEP)
#undef STEP
  }
  return static_cast<double>(rounds) * 10 * 32;
}

double Read(const void* data, int64_t bytes) {
  const char* p = static_cast<const char*>(data);
  __m512i sum[4];
  for (__m512i& s : sum) s = _mm512_setzero_si512();
  for (int64_t i = 0; i < bytes; i += 256) {
    for (int j = 0; j < 4; ++j) sum[j] = _mm512_xor_si512(sum[j], _mm512_load_si512(p + i + 64 * j));
  }
  __m512i all = _mm512_xor_si512(_mm512_xor_si512(sum[0], sum[1]), _mm512_xor_si512(sum[2], sum[3]));
  __asm__ volatile("" : : "v"(all));
  return static_cast<double>(bytes);
}

}  // namespace

const RooflineKernels kRooflineAvx512 = {Int8, BF16, F32, Read};

}  // namespace ekiben
