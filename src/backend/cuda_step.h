// What one step tells the device: where every number stands in one block of 32-bit words, filled on the host and copied
// at once. Plain arithmetic, tested without a device.
//
// A step has the layout of its shape, so that every address is the one that was captured into the shape's graph; the
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
  static constexpr int32_t kEditCount = 0, kContextItemCount = 1, kGenerationItemCount = 2, kManyEditCount = 3,
                           kHeaderWords = 32;
  static constexpr int32_t kEditWords = 2, kItemWords = 8;

  int32_t tokens = 0, outputs = 0, edits_max = 0, context_items_max = 0;
  int32_t source = 0, positions = 0, slots = 0, output_tokens = 0, sample_slots = 0, sampled_rows = 0, edits = 0,
          context_items = 0, generation_items = 0;

  CudaStepLayout() = default;
  CudaStepLayout(int32_t tokens_in, int32_t outputs_in, int32_t edits_max_in, int32_t context_items_max_in);
  int32_t Words(int32_t generation_item_count) const { return generation_items + generation_item_count * kItemWords; }
};
static_assert(sizeof(cuda::AttentionItem) == CudaStepLayout::kItemWords * 4);
static_assert(sizeof(cuda::TableEdit) == CudaStepLayout::kEditWords * 4);

// The sizes of a step, as its kernels are launched: what it holds is padded to them.
struct CudaStepShape {
  int32_t tokens = 0, outputs = 0;
  bool context = false;  // false: every row is one generated token with an output, in order
  bool sparse = false;   // captured before ready; the others when there is time
};

// Every shape that steps run in, the smallest first. Generation steps have one for few row counts; steps with context
// one for each pair of a token count and a number of outputs, so that no kernel depends on anything else: what is in
// them is read from device memory.
class CudaStepShapes {
 public:
  CudaStepShapes() = default;
  CudaStepShapes(int32_t max_batch_size, int32_t max_num_tokens);
  const std::vector<CudaStepShape>& all() const { return all_; }
  // The first shape that holds such a step and is usable (one flag a shape; empty: all are). The largest of each kind
  // must be usable.
  size_t Find(int32_t tokens, int32_t outputs, bool context, std::span<const uint8_t> usable) const;

 private:
  std::vector<CudaStepShape> all_;
};

// Row counts that have a graph, ascending, the last one `max_batch_size`: every one up to 16, then at most an eighth
// apart.
std::vector<int32_t> CudaGraphBuckets(int32_t max_batch_size);
// The token count that a step of `tokens` is padded to, at most `max_num_tokens`: few sizes, so that each has its plan,
// and at most 1/8 of padding from 64 tokens on.
int32_t CudaPaddedTokens(int32_t tokens, int32_t max_num_tokens);

}  // namespace ekiben
