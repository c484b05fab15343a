#include "ops/rope.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "ops/bf16_round.h"
#include "ops/kv_store.h"

namespace ekiben {
namespace {

void RotateReference(float* to, const float* from, const RopeToken& token) {
  float rotated[kHeadDimMax];
  int32_t d = token.head_dim;
  const float *cos = token.table, *sin = token.table + d;
  for (int32_t i = 0; i < d; ++i) {
    int32_t partner = token.interleaved ? i ^ 1 : (i < d / 2 ? i + d / 2 : i - d / 2);
    rotated[i] = std::fma(from[i], cos[i], from[partner] * sin[i]);
  }
  std::copy(rotated, rotated + d, to);
}

}  // namespace

void reference::RunRopeToken(const RopeToken& token) {
  int32_t d = token.head_dim;
  for (int32_t h = 0; h < token.query_heads; ++h) RotateReference(token.qkv + h * d, token.qkv + h * d, token);
  const float* keys = token.qkv + token.query_heads * d;
  const float* values = keys + token.kv_heads * d;
  for (int32_t h = 0; h < token.kv_heads; ++h) {
    float key[kHeadDimMax];
    RotateReference(key, keys + h * d, token);
    const float* value = values + h * d;
    std::byte* key_group = token.head + static_cast<size_t>(h) * token.head_bytes;
    std::byte* value_group = key_group + token.values_offset;
    if (token.dtype == DType::kF32) {
      StoreKey(reinterpret_cast<float*>(key_group), token.lane, key, d);
      StoreValue(reinterpret_cast<float*>(value_group), token.lane, value, d, token.head_dim_padded);
      continue;
    }
    uint16_t key_bf16[kHeadDimMax], value_bf16[kHeadDimMax];
    for (int32_t i = 0; i < d; ++i) key_bf16[i] = RoundToBF16(key[i]);
    for (int32_t i = 0; i < d; ++i) value_bf16[i] = RoundToBF16(value[i]);
    auto* values_of_group = reinterpret_cast<uint16_t*>(value_group);
    StoreKey(reinterpret_cast<uint16_t*>(key_group), token.lane, key_bf16, d);
    StoreValue(values_of_group, token.lane, value_bf16, d, token.head_dim_padded);
    if (token.clear_next_value) ClearValue(values_of_group, token.lane + 1, d, token.head_dim_padded);
  }
}

void RopeAndStoreKv(OpContext& ctx, TensorView qkv, const RopeView& rope, int32_t query_heads,
                    std::span<const AttentionRow> rows, PagedKv& kv, int32_t layer, int64_t token_begin) {
  const PagedKvShape& shape = kv.shape();
  CHECK_EQ(qkv.shape[1], int64_t{query_heads + 2 * shape.kv_heads} * shape.head_dim);
  CHECK(shape.head_dim == rope.head_dim && shape.head_dim % 2 == 0 && shape.head_dim <= kHeadDimMax);
  auto body = ctx.isa == Isa::kAvx512 ? avx512::RunRopeToken
              : ctx.isa == Isa::kAvx2 ? avx2::RunRopeToken
                                      : reference::RunRopeToken;
  // A group of the cache holds 16 tokens side by side in its lines: with pieces of 8, two threads wrote the same lines
  // (512 tokens, best runs of forward_bench: 3.7 ms a step against 2.3).
  constexpr int64_t kGrainTokens = kKvGroupTokens;
  ctx.pool->ParallelFor(qkv.shape[0], kGrainTokens, [&](int64_t begin, int64_t end, int) {
    auto row = std::upper_bound(rows.begin(), rows.end(), token_begin + begin,
                                [](int64_t t, const AttentionRow& r) { return t < r.token_begin; }) -
               1;
    for (int64_t i = begin; i < end; ++i) {
      int64_t t = token_begin + i;
      while (t >= row->token_begin + row->token_count) ++row;
      int32_t index = static_cast<int32_t>(t) - row->token_begin, position = row->position + index;
      DCHECK(position < rope.positions);
      int32_t in_block = position % shape.tokens_per_block, lane = position % kKvGroupTokens;
      std::byte* block = kv.Block(layer, row->blocks[position / shape.tokens_per_block]);
      body({.qkv = qkv.row<float>(i),
            .table = rope.at(position),
            .head_dim = shape.head_dim,
            .head_dim_padded = kv.head_dim_padded(),
            .query_heads = query_heads,
            .kv_heads = shape.kv_heads,
            .interleaved = rope.interleaved,
            .dtype = shape.dtype,
            .head = block + static_cast<size_t>(in_block / kKvGroupTokens) * kv.group_bytes(),
            .head_bytes = kv.head_bytes(),
            .values_offset = kv.values_offset(),
            .lane = lane,
            // A pair is multiplied as a whole, and 0 x NaN of a block's former owner would be NaN.
            .clear_next_value = index == row->token_count - 1 && lane % 2 == 0});
    }
  });
}

}  // namespace ekiben
