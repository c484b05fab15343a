// What one step tells the device: where every number stands in one block of 32-bit words, filled on the host and copied
// at once. Plain arithmetic, tested without a device.
//
// A step that runs as a graph has the layout of its bucket, so that every address is the one that was captured; the
// parts of varying length (edits, items) have their counts in the header, and items come last, so that the copy ends
// with what is used. Thread: plain values.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "ops/cuda_ops.h"

namespace ekiben {

// Offsets in words from the block's start.
struct CudaStepLayout {
  // Header words.
  static constexpr int32_t kEditCount = 0, kContextItemCount = 1, kGenerationItemCount = 2, kHeaderWords = 32;
  static constexpr int32_t kEditWords = 2, kItemWords = 8;

  int32_t tokens = 0, outputs = 0, edits_max = 0, context_items_max = 0;
  int32_t source = 0, positions = 0, slots = 0, output_tokens = 0, sample_slots = 0, edits = 0, context_items = 0,
          generation_items = 0;

  CudaStepLayout() = default;
  CudaStepLayout(int32_t tokens_in, int32_t outputs_in, int32_t edits_max_in, int32_t context_items_max_in);
  int32_t Words(int32_t generation_item_count) const { return generation_items + generation_item_count * kItemWords; }
};
static_assert(sizeof(cuda::AttentionItem) == CudaStepLayout::kItemWords * 4);
static_assert(sizeof(cuda::TableEdit) == CudaStepLayout::kEditWords * 4);

// Row counts that have a graph, ascending, the last one `max_batch_size`.
std::vector<int32_t> CudaGraphBuckets(int32_t max_batch_size);
// The smallest bucket that holds `rows`. REQUIRES: rows <= the last.
int32_t CudaBucketFor(std::span<const int32_t> buckets, int32_t rows);
// The token count that a step of `tokens` is padded to, at most `max_num_tokens`: few sizes, so that each has its plan,
// and at most 1/8 of padding from 64 tokens on.
int32_t CudaPaddedTokens(int32_t tokens, int32_t max_num_tokens);

}  // namespace ekiben
