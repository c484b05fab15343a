// y[i] = table[token_ids[i]], to f32; and y[i] = x[rows[i]], which keeps the rows that need logits.
// One body on every CPU: a row is converted once a token, 0.01 % of a step.
// Shapes: y f32 [count, columns]; table rows of `columns` values of any dtype that weights/ reads, tightly stacked.
// Thread: caller's.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/dtype.h"
#include "device/tensor_view.h"
#include "ops/op_context.h"

namespace ekiben {

struct EmbeddingTable {
  DType dtype = DType::kF32;
  int64_t rows = 0, columns = 0;  // columns is a multiple of the dtype's block
  const std::byte* data = nullptr;
};

// REQUIRES: every id is in [0, table.rows).
void EmbeddingLookup(OpContext& ctx, TensorView y, const EmbeddingTable& table, std::span<const int32_t> token_ids);

// REQUIRES: `rows` ascends strictly; y may be x itself.
void GatherRows(OpContext& ctx, TensorView y, TensorView x, std::span<const int32_t> rows);

}  // namespace ekiben
