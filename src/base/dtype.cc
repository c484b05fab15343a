#include "base/dtype.h"

#include <array>
#include <bit>

#include "base/check.h"

namespace ekiben {

const DTypeInfo& InfoOf(DType dtype) {
  static constexpr std::array<DTypeInfo, 16> kTable = {{
      {"f32", 1, 4},
      {"f16", 1, 2},
      {"bf16", 1, 2},
      {"i8", 1, 1},
      {"u8", 1, 1},
      {"i32", 1, 4},
      {"i64", 1, 8},
      {"bool", 1, 1},
      {"q8_0", 32, 34},    // f16 scale, 32 x i8
      {"q4_0", 32, 18},    // f16 scale, 32 x u4
      {"q4_1", 32, 20},    // f16 scale, f16 minimum, 32 x u4
      {"q5_0", 32, 22},    // f16 scale, 32 high bits, 32 x u4
      {"q5_1", 32, 24},    // f16 scale, f16 minimum, 32 high bits, 32 x u4
      {"q4_k", 256, 144},  // f16 d, f16 dmin, 12 bytes of 6-bit scales and minima, 256 x u4
      {"q5_k", 256, 176},  // the same, with 256 high bits
      {"q6_k", 256, 210},  // 256 x u4, 256 x u2, 16 x i8 scales, f16 d
  }};
  auto index = static_cast<size_t>(dtype);
  CHECK_LT(index, kTable.size());
  return kTable[index];
}

float F16ToF32(uint16_t bits) {
  uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  uint32_t exponent = (bits >> 10) & 0x1f;
  uint32_t mantissa = bits & 0x3ff;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent == 0) {
    float value = static_cast<float>(mantissa) * 0x1p-24f;  // subnormal: exact in f32
    return sign ? -value : value;
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

uint16_t F32ToF16(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to infinity
  if (bits < 0x38800000u) {  // subnormal in f16: let the FPU round at the right place
    float scaled = std::bit_cast<float>(bits) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(scaled) - 0x3f000000u));
  }
  uint32_t odd = (bits >> 13) & 1;
  return static_cast<uint16_t>(sign | ((bits - 0x38000000u + 0xfffu + odd) >> 13));
}

}  // namespace ekiben
