// A checkpoint as published, opened in place: a Hugging Face folder (safetensors + config.json + tokenizer files) or a
// GGUF file. One in-memory form for all: tensors under Hugging Face's names ("model.layers.0.self_attn.q_proj.weight",
// "model.embed_tokens.weight", "lm_head.weight", ...), Hugging Face's [out, in] orientation, the file's own dtype.
// GGUF stores q and k rows permuted for `llama`; they stay so, and config.rope_interleaved says it.
// Every length is proven against the file before it is used; errors name file, offset and field.
// Thread: immutable after Open.
#pragma once
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/mapped_file.h"
#include "base/result.h"
#include "text/tokenizer_spec.h"
#include "weights/model_config.h"

namespace ekiben {

struct CheckpointTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // outermost first: [out_features, in_features]
  const std::byte* data = nullptr;
  size_t bytes = 0;
};

struct Checkpoint {
  std::filesystem::path path;
  std::string format;  // "gguf v3", "safetensors"
  ModelConfig config;
  std::map<std::string, CheckpointTensor, std::less<>> tensors;
  text::TokenizerSpec tokenizer;
  bool has_tokenizer = false;  // false: the folder has no tokenizer we read; `tokenizer_error` says why
  std::string tokenizer_error;
  std::vector<MappedFile> files;  // keeps the tensors' bytes mapped
  std::string fingerprint;        // hex SHA-256 over names, shapes, sizes and sampled content; a cache key

  // Error with the name when absent.
  Result<const CheckpointTensor*> Tensor(std::string_view name) const;
};

// `path`: a .gguf file, a .safetensors file with config.json beside it, or a folder holding either.
Result<Checkpoint> OpenCheckpoint(const std::filesystem::path& path);

// Values of any dtype to f32: `count` of them (a multiple of the block) from `row` on. The one dequantiser.
void Dequantize(DType dtype, const std::byte* row, int64_t count, float* out);

// What `ekiben inspect` prints, for any file we read, without building a Checkpoint.
Result<json::object> InspectFile(const std::filesystem::path& path);

}  // namespace ekiben
