#include "backend/cuda_logits.h"

#include <algorithm>

#include "backend/cuda_backend.h"
#include "model/cuda_forward_runner.h"

namespace ekiben {

Result<SequenceLogits> OpenCudaLogits(const ModelConfig& model, const EngineTensors& tensors,
                                      const CudaLogitsConfig& config) {
  RETURN_IF_ERROR(CheckCudaDevice());
  ASSIGN_OR_RETURN(auto llama, CudaLlama::Load(model, tensors, {config.max_seq_len, config.chunk, config.chunk},
                                               {.fp8_linears = config.fp8}));
  ASSIGN_OR_RETURN(auto created,
                   CudaForwardRunner::Create(std::move(llama), {.tokens_per_block = config.tokens_per_block,
                                                                .max_seq_len = config.max_seq_len,
                                                                .fp8_kv_cache = config.fp8_kv_cache}));
  std::shared_ptr<CudaForwardRunner> runner = std::move(created);
  return SequenceLogits([runner, chunk = config.chunk](std::span<const int32_t> tokens) -> Result<std::vector<float>> {
    CudaForwardRunner::Sequence sequence{.token_ids = {tokens.begin(), tokens.end()}};
    while (sequence.done < std::ssize(tokens)) {
      CudaForwardRunner::Feed feed{&sequence,
                                   std::min(chunk, static_cast<int32_t>(std::ssize(tokens)) - sequence.done)};
      RETURN_IF_ERROR(runner->Step({&feed, 1}));
    }
    return std::move(sequence.logits);
  });
}

}  // namespace ekiben
