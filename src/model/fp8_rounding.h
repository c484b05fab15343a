// What a build for dtype fp8 does to a model beside packing it in bf16: it rounds the linears of the layers so that
// e4m3 holds them (ops/e4m3_rounding.h), by what they multiply while a short built-in text passes through the model,
// and says which linears stay bf16.
//
// Those are the first layer's output projection and the last layer's gate and up projections, among the linears whose
// rounding costs SmolLM2 most for their bytes (tools/fp8_study.py --linears): 1.9 % of those of an 8B model's layers.
// The text has at most kTokensMax tokens, fewer for large models: 4 flops a weight and token besides the forward's 2.
// Without a text (no tokenizer) nothing is rounded here, and the GPU takes the nearest values.
// Thread: the build's.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "device/thread_pool.h"
#include "model/streamed_forward.h"
#include "weights/checkpoint.h"

namespace ekiben {

// Of what a build makes of the same checkpoint: part of an fp8 engine's fingerprint.
inline constexpr int kFp8RoundingVersion = 1;

class Fp8Rounding {
 public:
  static constexpr int64_t kTokensMax = 512, kTokensMin = 32;

  static bool KeepsBf16(const ModelConfig& config, std::string_view linear);
  // Which linears stay bf16, each with its reason; lm_head is never rounded.
  static std::vector<std::pair<std::string, std::string>> Kept(const ModelConfig& config);
  // How many tokens of the text pass through such a model, and which; none without a tokenizer.
  static int64_t TokensFor(const ModelConfig& config);
  static Result<std::vector<int32_t>> TextIds(const Checkpoint& checkpoint);

  Fp8Rounding(const ModelConfig& config, std::vector<int32_t> token_ids, ThreadPool& pool);
  // Lets the text pass through a tensor, whose data are `bytes`. REQUIRES: every tensor of the model, in the order of
  // PackRules.
  void Pass(EngineTensor tensor, std::span<const std::byte> bytes);
  // Rounds the linear that was passed last in place, if it is one to round.
  void Round(const EngineTensor& tensor, std::span<std::byte> bytes);
  int64_t tokens() const { return tokens_; }
  int64_t linears_rounded() const { return rounded_; }

 private:
  ThreadPool& pool_;
  int64_t tokens_ = 0, rounded_ = 0;
  std::unique_ptr<StreamedForward> forward_;  // null: no text
};

}  // namespace ekiben
