#include "ops/paged_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/arithmetic.h"
#include "base/check.h"
#include "ops/bf16_round.h"
#include "ops/exp2.h"
#include "ops/lane_sum.h"
#include "ops/rope.h"

namespace ekiben {
namespace {

// One query of the reference: plain loops in the order that the header fixes.
class ReferenceQuery {
 public:
  ReferenceQuery(const AttentionItem& item, int32_t token, int32_t head)
      : item_(item), position_(item.position + token), bf16_(item.dtype == DType::kBF16) {
    const float* q = item.q + token * item.q_stride + head * item.head_dim;
    for (int32_t i = 0; i < item.head_dim; ++i) q_[i] = Round(q[i] * item.scale);
    first_ = item.window > 0 ? std::max(0, position_ - item.window + 1) : 0;
  }

  void Run(float* out) {
    for (int32_t tile = first_ / kAttentionTileTokens; tile <= position_ / kAttentionTileTokens; ++tile) {
      AddTile(tile * kAttentionTileTokens);
    }
    float scale = 1.0f / sum_.Total();
    for (int32_t i = 0; i < item_.head_dim; ++i) out[i] = o_[i] * scale;
  }

 private:
  float Round(float x) const { return bf16_ ? BF16ToF32(RoundToBF16(x)) : x; }

  // Element `i` of the key (or value) at `position`.
  float Key(int32_t position, int32_t i) const {
    int32_t lane = position % kKvGroupTokens;
    return bf16_ ? At(position, 0, (i / 2) * 32 + lane * 2 + i % 2) : At(position, 0, i * 16 + lane);
  }
  float Value(int32_t position, int32_t i) const {
    int32_t lane = position % kKvGroupTokens, d = item_.head_dim_padded;
    return bf16_ ? At(position, item_.values_offset, (lane / 2) * 2 * d + i * 2 + lane % 2)
                 : At(position, item_.values_offset, lane * d + i);
  }
  float At(int32_t position, size_t offset, int32_t element) const {
    size_t block = static_cast<size_t>(item_.blocks[position / item_.tokens_per_block].value);
    size_t group = static_cast<size_t>(position % item_.tokens_per_block / kKvGroupTokens);
    const std::byte* data = item_.keys + block * item_.block_bytes + offset + group * item_.group_bytes;
    return bf16_ ? BF16ToF32(reinterpret_cast<const uint16_t*>(data)[element])
                 : reinterpret_cast<const float*>(data)[element];
  }

  float Score(int32_t position) const {
    float s = 0;
    int32_t step = bf16_ ? 2 : 1;
    for (int32_t i = 0; i < item_.head_dim; i += step) {
      for (int32_t j = step - 1; j >= 0; --j) s = std::fma(Key(position, i + j), q_[i + j], s);
    }
    return s;
  }

  void AddTile(int32_t begin) {
    int32_t lo = std::max(first_, begin), hi = std::min(position_ + 1, begin + kAttentionTileTokens);
    float p[kAttentionTileTokens] = {};
    float peak = peak_;
    for (int32_t k = lo; k < hi; ++k) {
      p[k - begin] = Score(k);
      peak = std::max(peak, p[k - begin]);
    }
    float decay = Exp2Reference(peak_ - peak);
    peak_ = peak;
    LaneSum tile_sum;
    for (int32_t k = lo; k < hi; ++k) {
      float& probability = p[k - begin];
      probability = Exp2Reference(probability - peak);
      tile_sum.lane[k % 16] += probability;
      probability = Round(probability);
    }
    for (int i = 0; i < 16; ++i) sum_.lane[i] = std::fma(sum_.lane[i], decay, tile_sum.lane[i]);
    for (int32_t i = 0; i < item_.head_dim; ++i) o_[i] = AddValues(begin, lo, hi, p, o_[i] * decay, i);
  }

  float AddValues(int32_t begin, int32_t lo, int32_t hi, const float* p, float o, int32_t i) const {
    if (!bf16_) {
      for (int32_t k = lo; k < hi; ++k) o = std::fma(Value(k, i), p[k - begin], o);
      return o;
    }
    for (int32_t k = lo / 2 * 2; k < hi; k += 2) {
      if (k + 1 < hi) o = std::fma(Value(k + 1, i), p[k + 1 - begin], o);
      if (k >= lo) o = std::fma(Value(k, i), p[k - begin], o);
    }
    return o;
  }

  const AttentionItem& item_;
  int32_t position_, first_ = 0;
  bool bf16_;
  float q_[kHeadDimMax] = {}, o_[kHeadDimMax] = {};
  float peak_ = -std::numeric_limits<float>::infinity();
  LaneSum sum_;
};

// How a call is cut into items. Everything is arithmetic on `first_item`, so nothing is stored per item.
struct Items {
  std::span<const AttentionRow> rows;
  int32_t* first_item;                                  // [rows + 1]
  int32_t kv_heads, group, heads, head_chunks, tokens;  // of an item: at most `heads` heads of `tokens` tokens

  Items(std::span<const AttentionRow> rows_in, int32_t query_heads, int32_t kv_heads_in, Arena& arena)
      : rows(rows_in), kv_heads(kv_heads_in), group(query_heads / kv_heads_in) {
    head_chunks = CeilDiv(group, kAttentionRowsMax);
    heads = CeilDiv(group, head_chunks);
    tokens = kAttentionRowsMax / heads;
    first_item = arena.Take<int32_t>(std::ssize(rows) + 1);
    first_item[0] = 0;
    for (size_t r = 0; r < rows.size(); ++r) {
      first_item[r + 1] = first_item[r] + CeilDiv(rows[r].token_count, tokens) * kv_heads * head_chunks;
    }
  }
  int32_t count() const { return first_item[rows.size()]; }
};

}  // namespace

void reference::RunAttentionItem(const AttentionItem& item) {
  for (int32_t t = 0; t < item.tokens; ++t) {
    for (int32_t h = 0; h < item.heads; ++h) {
      ReferenceQuery(item, t, h).Run(item.out + t * item.out_stride + h * item.head_dim);
    }
  }
}

size_t PagedAttentionScratchBytes(int64_t rows) {
  return static_cast<size_t>(RoundUp<int64_t>((rows + 1) * 4, 64));
}

void PagedAttention(OpContext& ctx, TensorView out, TensorView q, int32_t query_heads,
                    std::span<const AttentionRow> rows, const PagedKv& kv, int32_t layer, int32_t window) {
  const PagedKvShape& shape = kv.shape();
  CHECK_EQ(query_heads % shape.kv_heads, 0);
  CHECK_LE(shape.head_dim, kHeadDimMax);
  auto body = ctx.isa == Isa::kAvx512 ? avx512::RunAttentionItem
              : ctx.isa == Isa::kAvx2 ? avx2::RunAttentionItem
                                      : reference::RunAttentionItem;
  size_t mark = ctx.arena->Mark();
  Items items(rows, query_heads, shape.kv_heads, *ctx.arena);
  AttentionItem whole{.head_dim = shape.head_dim,
                      .head_dim_padded = kv.head_dim_padded(),
                      .window = window,
                      .scale = kLog2E / std::sqrt(static_cast<float>(shape.head_dim)),
                      .dtype = shape.dtype,
                      .tokens_per_block = shape.tokens_per_block,
                      .block_bytes = kv.layer_block_bytes(),
                      .values_offset = kv.values_offset(),
                      .group_bytes = kv.group_bytes()};
  whole.q_stride = q.stride[0];
  whole.out_stride = out.stride[0];
  ctx.pool->ParallelFor(items.count(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int32_t* next = std::upper_bound(items.first_item, items.first_item + rows.size() + 1, i);
      const AttentionRow& row = rows[static_cast<size_t>(next - items.first_item - 1)];
      int32_t index = static_cast<int32_t>(i) - next[-1];
      int32_t chunk = index % items.head_chunks, kv_head = index / items.head_chunks % items.kv_heads;
      int32_t tile = CeilDiv(row.token_count, items.tokens) - 1 - index / items.head_chunks / items.kv_heads;
      int32_t token = tile * items.tokens, head = kv_head * items.group + chunk * items.heads;
      AttentionItem item = whole;
      item.q = q.row<float>(row.token_begin + token) + head * shape.head_dim;
      item.out = out.row<float>(row.token_begin + token) + head * shape.head_dim;
      item.tokens = std::min(items.tokens, row.token_count - token);
      item.heads = std::min(items.heads, items.group - chunk * items.heads);
      item.position = row.position + token;
      item.blocks = row.blocks;
      item.keys = kv.Block(layer, BlockId{0}) + static_cast<size_t>(kv_head) * kv.head_bytes();
      body(item);
    }
  });
  ctx.arena->Rewind(mark);
}

}  // namespace ekiben
