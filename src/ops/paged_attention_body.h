// The body of ops/paged_attention.h for sixteen lanes. Included by paged_attention_avx2.cc and _avx512.cc only.
// Long on purpose: a kernel read in order. Three loops over a tile: scores, softmax, values.
//
// Register blocking: up to 6 query rows x 4 vectors (64 keys, or 64 head dimensions) of accumulators in the 512-bit
// form, 6 x 1 in the 256-bit form, which has half as many registers of half the width.
#pragma once
#include <algorithm>
#include <iterator>
#include <limits>
#include <type_traits>

#include "ops/lanes.h"
#include "ops/lanes_bf16.h"
#include "ops/paged_attention.h"
#include "ops/rope.h"

namespace ekiben {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorsMax = 4;
#else
constexpr int kVectorsMax = 1;
#endif
constexpr int kRowsAtOnce = 6;
constexpr int kRowsPadded = (kAttentionRowsMax + 15) / 16 * 16;
constexpr int kRowsAhead = 4;  // up to here an item waits for memory, not for multiply-adds
constexpr int32_t kTile = kAttentionTileTokens;
constexpr int32_t kGroup = kKvGroupTokens;

// What one step along the sum multiplies: a pair of bf16 or one f32.
struct BF16Element {
  using Type = uint16_t;
  static constexpr int kStep = 2;
  using Operand = Pairs;
  [[gnu::always_inline]] static Operand LoadOperand(const Type* p) { return LoadPairs(p); }
  [[gnu::always_inline]] static Operand BroadcastOperand(const Type* p) { return BroadcastPair(p); }
  [[gnu::always_inline]] static Lanes Accumulate(Lanes acc, Operand a, Operand b) { return AccumulatePair(acc, a, b); }
  [[gnu::always_inline]] static void StoreRounded(Type* p, Lanes a) { StoreBF16(p, a); }
};
struct F32Element {
  using Type = float;
  static constexpr int kStep = 1;
  using Operand = Lanes;
  [[gnu::always_inline]] static Operand LoadOperand(const Type* p) { return Load(p); }
  [[gnu::always_inline]] static Operand BroadcastOperand(const Type* p) { return Broadcast(*p); }
  [[gnu::always_inline]] static Lanes Accumulate(Lanes acc, Operand a, Operand b) { return Fma(a, b, acc); }
  [[gnu::always_inline]] static void StoreRounded(Type* p, Lanes a) { Store(p, a); }
};

// One tile of the cache as a row of groups: group g's keys and values; only groups [first, last) are visible, and of
// their values only the first `steps` steps. The other pointers are safe to prefetch and nothing else.
template <class E>
struct Tile {
  const typename E::Type *keys[kTile / kGroup], *values[kTile / kGroup];
  int32_t steps[kTile / kGroup];
  int32_t first, last;
};

// Where the next tile is asked to. kFar: from memory into the second-level cache; asked of the first, the loads in
// flight run out (measured: 11 against 20 GB/s a core). kNear: from there into the first, by items of many rows.
enum class Ahead { kNone, kFar, kNear };
template <Ahead kAhead>
[[gnu::always_inline]] inline void Prefetch(const void* p) {
  if constexpr (kAhead == Ahead::kFar) _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
  if constexpr (kAhead == Ahead::kNear) _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}

// scores[r][v * 16 ..] = q[r] . keys[v], for R rows and V groups of 16 keys. With kAhead the same places of the next
// tile are asked for meanwhile: a generation row reads each byte of the cache once, blocks lie anywhere, and hardware
// prefetch stops at the end of each.
template <class E, int R, int V, Ahead kAhead>
[[gnu::noinline]] void ScoreBlock(const typename E::Type* q, int64_t q_stride, const typename E::Type* const* keys,
                                  const typename E::Type* const* next_keys, int32_t head_dim, float* scores) {
  Lanes acc[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) acc[r][v] = Zero();
  const typename E::Type *key[V], *next[V];
  for (int v = 0; v < V; ++v) {
    key[v] = keys[v];
    next[v] = next_keys[v];
  }
  for (int32_t i = 0; i < head_dim; i += E::kStep) {
    typename E::Operand k[V];
    for (int v = 0; v < V; ++v) {
      k[v] = E::LoadOperand(key[v] + i * kGroup);
      Prefetch<kAhead>(next[v] + i * kGroup);
    }
    for (int r = 0; r < R; ++r) {
      typename E::Operand b = E::BroadcastOperand(q + r * q_stride + i);
      for (int v = 0; v < V; ++v) acc[r][v] = E::Accumulate(acc[r][v], k[v], b);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) Store(scores + r * kTile + v * kGroup, acc[r][v]);
}

// o[r][v * 16 ..] = o * decay[r] + p[r] . values from `offset` on, for R rows and V vectors of head dimensions.
template <class E, int R, int V, Ahead kAhead>
[[gnu::noinline]] void ValueBlock(float* o, int64_t o_stride, const float* decay, const typename E::Type* p,
                                  const Tile<E>& tile, const Tile<E>& next, int64_t step_stride, int32_t offset) {
  Lanes acc[R][V];
  for (int r = 0; r < R; ++r) {
    Lanes d = Broadcast(decay[r]);
    for (int v = 0; v < V; ++v) acc[r][v] = Multiply(Load(o + r * o_stride + v * kLanes), d);
  }
  for (int32_t g = tile.first; g < tile.last; ++g) {
    const typename E::Type *value = tile.values[g] + offset, *ahead = next.values[g] + offset;
    const typename E::Type* probability = p + g * kGroup;
    for (int32_t s = 0; s < tile.steps[g]; ++s) {
      typename E::Operand k[V];
      for (int v = 0; v < V; ++v) {
        k[v] = E::LoadOperand(value + v * kLanes * E::kStep);
        Prefetch<kAhead>(ahead + v * kLanes * E::kStep);
      }
      for (int r = 0; r < R; ++r) {
        typename E::Operand b = E::BroadcastOperand(probability + r * kTile);
        for (int v = 0; v < V; ++v) acc[r][v] = E::Accumulate(acc[r][v], k[v], b);
      }
      value += step_stride;
      ahead += step_stride;
      probability += E::kStep;
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) Store(o + r * o_stride + v * kLanes, acc[r][v]);
}

// Calls f with `rows` as a constant.
template <class F>
[[gnu::always_inline]] inline void WithRows(int rows, F&& f) {
  switch (rows) {
    case 1: f(std::integral_constant<int, 1>()); break;
    case 2: f(std::integral_constant<int, 2>()); break;
    case 3: f(std::integral_constant<int, 3>()); break;
    case 4: f(std::integral_constant<int, 4>()); break;
    case 5: f(std::integral_constant<int, 5>()); break;
    default: f(std::integral_constant<int, kRowsAtOnce>()); break;
  }
}

// Calls f(first vector, count as a constant) over `count` vectors, the widest first.
template <class F>
[[gnu::always_inline]] inline void ForVectors(int32_t first, int32_t count, F&& f) {
  int32_t end = first + count;
  if constexpr (kVectorsMax >= 4) {
    for (; end - first >= 4; first += 4) f(first, std::integral_constant<int, 4>());
    if (end - first >= 2) {
      f(first, std::integral_constant<int, 2>());
      first += 2;
    }
  }
  for (; first < end; ++first) f(first, std::integral_constant<int, 1>());
}

// The running state of up to kAttentionRowsMax query rows: row r is token r / heads, head r % heads.
template <class E>
class Item {
  using Type = typename E::Type;

 public:
  explicit Item(const AttentionItem& item) : item_(item), rows_(item.tokens * item.heads) {
    int32_t d = item.head_dim, padded = item.head_dim_padded;
    Lanes scale = Broadcast(item.scale);
    for (int32_t r = 0; r < rows_; ++r) {
      const float* q = item.q + r / item.heads * item.q_stride + r % item.heads * d;
      for (int32_t i = 0; i < padded; i += kLanes) {
        int64_t n = std::min<int64_t>(kLanes, d - i);
        E::StoreRounded(q_ + r * padded + i, Multiply(LoadFirst(q + i, n), scale));
        Store(o_ + r * padded + i, Zero());
      }
      Store(sum_[r], Zero());
    }
    std::fill(std::begin(peak_), std::end(peak_), -std::numeric_limits<float>::infinity());
  }

  // `next` is the item that this thread runs after this one, or null.
  void Run(const AttentionItem* next) {
    int32_t begin = FirstTile(item_), last = item_.position + item_.tokens - 1;
    Tile<E> tile = TileOf(item_, begin), ahead;
    AskForRows<kWrite>(item_, item_.out, item_.out_stride);
    for (;;) {
      bool more = begin + kTile <= last;
      if (!more && next != nullptr) AskForRows<kRead>(*next, next->q, next->q_stride);
      ahead = more ? TileOf(item_, begin + kTile) : next != nullptr ? TileOf(*next, FirstTile(*next)) : tile;
      AddTile(begin, tile, ahead);
      if (!more) break;
      begin += kTile;
      tile = ahead;
    }
    WriteOut();
  }

 private:
  static int32_t FirstVisible(const AttentionItem& item, int32_t position) {
    return item.window > 0 ? std::max(0, position - item.window + 1) : 0;
  }
  static int32_t FirstTile(const AttentionItem& item) { return FirstVisible(item, item.position) / kTile * kTile; }

  // Queries and results lie in tensors larger than a cache: asked for a tile or more before their use.
  static constexpr int kRead = 0, kWrite = 1;
  template <int kUse>
  static void AskForRows(const AttentionItem& item, const float* first, int64_t stride) {
    for (int32_t t = 0; t < item.tokens; ++t) {
      const float* row = first + t * stride;
      for (int32_t i = 0; i < item.heads * item.head_dim; i += 16) __builtin_prefetch(row + i, kUse, 3);
    }
  }

  // Only groups that some row sees are touched: blocks before a window may have gone, those after are not there yet.
  static Tile<E> TileOf(const AttentionItem& item, int32_t begin) {
    int32_t lo = std::max(FirstVisible(item, item.position) - begin, 0);
    int32_t hi = std::min(item.position + item.tokens - begin, kTile);
    Tile<E> tile;
    tile.first = lo / kGroup;
    tile.last = (hi + kGroup - 1) / kGroup;
    int32_t position = begin + tile.first * kGroup, in_block = position % item.tokens_per_block;
    const BlockId* block = item.blocks + position / item.tokens_per_block;
    for (int32_t g = 0; g < kTile / kGroup; ++g) {
      const std::byte* group = item.keys + static_cast<size_t>(block->value) * item.block_bytes +
                               static_cast<size_t>(in_block / kGroup) * item.group_bytes;
      tile.keys[g] = reinterpret_cast<const Type*>(group);
      tile.values[g] = reinterpret_cast<const Type*>(group + item.values_offset);
      tile.steps[g] = (std::min(hi - g * kGroup, kGroup) + E::kStep - 1) / E::kStep;
      if (g < tile.first || g + 1 >= tile.last) continue;
      in_block += kGroup;
      if (in_block < item.tokens_per_block) continue;
      in_block = 0;
      ++block;
    }
    return tile;
  }

  // Scores of all rows, then all probabilities, then all values: a row's softmax is a chain of latencies, and those of
  // 24 rows side by side hide behind each other and behind the multiply-adds before and after.
  void AddTile(int32_t begin, const Tile<E>& tile, const Tile<E>& ahead) {
    if (rows_ <= kRowsAhead) {
      WithRows(rows_, [&](auto count) {
        Scores<count, Ahead::kFar>(0, tile, ahead);
        Softmax(begin, tile);
        Values<count, Ahead::kFar>(0, tile, ahead);
      });
      return;
    }
    auto for_rows = [&](auto&& f) {
      for (int32_t r = kRowsAtOnce; r < rows_; r += kRowsAtOnce) {
        WithRows(std::min(kRowsAtOnce, rows_ - r), [&](auto count) { f(r, count); });
      }
    };
    int32_t first = std::min(kRowsAtOnce, rows_);
    WithRows(first, [&](auto count) { Scores<count, Ahead::kNear>(0, tile, ahead); });
    for_rows([&](int32_t r, auto count) { Scores<count, Ahead::kNone>(r, tile, ahead); });
    Softmax(begin, tile);
    WithRows(first, [&](auto count) { Values<count, Ahead::kNear>(0, tile, ahead); });
    for_rows([&](int32_t r, auto count) { Values<count, Ahead::kNone>(r, tile, ahead); });
  }

  template <int R, Ahead kAhead>
  void Scores(int32_t r, const Tile<E>& tile, const Tile<E>& ahead) {
    int32_t padded = item_.head_dim_padded;
    ForVectors(tile.first, tile.last - tile.first, [&](int32_t g, auto count) {
      ScoreBlock<E, R, count, kAhead>(q_ + r * padded, padded, tile.keys + g, ahead.keys + g, item_.head_dim,
                                      scores_ + r * kTile + g * kGroup);
    });
  }

  template <int R, Ahead kAhead>
  void Values(int32_t r, const Tile<E>& tile, const Tile<E>& ahead) {
    int32_t padded = item_.head_dim_padded;
    ForVectors(0, padded / kLanes, [&](int32_t v, auto count) {
      ValueBlock<E, R, count, kAhead>(o_ + r * padded + v * kLanes, padded, decay_ + r, p_ + r * kTile, tile, ahead,
                                      padded * E::kStep, v * kLanes * E::kStep);
    });
  }

  // Scores to probabilities, and by how much what earlier tiles gave decays. A row that sees none of the tile keeps its
  // peak: its probabilities are zeros and its decay is 1 (or 0, before it has seen any).
  void Softmax(int32_t begin, const Tile<E>& tile) {
    alignas(64) float after[kRowsPadded] = {};
    // Most tiles of a prompt are seen whole by all rows: no mask, no loop over groups.
    bool whole = begin + kTile <= item_.position + 1 && FirstVisible(item_, item_.position + item_.tokens - 1) <= begin;
    for (int32_t r = 0; r < rows_; ++r) {
      float* s = scores_ + r * kTile;
      after[r] = std::max(peak_[r], whole ? PeakOfTile(s) : MaskedPeak(r, begin, tile, s));
    }
    for (int32_t r = 0; r < rows_; r += kLanes) {
      Lanes peak = Load(after + r);
      Store(decay_ + r, Exp2OfNonPositive(Subtract(Load(peak_ + r), peak)));
      Store(peak_ + r, peak);
    }
    for (int32_t r = 0; r < rows_; ++r) {
      Lanes sum = Zero(), shift = Broadcast(after[r]);
      auto add = [&](int32_t g) {
        Lanes e = Exp2OfNonPositive(Subtract(Load(scores_ + r * kTile + g * kGroup), shift));
        sum = Add(sum, e);
        E::StoreRounded(p_ + r * kTile + g * kGroup, e);
      };
      if (whole) {
#pragma GCC unroll 4
        for (int32_t g = 0; g < kTile / kGroup; ++g) add(g);
      } else {
        for (int32_t g = tile.first; g < tile.last; ++g) add(g);
      }
      Store(sum_[r], Fma(Load(sum_[r]), Broadcast(decay_[r]), sum));
    }
  }

  static float PeakOfTile(const float* scores) {
    Lanes peaks =
        Max(Max(Load(scores), Load(scores + kGroup)), Max(Load(scores + 2 * kGroup), Load(scores + 3 * kGroup)));
    return MaxOf(peaks);
  }

  // The largest visible score of row r; those not visible become -inf.
  [[gnu::always_inline]] float MaskedPeak(int32_t r, int32_t begin, const Tile<E>& tile, float* scores) {
    int32_t position = item_.position + r / item_.heads;
    int32_t lo = FirstVisible(item_, position) - begin, hi = position + 1 - begin;
    Lanes peaks = Broadcast(-std::numeric_limits<float>::infinity());
    for (int32_t g = tile.first; g < tile.last; ++g) {
      Lanes s = Load(scores + g * kGroup);
      if (lo > g * kGroup || hi < (g + 1) * kGroup) {
        s = KeepRange(s, lo - g * kGroup, hi - g * kGroup);
        Store(scores + g * kGroup, s);
      }
      peaks = Max(peaks, s);
    }
    return MaxOf(peaks);
  }

  void WriteOut() {
    int32_t d = item_.head_dim, padded = item_.head_dim_padded;
    for (int32_t r = 0; r < rows_; ++r) {
      float* out = item_.out + r / item_.heads * item_.out_stride + r % item_.heads * d;
      Lanes scale = Broadcast(1.0f / Sum(Load(sum_[r])));
      for (int32_t i = 0; i < d; i += kLanes) {
        StoreFirst(out + i, Multiply(Load(o_ + r * padded + i), scale), std::min<int64_t>(kLanes, d - i));
      }
    }
  }

  const AttentionItem& item_;
  int32_t rows_;
  alignas(64) Type q_[kAttentionRowsMax * kHeadDimMax];
  alignas(64) float o_[kAttentionRowsMax * kHeadDimMax];
  alignas(64) float sum_[kAttentionRowsMax][kLanes];
  alignas(64) float peak_[kRowsPadded], decay_[kRowsPadded];
  alignas(64) float scores_[kAttentionRowsMax * kTile];
  alignas(64) Type p_[kAttentionRowsMax * kTile];
};

inline void AttentionItemInLanes(const AttentionItem& item, const AttentionItem* next) {
  if (item.dtype == DType::kBF16) {
    Item<BF16Element>(item).Run(next);
  } else {
    Item<F32Element>(item).Run(next);
  }
}

}  // namespace
}  // namespace ekiben
