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

// weights[i] = exp((logits[i] - max) * inverse_temperature), or 0 where that is under `floor` (min_p; 0 keeps all).
// block_sum[b] = the sum of weights of block b of 64; returns the sum of all blocks, in order.
// weights and block_sum may both be null: then only the sum is wanted.
double ExpRow(Isa isa, const float* logits, int32_t count, float max, float inverse_temperature, float floor,
              float* weights, double* block_sum);

// The exp that ExpRow uses, for one value: a polynomial within 2 ulp on x <= 0; 0 below -87.
float ExpNonPositive(float x);

}  // namespace ekiben
