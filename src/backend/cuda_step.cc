#include "backend/cuda_step.h"

#include <algorithm>

#include "base/arithmetic.h"
#include "base/check.h"

namespace ekiben {
namespace {

// Arrays begin on 16 bytes.
constexpr int32_t kAlignWords = 4;

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
  edits = take(edits_max * kEditWords);
  context_items = take(context_items_max * kItemWords);
  generation_items = at;
}

std::vector<int32_t> CudaGraphBuckets(int32_t max_batch_size) {
  std::vector<int32_t> out;
  int32_t rows = 1;
  while (rows < max_batch_size) {
    out.push_back(rows);
    rows += rows < 2 ? 1 : rows < 4 ? 2 : rows < 32 ? 4 : rows < 128 ? 8 : rows < 256 ? 16 : 32;
  }
  out.push_back(max_batch_size);
  return out;
}

int32_t CudaBucketFor(std::span<const int32_t> buckets, int32_t rows) {
  auto found = std::lower_bound(buckets.begin(), buckets.end(), rows);
  CHECK(found != buckets.end(), "{} rows, the largest bucket is {}", rows, buckets.back());
  return *found;
}

int32_t CudaPaddedTokens(int32_t tokens, int32_t max_num_tokens) {
  int32_t step = tokens <= 128    ? 8
                 : tokens <= 256  ? 16
                 : tokens <= 512  ? 32
                 : tokens <= 1024 ? 64
                 : tokens <= 2048 ? 128
                                  : 256;
  return std::min(RoundUp(tokens, step), max_num_tokens);
}

}  // namespace ekiben
