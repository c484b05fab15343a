// For tests of ops: the instruction sets of this machine, random numbers, and comparison by bits.
#pragma once
#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "device/cpu_features.h"

namespace ekiben {

inline std::vector<Isa> IsasHere() {
  std::vector<Isa> isas = {Isa::kReference};
  const CpuFeatures& f = DetectCpuFeatures();
  if (f.avx2 && f.fma && f.f16c) isas.push_back(Isa::kAvx2);
  if (f.avx512f && f.avx512bw && f.avx512dq && f.avx512vl && f.avx512_vnni && f.avx512_bf16) {
    isas.push_back(Isa::kAvx512);
  }
  return isas;
}

inline std::vector<float> RandomFloats(std::mt19937& rng, int64_t count, float scale = 1.0f) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> out(static_cast<size_t>(count));
  for (float& x : out) x = normal(rng);
  return out;
}

inline int RandomInt(std::mt19937& rng, int low, int high) {
  return std::uniform_int_distribution<int>(low, high)(rng);
}

// Equal as numbers for zeros of either sign, as bits otherwise.
inline ::testing::AssertionResult SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return ::testing::AssertionFailure() << a.size() << " values against " << b.size();
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] == 0.0f && b[i] == 0.0f) continue;
    if (std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i])) {
      return ::testing::AssertionFailure()
             << "element " << i << " of " << a.size() << ": " << a[i] << " against " << b[i];
    }
  }
  return ::testing::AssertionSuccess();
}

}  // namespace ekiben
