#include <immintrin.h>

#include "ops/roofline_kernels.h"

namespace ekiben {
namespace {

#define EIGHT(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7)

// What stands in for vpdpbusd: vpmaddubsw, vpmaddwd, vpaddd.
double Int8(int64_t rounds) {
  __m256i acc[8], weights = _mm256_set1_epi8(3), x = _mm256_set1_epi8(5), ones = _mm256_set1_epi16(1);
  for (__m256i& a : acc) a = _mm256_setzero_si256();
  for (int64_t r = 0; r < rounds; ++r) {
    for (__m256i& a : acc) {
      __asm__ volatile("" : "+x"(weights));
      a = _mm256_add_epi32(a, _mm256_madd_epi16(_mm256_maddubs_epi16(weights, x), ones));
    }
  }
  for (__m256i& a : acc) __asm__ volatile("" : : "x"(a));
  return static_cast<double>(rounds) * 8 * 64;
}

double F32(int64_t rounds) {
  __m256 acc[8], weights = _mm256_set1_ps(1.0f), x = _mm256_set1_ps(0.5f);
  for (__m256& a : acc) a = _mm256_setzero_ps();
  for (int64_t r = 0; r < rounds; ++r) {
#define STEP(i) __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(acc[i]) : "x"(weights), "x"(x));
    EIGHT(STEP)
#undef STEP
  }
  return static_cast<double>(rounds) * 8 * 16;
}

double Read(const void* data, int64_t bytes) {
  const char* p = static_cast<const char*>(data);
  __m256i sum[4];
  for (__m256i& s : sum) s = _mm256_setzero_si256();
  for (int64_t i = 0; i < bytes; i += 128) {
    for (int j = 0; j < 4; ++j) {
      sum[j] = _mm256_xor_si256(sum[j], _mm256_load_si256(reinterpret_cast<const __m256i*>(p + i + 32 * j)));
    }
  }
  __m256i all = _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
  __asm__ volatile("" : : "x"(all));
  return static_cast<double>(bytes);
}

}  // namespace

// bf16 products run as f32 here.
const RooflineKernels kRooflineAvx2 = {Int8, F32, F32, Read};

}  // namespace ekiben
