// Rotates queries and keys by their positions, and writes keys and values into the paged cache: one pass over qkv.
//
// y[i] = fma(x[i], cos[i], x[partner(i)] * sin[i]), where the partner is the other half of the pair: i ^ 1 when pairs
// are interleaved (GGUF's permuted llama), i +- head_dim / 2 when they are halves (Hugging Face). The sign of the
// rotation is in the table, so both styles are one formula. bf16 caches round to nearest even, denormals to zero.
// Element by element: all bodies give the same bits.
// Thread: caller's, forks over ctx.pool.
#pragma once
#include <cstdint>
#include <span>

#include "device/tensor_view.h"
#include "ops/op_context.h"
#include "ops/paged_kv.h"

namespace ekiben {

inline constexpr int32_t kHeadDimMax = 256;

// Made by model/rope_table.h.
struct RopeView {
  const float* table = nullptr;  // [positions][cos of head_dim, then signed sin of head_dim]
  int32_t positions = 0;
  int32_t head_dim = 0;
  bool interleaved = false;

  const float* at(int32_t position) const { return table + int64_t{2} * head_dim * position; }
};

// qkv: f32 [tokens, (query_heads + 2 kv_heads) * head_dim]; a row is its queries, keys, values. Queries are rotated in
// place; keys and values go to the cache at the rows' positions, keys rotated.
// qkv's first row is token `token_begin` of those that `rows` name: a part of a batch at a time.
// REQUIRES: rows in order of token_begin, covering the tokens; positions < rope.positions; head_dim even.
void RopeAndStoreKv(OpContext& ctx, TensorView qkv, const RopeView& rope, int32_t query_heads,
                    std::span<const AttentionRow> rows, PagedKv& kv, int32_t layer, int64_t token_begin = 0);

// One token.
struct RopeToken {
  float* qkv;
  const float* table;  // of its position
  int32_t head_dim, head_dim_padded, query_heads, kv_heads;
  bool interleaved;
  DType dtype;            // of the cache
  std::byte* head;        // its 16-token group in the first KV head's keys
  size_t head_bytes;      // to the next KV head
  size_t values_offset;   // from keys to values
  int32_t lane;           // of the token inside its group
  bool clear_next_value;  // the value beside it in a pair is not of this sequence yet: make it a zero
};
namespace reference {
void RunRopeToken(const RopeToken& token);
}
namespace avx2 {
void RunRopeToken(const RopeToken& token);
}
namespace avx512 {
void RunRopeToken(const RopeToken& token);
}

}  // namespace ekiben
