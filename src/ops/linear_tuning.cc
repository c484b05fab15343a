#include "ops/linear_tuning.h"

#include <algorithm>
#include <string>

namespace ekiben {
namespace {

constexpr LinearVariant kVariants[] = {
    {"split8", 8, 0},
    {"split8_fetch2k", 8, 2048},
    {"split8_fetch8k", 8, 8192},
    {"split2_fetch4k", 2, 4096},
    {"halves_fetch8k", 1, 8192},
    {"split32", 32, 0},
    {"split32_fetch4k", 32, 4096},
    {"split32_fetch8k", 32, 8192},
};

}  // namespace

std::span<const LinearVariant> LinearVariants() {
  return kVariants;
}

Result<int32_t> LinearVariantIndex(std::string_view name) {
  std::string known;
  for (size_t i = 0; i < std::size(kVariants); ++i) {
    if (kVariants[i].name == name) return static_cast<int32_t>(i);
    known += (i == 0 ? "" : ", ") + std::string(kVariants[i].name);
  }
  return Error(Code::kInvalid,
               fmt::format("variant '{}': not one of {}; build the engine again", std::string(name), known), "variant");
}

int32_t LinearBucketOf(int64_t tokens) {
  int32_t bucket = 0;
  while (bucket + 1 < static_cast<int32_t>(kLinearBuckets.size()) &&
         tokens >= kLinearBuckets[static_cast<size_t>(bucket + 1)]) {
    ++bucket;
  }
  return bucket;
}

void LinearTuning::Set(Packing packing, int64_t out_features, int64_t in_features, int32_t bucket, int32_t variant) {
  CHECK(bucket >= 0 && bucket < static_cast<int32_t>(kLinearBuckets.size()), "bucket {}", bucket);
  CHECK(variant >= 0 && variant < static_cast<int32_t>(std::size(kVariants)), "variant {}", variant);
  auto same = [&](const Shape& s) {
    return s.packing == packing && s.out_features == out_features && s.in_features == in_features;
  };
  auto it = std::find_if(shapes_.begin(), shapes_.end(), same);
  if (it == shapes_.end()) {
    Shape shape{packing, out_features, in_features, {}};
    shape.variants.fill(-1);
    it = shapes_.insert(shapes_.end(), shape);
  }
  it->variants[static_cast<size_t>(bucket)] = static_cast<int8_t>(variant);
}

const LinearVariant& LinearTuning::BuiltIn(const LinearWeight& /*weight*/, int64_t /*tokens*/) {
  // Small pieces in contiguous shares: the hardware follows the stream, and members end within a piece of each other.
  return kVariants[5];
}

const LinearVariant& LinearTuning::Choose(const LinearWeight& weight, int64_t tokens) const {
  for (const Shape& s : shapes_) {
    if (s.packing != weight.packing || s.out_features != weight.out_features || s.in_features != weight.in_features) {
      continue;
    }
    int8_t variant = s.variants[static_cast<size_t>(LinearBucketOf(tokens))];
    if (variant >= 0) return kVariants[variant];
  }
  return BuiltIn(weight, tokens);
}

}  // namespace ekiben
