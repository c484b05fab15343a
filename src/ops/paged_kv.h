// The KV cache in memory: for every layer a pool of blocks, each holding `tokens_per_block` tokens of keys and values.
// A sequence's block table says which block holds its tokens [i * tokens_per_block, (i+1) * tokens_per_block).
// Layout per layer: [block][kv_head][K then V][tokens_per_block][head_dim]-like tiles, private to the attention op
// (ops/paged_attention.h); everything outside only names blocks.
#pragma once
#include <cstdint>
#include <span>

#include "base/dtype.h"
#include "device/buffer.h"
#include "request/ids.h"

namespace ekiben {

struct PagedKvShape {
  int32_t layers = 0, kv_heads = 0, head_dim = 0;
  int32_t tokens_per_block = 0;
  int32_t blocks = 0;
  DType dtype = DType::kBF16;  // kF32 for the exact path, kBF16 otherwise
};

// One sequence's part of a packed batch.
struct AttentionRow {
  int32_t token_begin = 0;  // into the packed tokens
  int32_t token_count = 0;
  int32_t position = 0;  // of its first token; it attends to [window start, position] of its own sequence
  const BlockId* blocks =
      nullptr;  // block table; entries up to (position + token_count - 1) / tokens_per_block are set
};

class PagedKv {
 public:
  explicit PagedKv(const PagedKvShape& shape);
  const PagedKvShape& shape() const { return shape_; }
  size_t bytes_per_block() const;  // all layers
  std::byte* Block(int32_t layer, BlockId block) const;
  // Copies the first `tokens` tokens of every layer.
  void CopyBlock(BlockId source, BlockId target, int32_t tokens);

 private:
  PagedKvShape shape_;
  Buffer pool_;
};

}  // namespace ekiben
