#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "base/mapped_file.h"
#include "weights/checkpoint.h"
#include "weights/quant_block.h"

namespace ekiben {
namespace {

// testdata/dequantize.bin comes from gguf-py's reference (testdata/make_dequantize_golden.py); equality is bit for bit.
TEST(Dequantize, EqualsTheReferenceOnEveryFormat) {
  const std::map<uint32_t, DType> kTypes = {
      {1, DType::kF16},  {30, DType::kBF16}, {8, DType::kQ8_0},  {2, DType::kQ4_0},  {3, DType::kQ4_1},
      {6, DType::kQ5_0}, {7, DType::kQ5_1},  {12, DType::kQ4_K}, {13, DType::kQ5_K}, {14, DType::kQ6_K}};
  auto golden = MappedFile::Open(EKIBEN_SOURCE_DIR "/src/weights/testdata/dequantize.bin");
  ASSERT_TRUE(golden.ok()) << golden.error().message();
  std::span<const std::byte> bytes = golden->bytes();
  size_t formats = 0;
  while (!bytes.empty()) {
    uint32_t head[3];
    std::memcpy(head, bytes.data(), sizeof(head));
    auto [type, raw_bytes, count] = head;
    DType dtype = kTypes.at(type);
    const std::byte* raw = bytes.data() + sizeof(head);
    std::vector<float> values(count);
    Dequantize(dtype, raw, count, values.data());
    for (uint32_t i = 0; i < count; ++i) {
      uint32_t wanted, got;
      std::memcpy(&wanted, raw + raw_bytes + i * 4, 4);
      std::memcpy(&got, &values[i], 4);
      ASSERT_EQ(got, wanted) << Name(dtype) << " value " << i;
    }
    bytes = bytes.subspan(sizeof(head) + raw_bytes + count * 4);
    ++formats;
  }
  EXPECT_EQ(formats, kTypes.size());
}

TEST(Dequantize, ReadsPlainTypesAtAnyByte) {
  alignas(8) std::byte buffer[32] = {};
  auto at_odd = [&](DType dtype, auto value) {
    std::memcpy(buffer + 1, &value, sizeof(value));
    float out = 0;
    Dequantize(dtype, buffer + 1, 1, &out);
    return out;
  };
  EXPECT_EQ(at_odd(DType::kF32, 1.25f), 1.25f);
  EXPECT_EQ(at_odd(DType::kF16, F32ToF16(-2.5f)), -2.5f);
  EXPECT_EQ(at_odd(DType::kBF16, F32ToBF16(3.0f)), 3.0f);
  EXPECT_EQ(at_odd(DType::kI8, int8_t{-7}), -7.0f);
  EXPECT_EQ(at_odd(DType::kU8, uint8_t{250}), 250.0f);
  EXPECT_EQ(at_odd(DType::kI32, int32_t{-70000}), -70000.0f);
  EXPECT_EQ(at_odd(DType::kI64, int64_t{1} << 40), 1099511627776.0f);
  EXPECT_EQ(at_odd(DType::kBool, uint8_t{1}), 1.0f);
}

TEST(Dequantize, UnpacksTheSixBitScales) {
  // Scales 0..7 are 10 + j, minima 50 + j; packed by the layout's description, not by the code under test.
  uint8_t packed[12] = {};
  for (int j = 0; j < 8; ++j) {
    int scale = 10 + j, minimum = 50 + j;
    if (j < 4) {
      packed[j] = static_cast<uint8_t>(packed[j] | scale);
      packed[j + 4] = static_cast<uint8_t>(packed[j + 4] | minimum);
    } else {
      packed[j + 4] = static_cast<uint8_t>((scale & 15) | ((minimum & 15) << 4));
      packed[j - 4] = static_cast<uint8_t>(packed[j - 4] | ((scale >> 4) << 6));
      packed[j] = static_cast<uint8_t>(packed[j] | ((minimum >> 4) << 6));
    }
  }
  for (int j = 0; j < 8; ++j) {
    EXPECT_EQ(ScaleOfK(packed, j), 10 + j);
    EXPECT_EQ(MinOfK(packed, j), 50 + j);
  }
}

}  // namespace
}  // namespace ekiben
