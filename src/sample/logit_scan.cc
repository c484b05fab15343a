#include "sample/logit_scan.h"

#include <bit>
#include <cmath>
#include <limits>

namespace ekiben {
namespace {

constexpr int kLanes = 16;
constexpr int kBlock = 64;

// exp(x) = 2^n * e^r with n = round(x / ln 2), |r| <= ln2 / 2; degree-6 polynomial for e^r (Cephes' expf form).
inline __attribute__((always_inline)) float ExpBody(float x) {
  float clamped = x < -87.0f ? -87.0f : x;
  float n = (clamped * 1.44269504088896341f + 12582912.0f) - 12582912.0f;  // round to nearest, ties to even
  float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  auto exponent = static_cast<int32_t>(n) + 127;
  float scaled = p * std::bit_cast<float>(exponent << 23);
  return x < -87.0f ? 0.0f : scaled;
}

inline __attribute__((always_inline)) RowSummary SummarizeBody(const float* logits, int32_t count, float* block_max) {
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  float best = kLowest;
  float poison = 0.0f;  // x * 0 is NaN for NaN and infinity: one sum tells whether any entry is not finite
  int32_t best_block = 0;
  for (int32_t begin = 0; begin < count; begin += kBlock) {
    int32_t end = begin + kBlock < count ? begin + kBlock : count;
    float lane[kLanes], bad[kLanes];
    for (int j = 0; j < kLanes; ++j) {
      lane[j] = kLowest;
      bad[j] = 0.0f;
    }
    int32_t i = begin;
    for (; i + kLanes <= end; i += kLanes)
      for (int j = 0; j < kLanes; ++j) {
        float x = logits[i + j];
        lane[j] = x > lane[j] ? x : lane[j];
        bad[j] += x * 0.0f;
      }
    float top = kLowest;
    for (int j = 0; j < kLanes; ++j) {
      top = lane[j] > top ? lane[j] : top;
      poison += bad[j];
    }
    for (; i < end; ++i) {
      top = logits[i] > top ? logits[i] : top;
      poison += logits[i] * 0.0f;
    }
    if (block_max != nullptr) block_max[begin / kBlock] = top;
    if (top > best) {
      best = top;
      best_block = begin;
    }
  }
  RowSummary summary{best, best_block, poison == 0.0f};
  while (summary.argmax + 1 < count && logits[summary.argmax] != best) ++summary.argmax;
  return summary;
}

inline __attribute__((always_inline)) uint64_t ExpRowBody(const float* logits, int32_t count, float max,
                                                          float inverse_temperature, float floor, float* weights,
                                                          uint64_t* block_sum) {
  uint64_t total = 0;
  for (int32_t begin = 0; begin < count; begin += kBlock) {
    int32_t end = begin + kBlock < count ? begin + kBlock : count;
    float block[kBlock];
    for (int j = 0; j < kBlock; ++j) block[j] = 0.0f;
    if (end - begin == kBlock) {
      for (int j = 0; j < kBlock; ++j) {
        float w = ExpBody((logits[begin + j] - max) * inverse_temperature);
        block[j] = w >= floor ? w : 0.0f;
      }
    } else {
      for (int32_t i = begin; i < end; ++i) {
        float w = ExpBody((logits[i] - max) * inverse_temperature);
        block[i - begin] = w >= floor ? w : 0.0f;
      }
    }
    uint64_t sum = 0;
    for (int j = 0; j < kBlock; ++j) sum += Quanta(block[j]);
    if (weights != nullptr) {
      for (int32_t i = begin; i < end; ++i) weights[i] = block[i - begin];
      block_sum[begin / kBlock] = sum;
    }
    total += sum;
  }
  return total;
}

#define EKIBEN_TARGET_AVX2 __attribute__((target("avx2")))
#if defined(__clang__)
#define EKIBEN_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#else
#define EKIBEN_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#endif

EKIBEN_TARGET_AVX2 RowSummary SummarizeAvx2(const float* l, int32_t n, float* b) {
  return SummarizeBody(l, n, b);
}
EKIBEN_TARGET_AVX512 RowSummary SummarizeAvx512(const float* l, int32_t n, float* b) {
  return SummarizeBody(l, n, b);
}
EKIBEN_TARGET_AVX2 uint64_t ExpRowAvx2(const float* l, int32_t n, float m, float t, float f, float* w, uint64_t* b) {
  return ExpRowBody(l, n, m, t, f, w, b);
}
EKIBEN_TARGET_AVX512 uint64_t ExpRowAvx512(const float* l, int32_t n, float m, float t, float f, float* w,
                                           uint64_t* b) {
  return ExpRowBody(l, n, m, t, f, w, b);
}

}  // namespace

RowSummary SummarizeRow(Isa isa, const float* logits, int32_t count, float* block_max) {
  switch (isa) {
    case Isa::kAvx512: return SummarizeAvx512(logits, count, block_max);
    case Isa::kAvx2: return SummarizeAvx2(logits, count, block_max);
    case Isa::kReference: break;
  }
  return SummarizeBody(logits, count, block_max);
}

uint64_t ExpRow(Isa isa, const float* logits, int32_t count, float max, float inverse_temperature, float floor,
                float* weights, uint64_t* block_sum) {
  switch (isa) {
    case Isa::kAvx512: return ExpRowAvx512(logits, count, max, inverse_temperature, floor, weights, block_sum);
    case Isa::kAvx2: return ExpRowAvx2(logits, count, max, inverse_temperature, floor, weights, block_sum);
    case Isa::kReference: break;
  }
  return ExpRowBody(logits, count, max, inverse_temperature, floor, weights, block_sum);
}

float ExpNonPositive(float x) {
  return ExpBody(x);
}

}  // namespace ekiben
