// Activations as int8 for the integer linears: once per input, then shared by every linear that reads it.
//
// Each token is quantised alone, in groups of 64 columns: scale = max|x| / 127, code = round-to-even(x * (127 / max)).
// A few channels of a language model are tens of times larger than the rest and would cost their group its precision
// (mean KL 5.3e-3 on SmolLM2, over the bound). So a value beyond kSpikeRatio times its token's root mean square leaves
// its group as a spike: the code is 0, and a linear multiplies the value itself, in f32, by one column of weights. That
// is 11 % of the groups' number and costs a linear 1 multiply slot where a second int8 record of the group cost 19.
// A group gives up at most kSpikesMax values, the first; the rest of such a group is quantised with them.
// bench/results/quant_study.json has what else was tried.
//
// Because a token's codes never depend on its neighbours, results are bit-equal in any batch.
// Non-finite inputs give unspecified numbers but touch no memory out of bounds.
#pragma once
#include <cstddef>
#include <cstdint>

#include "device/tensor_view.h"
#include "ops/op_context.h"

namespace ekiben {

struct LinearKernels;

constexpr float kSpikeRatio = 8.0f;
constexpr int32_t kSpikesMax = 8;       // of one token in one strip
constexpr float kTinyMaximum = 1e-30f;  // groups below it are zeros: 127 / max must stay finite

// What a linear needs beside 64 codes. S0, S1: the sums of the codes' halves.
struct QuantRecord {
  int32_t int4_start[2];  // S * 262136: 4 S in the upper 16 bits, -8 S in the lower (ops/linear_body.h)
  int32_t int8_start;     // -128 (S0 + S1): takes back the 128 added to int8 weights
  float scale;
};
constexpr int32_t kInt4Start = 4 * 65536 - 8;

struct QuantSpike {
  float value;
  uint32_t column;
};

// Up to kTileTokens tokens. For each strip of 64 columns: one record a token, in order. For each token: its spikes,
// columns ascending, in a place of its own that holds the most there can be.
struct QuantTile {
  int64_t token_begin = 0;  // in the batch
  int32_t tokens = 0;
  int32_t capacity = 0;             // records of a strip: tokens, or more
  int8_t* codes = nullptr;          // [strips][capacity][64]
  QuantRecord* records = nullptr;   // [strips][capacity]
  QuantSpike* spikes = nullptr;     // [capacity][spikes_capacity]
  int32_t* spike_counts = nullptr;  // [capacity]
  int64_t spikes_capacity = 0;      // strips * kSpikesMax

  QuantSpike* spikes_of(int32_t token) const { return spikes + token * spikes_capacity; }
};

constexpr int64_t kTileTokens = 128;
// In arena memory, or the reference's own.
struct QuantizedRows {
  int64_t tokens = 0, in_features = 0;
  int64_t tiles = 0;
  std::byte* data = nullptr;

  QuantTile Tile(int64_t tile) const;
};

size_t QuantizedRowsBytes(int64_t tokens, int64_t in_features);
// Lays `data` (QuantizedRowsBytes, 64-byte aligned) out for `tokens` rows.
QuantizedRows LayOutQuantizedRows(int64_t tokens, int64_t in_features, std::byte* data);

// x: f32 [tokens, in_features], row stride free. The result lives in ctx.arena until the caller rewinds it.
QuantizedRows QuantizeRows(OpContext& ctx, TensorView x);
// The same in two parts, for an op that makes a token's values and quantises them while they are in the cache. Each
// token once; different tokens from any threads, each with a quantizer of its own.
QuantizedRows TakeQuantizedRows(OpContext& ctx, int64_t tokens, int64_t in_features);
class RowQuantizer {
 public:
  RowQuantizer(Isa isa, const QuantizedRows& rows);
  // Fast for ascending tokens.
  void Row(int64_t token, const float* x);

 private:
  const QuantizedRows& rows_;
  const LinearKernels& kernels_;
  QuantTile tile_;
};

// One token into its tile, the plain form and the definition of every body.
void QuantizeTokenReference(const float* x, int64_t in_features, const QuantTile& tile, int32_t token);

}  // namespace ekiben
