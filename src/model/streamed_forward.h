// A forward pass over a model that is not there yet: some tokens pass through each packed tensor as it comes, in the
// order of PackRules, which is the order of execution. So a build can see what every linear multiplies while it holds
// one tensor at a time. Linears in the packing bf16, the residual stream in f32, the cache in bf16.
//
// The Llama family's order, as in model/llama.cc. Cost: 2 flops a weight and token.
// Thread: caller's, forks over the pool.
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "device/buffer.h"
#include "device/thread_pool.h"
#include "model/model.h"
#include "model/rope_table.h"

namespace ekiben {

class StreamedForward {
 public:
  // One sequence. REQUIRES: a valid configuration, at least one token, ids below vocab_size.
  StreamedForward(const ModelConfig& config, std::vector<int32_t> token_ids, ThreadPool& pool);
  // Lets the tokens pass. REQUIRES: tensors in the order of PackRules, linears of the layers in bf16.
  void Pass(const EngineTensor& tensor);
  // What the last tensor, a linear of a layer, multiplied, and after the final norm what lm_head will: f32 [tokens,
  // columns]. Until the next Pass.
  TensorView input() const { return input_; }

 private:
  struct Rows {
    Buffer buffer;
    TensorView view;
    Rows(int64_t tokens, int64_t columns)
        : buffer(static_cast<size_t>(tokens * columns) * sizeof(float)),
          view(buffer.as<float>(), DType::kF32, {tokens, columns}) {}
  };
  // `tensor` is a layer's, without "layers.i.".
  void PassLayer(std::string_view part, const EngineTensor& tensor);
  void Norm(const float* weight);
  void Attend();
  void Multiply(const Rows& y, const Rows& x, const EngineTensor& tensor);

  ModelConfig config_;
  std::vector<int32_t> token_ids_;
  RopeTable rope_;
  PagedKv kv_;  // one layer's
  std::vector<BlockId> blocks_;
  AttentionRow row_;
  Rows x_, h_, qkv_, attention_, gate_up_, mlp_, delta_;
  bool has_delta_ = false;
  const Rows* output_ = nullptr;  // of the last linear: what a bias is added to
  TensorView input_;
  Arena arena_;
  OpContext ctx_;
};

}  // namespace ekiben
