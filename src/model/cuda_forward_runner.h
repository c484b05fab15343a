// Steps of a CUDA model over a few sequences, with the logits of every token that was fed: what checks compare with
// references. Not the served path, which is backend/cuda_backend.h: each step waits for the device and copies all
// logits. A sequence's blocks are scattered over the pool, which starts as NaN, so that a key that was never written
// shows. Thread: one.
#pragma once
#include <memory>
#include <span>
#include <vector>

#include "model/cuda_llama.h"

namespace ekiben {

class CudaForwardRunner {
 public:
  struct Options {
    int32_t tokens_per_block = 64, max_seq_len = 0, slots = 1;
    bool fp8_kv_cache = false;
  };
  // A sequence's `done` tokens are in the cache, their logits f32 [done, vocab_size] in `logits`.
  struct Sequence {
    int32_t slot = 0;
    std::vector<int32_t> token_ids;
    int32_t done = 0;
    std::vector<float> logits;
  };
  struct Feed {
    Sequence* sequence;
    int32_t tokens;
  };

  static Result<std::unique_ptr<CudaForwardRunner>> Create(std::unique_ptr<CudaLlama> model, const Options& options);

  // Feeds the next tokens of each sequence; one token is a generation row. REQUIRES: within the model's tokens_max.
  Result<void> Step(std::span<const Feed> feeds);

  // Planted errors, for tests that must notice them: a table entry names another one's block; tokens are rotated as if
  // they stood further.
  Result<void> PointTableAt(int32_t slot, int32_t entry, int32_t other_entry);
  void RotateFurther(int32_t tokens) { model_->RotateFurther(tokens); }

 private:
  CudaForwardRunner(std::unique_ptr<CudaLlama> model, const Options& options)
      : model_(std::move(model)), options_(options) {}
  Result<void> Allocate();
  Result<void> PoisonPool(DeviceBuffer& pool);

  std::unique_ptr<CudaLlama> model_;
  Options options_;
  int32_t pitch_ = 0;  // entries of a slot's table
  CudaStream stream_;
  cuda::Queue queue_;
  cuda::KvLayout kv_;
  DeviceBuffer keys_, values_, tables_, logits_;
  CudaAttentionScratch scratch_;
};

}  // namespace ekiben
