// The step on a CUDA device (Hopper). In a build or on a machine without CUDA, Open answers an Error that says why.
//
// Steps overlap: two may be in flight. A generation row's token is read from its slot on the device, where the step
// before left it. Every step runs as one captured graph: padded to the smallest shape (cuda_step.h) that has its graph;
// all shapes of generation and a sparse set of those with context have theirs when Open returns, the rest get it within
// a second and a half of Open, then in idle gaps. Only a step with prompt_logprobs is queued kernel by kernel.
// Greedy rows without rules are chosen by an argmax, other rows by the device's sampler (ops/sampling.cu), so that
// their steps overlap too. What that does not serve (slot_sampling.h: allowed_tokens, very long lists of rules) has its
// row of logits copied to the host and chosen by sample/sampler.h before the next step is queued: right, but without
// overlap. A request with prompt_logprobs waits for its logits inside Launch. Memory: everything large is taken in
// Open, the cache last, from what is then free. Thread: one, the executor's.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "model/cuda_linear_plan.h"
#include "model/model.h"

namespace ekiben {

struct CudaBackendConfig {
  int32_t max_batch_size = 1;  // slots
  int32_t max_num_tokens = 1;
  int32_t max_seq_len = 1;
  int32_t tokens_per_block = 64;  // a power of two >= 16; 64 lets the fastest attention run
  double kv_cache_free_gpu_mem_fraction = 0.9;
  int64_t max_tokens_in_paged_kv_cache = 0;  // 0: what the fraction allows
  bool fp8 = false;                          // linears in e4m3 (model/cuda_llama.h), the head in bf16
  bool fp8_kv_cache = false;                 // keys and values in e4m3
  bool graphs = true;       // false: every step kernel by kernel, in the same shapes and to the same bits
  uint64_t synth_seed = 1;  // of random weights, when there are no tensors
  // How linears run: of the engine's profile; without one, or where it is of another machine, timed when it opens.
  std::optional<CudaLinearPlan> plan;
  CudaTuneOptions tune;
  int32_t tune_tokens_max = kCudaStartTokensMax;
};

struct CudaBackendParts {
  std::unique_ptr<Backend> backend;
  std::vector<MemoryLine> memory;
};

// Whether this build and machine have what the backend needs; the error is OpenCudaBackend's. Cheap: for asking before
// an engine is built.
Result<void> CheckCudaDevice();

// `tensors` of an engine in the packing bf16; null: random weights in this configuration's shape.
Result<CudaBackendParts> OpenCudaBackend(const ModelConfig& model, const EngineTensors* tensors,
                                         const CudaBackendConfig& config);

}  // namespace ekiben
