// Bit-equal to the formats' reference (gguf-py): every product and sum is one f32 operation, in the order of
// quant_block.h, never fused (the file is built with -ffp-contract=off).
#include <cstring>

#include "base/check.h"
#include "weights/checkpoint.h"
#include "weights/quant_block.h"

namespace ekiben {
namespace {

// Plain types are read by memcpy: a safetensors file may place them at any byte.
template <class T, class Convert>
void Plain(const std::byte* row, int64_t count, float* out, Convert convert) {
  for (int64_t i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, row + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
    out[i] = convert(value);
  }
}

template <class Block, int kElements, class Expand>
void Blocks(const std::byte* row, int64_t count, float* out, Expand expand) {
  CHECK_EQ(count % kElements, 0);
  for (int64_t b = 0; b < count / kElements; ++b) {
    Block block;
    std::memcpy(&block, row + b * static_cast<int64_t>(sizeof(Block)), sizeof(Block));
    expand(block, out + b * kElements);
  }
}

void Expand(const BlockQ8_0& block, float* out) {
  float d = F16ToF32(block.d);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(block.qs[i]) * d;
}

void Expand(const BlockQ4_0& block, float* out) {
  float d = F16ToF32(block.d);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>((block.qs[i] & 15) - 8);
    out[i + 16] = d * static_cast<float>((block.qs[i] >> 4) - 8);
  }
}

void Expand(const BlockQ4_1& block, float* out) {
  float d = F16ToF32(block.d), m = F16ToF32(block.m);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>(block.qs[i] & 15) + m;
    out[i + 16] = d * static_cast<float>(block.qs[i] >> 4) + m;
  }
}

// The codes of q5_0 and q5_1: 4 bits from a nibble and one from qh.
template <class Block>
void Codes5(const Block& block, int* q) {
  uint32_t high;
  std::memcpy(&high, block.qh, 4);
  for (int i = 0; i < 16; ++i) {
    q[i] = static_cast<int>((block.qs[i] & 15) | (((high >> i) & 1) << 4));
    q[i + 16] = static_cast<int>((block.qs[i] >> 4) | (((high >> (i + 16)) & 1) << 4));
  }
}

void Expand(const BlockQ5_0& block, float* out) {
  float d = F16ToF32(block.d);
  int q[32];
  Codes5(block, q);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(q[i] - 16);
}

void Expand(const BlockQ5_1& block, float* out) {
  float d = F16ToF32(block.d), m = F16ToF32(block.m);
  int q[32];
  Codes5(block, q);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(q[i]) + m;
}

void Expand(const BlockQ4_K& block, float* out) {
  float d = F16ToF32(block.d), dmin = F16ToF32(block.dmin);
  for (int j = 0; j < 8; ++j) {
    float scale = d * static_cast<float>(ScaleOfK(block.scales, j));
    float minimum = dmin * static_cast<float>(MinOfK(block.scales, j));
    const uint8_t* qs = block.qs + j / 2 * 32;
    for (int i = 0; i < 32; ++i) {
      int q = j % 2 == 0 ? qs[i] & 15 : qs[i] >> 4;
      out[j * 32 + i] = scale * static_cast<float>(q) - minimum;
    }
  }
}

void Expand(const BlockQ5_K& block, float* out) {
  float d = F16ToF32(block.d), dmin = F16ToF32(block.dmin);
  for (int j = 0; j < 8; ++j) {
    float scale = d * static_cast<float>(ScaleOfK(block.scales, j));
    float minimum = dmin * static_cast<float>(MinOfK(block.scales, j));
    const uint8_t* qs = block.qs + j / 2 * 32;
    for (int i = 0; i < 32; ++i) {
      int q = (j % 2 == 0 ? qs[i] & 15 : qs[i] >> 4) | (((block.qh[i] >> j) & 1) << 4);
      out[j * 32 + i] = scale * static_cast<float>(q) - minimum;
    }
  }
}

void Expand(const BlockQ6_K& block, float* out) {
  float d = F16ToF32(block.d);
  for (int j = 0; j < 8; ++j) {  // 32 values: quarter j % 4 of half j / 4
    const uint8_t* ql = block.ql + j / 4 * 64 + j % 2 * 32;
    const uint8_t* qh = block.qh + j / 4 * 32;
    for (int i = 0; i < 32; ++i) {
      int low = j % 4 < 2 ? ql[i] & 15 : ql[i] >> 4;
      int q = (low | (((qh[i] >> (j % 4 * 2)) & 3) << 4)) - 32;
      out[j * 32 + i] = (d * static_cast<float>(block.scales[j * 2 + (i >> 4)])) * static_cast<float>(q);
    }
  }
}

template <class Block, int kElements>
void Expanded(const std::byte* row, int64_t count, float* out) {
  Blocks<Block, kElements>(row, count, out, [](const Block& block, float* values) { Expand(block, values); });
}

}  // namespace

void Dequantize(DType dtype, const std::byte* row, int64_t count, float* out) {
  auto number = [](auto value) { return static_cast<float>(value); };
  switch (dtype) {
    case DType::kF32: std::memcpy(out, row, static_cast<size_t>(count) * sizeof(float)); return;
    case DType::kF16: Plain<uint16_t>(row, count, out, F16ToF32); return;
    case DType::kBF16: Plain<uint16_t>(row, count, out, BF16ToF32); return;
    case DType::kI8: Plain<int8_t>(row, count, out, number); return;
    case DType::kU8: Plain<uint8_t>(row, count, out, number); return;
    case DType::kI32: Plain<int32_t>(row, count, out, number); return;
    case DType::kI64: Plain<int64_t>(row, count, out, number); return;
    case DType::kBool: Plain<uint8_t>(row, count, out, [](uint8_t value) { return value != 0 ? 1.0f : 0.0f; }); return;
    case DType::kQ8_0: Expanded<BlockQ8_0, 32>(row, count, out); return;
    case DType::kQ4_0: Expanded<BlockQ4_0, 32>(row, count, out); return;
    case DType::kQ4_1: Expanded<BlockQ4_1, 32>(row, count, out); return;
    case DType::kQ5_0: Expanded<BlockQ5_0, 32>(row, count, out); return;
    case DType::kQ5_1: Expanded<BlockQ5_1, 32>(row, count, out); return;
    case DType::kQ4_K: Expanded<BlockQ4_K, 256>(row, count, out); return;
    case DType::kQ5_K: Expanded<BlockQ5_K, 256>(row, count, out); return;
    case DType::kQ6_K: Expanded<BlockQ6_K, 256>(row, count, out); return;
  }
  CHECK(false, "no such dtype: {}", static_cast<int>(dtype));
}

}  // namespace ekiben
