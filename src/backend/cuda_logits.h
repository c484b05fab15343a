// Logits of whole sequences from a CUDA device, for `ekiben check`. Thread: one.
#pragma once
#include <functional>
#include <span>
#include <vector>

#include "base/result.h"
#include "model/model.h"

namespace ekiben {

// f32 [tokens, vocab_size] of a sequence of tokens, computed alone.
using SequenceLogits = std::function<Result<std::vector<float>>(std::span<const int32_t>)>;

struct CudaLogitsConfig {
  bool fp8 = false, fp8_kv_cache = false;
  int32_t tokens_per_block = 64, max_seq_len = 0;
  int32_t chunk = 64;  // tokens of a step; a last one alone is a generation step
};

// Errors: no Hopper GPU, or none in this build; too little memory; a model that the CUDA backend does not run.
Result<SequenceLogits> OpenCudaLogits(const ModelConfig& model, const EngineTensors& tensors,
                                      const CudaLogitsConfig& config);

}  // namespace ekiben
