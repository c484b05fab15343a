// Where a request's logits go: as the model made them, before penalties and masks, in float32. The memory is taken when
// the request is built, within a bound of all requests together, so that the executor's thread allocates nothing.
//
// A row is written once, before the event of its token leaves the executor, and read only after that event was seen.
// Thread: rows by the backend while it finishes a step; readers any, as said.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>

#include "base/check.h"

namespace ekiben {

// Bytes of logits that are held now.
using LogitsBytes = std::atomic<int64_t>;

class GatheredLogits {
 public:
  // Of a prompt of `prompt_tokens` (0: not wanted) and of `sequences` of at most `max_tokens` (0: not wanted).
  // `bytes` has been counted into `held` by the caller and is given back here.
  GatheredLogits(int32_t prompt_tokens, int32_t sequences, int32_t max_tokens, int32_t vocab_size, int64_t bytes,
                 std::shared_ptr<LogitsBytes> held)
      : prompt_tokens_(prompt_tokens),
        max_tokens_(max_tokens),
        vocab_size_(vocab_size),
        bytes_(bytes),
        held_(std::move(held)),
        rows_(std::make_unique_for_overwrite<float[]>(
            (static_cast<size_t>(prompt_tokens) + static_cast<size_t>(sequences) * static_cast<size_t>(max_tokens)) *
            static_cast<size_t>(vocab_size))) {}
  ~GatheredLogits() { held_->fetch_sub(bytes_, std::memory_order_relaxed); }
  GatheredLogits(const GatheredLogits&) = delete;
  GatheredLogits& operator=(const GatheredLogits&) = delete;

  bool context() const { return prompt_tokens_ > 0; }
  bool generation() const { return max_tokens_ > 0; }
  int32_t prompt_tokens() const { return prompt_tokens_; }
  int32_t max_tokens() const { return max_tokens_; }
  int32_t vocab_size() const { return vocab_size_; }

  // [vocab_size], given prompt[0..position].
  float* Context(int32_t position) const {
    CHECK(position >= 0 && position < prompt_tokens_, "{}", position);
    return At(static_cast<size_t>(position));
  }
  // [vocab_size], that chose token `index` of the sequence.
  float* Generation(int32_t sequence, int32_t index) const {
    CHECK(index >= 0 && index < max_tokens_, "{}", index);
    return At(static_cast<size_t>(prompt_tokens_) + static_cast<size_t>(sequence) * static_cast<size_t>(max_tokens_) +
              static_cast<size_t>(index));
  }

 private:
  float* At(size_t row) const { return rows_.get() + row * static_cast<size_t>(vocab_size_); }

  const int32_t prompt_tokens_, max_tokens_, vocab_size_;
  const int64_t bytes_;
  const std::shared_ptr<LogitsBytes> held_;
  const std::unique_ptr<float[]> rows_;
};

}  // namespace ekiben
