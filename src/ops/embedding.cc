#include "ops/embedding.h"

#include <cstring>

#include "base/check.h"
#include "weights/checkpoint.h"

namespace ekiben {

void EmbeddingLookup(OpContext& ctx, TensorView y, const EmbeddingTable& table, std::span<const int32_t> token_ids) {
  const DTypeInfo& info = InfoOf(table.dtype);
  CHECK_EQ(table.columns % info.block_elements, 0);
  CHECK_EQ(y.shape[1], table.columns);
  int64_t row_bytes = table.columns / info.block_elements * info.block_bytes;
  constexpr int64_t kGrainTokens = 16;
  ctx.pool->ParallelFor(std::ssize(token_ids), kGrainTokens, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      int64_t id = token_ids[static_cast<size_t>(i)];
      CHECK(id >= 0 && id < table.rows, "token id {} of {}", id, table.rows);
      Dequantize(table.dtype, table.data + id * row_bytes, table.columns, y.row<float>(i));
    }
  });
}

void GatherRows(OpContext&, TensorView y, TensorView x, std::span<const int32_t> rows) {
  size_t bytes = static_cast<size_t>(x.shape[1]) * sizeof(float);
  for (size_t i = 0; i < rows.size(); ++i) {
    float* to = y.row<float>(static_cast<int64_t>(i));
    const float* from = x.row<float>(rows[i]);
    if (to != from) std::memcpy(to, from, bytes);  // ascending rows: never onto a row still to be read
  }
}

}  // namespace ekiben
