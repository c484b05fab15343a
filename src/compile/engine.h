// The engine: the directory that `ekiben build` writes and everything else runs from (docs/engine-format.md).
//   config.json     {version, pretrained_config, build_config, requires}
//   rank0.engine    header, then packed tensors, each 4 KiB aligned; SHA-256 of every 16 MiB chunk
//   profiles.json   the bodies chosen for each bucket of token counts, with their measured times
//   tokenizer.bin   the tokenizer and the chat template (text/tokenizer_spec.h)
// Opened by mmap: nothing is copied, and a second process shares the pages, unless HoldInHugePages is asked for.
// Thread: immutable after Open.
#pragma once
#include <filesystem>
#include <functional>
#include <string>

#include "base/mapped_file.h"
#include "base/result.h"
#include "device/buffer.h"
#include "model/model.h"
#include "text/tokenizer_spec.h"
#include "weights/checkpoint.h"

namespace ekiben {

// What the build is asked for. TensorRT-LLM's names (trtllm-build); each has an effect here or is refused.
struct BuildConfig {
  std::string device = "cpu";  // cpu | cuda: what its packing and profiles are for
  std::string dtype = "auto";  // auto | f32 | bf16 | int8 | int4; on cuda auto | bf16 | fp8
  int32_t max_batch_size = 128;
  int32_t max_num_tokens = 512;
  int32_t max_seq_len = 0;    // 0: the model's
  int32_t max_input_len = 0;  // 0: max_seq_len - 1
  int32_t max_beam_width = 1;
  int32_t opt_num_tokens = 0;    // 0: max_batch_size
  int32_t tokens_per_block = 0;  // 0: the device's (DefaultsOf)
  bool multiple_profiles = true;
  // auto | disable (own kernels as far as they reach) | on cuda bfloat16, fp8 (cuBLASLt, in the type of the linears)
  std::string gemm_plugin = "auto";
  bool use_paged_context_fmha = true;
  std::string kv_cache_type = "paged";
  bool gather_context_logits = false, gather_generation_logits = false;  // requests may ask for them; CPU only
};

// What a build stands for where nothing was said: a CPU is full with few tokens, a GPU wants many in one step, and its
// fastest attention wants blocks of 64.
struct DeviceDefaults {
  int32_t max_batch_size = 0, max_num_tokens = 0, tokens_per_block = 0;
  double kv_cache_free_mem_fraction = 0;  // of the free memory, for keys and values
};
DeviceDefaults DefaultsOf(std::string_view device);

// Ranges, and combinations that the device's backend cannot honour: the error says which and why.
Result<void> Validate(const BuildConfig& build, const ModelConfig& model);
json::object ToJson(const BuildConfig& build);
Result<BuildConfig> BuildConfigFromJson(const json::object& object);

struct BuildProgress {
  std::string stage;  // "pack", "profile", "write"
  int64_t done = 0, total = 0;
  std::string line = {};  // something that stays on the screen
};
using ProgressFunction = std::function<void(const BuildProgress&)>;

// Writes into a temporary folder beside `out` and renames: `out` is whole or absent. An existing engine is replaced.
Result<void> BuildEngine(const Checkpoint& checkpoint, const BuildConfig& config, const std::filesystem::path& out,
                         const ProgressFunction& progress);

struct Engine {
  std::filesystem::path path;
  ModelConfig model;
  BuildConfig build;        // as resolved: no zeros, no "auto"
  std::string fingerprint;  // of the checkpoint, options and format version
  EngineTensors tensors;
  text::TokenizerSpec tokenizer;
  json::object profiles;
  json::object fp8;  // what a build for dtype fp8 did (model/fp8_rounding.h); else empty
  MappedFile weights;
  Buffer resident;  // see HoldInHugePages
};

// Copies the linear weights into one allocation of huge pages, in the order of a step, and lets the tensors point
// there. A file's pages are 4 KiB: walking their page tables costs read bandwidth at one token (linear_bench).
// Costs the weights' bytes of memory and one read of them.
void HoldInHugePages(Engine& engine);

enum class Verify : uint8_t { kHeader, kAll };  // kAll reads every chunk and compares its SHA-256

// Refuses, naming the field and the rebuild command: another format version, a missing CPU feature, an unknown packing,
// a size or digest that does not match.
Result<Engine> OpenEngine(const std::filesystem::path& path, Verify verify);

}  // namespace ekiben
