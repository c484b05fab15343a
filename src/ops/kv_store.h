// Where one token's keys and values go in a cache group (layout: ops/paged_kv.h). Scalar stores: a token is 2 x
// head_dim of them, and the lines they touch are read by attention right after.
#pragma once
#include <cstdint>
#include <cstring>

namespace ekiben {
namespace {

// Keys [D / S][16][S]; S = 2 for uint16_t (bf16), 1 for float.
[[maybe_unused]] inline void StoreKey(uint16_t* group, int32_t lane, const uint16_t* key, int32_t head_dim) {
  uint16_t* to = group + 2 * lane;
  for (int32_t i = 0; i < head_dim; i += 2, to += 32) std::memcpy(to, key + i, 4);
}
[[maybe_unused]] inline void StoreKey(float* group, int32_t lane, const float* key, int32_t head_dim) {
  for (int32_t i = 0; i < head_dim; ++i) group[16 * i + lane] = key[i];
}

// Values [16 / S][D][S].
[[maybe_unused]] inline void StoreValue(uint16_t* group, int32_t lane, const uint16_t* value, int32_t head_dim,
                                        int32_t head_dim_padded) {
  uint16_t* to = group + (lane / 2) * 2 * head_dim_padded + lane % 2;
  for (int32_t i = 0; i < head_dim; ++i) to[2 * i] = value[i];
}
[[maybe_unused]] inline void StoreValue(float* group, int32_t lane, const float* value, int32_t head_dim,
                                        int32_t head_dim_padded) {
  std::memcpy(group + lane * head_dim_padded, value, static_cast<size_t>(head_dim) * sizeof(float));
}

// A value's partner in a bf16 pair that no token has written yet.
[[maybe_unused]] inline void ClearValue(uint16_t* group, int32_t lane, int32_t head_dim, int32_t head_dim_padded) {
  uint16_t* to = group + (lane / 2) * 2 * head_dim_padded + lane % 2;
  for (int32_t i = 0; i < head_dim; ++i) to[2 * i] = 0;
}

}  // namespace
}  // namespace ekiben
