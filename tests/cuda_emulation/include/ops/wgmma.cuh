// src/ops/wgmma.cuh in plain C++: operands in shared memory are rows of 128 bytes under the 128-byte swizzle.
#pragma once
#include "ops/ptx.cuh"

namespace ekiben::cuda {

inline void WgmmaFence() {}
inline void WgmmaCommit() {}
template <int kGroups>
inline void WgmmaWait() {}
template <int kCount>
inline void WgmmaHold(float (&)[kCount]) {}
template <int kSteps>
inline void WgmmaHold(uint32_t (&)[kSteps][4]) {}

template <int kTokens>
struct Wgmma {
  struct Mine {
    float* d;
    uint64_t weights, tokens;
    bool accumulate;
  };
  // Row `row` of an operand, 32 bytes of K.
  template <bool kFp8>
  static void ReadRow(uint64_t descriptor, uint32_t row, float* out) {
    CHECK(descriptor >> 62 == 1, "the 128-byte swizzle");
    auto start = static_cast<uint32_t>(descriptor & 0x3FFF) << 4,
         stride = static_cast<uint32_t>(descriptor >> 32 & 0x3FFF) << 4;
    for (uint32_t piece = 0; piece < 2; ++piece) {
      const std::byte* from = emulation::Shared(Swizzled(start + row / 8 * stride + row % 8 * 128 + piece * 16), 16);
      for (uint32_t i = 0; i < (kFp8 ? 16 : 8); ++i) {
        uint16_t bits = 0;
        std::memcpy(&bits, from + i * (kFp8 ? 1 : 2), kFp8 ? 1 : 2);
        *out++ = kFp8 ? FromFp8(bits) : FromBf16(bits);
      }
    }
  }
  template <bool kFp8>
  static void Together(void* const* all) {
    constexpr uint32_t kK = kFp8 ? 32 : 16;
    static float w[64][32], x[kTokens][32];
    const auto& first = *static_cast<Mine*>(all[0]);
    for (uint32_t row = 0; row < 64; ++row) ReadRow<kFp8>(first.weights, row, w[row]);
    for (uint32_t token = 0; token < kTokens; ++token) ReadRow<kFp8>(first.tokens, token, x[token]);
    for (int thread = 0; thread < 128; ++thread) {
      const auto& mine = *static_cast<Mine*>(all[thread]);
      CHECK(mine.weights == first.weights && mine.tokens == first.tokens && mine.accumulate == first.accumulate);
      for (int i = 0; i < kTokens / 2; ++i) {
        int row = thread / 32 * 16 + thread % 32 / 4 + 8 * (i % 4 / 2), token = i / 4 * 8 + thread % 4 * 2 + i % 2;
        float sum = 0;
        for (uint32_t k = 0; k < kK; ++k) sum += w[row][k] * x[token][k];
        mine.d[i] = mine.accumulate ? mine.d[i] + sum : sum;
      }
    }
  }
  template <bool kFp8>
  static void Run(float (&d)[kTokens / 2], uint64_t weights, uint64_t tokens, int accumulate) {
    Mine mine{d, weights, tokens, accumulate != 0};
    emulation::MeetWarpgroup(&mine, Together<kFp8>);
  }
};

struct RowsProduct {
  float* d;
  const uint32_t* a;
  uint64_t b;
  bool accumulate;
};
template <bool kHalf, bool kAcross>
void WgmmaRowsTogether(void* const* all) {
  static float a[64][16], b[16][128];
  auto number = [](uint32_t bits) { return kHalf ? FromHalf(bits & 0xFFFF) : FromBf16(bits & 0xFFFF); };
  const auto& first = *static_cast<RowsProduct*>(all[0]);
  CHECK(first.b >> 62 == 1, "the 128-byte swizzle");
  auto start = static_cast<uint32_t>(first.b & 0x3FFF) << 4,
       leading = static_cast<uint32_t>(first.b >> 16 & 0x3FFF) << 4,
       stride = static_cast<uint32_t>(first.b >> 32 & 0x3FFF) << 4;
  for (uint32_t k = 0; k < 16; ++k) {
    for (uint32_t n = 0; n < 128; ++n) {
      uint32_t at = kAcross ? start + n / 64 * leading + k / 8 * stride + k % 8 * 128 + n % 64 * 2
                            : start + n / 8 * stride + n % 8 * 128 + k * 2;
      uint16_t bits = 0;
      std::memcpy(&bits, emulation::Shared(Swizzled(at), 2), 2);
      b[k][n] = number(bits);
    }
  }
  for (uint32_t thread = 0; thread < 128; ++thread) {
    const auto& from = *static_cast<RowsProduct*>(all[thread]);
    CHECK(from.b == first.b && from.accumulate == first.accumulate);
    uint32_t row = thread / 32 * 16 + thread % 32 / 4, k = thread % 4 * 2;
    for (uint32_t i = 0; i < 4; ++i)
      for (uint32_t h = 0; h < 2; ++h) a[row + 8 * (i % 2)][k + 8 * (i / 2) + h] = number(from.a[i] >> (16 * h));
  }
  for (uint32_t thread = 0; thread < 128; ++thread) {
    const auto& to = *static_cast<RowsProduct*>(all[thread]);
    for (uint32_t i = 0; i < 64; ++i) {
      uint32_t row = thread / 32 * 16 + thread % 32 / 4 + 8 * (i % 4 / 2), n = i / 4 * 8 + thread % 4 * 2 + i % 2;
      float sum = to.accumulate ? to.d[i] : 0;
      for (uint32_t k = 0; k < 16; ++k) sum += a[row][k] * b[k][n];
      to.d[i] = sum;
    }
  }
}
template <bool kHalf, bool kAcross>
inline void WgmmaRows(float (&d)[64], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  RowsProduct mine{d, a, b, accumulate != 0};
  emulation::MeetWarpgroup(&mine, WgmmaRowsTogether<kHalf, kAcross>);
}

}  // namespace ekiben::cuda
