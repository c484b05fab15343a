// src/ops/wgmma.cuh in plain C++: both operands in shared memory, rows of 128 bytes of K under the 128-byte swizzle.
#pragma once
#include "ops/ptx.cuh"

namespace ekiben::cuda {

inline void WgmmaFence() {}
inline void WgmmaFinish() {}

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

}  // namespace ekiben::cuda
