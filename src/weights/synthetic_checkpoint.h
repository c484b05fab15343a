// A checkpoint of a published shape with random weights: a Hugging Face folder (config.json, model.safetensors in bf16,
// tokenizer files) that every tool reads. Weights are N(0, 0.02), a function of (seed, tensor, index); norms are 1 and
// biases N(0, 0.02). Never constant: data changes what hardware does. The CUDA backend's own synthesis draws the same
// distribution, not the same numbers.
// Thread: the caller's and a pool of its own. Errors: an unknown shape; a folder that exists; a disk that is full.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string_view>

#include "base/result.h"

namespace ekiben {

// `progress` is told bytes written of bytes in all.
Result<void> WriteSyntheticCheckpoint(std::string_view shape, uint64_t seed, const std::filesystem::path& folder,
                                      const std::function<void(int64_t, int64_t)>& progress);

}  // namespace ekiben
