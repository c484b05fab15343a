#include "ops/paged_kv.h"

#include <bit>
#include <cstring>

#include "base/arithmetic.h"
#include "base/check.h"

namespace ekiben {
namespace {

size_t GroupBytes(const PagedKvShape& shape) {
  size_t element = shape.dtype == DType::kF32 ? 4 : 2;
  return static_cast<size_t>(RoundUp(shape.head_dim, 16)) * kKvGroupTokens * element;
}

}  // namespace

size_t KvBytesPerBlock(const PagedKvShape& shape) {
  size_t groups = static_cast<size_t>(shape.tokens_per_block / kKvGroupTokens);
  return GroupBytes(shape) * groups * 2 * static_cast<size_t>(shape.kv_heads) * static_cast<size_t>(shape.layers);
}

PagedKv::PagedKv(const PagedKvShape& shape)
    : shape_(shape),
      head_dim_padded_(RoundUp(shape.head_dim, 16)),
      group_bytes_(GroupBytes(shape)),
      values_offset_(group_bytes_ * static_cast<size_t>(shape.tokens_per_block / kKvGroupTokens)),
      layer_block_bytes_(2 * values_offset_ * static_cast<size_t>(shape.kv_heads)),
      pool_(KvBytesPerBlock(shape) * static_cast<size_t>(shape.blocks)) {
  CHECK(shape.dtype == DType::kF32 || shape.dtype == DType::kBF16);
  CHECK(shape.tokens_per_block >= kKvGroupTokens && std::has_single_bit(static_cast<uint32_t>(shape.tokens_per_block)),
        "tokens_per_block {}", shape.tokens_per_block);
  CHECK_GT(shape.kv_heads, 0);
  CHECK_GT(shape.head_dim, 0);
}

void PagedKv::CopyBlock(BlockId source, BlockId target, int32_t tokens) {
  CHECK_LE(tokens, shape_.tokens_per_block);
  size_t bytes = static_cast<size_t>(CeilDiv(tokens, kKvGroupTokens)) * group_bytes_;
  size_t parts = 2 * static_cast<size_t>(shape_.kv_heads);  // keys and values of every head
  for (int32_t layer = 0; layer < shape_.layers; ++layer) {
    std::byte* to = Block(layer, target);
    const std::byte* from = Block(layer, source);
    for (size_t part = 0; part < parts; ++part) {
      std::memcpy(to + part * values_offset_, from + part * values_offset_, bytes);
    }
  }
}

}  // namespace ekiben
