#include "backend/cuda_step.h"

#include <algorithm>
#include <bit>

#include "base/arithmetic.h"
#include "base/check.h"

namespace ekiben {
namespace {

// Arrays begin on 16 bytes.
constexpr int32_t kAlignWords = 4;
constexpr int32_t kFewOutputs = 64;

}  // namespace

CudaStepLayout::CudaStepLayout(int32_t tokens_in, int32_t outputs_in, int32_t edits_max_in,
                               int32_t context_items_max_in)
    : tokens(tokens_in), outputs(outputs_in), edits_max(edits_max_in), context_items_max(context_items_max_in) {
  int32_t at = kHeaderWords;
  auto take = [&at](int32_t words) {
    int32_t begin = at;
    at += RoundUp(words, kAlignWords);
    return begin;
  };
  source = take(tokens);
  positions = take(tokens);
  slots = take(tokens);
  output_tokens = take(outputs);
  sample_slots = take(outputs);
  sampled_rows = take(outputs);
  edits = take(edits_max * kEditWords);
  context_items = take(context_items_max * kItemWords);
  generation_items = at;
}

CudaStepShapes::CudaStepShapes(int32_t max_batch_size, int32_t max_num_tokens) {
  for (int32_t rows : CudaGraphBuckets(max_batch_size)) all_.push_back({rows, rows, false, true});
  // Up to 64 outputs the head costs the same; beyond, an output costs little and a graph some start-up time.
  std::vector<int32_t> outputs;
  for (int32_t count = kFewOutputs; count < max_batch_size; count *= 2) outputs.push_back(count);
  outputs.push_back(max_batch_size);
  for (int32_t tokens = 0; tokens < max_num_tokens;) {
    tokens = CudaPaddedTokens(tokens + 1, max_num_tokens);
    auto power = std::bit_floor(static_cast<uint32_t>(tokens));
    auto size = static_cast<uint32_t>(tokens);
    bool sparse = tokens == max_num_tokens || size == power || size == power + power / 2;
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (i > 0 && outputs[i - 1] >= tokens) break;  // a smaller count holds every output already
      all_.push_back({tokens, outputs[i], true, sparse});
    }
  }
}

size_t CudaStepShapes::Find(int32_t tokens, int32_t outputs, bool context, std::span<const uint8_t> usable) const {
  size_t i = 0;
  auto holds = [&](const CudaStepShape& shape) {
    return shape.context == context && shape.tokens >= tokens && shape.outputs >= outputs;
  };
  while (i < all_.size() && (!holds(all_[i]) || (!usable.empty() && usable[i] == 0))) ++i;
  CHECK(i < all_.size(), "no shape for {} tokens and {} outputs", tokens, outputs);
  return i;
}

std::vector<int32_t> CudaGraphBuckets(int32_t max_batch_size) {
  std::vector<int32_t> out;
  for (int32_t rows = 1; rows < max_batch_size;) {
    out.push_back(rows);
    rows += rows < 16 ? 1 : rows < 32 ? 2 : rows < 64 ? 4 : rows < 128 ? 8 : rows < 256 ? 16 : 32;
  }
  out.push_back(max_batch_size);
  return out;
}

int32_t CudaPaddedTokens(int32_t tokens, int32_t max_num_tokens) {
  int32_t step = tokens <= 128    ? 8
                 : tokens <= 256  ? 16
                 : tokens <= 512  ? 32
                 : tokens <= 1024 ? 64
                 : tokens <= 2048 ? 128
                 : tokens <= 4096 ? 256
                                  : 512;
  return std::min(RoundUp(tokens, step), max_num_tokens);
}

}  // namespace ekiben
