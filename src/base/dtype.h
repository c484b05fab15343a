// Element types of tensors in files and in memory, with their block geometry.
// Block formats store `block_elements` consecutive values of a row in `block_bytes`; see weights/quant_block.h for
// their layouts. Sizes are exact, so that a file reader can bound a tensor before it touches a byte.
#pragma once
#include <cstdint>
#include <string_view>

namespace ekiben {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kI8,
  kU8,
  kI32,
  kI64,
  kBool,
  // GGUF block formats. Numbers in the name are bits; _0 symmetric, _1 with a minimum, _K super-blocks of 256.
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ4_K,
  kQ5_K,
  kQ6_K,
};

struct DTypeInfo {
  std::string_view name;   // as printed: "f32", "q4_1"
  int32_t block_elements;  // 1 for plain types
  int32_t block_bytes;
};

const DTypeInfo& InfoOf(DType dtype);
inline std::string_view Name(DType dtype) {
  return InfoOf(dtype).name;
}
inline bool IsBlocked(DType dtype) {
  return InfoOf(dtype).block_elements > 1;
}

// Conversions that every folder needs; round to nearest even. NaN stays NaN.
float F16ToF32(uint16_t bits);
uint16_t F32ToF16(float value);
inline float BF16ToF32(uint16_t bits) {
  uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  __builtin_memcpy(&value, &wide, 4);
  return value;
}
inline uint16_t F32ToBF16(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

}  // namespace ekiben
