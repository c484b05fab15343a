// Causal attention of packed queries over the paged cache, straight from its blocks. Context and generation rows mix in
// one call; several query heads may share a KV head; with a window w, position p sees positions (p - w, p].
//
// One algorithm for every body: online softmax over tiles of 64 keys that start at absolute positions 0, 64, 128, ...
// For one query, with m = -inf, l[16] = 0, o[head_dim] = 0 at first, tile by tile in ascending order:
//   s[k]  = (q * scale * log2 e) . key[k]      fma along the head; bf16: two at a time, odd element first
//   m'    = max(m, s[k] of the visible keys);  a = 2^(m - m');  p[k] = 2^(s[k] - m'), 0 where not visible (ops/exp2.h)
//   l[i]  = fma(l[i], a, sum of p[i], p[16+i], p[32+i], p[48+i])
//   o[d]  = fma over the tile's keys in order of p[k] * value[k][d], from o[d] * a; bf16: p rounded to bf16, pairs as
//           above
// and at the end out = o * (1 / tree sum of l) (ops/lane_sum.h). A tile with no visible key changes nothing. Nothing
// above depends on the batch, the chunk, the block size, where blocks lie or the thread: a query's result is the same
// bits in any company, and on every instruction set as long as no denormal appears (vdpbf16ps flushes them).
// Queries and values are read as bf16 when the cache is bf16, all sums are f32.
//
// Cost: a KV head's keys and values pass through registers once for up to 24 (token, head) rows; 4 * head_dim flops a
// visible key and head.
// Thread: caller's, forks over ctx.pool; items are (row, KV head, up to 24 query rows), latest tokens first.
#pragma once
#include <cstdint>
#include <span>

#include "device/tensor_view.h"
#include "ops/op_context.h"
#include "ops/paged_kv.h"

namespace ekiben {

inline constexpr int32_t kAttentionTileTokens = 64;
inline constexpr int32_t kAttentionRowsMax = 24;

// out: f32 [tokens, query_heads * head_dim]; q: f32 [tokens, >= query_heads * head_dim], queries first in a row,
// rotated. The keys and values of every token of `rows` are already in the cache (RopeAndStoreKv). window 0: none.
// REQUIRES: query_heads a multiple of the cache's KV heads; head_dim <= 256.
void PagedAttention(OpContext& ctx, TensorView out, TensorView q, int32_t query_heads,
                    std::span<const AttentionRow> rows, const PagedKv& kv, int32_t layer, int32_t window);

// Arena bytes that PagedAttention takes for at most `rows` rows.
size_t PagedAttentionScratchBytes(int64_t rows);

// Some consecutive tokens of one row, some query heads of one KV head; tokens * heads <= kAttentionRowsMax.
struct AttentionItem {
  const float* q;  // of the first token and head; heads are head_dim apart
  int64_t q_stride;
  float* out;
  int64_t out_stride;
  int32_t tokens, heads, position;
  int32_t head_dim, head_dim_padded, window;
  float scale;  // 1 / sqrt(head_dim) * log2 e
  DType dtype;
  const BlockId* blocks;
  int32_t tokens_per_block;
  const std::byte* keys;  // of the KV head in block 0 of the layer
  size_t block_bytes, values_offset, group_bytes;
};
// `next` is the item that the thread runs after this one (its memory is asked for early), or null.
namespace reference {
void RunAttentionItem(const AttentionItem& item, const AttentionItem* next);
}
namespace avx2 {
void RunAttentionItem(const AttentionItem& item, const AttentionItem* next);
}
namespace avx512 {
void RunAttentionItem(const AttentionItem& item, const AttentionItem* next);
}

}  // namespace ekiben
