// The work of attention on a CUDA device, cut into items on the host: plain arithmetic, tested without a device.
// A context row becomes tiles of packed queries, a generation row chunks of `split` keys, each for every KV head. The
// split is a constant of the engine and what cuts a context row's keys is that row, never the batch, so that a
// sequence's sums do not depend on its neighbours.
// Thread: plain values.
#pragma once
#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "base/arithmetic.h"
#include "ops/cuda_ops.h"

namespace ekiben::cuda {

struct AttentionItemShape {
  int32_t kv_heads = 0, group = 0, split = 0;
  int32_t clusters = 0;  // of ClusterAttention; 0: context runs in ContextAttention
};

// How often the keys of a context row are cut: few tokens deep in a prompt have too few tiles to fill the device, and
// every tile walks the whole prompt. A constant stands for the device's size, so that every device cuts alike.
inline int32_t ContextChunks(const AttentionItemShape& shape, int32_t position, int32_t tokens) {
  constexpr int32_t kCtas = 132, kPositionMin = 1024;
  int32_t wide = CeilDiv(tokens * shape.group, kClusterQueryTile) * shape.kv_heads;
  return wide * kContextCluster <= kCtas && position >= kPositionMin ? kContextCluster : 1;
}

inline void AddContextItems(const AttentionItemShape& shape, int32_t token, int32_t slot, int32_t position,
                            int32_t tokens, std::vector<AttentionItem>& out) {
  const bool clusters = shape.clusters > 0;
  const int32_t tile_queries = clusters ? kClusterQueryTile : kQueryTile,
                chunks = clusters ? ContextChunks(shape, position, tokens) : 1,
                heads = clusters ? kContextCluster / chunks : 1;  // of an item
  // The last queries see the most keys: they go first.
  for (int32_t tile = CeilDiv(tokens * shape.group, tile_queries) - 1; tile >= 0; --tile) {
    for (int32_t head = 0; head < shape.kv_heads; head += heads) {
      out.push_back({.token = token,
                     .slot = slot,
                     .kv_head = head,
                     .first = tile * tile_queries,
                     .position = position,
                     .tokens = tokens,
                     .chunk = 0,
                     .chunks = chunks});
    }
  }
}

// The last chunk takes a rest of up to half a split, so that one token past a border does not cost a merge.
inline int32_t GenerationChunks(int32_t keys, int32_t split) {
  return std::max(1, (keys - 1 + split / 2) / split);
}

inline void AddGenerationItems(const AttentionItemShape& shape, int32_t token, int32_t slot, int32_t position,
                               std::vector<AttentionItem>& out) {
  int32_t chunks = GenerationChunks(position + 1, shape.split);
  for (int32_t chunk = 0; chunk < chunks; ++chunk) {
    for (int32_t head = 0; head < shape.kv_heads; ++head) {
      out.push_back({.token = token,
                     .slot = slot,
                     .kv_head = head,
                     .first = 0,
                     .position = position,
                     .tokens = 1,
                     .chunk = chunk,
                     .chunks = chunks});
    }
  }
}

// Blocks of 64 keys that a generation item reads.
inline int32_t ItemBlocks(const AttentionItem& item, int32_t split) {
  int32_t keys = item.chunk + 1 < item.chunks ? split : item.position + 1 - item.chunk * split;
  return CeilDiv(keys, 64);
}

// Orders items for `workers` that take every workers-th item: longest first, every other round backwards, so that each
// worker's sum comes out nearly equal. Lengths are few, so it is a counting sort; `scratch` keeps its memory.
template <class Length>
void BalanceItems(std::vector<AttentionItem>& items, int32_t workers, std::vector<AttentionItem>& scratch,
                  Length length) {
  constexpr size_t kLengthMax = 64;
  std::array<size_t, kLengthMax + 1> begin{};
  auto bin = [&](const AttentionItem& item) {
    return kLengthMax - std::min(static_cast<size_t>(length(item)), kLengthMax);
  };
  for (const AttentionItem& item : items) ++begin[bin(item)];
  size_t sum = 0;
  for (size_t& count : begin) sum += std::exchange(count, sum);
  scratch.resize(items.size());
  auto width = static_cast<size_t>(workers);
  for (const AttentionItem& item : items) {
    size_t at = begin[bin(item)]++, round = at / width, place = at % width;
    size_t in_round = std::min(width, items.size() - round * width);
    scratch[round * width + (round % 2 == 0 ? place : in_round - 1 - place)] = item;
  }
  items.swap(scratch);
}
inline void BalanceItems(std::vector<AttentionItem>& items, int32_t split, int32_t workers,
                         std::vector<AttentionItem>& scratch) {
  BalanceItems(items, workers, scratch, [&](const AttentionItem& item) { return ItemBlocks(item, split); });
}

// ClusterAttention's; ContextAttention has a CTA for every item.
inline void BalanceContextItems(std::vector<AttentionItem>& items, const AttentionItemShape& shape,
                                std::vector<AttentionItem>& scratch) {
  if (shape.clusters == 0) return;
  BalanceItems(items, shape.clusters, scratch, [&](const AttentionItem& item) {  // in tiles of 128 keys
    int32_t last = std::min(item.first + kClusterQueryTile, item.tokens * shape.group) - 1;
    return CeilDiv(CeilDiv(item.position + last / shape.group + 1, 128), item.chunks);
  });
}

}  // namespace ekiben::cuda
