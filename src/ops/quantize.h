// Activations as int8 for the integer linears: once per input, then shared by every linear that reads it.
//
// Each token is quantised alone, in groups of 64 columns: scale = max|x| / 127, code = round-to-even(x * (127 / max)).
// A few channels of a language model are tens of times larger than the rest and would cost their group its precision
// (mean KL 5.3e-3 on SmolLM2, over the bound). So where a group's maximum exceeds kOutlierRatio times the token's root
// mean square, what rounding left over is quantised again into a second record (8 + 8 bits): 10 % of the groups, and
// KL 1.4e-3 over the golden prompts. bench/results/quant_study.json has what else was tried; a ratio of 10 was
// worse. A linear treats both records alike and adds them in this order.
//
// Because a token's codes never depend on its neighbours, results are bit-equal in any batch.
// Non-finite inputs give unspecified numbers but touch no memory out of bounds.
#pragma once
#include <cstddef>
#include <cstdint>

#include "device/tensor_view.h"
#include "ops/op_context.h"

namespace ekiben {

constexpr float kOutlierRatio = 8.0f;
constexpr float kTinyMaximum = 1e-30f;  // groups below it are zeros: 127 / max must stay finite

// What a linear needs beside 64 codes. S0, S1: the sums of the codes' halves.
struct QuantRecord {
  int32_t int4_start[2];  // S * 262136: 4 S in the upper 16 bits, -8 S in the lower (ops/linear_body.h)
  int32_t int8_start;     // -128 (S0 + S1): takes back the 128 added to int8 weights
  float scale;
  int32_t token;  // within the tile
};
constexpr int32_t kInt4Start = 4 * 65536 - 8;

// Up to kTileTokens tokens. For each strip of 64 columns: records [0, tokens) are the tokens' own, in order; after them
// come the second records, in any order (at most one a token, so the order does not matter).
struct QuantTile {
  int64_t token_begin = 0;  // in the batch
  int32_t tokens = 0;
  int32_t capacity = 0;            // records a strip may hold: 2 * tokens
  int8_t* codes = nullptr;         // [strips][capacity][64]
  QuantRecord* records = nullptr;  // [strips][capacity]
  int32_t* counts = nullptr;       // [strips], records present
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
// Lays `data` (QuantizedRowsBytes, 64-byte aligned) out for `tokens` rows, with no record yet.
QuantizedRows LayOutQuantizedRows(int64_t tokens, int64_t in_features, std::byte* data);

// x: f32 [tokens, in_features], row stride free. The result lives in ctx.arena until the caller rewinds it.
QuantizedRows QuantizeRows(OpContext& ctx, TensorView x);

// One token into its tile, the plain form and the definition of every body. Several threads may fill one tile.
void QuantizeTokenReference(const float* x, int64_t in_features, const QuantTile& tile, int32_t token);

}  // namespace ekiben
