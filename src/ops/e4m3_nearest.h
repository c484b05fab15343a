// The nearest e4m3 value (ties to even, beyond 448 the largest), in a form that compilers turn into vectors. Internal
// linkage: it is compiled for several instruction sets.
#pragma once
#include <cstdint>

namespace ekiben {
namespace {

[[gnu::always_inline]] inline float NearestE4m3(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  const uint32_t sign = bits & 0x80000000u;
  bits &= 0x7fffffffu;
  if (bits > 0x43e00000u) bits = 0x43e00000u;  // 448
  float size;
  __builtin_memcpy(&size, &bits, 4);
  const float small = (size + 24576.0f) - 24576.0f;  // under 2^-6 steps are 2^-9, as those of f32 beside 1.5 * 2^14
  uint32_t small_bits;
  __builtin_memcpy(&small_bits, &small, 4);
  const uint32_t normal = (bits + 0x7ffffu + ((bits >> 20) & 1u)) & 0xfff00000u;  // three bits of fraction
  bits = (bits < 0x3c800000u ? small_bits : normal) | sign;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

}  // namespace
}  // namespace ekiben
