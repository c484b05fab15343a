// Every op of a step on a CUDA device, timed one by one beside what the device was measured to do: `ekiben kernels`
// with --device cuda. In a build or on a machine without CUDA an Error says why.
//
// The calls are Forward's own, with all others left out (CudaLlama::Only): an op runs over all layers in order, so its
// weights and its part of the cache are never those that the L2 cache holds from the call before, while activations are
// where a step leaves them. One graph of them is replayed; a time is the median over replays, of one call in a row of
// the same calls: where launches are dependent, the start of one overlaps the end of the one before, as in a step.
// Random keys and values fill the cache; more sequences than fit share blocks, far apart in the order they are read in.
// Memory: weights as served, a cache of at most half of what is then free. Thread: one.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/cuda_linear_plan.h"
#include "model/model.h"
#include "ops/op_timing.h"

namespace ekiben {

struct CudaOpTimingConfig {
  bool fp8 = false, fp8_kv_cache = false;
  int32_t tokens_per_block = 64, max_seq_len = 1;
  std::vector<int32_t> tokens;     // of a step, ascending
  std::vector<int32_t> kv_tokens;  // cached tokens before each generating sequence, ascending
  int32_t rows_max = 256;          // generating sequences; steps of more tokens are context alone
  uint64_t synth_seed = 1;
  std::optional<CudaLinearPlan> plan;  // the engine's
  CudaTuneOptions tune;                // where it has none
};

// Measured: reading device memory, and cuBLASLt's fastest candidate for a large product.
struct CudaLimits {
  double read_bytes = 0, bf16_operations = 0, fp8_operations = 0;  // per second; a multiply-add is two operations
};

struct CudaOpTimings {
  std::string device;
  CudaLimits limits;
  std::vector<OpTiming> ops;
};

// `tensors` of an engine in the packing bf16; null: random weights in this configuration's shape.
Result<CudaOpTimings> TimeCudaOps(const ModelConfig& model, const EngineTensors* tensors,
                                  const CudaOpTimingConfig& config);

}  // namespace ekiben
