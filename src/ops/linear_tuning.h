// How a linear's work is cut and fetched, chosen by time: `ekiben build` runs every variant for each shape and bucket
// of token counts (`multiple_profiles`), and the engine's profiles.json holds the winners. Every variant gives the same
// bits: a profile changes speed, never results.
// Thread: fill it before use; then any thread may read.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "ops/linear.h"

namespace ekiben {

struct LinearVariant {
  std::string_view name;
  // Pieces of the rows that each thread can expect to take. 1: halves, best for streams from memory; more: a thread
  // that lost its core to another process leaves its share to the others.
  int32_t pieces_per_thread;
  int32_t prefetch_bytes;  // how far ahead of use weights are asked for; 0: left to the hardware
};

// All of them; the position is the number that a profile stores.
std::span<const LinearVariant> LinearVariants();
// By name; an error lists the names.
Result<int32_t> LinearVariantIndex(std::string_view name);

// Token counts [kLinearBuckets[i], kLinearBuckets[i + 1]) share a choice.
constexpr std::array<int32_t, 10> kLinearBuckets = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512};
int32_t LinearBucketOf(int64_t tokens);

class LinearTuning {
 public:
  void Set(Packing packing, int64_t out_features, int64_t in_features, int32_t bucket, int32_t variant);
  // The built-in choice where nothing was set.
  const LinearVariant& Choose(const LinearWeight& weight, int64_t tokens) const;
  // What runs without a profile.
  static const LinearVariant& BuiltIn(const LinearWeight& weight, int64_t tokens);

 private:
  struct Shape {
    Packing packing;
    int64_t out_features, in_features;
    std::array<int8_t, kLinearBuckets.size()> variants;  // -1: not set
  };
  std::vector<Shape> shapes_;  // a handful: searched in order
};

}  // namespace ekiben
