// The body of ops/rope.h for sixteen lanes. Included by rope_avx2.cc and rope_avx512.cc only.
#pragma once
#include <algorithm>

#include "ops/kv_store.h"
#include "ops/lanes.h"
#include "ops/lanes_bf16.h"
#include "ops/rope.h"

namespace ekiben {
namespace {

// `n` (<= 16) rotated elements from `i` on.
inline Lanes RotatedLanes(const float* x, const float* partner, const RopeToken& token, int32_t i, int64_t n) {
  const float *cos = token.table, *sin = token.table + token.head_dim;
  Lanes own = LoadFirst(x, n);
  Lanes other = token.interleaved ? SwapPairs(own) : LoadFirst(partner, n);
  return Fma(own, LoadFirst(cos + i, n), Multiply(other, LoadFirst(sin + i, n)));
}

inline void Rotate(float* to, const float* from, const RopeToken& token) {
  int32_t d = token.head_dim, half = d / 2;
  if (token.interleaved) {
    for (int32_t i = 0; i < d; i += kLanes) {
      int64_t n = std::min<int64_t>(kLanes, d - i);
      StoreFirst(to + i, RotatedLanes(from + i, nullptr, token, i, n), n);
    }
    return;
  }
  for (int32_t i = 0; i < half; i += kLanes) {
    int64_t n = std::min<int64_t>(kLanes, half - i);
    Lanes low = RotatedLanes(from + i, from + half + i, token, i, n);
    Lanes high = RotatedLanes(from + half + i, from + i, token, half + i, n);
    StoreFirst(to + i, low, n);
    StoreFirst(to + half + i, high, n);
  }
}

inline void RopeTokenInLanes(const RopeToken& token) {
  int32_t d = token.head_dim;
  for (int32_t h = 0; h < token.query_heads; ++h) Rotate(token.qkv + h * d, token.qkv + h * d, token);
  const float* keys = token.qkv + token.query_heads * d;
  const float* values = keys + token.kv_heads * d;
  for (int32_t h = 0; h < token.kv_heads; ++h) {
    alignas(64) float key[kHeadDimMax];
    Rotate(key, keys + h * d, token);
    const float* value = values + h * d;
    std::byte* key_group = token.head + static_cast<size_t>(h) * token.head_bytes;
    std::byte* value_group = key_group + token.values_offset;
    if (token.dtype == DType::kF32) {
      StoreKey(reinterpret_cast<float*>(key_group), token.lane, key, d);
      StoreValue(reinterpret_cast<float*>(value_group), token.lane, value, d, token.head_dim_padded);
      continue;
    }
    alignas(64) uint16_t key_bf16[kHeadDimMax], value_bf16[kHeadDimMax];
    for (int32_t i = 0; i < d; i += kLanes) {
      int64_t n = std::min<int64_t>(kLanes, d - i);
      StoreBF16(key_bf16 + i, LoadFirst(key + i, n));
      StoreBF16(value_bf16 + i, LoadFirst(value + i, n));
    }
    auto* values_of_group = reinterpret_cast<uint16_t*>(value_group);
    StoreKey(reinterpret_cast<uint16_t*>(key_group), token.lane, key_bf16, d);
    StoreValue(values_of_group, token.lane, value_bf16, d, token.head_dim_padded);
    if (token.clear_next_value) ClearValue(values_of_group, token.lane + 1, d, token.head_dim_padded);
  }
}

}  // namespace
}  // namespace ekiben
