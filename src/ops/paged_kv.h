// The KV cache in memory: for every layer a pool of blocks, each holding `tokens_per_block` tokens of keys and values.
// A sequence's block table says which block holds its tokens [i * tokens_per_block, (i+1) * tokens_per_block).
// Everything outside ops/ only names blocks.
//
// Layout: [layer][block][kv_head][keys, then values]. Both are stored in groups of 16 tokens, arranged so that one
// 512-bit load feeds 16 lanes of a score (keys) or of an output (values) without a shuffle. S = 2 elements a step for
// bf16 (what one dot-pair instruction eats), 1 for f32; D = head_dim rounded up to 16:
//   keys    [tokens / 16][D / S][16 tokens][S]     lanes are tokens, steps go along the head
//   values  [tokens / 16][16 / S][D][S]            lanes are head dimensions, steps go along the tokens
// Memory starts as zeros, and padding stays so.
// Thread: no locks; the ops that write a token's keys and values own those bytes for the call.
#pragma once
#include <cstdint>
#include <span>

#include "base/dtype.h"
#include "device/buffer.h"
#include "request/ids.h"

namespace ekiben {

inline constexpr int32_t kKvGroupTokens = 16;

struct PagedKvShape {
  int32_t layers = 0, kv_heads = 0, head_dim = 0;
  int32_t tokens_per_block = 0;  // a power of two >= 16
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

// Bytes of one block over all layers, before a cache exists (what its sizing is computed from).
size_t KvBytesPerBlock(const PagedKvShape& shape);

class PagedKv {
 public:
  explicit PagedKv(const PagedKvShape& shape);
  const PagedKvShape& shape() const { return shape_; }
  size_t bytes_per_block() const { return KvBytesPerBlock(shape_); }
  std::byte* Block(int32_t layer, BlockId block) const {
    return pool_.data() +
           (static_cast<size_t>(layer) * static_cast<size_t>(shape_.blocks) + static_cast<size_t>(block.value)) *
               layer_block_bytes_;
  }
  // Copies the first `tokens` tokens of every layer, rounded up to a group: what lies beyond is written before it is
  // read.
  void CopyBlock(BlockId source, BlockId target, int32_t tokens);

  // Inside a block.
  int32_t head_dim_padded() const { return head_dim_padded_; }
  size_t layer_block_bytes() const { return layer_block_bytes_; }
  size_t head_bytes() const { return 2 * values_offset_; }  // keys and values of one head
  size_t values_offset() const { return values_offset_; }   // from a head's keys to its values
  size_t group_bytes() const { return group_bytes_; }       // 16 tokens of keys, or of values

 private:
  PagedKvShape shape_;
  int32_t head_dim_padded_;
  size_t group_bytes_, values_offset_, layer_block_bytes_;
  Buffer pool_;
};

}  // namespace ekiben
