// How a GPU's memory is shared out: weights first, then what a step computes in, then the cache. Errors name what is
// missing and which option frees it. Bytes. Thread: any.
#pragma once
#include "backend/cuda_backend.h"
#include "model/cuda_llama.h"

namespace ekiben {

// Before anything is allocated.
Result<void> CheckCudaWeightsFit(const ModelConfig& model, const CudaPrecision& precision,
                                 const EngineTensors* tensors);

// Of a block's keys and values in all layers.
size_t CudaBlockBytes(const ModelConfig& model, const CudaBackendConfig& config);

// Blocks of the cache, from what is free now; `activation_bytes` are taken already and only named in the error. Errors:
// an option out of its range; no room for one sequence of max_seq_len.
Result<int64_t> CudaCacheBlocks(const ModelConfig& model, const CudaBackendConfig& config, size_t activation_bytes);

}  // namespace ekiben
