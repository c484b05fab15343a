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

// A call cut into items: by row, then latest tokens first (they have most to read), KV head, chunk of its query heads.
// An item is made from its number, so nothing is stored per item.
class Items {
 public:
  Items(std::span<const AttentionRow> rows, const TensorView& out, const TensorView& q, int32_t query_heads,
        const PagedKv& kv, int32_t layer, int32_t window, Arena& arena)
      : rows_(rows), out_(out), q_(q), head_bytes_(kv.head_bytes()), kv_heads_(kv.shape().kv_heads) {
    const PagedKvShape& shape = kv.shape();
    group_ = query_heads / kv_heads_;
    head_chunks_ = CeilDiv(group_, kAttentionRowsMax);
    heads_ = CeilDiv(group_, head_chunks_);
    tokens_ = kAttentionRowsMax / heads_;
    first_item_ = arena.Take<int32_t>(std::ssize(rows) + 1);
    first_item_[0] = 0;
    for (size_t r = 0; r < rows.size(); ++r) {
      first_item_[r + 1] = first_item_[r] + CeilDiv(rows[r].token_count, tokens_) * kv_heads_ * head_chunks_;
    }
    whole_ = {.q_stride = q.stride[0],
              .out_stride = out.stride[0],
              .head_dim = shape.head_dim,
              .head_dim_padded = kv.head_dim_padded(),
              .window = window,
              .scale = kLog2E / std::sqrt(static_cast<float>(shape.head_dim)),
              .dtype = shape.dtype,
              .tokens_per_block = shape.tokens_per_block,
              .keys = kv.Block(layer, BlockId{0}),
              .block_bytes = kv.layer_block_bytes(),
              .values_offset = kv.values_offset(),
              .group_bytes = kv.group_bytes()};
  }

  int32_t count() const { return first_item_[rows_.size()]; }

  AttentionItem Make(int64_t number) const {
    const int32_t* next = std::upper_bound(first_item_, first_item_ + rows_.size() + 1, number);
    const AttentionRow& row = rows_[static_cast<size_t>(next - first_item_ - 1)];
    int32_t index = static_cast<int32_t>(number) - next[-1];
    int32_t chunk = index % head_chunks_, kv_head = index / head_chunks_ % kv_heads_;
    int32_t token = (CeilDiv(row.token_count, tokens_) - 1 - index / head_chunks_ / kv_heads_) * tokens_;
    int32_t head = kv_head * group_ + chunk * heads_;
    AttentionItem item = whole_;
    item.q = q_.row<float>(row.token_begin + token) + head * item.head_dim;
    item.out = out_.row<float>(row.token_begin + token) + head * item.head_dim;
    item.tokens = std::min(tokens_, row.token_count - token);
    item.heads = std::min(heads_, group_ - chunk * heads_);
    item.position = row.position + token;
    item.blocks = row.blocks;
    item.keys += static_cast<size_t>(kv_head) * head_bytes_;
    return item;
  }

 private:
  std::span<const AttentionRow> rows_;
  TensorView out_, q_;
  size_t head_bytes_;
  int32_t kv_heads_, group_, heads_, head_chunks_, tokens_;  // an item: at most heads_ heads of tokens_ tokens
  int32_t* first_item_;                                      // [rows + 1]
  AttentionItem whole_;
};

}  // namespace

void reference::RunAttentionItem(const AttentionItem& item, const AttentionItem*) {
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
  Items items(rows, out, q, query_heads, kv, layer, window, *ctx.arena);
  int64_t count = items.count();
  ctx.pool->ParallelStreams(count, 1, [&](int64_t begin, int64_t end, int) {
    AttentionItem item = items.Make(begin);
    for (int64_t i = begin; i < end; ++i) {
      // Most often the one that this thread takes next; if not, some prefetches were for nothing.
      AttentionItem next = i + 1 < count ? items.Make(i + 1) : item;
      body(item, &next);
      item = next;
    }
  });
  ctx.arena->Rewind(mark);
}

}  // namespace ekiben
