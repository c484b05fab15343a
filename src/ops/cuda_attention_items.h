// The work of attention on a CUDA device, cut into items on the host: plain arithmetic, tested without a device.
// A context row becomes tiles of packed queries, a generation row chunks of `split` keys, each for every KV head. The
// split is a constant of the engine, never of the batch, so that a sequence's sums do not depend on its neighbours.
// Thread: plain values.
#pragma once
#include <vector>

#include "base/arithmetic.h"
#include "ops/cuda_ops.h"

namespace ekiben::cuda {

struct AttentionItemShape {
  int32_t kv_heads = 0, group = 0, split = 0;
};

inline void AddContextItems(const AttentionItemShape& shape, int32_t token, int32_t slot, int32_t position,
                            int32_t tokens, std::vector<AttentionItem>& out) {
  // The last queries see the most keys: they go first.
  int32_t tiles = CeilDiv(tokens * shape.group, kQueryTile);
  for (int32_t tile = tiles - 1; tile >= 0; --tile) {
    for (int32_t head = 0; head < shape.kv_heads; ++head) {
      out.push_back({.token = token,
                     .slot = slot,
                     .kv_head = head,
                     .first = tile * kQueryTile,
                     .position = position,
                     .tokens = tokens,
                     .chunk = 0,
                     .chunks = 1});
    }
  }
}

inline void AddGenerationItems(const AttentionItemShape& shape, int32_t token, int32_t slot, int32_t position,
                               std::vector<AttentionItem>& out) {
  int32_t chunks = CeilDiv(position + 1, shape.split);
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

}  // namespace ekiben::cuda
