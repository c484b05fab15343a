// Passes over one row of logits [vocab_size]: the parts of sampling that touch every entry. Each is written once and
// compiled for every instruction set; all copies give the same bits (16 fixed lanes, then a fixed tree, no fma), so a
// seed gives the same tokens on every machine.
// Cost: one read of the row each (196 KB for 49,152 entries, about 10 us from L2).
#pragma once
#include <cstdint>

#include "device/cpu_features.h"

namespace ekiben {

struct RowSummary {
  float max = 0;
  int32_t argmax = 0;  // the lowest index that has it
  bool finite = true;  // no NaN, no infinity anywhere
};

// The row's maximum. `block_max` (may be null) receives the maximum of every 64 consecutive entries.
RowSummary SummarizeRow(Isa isa, const float* logits, int32_t count, float* block_max);

// A weight of at most 1 as an integer, in units of 2^-40. Sums of these are exact, so that they are the same in any
// order: a draw is the same on every device. A weight under 2^-40 of the best is none.
inline constexpr float kQuantaOfOne = 0x1p40f;
inline uint64_t Quanta(float weight) {
  return static_cast<uint64_t>(static_cast<int64_t>(weight * kQuantaOfOne));
}

// The least sum of the best that top_p keeps, of `total`; at least one.
inline uint64_t NucleusQuanta(float top_p, uint64_t total) {
  auto wanted = static_cast<uint64_t>(static_cast<double>(top_p) * static_cast<double>(total));
  return wanted > 0 ? wanted : 1;
}
// Where a draw in [0, 1), a multiple of 2^-24, falls in a sum: under it.
inline uint64_t DrawTarget(float draw, uint64_t total) {
  auto bits = static_cast<uint64_t>(draw * 0x1p24f);
  return (total >> 24) * bits + ((total & 0xFFFFFF) * bits >> 24);
}

// weights[i] = exp((logits[i] - max) * inverse_temperature), or 0 where that is under `floor` (min_p; 0 keeps all).
// block_sum[b] = the quanta of block b of 64; returns those of all.
// weights and block_sum may both be null: then only the sum is wanted.
uint64_t ExpRow(Isa isa, const float* logits, int32_t count, float max, float inverse_temperature, float floor,
                float* weights, uint64_t* block_sum);

// The exp that ExpRow uses, for one value: a polynomial within 2 ulp on x <= 0; 0 below -87.
float ExpNonPositive(float x);

}  // namespace ekiben
