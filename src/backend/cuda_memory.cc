#include "backend/cuda_memory.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/arithmetic.h"
#include "base/human.h"
#include "device/cuda/cuda_device.h"

namespace ekiben {
namespace {

// Left free beside the cache: graphs, cuBLASLt's own memory, the driver.
constexpr size_t kReserveBytes = size_t{512} << 20;

}  // namespace

Result<void> CheckCudaWeightsFit(const ModelConfig& model, const CudaPrecision& precision,
                                 const EngineTensors* tensors) {
  ASSIGN_OR_RETURN(CudaMemoryInfo memory, CudaMemory());
  const size_t weights = CudaLlama::WeightBytes(model, precision, tensors),
               fp8 = CudaLlama::WeightBytes(model, {.fp8_linears = true}, nullptr);
  if (weights + kReserveBytes <= memory.free_bytes) return {};
  std::string cure = "take a smaller model, or a GPU with more memory";
  if (!precision.fp8_linears && fp8 + kReserveBytes <= memory.free_bytes)
    cure = fmt::format("--dtype fp8 makes them {}", HumanBytes(fp8));
  return Error(Code::kInvalid,
               fmt::format("GPU memory: the weights take {} in {} and {} is kept for the driver, {} of {} are free: {} "
                           "are missing; {}",
                           HumanBytes(weights), precision.fp8_linears ? "fp8" : "bf16", HumanBytes(kReserveBytes),
                           HumanBytes(memory.free_bytes), HumanBytes(memory.total_bytes),
                           HumanBytes(weights + kReserveBytes - memory.free_bytes), cure),
               "dtype");
}

size_t CudaBlockBytes(const ModelConfig& model, const CudaBackendConfig& config) {
  return size_t{2} * static_cast<size_t>(model.num_hidden_layers) * static_cast<size_t>(model.num_key_value_heads) *
         static_cast<size_t>(config.tokens_per_block) * static_cast<size_t>(cuda::HeadStride(model.head_dim)) *
         (config.fp8_kv_cache ? sizeof(cuda::Fp8) : sizeof(cuda::Bf16));
}

Result<int64_t> CudaCacheBlocks(const ModelConfig& model, const CudaBackendConfig& config, size_t activation_bytes) {
  const double fraction = config.kv_cache_free_gpu_mem_fraction;
  if (!(fraction > 0 && fraction <= 0.98))
    return Error(Code::kInvalid, fmt::format("kv_cache_free_gpu_mem_fraction: {} is outside (0, 0.98]", fraction),
                 "kv_cache_free_gpu_mem_fraction");
  const size_t block_bytes = CudaBlockBytes(model, config);
  const int64_t a_slot = CeilDiv(config.max_seq_len, config.tokens_per_block);
  ASSIGN_OR_RETURN(CudaMemoryInfo memory, CudaMemory());
  const size_t usable = memory.free_bytes > kReserveBytes ? memory.free_bytes - kReserveBytes : 0;
  auto blocks = static_cast<int64_t>(static_cast<double>(usable) * fraction / static_cast<double>(block_bytes));
  // More than every slot at its full length is never used.
  blocks = std::min(blocks, config.max_batch_size * a_slot);
  if (config.max_tokens_in_paged_kv_cache > 0)
    blocks = std::min(blocks, config.max_tokens_in_paged_kv_cache / config.tokens_per_block);
  if (blocks >= a_slot) return blocks;
  auto bytes = [&](int64_t count) { return HumanBytes(static_cast<size_t>(count) * block_bytes); };
  return Error(Code::kInvalid,
               fmt::format("the KV cache has room for {} tokens ({} of {} free), one sequence of max_seq_len needs {}: "
                           "{} are missing; lower --max_seq_len or --max_num_tokens (activations take {}), or raise "
                           "--kv_cache_free_gpu_mem_fraction ({}) or --max_tokens_in_paged_kv_cache",
                           blocks * config.tokens_per_block, bytes(blocks), HumanBytes(memory.free_bytes),
                           config.max_seq_len, bytes(a_slot - blocks), HumanBytes(activation_bytes), fraction),
               "max_seq_len");
}

}  // namespace ekiben
